"""Draw pictures of a finished run: what its modes are, and what they do.

    python visualize.py all --model lenet              # all that the run allows, a coarse landscape
    python visualize.py correlation --model lenet      # the sample's correlations, by mode
    python visualize.py modes --model lenet            # the modes' curves, layers and movement
    python visualize.py dynamics --model lenet         # weights as trained, by CMD and by DMD
    python visualize.py stability --model lenet        # whether the modes last
    python visualize.py accuracy --model lenet --seeds 0 1 2
    python visualize.py landscape --model lenet --axes 0 1 --points 50 --classes dog
    python visualize.py embedding --model lenet        # needs a run with --cmd_embed True
    python visualize.py modes --described DIR          # of checkpoints, from utils.cmd_utils

The run is one of train_cmd.py, in RESULTS_DIR/MODEL. With --seeds, the runs are those in
RESULTS_DIR/MODEL_seeds, and all pictures but `accuracy` are of the first seed. Each picture is
written as PNG and PDF. `all` leaves out pictures that the run does not allow, and says why.
"""

if __name__ == "__main__":  # before anything large is imported
    from utils.system.interrupts import end_quietly

    end_quietly()

import argparse
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

from tqdm import tqdm

from utils import flags
from utils.base_utils import MODELS
from utils.methods.registry import METHODS, Method
from utils.results.pictures.accuracy import plot_test_accuracy, shares_of
from utils.results.pictures.correlation import draw_correlation
from utils.results.pictures.dynamics import draw_dynamics
from utils.results.pictures.embedding import draw_embedding
from utils.results.pictures.landscape import check_axes, draw_landscape
from utils.results.pictures.modes import draw_modes
from utils.results.pictures.stability import draw_stability
from utils.results.stored_run import StoredRun, require_alike
from utils.results.stored_series import StoredSeries
from utils.system.arguments import Parser, at_least, one_line, positive
from utils.system.command import run_command
from utils.system.devices import choose_device
from utils.system.errors import UserError
from utils.system.interrupts import leave
from utils.training.folder import seed_folder

FORMATS = ("png", "pdf")
ROUGH = {"points": 15, "images": 300}  # of the landscape, where all pictures are asked for
MOST_POINTS = 1000  # of a grid's side; so many take a million tests


def main(argv: list[str] | None = None) -> int:
    """Run the command, and return its exit code."""
    parser = build_parser()
    args = parser.parse_args(argv)

    def work() -> None:
        if args.seeds is not None and args.picture != "accuracy":
            all_of_them = args.picture == "all"
            what = "all pictures but accuracy are" if all_of_them else f"{args.picture} is"
            note(f"{what} of the first seed, {args.seeds[0]}")
        if args.picture == "all":
            draw_all(args)
        else:
            tell(PICTURES[args.picture](args))

    return run_command(parser.prog, f"--output {output(args)}", work)


def draw_all(args: argparse.Namespace) -> None:
    """Draw every picture that the run allows, and print why the others are left out."""
    for name, value in ROUGH.items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    open_any(args)  # without a run, no picture can be drawn
    drawn = 0
    for name, draw in PICTURES.items():
        try:
            tell(draw(args))
            drawn += 1
        except UserError as error:
            print(f"{name} is left out: {one_line(str(error))}{stale(args, name)}", flush=True)
    if not drawn:
        if args.described is not None:
            raise UserError(f"--described {args.described}: the series there allows no picture")
        raise UserError(f"--results_dir {args.results_dir}: the run there allows no picture")


def correlation(args: argparse.Namespace) -> list[Path]:
    """Draw the sample's correlations, as sampled and by mode."""
    return draw_correlation(open_any(args), target(args, "correlation"), FORMATS)


def modes(args: argparse.Namespace) -> list[Path]:
    """Draw the modes' curves, layers and movement."""
    return draw_modes(open_any(args), target(args, "modes"), FORMATS, progress("modes", "part"))


def dynamics(args: argparse.Namespace) -> list[Path]:
    """Draw weights as trained, by CMD and by DMD."""
    with_dmd = find_spec("pydmd") is not None
    if not with_dmd:
        note("dynamics is without DMD, which needs PyDMD: pip install pydmd")
    return draw_dynamics(
        open_run(args), target(args, "dynamics"), FORMATS, progress("dynamics", "step"), with_dmd
    )


def stability(args: argparse.Namespace) -> list[Path]:
    """Draw how well the modes last, and how far off online CMD is."""
    return draw_stability(
        open_any(args), target(args, "stability"), FORMATS, progress("stability", "step")
    )


def accuracy(args: argparse.Namespace) -> list[Path]:
    """Draw every finished method's test accuracy, and the difference to the run itself.

    Notes are printed on what is missing.

    Raises:
        UserError: a run is missing, the runs are not alike, or no method is finished.
    """
    flags.require_once("--seeds", args.seeds or ())
    folders = run_folders(args)
    if args.described is not None:
        open_run(args)  # there is no accuracy
    for folder in folders:
        require_run(args, folder)
    records = [StoredRun(folder) for folder in folders]
    require_alike(records)
    for seed, record in zip(args.seeds or (), records, strict=False):
        if record.settings.seed != seed:
            raise UserError(f"{record.folder} holds the run of --seed {record.settings.seed}")
    finished, behind = [], {}
    for method in METHODS:
        if args.methods is not None and method.name not in args.methods:
            continue
        missing = [record for record in records if not record.finished(method.name)]
        if not missing:
            finished.append(method)
        elif any(record.epochs(method.name) for record in records):
            behind[method] = missing[0]
    if not finished:
        record = next(iter(behind.values()), records[0])
        command = record.commands[-1] if record.commands else "train_cmd.py"
        raise UserError(
            f"no method to be drawn is finished in {record.folder}; this goes on with it: {command}"
        )
    for method, record in behind.items():
        note(
            f"accuracy is without {method.label}, which has {record.epochs(method.name)} of "
            f"{record.settings.epochs} epochs in {record.folder}"
        )
    if args.methods is None and not any(method.trains for method in (*finished, *behind)):
        note("accuracy is without differences to the run itself, which was not tested (--sgd True)")
    return plot_test_accuracy(
        finished, records[0].settings, folders, target(args, "accuracy"), FORMATS,
        difference=True, with_shares=has_shares(finished, folders),
    )  # fmt: skip


def has_shares(methods: Sequence[type[Method]], folders: Sequence[Path]) -> bool:
    """Check whether the shares of embedded weights can be read, and print a note if not."""
    try:
        shares_of(methods, folders)
    except UserError as error:
        note(f"accuracy is without the share of embedded weights: {error}")
        return False
    return True


def landscape(args: argparse.Namespace) -> list[Path]:
    """Draw loss and accuracy over two reference weights."""
    run, points = open_run(args), args.points or 50
    if points > MOST_POINTS:
        raise UserError(f"--points {points}: choose 2 … {MOST_POINTS}")
    axes = (args.axes[0], args.axes[1])
    check_axes(run.posthoc, axes, args.span, points)  # refuses wrong axes before images are read
    dataset = run.dataset(args.data_dir)
    for name in args.classes:
        if name not in dataset.classes:
            raise UserError(f"--classes {name}: choose from {', '.join(dataset.classes)}")
    return draw_landscape(
        run, dataset, choose_device(args.device), target(args, "landscape"), FORMATS, axes, points,
        args.span, args.classes, args.images, progress("landscape", "row"),
    )  # fmt: skip


def embedding(args: argparse.Namespace) -> list[Path]:
    """Draw the share of weights that are embedded, in all and of each layer."""
    return draw_embedding(open_run(args), target(args, "embedding"), FORMATS)


PICTURES: dict[str, Callable[[argparse.Namespace], list[Path]]] = {
    "correlation": correlation,
    "modes": modes,
    "dynamics": dynamics,
    "stability": stability,
    "accuracy": accuracy,
    "landscape": landscape,
    "embedding": embedding,
}


def run_folders(args: argparse.Namespace) -> list[Path]:
    """Return the folders of the runs that the flags name."""
    if args.seeds is None:
        return [Path(args.results_dir) / args.model]
    return [seed_folder(args.results_dir, args.model, seed) for seed in args.seeds]


def open_any(args: argparse.Namespace) -> StoredRun | StoredSeries:
    """Open the run as `open_run` does, or the described checkpoints where these are asked for.

    Raises:
        UserError: they are not there; the message names the command that makes them.
    """
    return open_run(args) if args.described is None else StoredSeries(Path(args.described))


def open_run(args: argparse.Namespace) -> StoredRun:
    """Open the run, or that of the first seed where there are several.

    Raises:
        UserError: there is none; the message names the command that makes one.
    """
    if args.described is not None:
        raise UserError(
            f"--described {args.described}: this picture needs a run of train_cmd.py; correlation, "
            "modes and stability do without"
        )
    folder = run_folders(args)[0]
    require_run(args, folder)
    return StoredRun(folder)


def require_run(args: argparse.Namespace, folder: Path) -> None:
    """Raise UserError, naming the command that makes the run, if its folder is not there."""
    if not folder.exists():
        seeds = "" if args.seeds is None else f" --seeds {' '.join(map(str, args.seeds))}"
        raise UserError(
            f"{folder} holds no run; this makes one: python train_cmd.py --model {args.model}"
            f"{seeds} --results_dir {args.results_dir}"
        )


def output(args: argparse.Namespace) -> Path:
    """Return the folder that pictures go to."""
    if args.output:
        return Path(args.output)
    where = run_folders(args)[0] if args.described is None else Path(args.described)
    return where / "pictures"


def target(args: argparse.Namespace, name: str) -> Path:
    """Return a picture's path, without its ending, and make its folder."""
    folder = output(args)
    folder.mkdir(parents=True, exist_ok=True)
    return folder / name


def stale(args: argparse.Namespace, name: str) -> str:
    """Return a remark if a picture that is left out is there from an earlier call, or nothing."""
    path = (output(args) / name).with_suffix(f".{FORMATS[0]}")
    return f" ({path} is of an earlier call)" if path.exists() else ""


def note(words: str) -> None:
    """Print something about a picture besides its path."""
    print(f"note: {one_line(words)}", flush=True)


def progress(what: str, unit: str) -> Callable:
    """Return a function that shows a progress bar over steps, where there is a terminal."""
    return lambda steps: tqdm(steps, what, unit=unit, leave=False, disable=None)


def tell(files: list[Path]) -> None:
    """Print the files that were written."""
    print(", ".join(map(str, files)), flush=True)


def build_parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    parser = Parser(prog="visualize.py", description=__doc__)
    parser.add_argument("picture", choices=[*PICTURES, "all"], help="the picture to draw")
    group = parser.add_argument_group("the run")
    group.add_argument(
        "--model", choices=MODELS, default="res18", help="the run's model (default: %(default)s)"
    )
    group.add_argument(
        "--results_dir",
        default="results",
        metavar="DIR",
        help="where the runs are (default: %(default)s)",
    )
    flags.add_seeds_flag(group)
    group.add_argument(
        "--described", metavar="DIR",
        help="in place of a run, the output of `python -m utils.cmd_utils`: its correlation, modes "
        "and stability (default: a run)",
    )  # fmt: skip
    group.add_argument(
        "--output", metavar="DIR", help="where pictures go (default: pictures in the run's folder)"
    )
    group = parser.add_argument_group("accuracy")
    group.add_argument(
        "--methods", nargs="+", choices=[method.name for method in METHODS], metavar="METHOD",
        help=f"only these, of {', '.join(method.name for method in METHODS)} (default: all)",
    )  # fmt: skip
    group = parser.add_argument_group("landscape")
    group.add_argument(
        "--axes", nargs=2, type=at_least(0), default=[0, 1], metavar="MODE",
        help="the modes whose reference weights are varied (default: 0 1)",
    )  # fmt: skip
    group.add_argument(
        "--points", type=at_least(2), metavar="P",
        help=f"number of values of each (default: 50; for `all`: {ROUGH['points']})",
    )  # fmt: skip
    group.add_argument(
        "--span", type=positive, default=0.5,
        help="how far to vary them to either side, as a share of the value (default: %(default)s)",
    )  # fmt: skip
    group.add_argument(
        "--classes", nargs="+", default=[], metavar="CLASS", help="test classes to draw one by one"
    )
    group.add_argument(
        "--images", type=at_least(1), metavar="N",
        help="only N images of each split, balanced over classes (default: every one; for `all`: "
        f"{ROUGH['images']})",
    )  # fmt: skip
    group.add_argument(
        "--data_dir", metavar="DIR", help="where the images are (default: where the run had them)"
    )
    flags.add_device_flag(group)
    return parser


if __name__ == "__main__":
    leave(main())
