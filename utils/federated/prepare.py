"""The settings and the places of federated runs, from their command line."""

import argparse
import math
from dataclasses import replace
from pathlib import Path

from utils.cmd.vector import layer_sizes
from utils.federated.client import images_by_part, images_of
from utils.federated.contenders import CONTENDERS, Contender
from utils.federated.embedding import embeddable
from utils.federated.methods import CMD, METHODS, undecided
from utils.federated.rounds import Place, checkpoint_of
from utils.federated.settings import FederatedSettings
from utils.flags import require_once
from utils.results.curves import require_tensorboard
from utils.storage.files import require_room
from utils.storage.store import AFRESH, CONFIG, Store, read_config, usable
from utils.system.devices import choose_device
from utils.system.errors import UserError
from utils.training.folder import seed_folder, seeds_folder
from utils.training.precision import choose_precision
from utils.training.settings import differences

Prepared = tuple[FederatedSettings, Place]


def selected(args: argparse.Namespace) -> list[Contender]:
    """List who is compared by a command, in the order of the flags' values."""
    return [Contender(method, way) for method in args.methods for way in args.transport]


def folder_of_seeds(args: argparse.Namespace) -> Path:
    """Name the folder with the runs of several seeds, and what is said of them together."""
    return seeds_folder(Path(args.results_dir) / "federated", f"{args.model}_{args.partition}")


def prepare_all(args: argparse.Namespace) -> list[Prepared]:
    """Make the settings and the places of a command's runs: one, or one with each seed.

    Raises:
        UserError: for one of them as `prepare` does, or there is no room for them.
    """
    if args.seeds is None:
        prepared = [prepare(args)]
    else:
        require_once("--seeds", args.seeds)
        prepared = [prepare(argparse.Namespace(**vars(args) | {"seed": s})) for s in args.seeds]
    own, needed = [], []
    for settings, place in prepared:
        for contender in selected(args):
            own.append(place.store.folder / checkpoint_of(contender.name))
            needed.append(contender.checkpoint_bytes(settings) * place.n_weights)
    already = sum(path.stat().st_size for path in own if path.exists())
    # each is kept, and one is there twice while it is replaced
    room = sum(needed) + max(needed) - already
    require_room(prepared[0][1].store.folder, room, f"{len(own)} checkpoints")
    return prepared


def prepare(args: argparse.Namespace) -> Prepared:
    """Make the settings and the place of the run with the seed that is given.

    Raises:
        UserError: the settings do not fit together, the images are not there, or the folder holds
            results of other settings.
    """
    if args.tensorboard:
        require_tensorboard()
    settings = make_settings(args)
    device = choose_device(args.device)
    dataset, fingerprint = images_of(
        args.model, args.dataset, args.data_dir, args.limit, str(device)
    )
    images_by_part(settings, dataset)
    folder = Path(args.results_dir) / "federated" / f"{args.model}_{args.partition}"
    if args.seeds is not None:
        folder = seed_folder(folder.parent, folder.name, args.seed)
    settings = replace(
        settings, data=fingerprint, precision=choose_precision(args.precision, device)
    )
    n_weights = sum(layer_sizes(settings.build(len(dataset.classes))))
    if CMD in args.methods:
        check_sizes(settings, n_weights)
    place = Place(Store.new(folder), device, args.data_dir, args.timeout, n_weights)
    return settings, place if args.overwrite else reopened(settings, place)


def check_sizes(settings: FederatedSettings, n_weights: int) -> None:
    """Check that CMD's settings suit a model of N weights.

    Raises:
        UserError: they do not.
    """
    if settings.samples > n_weights or settings.modes > settings.samples:
        raise UserError(
            f"--modes {settings.modes} and --samples {settings.samples}: choose --samples up to "
            f"the model's {n_weights:,} weights, and --modes up to --samples"
        )
    if embeddable(n_weights, settings.embed_max) == 0:
        raise UserError(
            f"--embed_max {settings.embed_max:g}: of {n_weights:,} weights that is none; choose "
            f"{math.ceil(1e6 * 100 / n_weights) / 1e6:g} or more"
        )


def reopened(settings: FederatedSettings, place: Place) -> Place:
    """Go on with the results that are in a place, if there are any.

    To be asked again once the folder is locked: another command may have been there since.

    Raises:
        UserError: the results there are of other settings.
    """
    folder = place.store.folder
    if not (folder / CONFIG).exists():
        return place
    require_same(settings, folder)
    return replace(place, store=Store.of(folder))


def require_same(settings: FederatedSettings, folder: Path) -> None:
    """Check that the results in a folder are of these settings.

    Raises:
        UserError: they are of others.
    """
    config = read_config(folder)
    done = {each.method for each in CONTENDERS if (folder / checkpoint_of(each.name)).exists()}
    with usable(folder / CONFIG, AFRESH):
        found = differences(settings, config["settings"], undecided(settings, done))
    if found:
        raise UserError(
            f"{folder} holds a run with other settings: {'; '.join(found)}; choose another "
            "--results_dir, or --overwrite to start afresh"
        )


def make_settings(args: argparse.Namespace) -> FederatedSettings:
    """Make the settings; where a flag was left out, they are the model's own.

    Raises:
        UserError: the settings do not fit together.
    """
    settings = FederatedSettings.of(vars(args))
    for method in args.methods:
        METHODS[method].check(settings)
    require_once("--methods", args.methods)
    require_once("--transport", args.transport)
    return settings
