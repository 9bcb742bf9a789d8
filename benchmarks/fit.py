"""Measure the time and memory of fitting CMD to a trajectory on disk, beside a plain read of it.

    python benchmarks/fit.py -N 11170000 -T 150
    python benchmarks/fit.py -N 2000000 -T 50 --official PATH     # a clone of the paper's code
    python benchmarks/fit.py --sweep images/fit_scaling.png       # over N and over T

Every row of the table is measured in a process of its own, on the same file, which is read once
beforehand so that the system caches what it can of it. Memory is the anonymous memory beyond what
the process held before: it includes the results, but not the mapped file.
"""

import sys
from pathlib import Path

if __name__ == "__main__":  # the project's own packages, from wherever this is started
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))


from benchmarks import public_code
from benchmarks.cases import Case, case_flags, case_of, trajectory_file
from benchmarks.fitting import Figures, agreement, our_fit, public_fit, sequential_read
from benchmarks.measure import alone, environment
from benchmarks.scaling import plot_sweep, sweep
from utils.system.arguments import Parser
from utils.system.errors import UserError
from utils.system.tables import format_table


def measure(case: Case, official: str | None) -> str:
    """Measure one case, and return its table, with notes below."""
    floor = alone(sequential_read, case)
    ours_at, public_at = case.results()
    ours = alone(our_fit, case, ours_at)
    fitting = Figures(ours.seconds - ours.clustering, ours.peak)
    rows = [("sequential read", floor), ("CMD", ours), ("  of it, without clustering", fitting)]
    notes = [f"results: {(ours_at.stat().st_size) / 1e6:,.0f} MB"]
    if official is not None:
        rows.append(("public code", alone(public_fit, case, official, public_at)))
        notes += agreement(case, ours_at, public_at, case.n_epochs)
    header = ["", "seconds", "GB/s", "× read", "peak MB"]
    header += ["public ÷ this"] if official is not None else []
    cells = []
    for label, figures in rows:
        cells.append(
            [
                label,
                f"{figures.seconds:.2f}",
                f"{case.gigabytes / figures.seconds:.2f}",
                f"{figures.seconds / floor.seconds:.2f}",
                f"{figures.peak / 1e6:,.0f}",
            ]
        )
        if official is not None:
            theirs = rows[-1][1].seconds
            cells[-1].append("" if figures is floor else f"{theirs / figures.seconds:,.1f}")
    return "\n".join([format_table(header, cells), *notes])


def main(argv: list[str] | None = None) -> int:
    """Run the command, and return its exit code."""
    parser = Parser(prog="benchmarks/fit.py", description=__doc__)
    case_flags(parser, epochs=150)
    parser.add_argument("--sweep", metavar="PLOT", help="measure over N and over T, and plot it")
    args = parser.parse_args(argv)
    try:
        record = environment(args.device)
        if args.official is not None:
            public_code.load(args.official)
        if args.sweep is not None:
            plot_sweep(sweep(args), Path(args.sweep), record)
            return 0
        case = case_of(args, args.weights, args.epochs)
        with trajectory_file(case, args.keep):
            words = measure(case, args.official)
    except UserError as error:
        parser.error(str(error))
    print(f"{case}\n{record}\n\n{words}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
