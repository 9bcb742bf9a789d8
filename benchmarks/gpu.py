"""Measure everything on a GPU, within a given time: the tables are printed at the end.

    python benchmarks/gpu.py                                  # CUDA if there is one, 9 minutes
    python benchmarks/gpu.py --data_dir data/cifar10          # and go on with a comparison
    python benchmarks/gpu.py --data_dir data/cifar10-32px.pt  # the images packed in one file
    python benchmarks/gpu.py --device cpu --minutes 3

In turn: the tests that are marked device; the device's own rates; an epoch of each model on random
images of CIFAR-10's size and number, or on fewer where the time is short; CMD's algorithms beside
copies of as many bytes; and, where there are images, as many epochs of the default comparison of
ResNet18 as fit in the time left, which the same command goes on with. Each has a process of its
own, and is cut or left out where its time is up. Tables and numbers go to --output, too, as soon
as they are known.
"""

import sys
from pathlib import Path

if __name__ == "__main__":  # the project's own packages, from wherever this is started
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import argparse
import multiprocessing
import shlex
import tempfile
from collections.abc import Callable
from dataclasses import asdict

from benchmarks.algorithms import algorithms
from benchmarks.compared import compared
from benchmarks.deadline import Budget, failure, within
from benchmarks.device_tests import device_tests
from benchmarks.epochs import N_TRAIN, Cost, epochs
from benchmarks.measure import environment
from benchmarks.rates import rates
from benchmarks.report import Table, write_report
from utils import flags
from utils.base_utils import MODELS
from utils.system.arguments import Parser, positive, truth
from utils.system.command import run_command
from utils.system.devices import choose_device

ENDING = 10.0  # seconds kept for the end
LEAST = 15.0  # seconds in which a part of the whole may come to something
LEAST_OF_MODEL = 6.0  # and an epoch of a model
STARTING = 4.0  # seconds in which a process of its own begins


def tests_part(args: argparse.Namespace, seconds: float) -> Table:
    """Run the tests of the device."""
    return device_tests(seconds, args.output / "tests.log")


def rates_part(args: argparse.Namespace, seconds: float) -> Table:
    """Measure the device's own rates."""
    outcome = within(seconds, rates, args.device)
    rows = [
        [rate.what, "not on this device" if rate.value is None else f"{rate.value:,.2f}", rate.unit]
        for rate in outcome.found
    ]
    numbers = [asdict(rate) for rate in outcome.found]
    return Table("rates", "The device's own rates, the best of a few", ["", "rate", ""],
                 rows, problems(outcome.problem), numbers)  # fmt: skip


def epochs_part(args: argparse.Namespace, seconds: float) -> Table:
    """Measure an epoch of each model."""
    budget, rows, numbers, notes = Budget(seconds), [], [], []
    for number, model in enumerate(args.models):
        share = budget.left() / (len(args.models) - number)
        if share < LEAST_OF_MODEL:
            rows.append([model, *[""] * 5, "not reached"])
            numbers.append({"model": model, "problem": "not reached"})
            continue
        with tempfile.TemporaryDirectory() as folder:
            outcome = within(share, epochs, model, args.device, share - STARTING, folder)
        if outcome.found:
            cost = outcome.found[-1]
            rows.append(epoch_row(cost))
            numbers.append(asdict(cost) | {"problem": outcome.problem})
        else:
            rows.append([model, *[""] * 5, outcome.problem.partition(":")[0]])
            numbers.append({"model": model, "problem": outcome.problem})
        if outcome.found or ":" in outcome.problem:
            notes += [f"{model}: {problem}" for problem in problems(outcome.problem)]
    header = ["", "precision", "training", "images/s", "one test", "the writer", "measured"]
    title = "Seconds an epoch of 50,000 images, of a test of 10,000, and of writing what is kept"
    notes.append("the writer works while the next epoch trains; here it was waited for")
    return Table("epochs", title, header, rows, notes, numbers)


def epoch_row(cost: Cost) -> list[str]:
    """Format a row of the table of epochs."""
    how_many = {0: "a first epoch", 1: "an epoch"}.get(cost.epochs, f"{cost.epochs} epochs")
    images = "all images" if cost.images == N_TRAIN else f"{cost.images:,} images, scaled up"
    seconds = [f"{cost.test:,.2f}", f"{cost.writer:,.2f}"]
    return [cost.model, cost.precision, f"{cost.training:,.2f}",
            f"{N_TRAIN / cost.training:,.0f}", *seconds, f"{how_many} of {images}"]  # fmt: skip


def algorithms_part(args: argparse.Namespace, seconds: float) -> Table:
    """Measure the algorithms."""
    outcome = within(seconds, algorithms, args.device)
    rows = []
    for cost in outcome.found:
        row = [cost.what, f"{cost.n_epochs}", f"{1000 * cost.seconds:,.2f}"]
        if cost.moved is None:
            rows.append([*row, "", "", ""])
        else:
            row += [f"{cost.moved / 1e9:.3f}", f"{1000 * cost.floor:,.2f}"]
            rows.append([*row, f"{cost.seconds / cost.floor:.2f}"])
    sizes = f", N = {outcome.found[0].n_weights:,}" if outcome.found else ""
    header = ["", "snapshots", "ms", "GB read + written", "ms of a copy of these", "× copy"]
    return Table("algorithms", f"CMD in the device's memory{sizes}", header, rows,
                 problems(outcome.problem), [asdict(cost) for cost in outcome.found])  # fmt: skip


def comparison_part(args: argparse.Namespace, seconds: float) -> Table:
    """Go on with the comparison."""
    return compared(seconds, args.data_dir, args.results_dir, args.device, args.p_bfgs,
                    args.output / "comparison.log")  # fmt: skip


def problems(problem: str) -> list[str]:
    """Return the problem as notes, none if there was none."""
    return [problem] if problem else []


Part = Callable[[argparse.Namespace, float], Table]
PARTS: list[tuple[str, Part, float]] = [  # with their shares of the time left; the last has all
    ("tests", tests_part, 0.2),
    ("rates", rates_part, 0.15),
    ("epochs", epochs_part, 0.5),
    ("algorithms", algorithms_part, 0.5),
    ("comparison", comparison_part, 1.0),
]


def measure(args: argparse.Namespace) -> None:
    """Measure each part as long as its time allows, write the tables, and print them at the end."""
    budget = Budget(60 * args.minutes - ENDING)
    args.device = str(choose_device(args.device))
    made = {"environment": environment(args.device), "command": args.command}
    args.output.mkdir(parents=True, exist_ok=True)
    parts = PARTS if args.data_dir is not None else PARTS[:-1]
    tables: list[Table] = []
    for name, part, share in parts:
        seconds = budget.left() * (share if part is not parts[-1][1] else 1)
        print(f"… {name}, at most {seconds:.0f} s", file=sys.stderr, flush=True)
        tables.append(table_of(name, part, args, seconds))
        write_report(tables, made, args.output)
    print("\n\n".join(["\n".join(made.values()), *(table.text() for table in tables)]))
    print(f"\ntables and numbers: {args.output}")


def table_of(name: str, part: Part, args: argparse.Namespace, seconds: float) -> Table:
    """Return a part's table, or one that says why there is none."""
    if seconds < LEAST:
        return Table(name, name, notes=["not reached"])
    try:
        return part(args, seconds)
    except Exception as error:
        return Table(name, name, notes=[failure(error)])


def main(argv: list[str] | None = None) -> int:
    """Run the command, and return its exit code."""
    parser = Parser(prog="benchmarks/gpu.py", description=__doc__)
    parser.add_argument("--minutes", type=positive, default=9.0,
                        help="the most that all takes together (default: 9)")  # fmt: skip
    flags.add_device_flag(parser)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=[*MODELS], metavar="MODEL",
                        help="models whose epochs are measured (default: all)")  # fmt: skip
    parser.add_argument("--data_dir", metavar="DIR", help="images for the comparison: a folder "
                        "with train/<class>/* and test/<class>/*, or the packed file that is made "
                        "beside one (default: no comparison)")  # fmt: skip
    parser.add_argument("--p_bfgs", type=truth, default=False, metavar="BOOL",
                        help="compare P-BFGS, too (default: %(default)s)")  # fmt: skip
    parser.add_argument("--output", type=Path, default=Path("results_gpu"), metavar="DIR",
                        help="where tables and numbers go (default: %(default)s)")  # fmt: skip
    parser.add_argument("--results_dir", type=Path, default=Path("results_gpu_run"),
                        metavar="DIR",
                        help="where the comparison goes on (default: %(default)s)")  # fmt: skip
    args = parser.parse_args(argv)
    args.command = shlex.join(["python", parser.prog, *(sys.argv[1:] if argv is None else argv)])
    if args.data_dir is not None and not Path(args.data_dir).exists():
        parser.error(f"--data_dir {args.data_dir} is not there: give a folder or a packed file")
    interrupted = f"interrupted; the tables so far are in {args.output}"
    where = f"--output {args.output}"
    return run_command(parser.prog, where, lambda: measure(args), interrupted)


if __name__ == "__main__":
    # once for all processes; a GPU must not be touched by these imports, as they are forked then
    multiprocessing.set_forkserver_preload(["benchmarks.epochs", "benchmarks.algorithms"])
    sys.exit(main())
