"""What is measured: the sizes from the command line, and the trajectory file."""

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

READ_AT_ONCE = 1 << 22


@dataclass(frozen=True)
class Case:
    """What is fitted: the file, M, the sample's size K, and where."""

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
        """Where our results and the public code's lie while they are compared."""
        return self.path.with_suffix(".ours.pt"), self.path.with_suffix(".public.npz")

    def sample(self) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed)
        return sample_weights(layer_sizes(module_of(self.n_weights)), self.samples, generator)


def write_the_trajectory(case: Case) -> None:
    """Generate the file unless it is there, and read it once."""
    write_trajectory(case.path, case.n_weights, case.n_epochs, case.seed)
    read_file(case.path)


def read_file(path: Path) -> None:
    """Read a file from its beginning to its end through one buffer."""
    buffer = np.empty(READ_AT_ONCE, dtype=np.uint8)
    with path.open("rb", buffering=0) as file:
        while file.readinto(buffer):
            pass


def case_flags(parser: argparse.ArgumentParser, epochs: int, clusters: bool = True) -> None:
    """The flags that make a case, and with whom to compare.

    clusters: whether there are modes in it, and the paper's public code to compare with.
    """
    sizes = [
        (("-N", "--weights"), 11_170_000, "weights"),
        (("-T", "--epochs"), epochs, "snapshots"),
        (("-M", "--modes"), 10, "modes at the most"),
        (("-K", "--samples"), 1000, "weights that are clustered"),
    ]
    parser.set_defaults(modes=1, samples=1)
    for flags, default, meaning in sizes if clusters else sizes[:2]:
        parser.add_argument(
            *flags, type=at_least(1), default=default, help=f"{meaning} (default: {default:,})"
        )
    parser.add_argument("--seed", type=at_least(0), default=0, help="(default: %(default)s)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda (default: %(default)s)")
    if clusters:
        parser.add_argument("--official", metavar="PATH", help="a clone of the paper's public code")
    parser.add_argument("--repeats", type=at_least(1), default=3, help="(default: %(default)s)")
    parser.add_argument(
        "--folder",
        type=Path,
        default=tempfile.gettempdir(),
        metavar="DIR",
        help="where the trajectory is written, 4·N·T bytes (default: %(default)s)",
    )
    parser.add_argument("--keep", action="store_true", help="leave it there, and use it if it is")


def case_of(args: argparse.Namespace, n_weights: int, n_epochs: int) -> Case:
    """The case that the flags describe, at these N and T.

    Raises UserError if the sizes do not fit together or the folder has no room for the file.
    """
    if not args.modes <= args.samples <= n_weights:
        raise UserError(f"-M {args.modes}, -K {args.samples} and -N {n_weights} must not decrease")
    if n_epochs < 2:
        raise UserError(f"-T {n_epochs}: two snapshots are the least")
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
    """The case's file, whole while the block runs.

    Afterwards it is gone unless it is kept, and the results beside it are gone.
    """
    try:
        alone(write_the_trajectory, case)
        yield
    finally:
        for path in case.results() if keep else (case.path, *case.results()):
            path.unlink(missing_ok=True)
