"""Measure the search for a trajectory's principal directions, beside scikit-learn's exact PCA.

    python benchmarks/subspace.py -N 2000000 -T 81 -d 40

Each search runs in a process of its own, on the same file, which is read once beforehand. Memory is
the anonymous memory beyond what the process held before: it includes the d directions, but not the
mapped file. scikit-learn works in the precision of what it is given: float32, as in the file, takes
less time and memory, and float64 is exact. An angle is the largest between a search's subspace and
that of PCA in float64 (scipy.linalg.subspace_angles).
"""

import sys
from pathlib import Path

if __name__ == "__main__":  # the project's own packages, from wherever this is started
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from dataclasses import dataclass

import numpy as np
from scipy.linalg import subspace_angles
from sklearn.decomposition import PCA

from benchmarks.cases import Case, case_flags, case_of, trajectory_file
from benchmarks.measure import alone, environment, repeated
from utils.cmd.snapshots import Snapshots
from utils.pbfgs_utils import principal_directions
from utils.system.arguments import Parser, at_least
from utils.system.errors import UserError
from utils.system.tables import format_table


@dataclass(frozen=True)
class Figures:
    """The cost of a search.

    Attributes:
        seconds: the median of the repeats.
        peak: of anonymous memory, in bytes.
    """

    seconds: float
    peak: int


def our_directions(case: Case, n_directions: int, results: Path) -> Figures:
    """Measure `principal_directions` on the memory-mapped file."""

    def find() -> np.ndarray:
        snapshots = Snapshots(np.load(case.path, mmap_mode="r"), device=case.device)
        return principal_directions(snapshots, n_directions).cpu().numpy()

    seconds, peak, directions = repeated(find, case.repeats)
    np.save(results, directions)
    return Figures(seconds, peak)


def exact_pca(case: Case, n_directions: int, results: Path, dtype: str) -> Figures:
    """Measure scikit-learn's PCA of the same file, by a full singular value decomposition."""

    def find() -> np.ndarray:
        snapshots = np.load(case.path, mmap_mode="r").astype(dtype, copy=False)
        return PCA(n_directions, svd_solver="full").fit(snapshots).components_

    seconds, peak, directions = repeated(find, case.repeats)
    np.save(results, directions)
    return Figures(seconds, peak)


def measure(case: Case, n_directions: int) -> str:
    """Measure one case, and return its table."""
    labels = ("principal_directions", "exact PCA, float32", "exact PCA, float64")
    files = [case.path.with_suffix(f".{number}.npy") for number in range(len(labels))]
    try:
        figures = [
            alone(our_directions, case, n_directions, files[0]),
            alone(exact_pca, case, n_directions, files[1], "float32"),
            alone(exact_pca, case, n_directions, files[2], "float64"),
        ]
        exact = np.load(files[2]).T
        angles = [subspace_angles(np.load(file).T.astype(np.float64), exact) for file in files]
    finally:
        for file in files:
            file.unlink(missing_ok=True)
    ours = figures[0]
    cells = [
        [
            label,
            f"{found.seconds:.2f}",
            f"{found.peak / 1e6:,.0f}",
            f"{found.seconds / ours.seconds:.1f}",
            f"{found.peak / ours.peak:.1f}",
            f"{angle.max():.1e}",
        ]
        for label, found, angle in zip(labels, figures, angles, strict=True)
    ]
    header = ["", "seconds", "peak MB", "time ÷ ours", "memory ÷ ours", "angle (rad)"]
    return format_table(header, cells)


def main(argv: list[str] | None = None) -> int:
    """Run the command, and return its exit code."""
    parser = Parser(prog="benchmarks/subspace.py", description=__doc__)
    case_flags(parser, epochs=81, clusters=False)
    parser.add_argument(
        "-d",
        "--directions",
        type=at_least(1),
        default=40,
        help="number of directions (default: %(default)s)",
    )
    args = parser.parse_args(argv)
    try:
        record = environment(args.device)
        if args.directions >= args.epochs:
            raise UserError(
                f"-d {args.directions}: -T {args.epochs} snapshots span fewer directions"
            )
        case = case_of(args, args.weights, args.epochs)
        with trajectory_file(case, args.keep):
            words = measure(case, args.directions)
    except UserError as error:
        parser.error(str(error))
    sizes = f"N = {case.n_weights:,}, T = {case.n_epochs}, d = {args.directions}"
    print(f"{sizes}: {case.gigabytes:.2f} GB\n{record}\n\n{words}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
