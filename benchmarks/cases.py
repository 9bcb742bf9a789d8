"""Make the case that is measured, from the command line, and its trajectory file."""

import argparse
import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.measure import alone
from benchmarks.synthetic import module_of, write_trajectory
from utils.cmd.clustering import sample_weights
from utils.cmd.vector import layer_sizes
from utils.system.arguments import at_least
from utils.system.errors import UserError

READ_AT_ONCE = 1 << 22  # bytes


@dataclass(frozen=True)
class Case:
    """A trajectory on disk, and how it is fitted.

    Attributes:
        path: the trajectory's, a `.npy` file.
        n_weights: N.
        n_epochs: T.
        modes: M, the number of modes at the most.
        samples: K, the number of weights that are clustered.
        seed: of the trajectory and of the sample.
        repeats: how often each measurement is made.
        device: the name of the device that computes.
    """

    path: Path
    n_weights: int
    n_epochs: int
    modes: int
    samples: int
    seed: int
    repeats: int
    device: str

    def __str__(self) -> str:
        return (
            f"N = {self.n_weights:,}, T = {self.n_epochs}, M = {self.modes}, "
            f"K = {self.samples:,}: {self.gigabytes:.2f} GB"
        )

    @property
    def gigabytes(self) -> float:
        return 4e-9 * self.n_weights * self.n_epochs

    def results(self) -> tuple[Path, Path]:
        """Return the paths where our results and the public code's are, while they are compared."""
        return self.path.with_suffix(".ours.pt"), self.path.with_suffix(".public.npz")

    def sample(self) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed)
        return sample_weights(layer_sizes(module_of(self.n_weights)), self.samples, generator)


def write_the_trajectory(case: Case) -> None:
    """Generate the file unless it is there, and read it once, so that the system caches it."""
    write_trajectory(case.path, case.n_weights, case.n_epochs, case.seed)
    read_file(case.path)


def read_file(path: Path) -> None:
    """Read a file from its beginning to its end through one buffer."""
    buffer = np.empty(READ_AT_ONCE, dtype=np.uint8)
    with path.open("rb", buffering=0) as file:
        while file.readinto(buffer):
            pass


def case_flags(parser: argparse.ArgumentParser, epochs: int, clusters: bool = True) -> None:
    """Add the flags that make a case.

    Args:
        parser: the command's.
        epochs: the default of -T.
        clusters: whether the case has modes, and may be compared with the paper's public code.
    """
    sizes = [
        (("-N", "--weights"), 11_170_000, "number of weights"),
        (("-T", "--epochs"), epochs, "number of snapshots"),
        (("-M", "--modes"), 10, "largest number of modes"),
        (("-K", "--samples"), 1000, "number of weights that are clustered"),
    ]
    parser.set_defaults(modes=1, samples=1)
    for flags, default, meaning in sizes if clusters else sizes[:2]:
        parser.add_argument(
            *flags, type=at_least(1), default=default, help=f"{meaning} (default: {default:,})"
        )
    parser.add_argument(
        "--seed", type=at_least(0), default=0, help="seed of random draws (default: %(default)s)"
    )
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: %(default)s)")
    if clusters:
        parser.add_argument("--official", metavar="PATH", help="a clone of the paper's public code")
    parser.add_argument(
        "--repeats",
        type=at_least(1),
        default=3,
        help="how often each measurement is made (default: %(default)s)",
    )
    parser.add_argument(
        "--folder",
        type=Path,
        default=tempfile.gettempdir(),
        metavar="DIR",
        help="where the trajectory is written, 4·N·T bytes (default: %(default)s)",
    )
    parser.add_argument(
        "--keep", action="store_true", help="keep the trajectory, and use one that was kept"
    )


def case_of(args: argparse.Namespace, n_weights: int, n_epochs: int) -> Case:
    """Make the case that the flags describe, at these N and T.

    Raises:
        UserError: the sizes do not fit together, or the folder has no room for the file.
    """
    if not args.modes <= args.samples <= n_weights:
        raise UserError(f"-M {args.modes}, -K {args.samples}, -N {n_weights}: choose M ≤ K ≤ N")
    if n_epochs < 2:
        raise UserError(f"-T {n_epochs}: at least two snapshots are needed")
    path = args.folder / f"cmd_{n_weights}x{n_epochs}_seed{args.seed}.npy"
    if not args.folder.is_dir():
        raise UserError(f"--folder {args.folder} is not a folder: make it, or choose another")
    needed = 4 * n_weights * n_epochs - (path.stat().st_size if path.exists() else 0)
    free = shutil.disk_usage(args.folder).free
    if needed > free:
        raise UserError(
            f"--folder {args.folder}: {needed:,} bytes are needed, {free:,} are free; choose "
            "another, or a smaller -N or -T"
        )
    return Case(
        path, n_weights, n_epochs, args.modes, args.samples, args.seed, args.repeats, args.device
    )


@contextlib.contextmanager
def trajectory_file(case: Case, keep: bool) -> Iterator[None]:
    """Provide the case's whole trajectory file while the block runs.

    Afterwards the file is removed unless it is to be kept, and so are the results beside it.
    """
    try:
        alone(write_the_trajectory, case)
        yield
    finally:
        for path in case.results() if keep else (case.path, *case.results()):
            path.unlink(missing_ok=True)
