"""Project what the default comparison costs as a whole: SGD, post-hoc CMD and online CMD.

    python benchmarks/whole.py --model lenet --dataset folder --data_dir data/cifar10
    python benchmarks/whole.py --model lenet --official PATH      # a clone of the paper's code
    python benchmarks/whole.py --model res18 --limit 1280 --official PATH

An epoch's costs are measured over a few epochs, and multiplied by how often they occur. Fits are
measured at their full size, on synthetic trajectories of the model's N. With --limit, training and
tests are scaled to 50,000 and 10,000 images. Snapshots and checkpoints are written while the
training goes on, and add no row of their own.
"""

import sys
from pathlib import Path

if __name__ == "__main__":  # the project's own packages, from wherever this is started
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import argparse
import tempfile
from collections.abc import Callable

from benchmarks import public_code
from benchmarks.cases import Case, case_of, trajectory_file
from benchmarks.fitting import our_fit, public_fit
from benchmarks.following import public_updates
from benchmarks.measure import alone, environment
from benchmarks.training import Training, our_epochs, public_bookkeeping, public_epochs
from utils import flags
from utils.base_utils import MODELS, get_model
from utils.cmd.vector import layer_sizes
from utils.system.arguments import Parser, at_least
from utils.system.devices import choose_device
from utils.system.errors import UserError
from utils.system.tables import format_table
from utils.training.precision import choose_precision

N_TRAIN, N_TEST = 50_000, 10_000
METHODS = ("sgd", "cmd_online", "cmd_posthoc")
Costs = list[tuple[str, float, float]]  # what it is, seconds each, how often


def our_costs(case: Training, whole: Case, warm: Case, warmup: int) -> Costs:
    """Measure what the comparison costs with this suite.

    Args:
        case: the epochs that are measured.
        whole: the fit to all epochs.
        warm: the fit to the warm-up.
        warmup: the last epoch of the warm-up.
    """
    epochs, n_epochs = alone(our_epochs, case, METHODS), whole.n_epochs
    tests = N_TEST / epochs.n_test
    return [
        ("training", epochs.training * N_TRAIN / epochs.n_train, n_epochs),
        ("SGD: test", epochs.methods["sgd"] * tests, n_epochs),
        ("post-hoc CMD: fit", fitted(whole, lambda: alone(our_fit, whole, None).seconds), 1),
        ("post-hoc CMD: reconstruct, test", epochs.methods["cmd_posthoc"] * tests, n_epochs),
        ("online CMD: fit", fitted(warm, lambda: alone(our_fit, warm, None).seconds), 1),
        (
            "online CMD: update, reconstruct, test",
            epochs.methods["cmd_online"] * tests,
            n_epochs - warmup,
        ),
    ]


def public_costs(case: Training, whole: Case, warm: Case, warmup: int, official: str) -> Costs:
    """Measure what the comparison costs with the public code.

    Args:
        case: the epochs that are measured.
        whole: the fit to all epochs.
        warm: the fit to the warm-up.
        warmup: the last epoch of the warm-up.
        official: the path of a clone of the public code.
    """
    (training, test), n_epochs = alone(public_epochs, case, official), whole.n_epochs
    dataset_size = case.sizes()
    training *= N_TRAIN / dataset_size[0]
    test *= N_TEST / dataset_size[1]
    copy, save, gather, load = alone(public_bookkeeping, case, official)
    updating = case_of_epochs(whole, warmup + 4)
    update = fitted(
        updating,
        lambda: alone(public_updates, updating, warmup, official, updating.results()[1]).seconds,
    )
    fits = [
        fitted(each, lambda each=each: alone(public_fit, each, official, each.results()[1]).seconds)
        for each in (whole, warm)
    ]
    return [
        ("training", training, n_epochs),
        ("snapshots: copy", copy, n_epochs),
        ("snapshots: save", save, n_epochs),
        ("snapshots: into one matrix", gather, n_epochs),
        ("SGD: load, test", load + test, n_epochs),
        ("post-hoc CMD: fit", fits[0], 1),
        ("post-hoc CMD: load, test", load + test, n_epochs),
        ("online CMD: fit", fits[1], 1),
        ("online CMD: update", update, n_epochs - warmup - 1),
        ("online CMD: load, test", load + test, n_epochs),
    ]


def fitted(case: Case, measure: Callable[[], float]) -> float:
    """Return a measurement that is made while the case's trajectory is there."""
    with trajectory_file(case, keep=False):
        return measure()


def case_of_epochs(case: Case, n_epochs: int) -> Case:
    """Make the same case with another T."""
    args = argparse.Namespace(**vars(case), folder=case.path.parent)
    return case_of(args, case.n_weights, n_epochs)


def costs_table(costs: Costs) -> str:
    """Format the costs and their sum as a table."""
    rows = [[label, f"{each:,.3f}", f"{count:,}", f"{each * count:,.0f}"]
            for label, each, count in costs]  # fmt: skip
    rows.append(["in all", "", "", f"{total(costs):,.0f}"])
    return format_table(["", "s each", "times", "s"], rows)


def total(costs: Costs) -> float:
    """Sum up the seconds of all costs."""
    return sum(each * count for _, each, count in costs)


def main(argv: list[str] | None = None) -> int:
    """Run the command, and return its exit code."""
    parser = Parser(prog="benchmarks/whole.py", description=__doc__)
    parser.add_argument(
        "--model", choices=MODELS, default="res18", help="the model (default: %(default)s)"
    )
    flags.add_data_flags(parser)
    flags.add_device_flag(parser)
    flags.add_setting(parser, "epochs")
    parser.add_argument("-F", "--warmup", type=at_least(1), default=20,
                        help="last epoch of the warm-up (default: %(default)s)")  # fmt: skip
    parser.add_argument("--official", metavar="PATH", help="a clone of the paper's public code")
    parser.add_argument("--measured", type=at_least(1), default=2, metavar="EPOCHS",
                        help="number of measured epochs (default: %(default)s)")  # fmt: skip
    parser.add_argument("--folder", type=Path, default=tempfile.gettempdir(), metavar="DIR",
                        help="where trajectories are written (default: %(default)s)")  # fmt: skip
    args = parser.parse_args(argv)
    try:
        print(environment(args.device), flush=True)
        entry, device = get_model(args.model), choose_device(args.device)
        if args.official is not None:
            public_code.load(args.official)
            public_code.training_file(args.official)
        n_epochs = args.epochs or entry.epochs
        if args.warmup > n_epochs - 2:
            raise UserError(f"-F {args.warmup}: choose 1 … {n_epochs - 2} (--epochs − 2)")
        n_weights = sum(layer_sizes(entry.build(10)))
        case = Training(
            args.model, args.dataset, args.data_dir, args.limit, args.device,
            choose_precision(None, device), False, args.measured,
        )  # fmt: skip
        sizes = argparse.Namespace(
            modes=entry.modes, samples=entry.samples, seed=0, repeats=1, device=device.type,
            folder=args.folder,
        )  # fmt: skip
        whole, warm = (case_of(sizes, n_weights, n) for n in (n_epochs, args.warmup + 1))
        ours = our_costs(case, whole, warm, args.warmup)
        print(f"\n{args.model}, {n_weights:,} weights, {n_epochs} epochs: this suite\n")
        print(costs_table(ours), flush=True)
        if args.official is not None:
            public = public_costs(case, whole, warm, args.warmup, args.official)
            print(f"\nthe public code\n\n{costs_table(public)}")
            print(f"\nit takes {total(public) / total(ours):.1f} times as long as this suite")
    except UserError as error:
        parser.error(str(error))
    return 0


if __name__ == "__main__":
    sys.exit(main())
