"""Measure the time and memory of an update of online CMD, beside a copy of its vectors.

    python benchmarks/online.py -N 11170000
    python benchmarks/online.py -N 11170000 --memory 10           # adaptive CMD beside it
    python benchmarks/online.py -N 11170000 --official PATH       # a clone of the paper's code
    python benchmarks/online.py -N 11170000 --drift 1000          # and compare it with the full fit

Every row of the table is measured in a process of its own. The first F + 1 snapshots are the
warm-up, and each later one is an update. Memory is the anonymous memory beyond what the process
held before.
"""

import sys
from pathlib import Path

if __name__ == "__main__":  # the project's own packages, from wherever this is started
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))


from benchmarks import public_code
from benchmarks.cases import Case, case_flags, case_of, trajectory_file
from benchmarks.fitting import agreement
from benchmarks.following import drift, our_updates, public_updates, vector_copies
from benchmarks.measure import alone, environment
from utils.system.arguments import Parser, at_least, memory
from utils.system.errors import UserError
from utils.system.tables import format_table


def measure(case: Case, warmup: int, official: str | None, memory: float | None = None) -> str:
    """Measure one case, and return its table, with notes below.

    Args:
        case: what is followed.
        warmup: the last epoch of the warm-up.
        official: the path of a clone of the paper's public code, None to leave it out.
        memory: adaptive CMD's, in updates; None to leave it out.
    """
    ours_at, public_at = case.results()
    floor = alone(vector_copies, case)
    rows = [("copies of the vectors", floor), ("CMD", alone(our_updates, case, warmup, ours_at))]
    notes = []
    if memory is not None:
        adaptive = alone(our_updates, case, warmup, None, memory)
        rows.append((f"CMD, H = {memory:g}", adaptive))
        ratio = adaptive.seconds / rows[1][1].seconds
        notes.append(f"an update with a memory takes {ratio:.2f} times as long as one without")
    header = ["", "ms an update", "GB/s", "× copies", "peak MB"]
    if official is not None:
        rows.append(("public code", alone(public_updates, case, warmup, official, public_at)))
        notes += agreement(case, ours_at, public_at, warmup + 1)
        header.append("public ÷ this")
    touched = case.n_weights * (4 + 4 + 8 + 8 + 1)
    cells = []
    for label, figures in rows:
        cells.append(
            [
                label,
                f"{1000 * figures.seconds:,.1f}",
                f"{touched / figures.seconds / 1e9:.2f}",
                f"{figures.seconds / floor.seconds:,.2f}",
                f"{figures.peak / 1e6:,.0f}",
            ]
        )
        if official is not None:
            ratio = rows[-1][1].seconds / figures.seconds
            cells[-1].append("" if figures is floor else f"{ratio:,.0f}")
    return "\n".join([format_table(header, cells), *notes])


def main(argv: list[str] | None = None) -> int:
    """Run the command, and return its exit code."""
    parser = Parser(prog="benchmarks/online.py", description=__doc__)
    case_flags(parser, epochs=41)
    parser.add_argument(
        "-F", "--warmup", type=at_least(1), default=20, help="last epoch of the warm-up (default: "
        "%(default)s)"
    )  # fmt: skip
    parser.add_argument(
        "--memory",
        type=memory,
        metavar="H",
        help="also measure adaptive CMD, with a memory of H updates",
    )
    parser.add_argument(
        "--drift",
        type=at_least(1),
        metavar="UPDATES",
        help="also compare the result of so many updates with the full fit",
    )
    args = parser.parse_args(argv)
    try:
        record = environment(args.device)
        if args.official is not None:
            public_code.load(args.official)
        if args.epochs < args.warmup + 3:
            raise UserError(
                f"-T {args.epochs}: at least two snapshots must follow -F {args.warmup}"
            )
        case = case_of(args, args.weights, args.epochs)
        with trajectory_file(case, args.keep):
            words = measure(case, args.warmup, args.official, args.memory)
        if args.drift is not None:
            words += "\n" + alone(drift, case, args.warmup, args.drift)
    except UserError as error:
        parser.error(str(error))
    print(f"{case}, F = {args.warmup}\n{record}\n\n{words}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
