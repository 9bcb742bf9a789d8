"""The settings and the place of a federated run, from its command line."""

import argparse
from dataclasses import replace
from pathlib import Path

from utils.cmd.vector import layer_sizes
from utils.federated.client import images_by_part, images_of
from utils.federated.methods import METHODS, undecided
from utils.federated.rounds import Place, checkpoint_of
from utils.federated.settings import FederatedSettings
from utils.results.curves import require_tensorboard
from utils.storage.files import require_room
from utils.storage.store import AFRESH, CONFIG, Store, read_config, usable
from utils.system.devices import choose_device
from utils.system.errors import UserError
from utils.training.precision import choose_precision
from utils.training.settings import differences


def prepare(args: argparse.Namespace) -> tuple[FederatedSettings, Place]:
    """Make the settings and the place of a run.

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
    settings = replace(
        settings, data=fingerprint, precision=choose_precision(args.precision, device)
    )
    n_weights = sum(layer_sizes(settings.build(len(dataset.classes))))
    if settings.samples > n_weights or settings.modes > settings.samples:
        raise UserError(
            f"--modes {settings.modes}, --samples {settings.samples} and the model's "
            f"{n_weights:,} weights must not decrease"
        )
    own = [folder / checkpoint_of(method) for method in args.methods]
    already = sum(path.stat().st_size for path in own if path.exists())
    needed = [METHODS[method].checkpoint_bytes * n_weights for method in args.methods]
    # each is kept, and one is there twice while it is replaced
    require_room(folder, sum(needed) + max(needed) - already, f"{len(own)} checkpoints")
    store = Store.new(folder)
    if not args.overwrite and (folder / CONFIG).exists():
        require_same(settings, folder)
        store = Store.of(folder)
    return settings, Place(store, device, args.data_dir, args.timeout, n_weights)


def require_same(settings: FederatedSettings, folder: Path) -> None:
    """Check that the results in a folder are of these settings.

    Raises:
        UserError: they are of others.
    """
    config = read_config(folder)
    done = [method for method in METHODS if (folder / checkpoint_of(method)).exists()]
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
    if len(set(args.methods)) < len(args.methods):
        raise UserError(f"--methods {' '.join(args.methods)}: give each method once")
    return settings
