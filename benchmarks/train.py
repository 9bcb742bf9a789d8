"""Measure epochs of training and tests: seconds and images a second, with and without methods.

    python benchmarks/train.py --models lenet --dataset folder --data_dir data/cifar10
    python benchmarks/train.py --models lenet --official PATH     # a clone of the paper's code
    python benchmarks/train.py --models res18 vit --limit 512     # fewer images, for a slow device
    python benchmarks/train.py --models lenet --precisions fp32 bf16 --compile True

The figures are medians over some epochs, after a few that are not counted. In "training, SGD, …
tested", all --methods follow the training and are tested. "of matrix rate" is the training's share
of the rate that the device reaches in a product of large matrices in the same precision. The public
code's own training and testing loops, with its loaders, run on the same images, in a process of
their own.
"""

import sys
from pathlib import Path

if __name__ == "__main__":  # the project's own packages, from wherever this is started
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import public_code
from benchmarks.measure import alone, environment
from benchmarks.training import Training, our_epochs, public_epochs
from utils import flags
from utils.base_utils import MODELS
from utils.methods.registry import METHODS
from utils.system.arguments import Parser, at_least, truth
from utils.system.devices import choose_device
from utils.system.errors import UserError
from utils.system.tables import format_table
from utils.training.precision import PRECISIONS, choose_precision

HEADER = ["", "s an epoch", "images/s", "of matrix rate"]
ALONGSIDE = ["sgd", "cmd_online", "ema", "swa"]
TRAINING = ("cmd_embed", "pbfgs", "pbfgs_equal")  # which train on by themselves


def measure(case: Training, methods: tuple[str, ...], official: str | None) -> str:
    """Measure one model in one precision, and return its table, with notes below."""
    ours = alone(our_epochs, case, methods)
    labels = [m.label for m in METHODS if m.name in methods and not m.after_run]
    rows = [
        row("training", ours.training, ours.n_train, f"{100 * ours.share:.0f} %"),
        row("one test", ours.test, ours.n_test),
        row(f"training, {', '.join(labels)} tested", ours.compared, ours.n_train),
    ]
    added = 100 * (ours.compared / ours.training - 1)
    each = ", ".join(
        f"{m.label} {ours.methods[m.name]:.2f} s" for m in METHODS if m.name in methods
    )
    notes = [
        f"the methods add {added:.1f} % to training; after an epoch, their tests included: {each}"
    ]
    if official is not None:
        training, test = alone(public_epochs, case, official)
        rows.append(row("public code: training", training, ours.n_train))
        rows.append(row("public code: one test", test, ours.n_test))
        share = (ours.training + ours.test) / (training + test)
        notes.append(
            f"training and one test take {100 * share:.1f} % of the public code's time: they are "
            f"{1 / share:.2f} times as fast"
        )
    return "\n".join([format_table(HEADER, rows), *notes])


def row(label: str, seconds: float, n_images: int, share: str = "") -> list[str]:
    """Format a row of the table."""
    return [label, f"{seconds:.2f}", f"{n_images / seconds:,.0f}", share]


def main(argv: list[str] | None = None) -> int:
    """Run the command, and return its exit code."""
    parser = Parser(prog="benchmarks/train.py", description=__doc__)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=["lenet"], metavar="MODEL",
                        help="models to measure (default: lenet)")  # fmt: skip
    flags.add_data_flags(parser)
    flags.add_device_flag(parser)
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=[None],
                        help="precisions to measure (default: the device's)")  # fmt: skip
    parser.add_argument("--compile", type=truth, default=False, metavar="BOOL",
                        help="compile the models (default: %(default)s)")  # fmt: skip
    parser.add_argument("--methods", nargs="*", default=ALONGSIDE, metavar="METHOD",
                        choices=[m.name for m in METHODS if m.name not in TRAINING],
                        help="methods tested after each epoch (default: %(default)s)")  # fmt: skip
    parser.add_argument("--official", metavar="PATH", help="a clone of the paper's public code")
    parser.add_argument("--epochs", type=at_least(1), default=3,
                        help="number of measured epochs (default: %(default)s)")  # fmt: skip
    args = parser.parse_args(argv)
    try:
        print(environment(args.device), flush=True)
        device = choose_device(args.device)
        if args.official is not None:
            public_code.training_file(args.official)
        for model in args.models:
            for precision in args.precisions:
                case = Training(
                    model, args.dataset, args.data_dir, args.limit, args.device,
                    choose_precision(precision, device), args.compile, args.epochs,
                )  # fmt: skip
                words = measure(case, tuple(args.methods), args.official)
                compiled = ", compiled" if case.compiled else ""
                print(f"\n{model}, {case.precision}{compiled}, {device}\n\n{words}", flush=True)
    except UserError as error:
        parser.error(str(error))
    return 0


if __name__ == "__main__":
    sys.exit(main())
