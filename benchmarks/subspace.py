"""The principal directions of a trajectory on disk, beside scikit-learn's exact PCA.

    python benchmarks/subspace.py -N 2000000 -T 81 -d 40

Each starts from the same file, which was read once before, in a process of its own. Memory is
anonymous memory beyond what the process held before: the d directions are in it, the mapped file
is not. scikit-learn works in the precision of what it is given: float32, as the file has it, is
the faster and smaller, float64 the exact one, which the angles are to (the largest between the two
subspaces, by scipy.linalg.subspace_angles).
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
    """Seconds (the median of the repeats) and the peak of anonymous memory in bytes."""

    seconds: float
    peak: int


def our_directions(case: Case, n_directions: int, results: Path) -> Figures:
    """`principal_directions` from the memory-mapped file."""

    def find() -> np.ndarray:
        snapshots = Snapshots(np.load(case.path, mmap_mode="r"), device=case.device)
        return principal_directions(snapshots, n_directions).cpu().numpy()

    seconds, peak, directions = repeated(find, case.repeats)
    np.save(results, directions)
    return Figures(seconds, peak)


def exact_pca(case: Case, n_directions: int, results: Path, dtype: str) -> Figures:
    """scikit-learn's PCA by a full singular value decomposition, of the same file."""

    def find() -> np.ndarray:
        snapshots = np.load(case.path, mmap_mode="r").astype(dtype, copy=False)
        return PCA(n_directions, svd_solver="full").fit(snapshots).components_

    seconds, peak, directions = repeated(find, case.repeats)
    np.save(results, directions)
    return Figures(seconds, peak)


def measure(case: Case, n_directions: int) -> str:
    """The table of one case."""
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
    """Run the command; returns its exit code."""
    parser = Parser(prog="benchmarks/subspace.py", description=__doc__)
    case_flags(parser, epochs=81, clusters=False)
    parser.add_argument(
        "-d", "--directions", type=at_least(1), default=40, help="(default: %(default)s)"
    )
    args = parser.parse_args(argv)
    try:
        record = environment(args.device)
        if args.directions >= args.epochs:
            raise UserError(f"-d {args.directions}: -T {args.epochs} snapshots span fewer")
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
