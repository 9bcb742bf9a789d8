"""Fit CMD to checkpoints that you have: a series of state files of one model, of any kind.

    python -m utils.cmd_utils epoch_*.pt --modes 10
    python -m utils.cmd_utils FOLDER --output described

Files are taken in the order given, those of a folder in the order of the numbers in their names.
One is in memory at a time. The output folder gets cmd.pt, CMD's parameters for `CMDModel.load`,
and the last checkpoint with its weights replaced by their reconstruction, in the format given.
"""

import argparse
import contextlib
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from tqdm import tqdm

from utils.cmd.clustering import sample_weights
from utils.cmd.fitting import Snapshots, fit_cmd
from utils.cmd.quality import Description, describe
from utils.cmd.state_files import Checkpoint, check_same, find_files, layers_of
from utils.cmd.vector import layer_sizes, named_layers, read_vector, write_vector
from utils.storage.trajectory import Trajectory
from utils.system.arguments import Parser, at_least
from utils.system.command import run_command
from utils.system.devices import choose_device
from utils.system.errors import UserError
from utils.system.tables import format_table

PARAMETERS, RECONSTRUCTED = "cmd.pt", "reconstructed"


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    parser = build_parser()
    args = parser.parse_args(argv)
    return run_command(
        parser.prog,
        f"--output {args.output}",
        lambda: fit_checkpoints(args),
        interrupted="interrupted; nothing was written",
    )


def fit_checkpoints(args: argparse.Namespace) -> None:
    """Fit CMD to the files, write the results, and print the report."""
    files = find_files(args.checkpoints)
    if args.samples < args.modes:
        raise UserError(f"--samples {args.samples} is below --modes {args.modes}: raise it")
    device = choose_device(args.device)
    outputs = output_files(args.output, files[-1].suffix, args.overwrite)
    with collected(files, args.key, args.output) as (trajectory, names, sizes):
        generator = torch.Generator().manual_seed(args.seed)
        sample = sample_weights(sizes, args.samples, generator)
        array = trajectory.array
        try:
            cmd = fit_cmd(array, sample, args.modes, device=device)
        except ValueError as error:
            raise UserError(f"--modes {args.modes}, --samples {args.samples}: {error}") from error
        found = describe(Snapshots(array, device=device), cmd, sizes)
    cmd = cmd.to("cpu")
    cmd.save(outputs[0])
    last = Checkpoint(files[-1], args.key)
    write_vector(cmd.reconstruct(cmd.reference_history[-1]), last.state)
    last.save(outputs[1])
    print(
        f"\n{report(names, found)}\n\n{len(files)} checkpoints of {cmd.n_weights:,} weights in "
        f"{cmd.modes} modes: {outputs[0]}, {outputs[1]}"
    )


@contextlib.contextmanager
def collected(
    files: Sequence[Path], key: str | None, folder: Path
) -> Iterator[tuple[Trajectory, list[str], list[int]]]:
    """The checkpoints' weights, as a trajectory on disk that goes when the block ends.

    Yields (the trajectory, the layers' names, the layers' sizes).

    Raises UserError if a file does not fit the first, or there is no room.
    """
    store = folder / f".trajectory-{os.getpid()}.npy"
    expected, trajectory = None, None
    try:
        for number, path in enumerate(tqdm(files, "reading", unit="file", disable=None), start=1):
            checkpoint = Checkpoint(path, key)
            if expected is None:
                expected, sizes = layers_of(checkpoint), layer_sizes(checkpoint.state)
                require_room(folder, 4 * sum(sizes) * len(files))
                trajectory = Trajectory(store, sum(sizes))
            check_same(checkpoint, files[0], expected)
            check_finite(checkpoint)
            trajectory.append(read_vector(checkpoint.state))
            if not sys.stderr.isatty():
                print(f"{number} of {len(files)}: {path}", flush=True)
        yield trajectory, list(expected), sizes
    finally:
        store.unlink(missing_ok=True)


def check_finite(checkpoint: Checkpoint) -> None:
    """Raise UserError naming a tensor that holds NaN or infinity."""
    for name, tensor in named_layers(checkpoint.state):
        if not tensor.isfinite().all():
            raise UserError(f"CHECKPOINT {checkpoint.path}: tensor {name!r} is not finite")


def output_files(folder: Path, suffix: str, overwrite: bool) -> tuple[Path, Path]:
    """Where the results go; the folder is made.

    Raises UserError if there are results that may not be overwritten.
    """
    files = folder / PARAMETERS, folder / f"{RECONSTRUCTED}{suffix}"
    for file in files:
        if file.exists() and not overwrite:
            raise UserError(f"--output {folder} holds {file.name}: choose another, or --overwrite")
    folder.mkdir(parents=True, exist_ok=True)
    return files


def require_room(folder: Path, needed: int) -> None:
    """Raise UserError unless the folder has room for the weights of all checkpoints."""
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(f"--output {folder}: {needed:,} bytes are needed there for a while, "
                        f"{free:,} are free; choose another")  # fmt: skip


def report(names: Sequence[str], found: Sequence[Description]) -> str:
    """The table: each tensor, and all of them together."""
    rows = []
    for name, entry in (*zip(names, found, strict=True), ("all", sum(found, Description()))):
        mean = entry.mean_correlation
        correlation = "never moves" if mean is None else f"{mean:.4f}"
        rows.append((name, f"{entry.weights:,}", f"{entry.relative_error:.2e}", correlation))
    return format_table(("tensor", "weights", "relative error", "mean |correlation|"), rows)


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = Parser(prog="python -m utils.cmd_utils", description=__doc__)
    parser.add_argument(
        "checkpoints", nargs="+", type=Path, metavar="CHECKPOINT", help="files, or one folder"
    )
    parser.add_argument(
        "--modes", type=at_least(1), default=10, metavar="M", help="at the most (default: 10)"
    )
    parser.add_argument(
        "--samples",
        type=at_least(1),
        default=1000,
        metavar="K",
        help="weights that are clustered (default: 1000)",
    )
    parser.add_argument("--seed", type=at_least(0), default=0, help="of the sample (default: 0)")
    parser.add_argument(
        "--key", help="the entry of each file that holds the model's state (default: the usual one)"
    )
    parser.add_argument("--device", default="cpu", help="where to fit (default: cpu)")
    parser.add_argument(
        "--output", type=Path, default=Path("cmd"), metavar="DIR", help="(default: %(default)s)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace results that lie there")
    return parser
