"""Fit CMD to checkpoints: a series of state files of one model, of any kind.

    PROGRAM epoch_*.pt --modes 10
    PROGRAM FOLDER --output described

Files are taken in the order given, those of a folder in the order of the numbers in their names.
One is in memory at a time. The output folder gets cmd.safetensors, CMD's parameters for
`CMDModel.load`, and the last checkpoint with its weights replaced by their reconstruction, in the
format given.
"""

import argparse
import contextlib
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from .clustering import sample_weights
from .errors import InputError
from .files import whole
from .fitting import fit_cmd
from .quality import Description, describe
from .snapshots import Snapshots
from .state_files import Checkpoint, check_same, find_files, layers_of
from .vector import layer_sizes, named_layers, read_vector, write_vector

PARAMETERS, RECONSTRUCTED = "cmd.safetensors", "reconstructed"
INTERRUPTED = "interrupted; nothing was written"


def fit_checkpoints(args: argparse.Namespace) -> None:
    """Fit CMD to the files, write the results, and print the report."""
    files = find_files(args.checkpoints)
    if args.samples < args.modes:
        raise InputError(f"--samples {args.samples} is below --modes {args.modes}: raise it")
    device = find_device(args.device)
    outputs = output_files(args.output, files[-1].suffix, args.overwrite)
    with collected(files, args.key, args.output) as (array, names, sizes):
        sample = sample_weights(sizes, args.samples, args.seed)
        try:
            cmd = fit_cmd(array, sample, args.modes, device=device)
        except ValueError as error:
            raise InputError(f"--modes {args.modes}, --samples {args.samples}: {error}") from error
        found = describe(Snapshots(array, device=device), cmd, sizes)
    cmd = cmd.to("cpu")
    last = Checkpoint(files[-1], args.key)
    write_vector(cmd.reconstruct(cmd.reference_history[-1]), last.state)
    with whole(outputs[0]) as parameters, whole(outputs[1]) as reconstructed:  # both, or neither
        cmd.save(parameters)
        last.save(reconstructed)
    print(
        f"\n{report(names, found)}\n\n{len(files)} checkpoints of {cmd.n_weights:,} weights in "
        f"{cmd.modes} modes: {outputs[0]}, {outputs[1]}"
    )


@contextlib.contextmanager
def collected(
    files: Sequence[Path], key: str | None, folder: Path
) -> Iterator[tuple[np.ndarray, list[str], list[int]]]:
    """The checkpoints' weights, in a file that is removed when the block ends.

    Yields (the trajectory, a memory map float32 [T, N]; the layers' names; the layers' sizes).

    Raises InputError if a file does not fit the first, or there is no room.
    """
    store = folder / f".trajectory-{os.getpid()}"
    expected: dict[str, tuple[int, ...]] = {}
    sizes: list[int] = []
    try:
        with store.open("wb") as rows:
            for number, path in enumerate(tqdm(files, "reading", unit="file", disable=None), 1):
                checkpoint = Checkpoint(path, key)
                if not expected:
                    expected, sizes = layers_of(checkpoint), layer_sizes(checkpoint.state)
                    require_room(folder, 4 * sum(sizes) * len(files))
                check_same(checkpoint, files[0], expected)
                check_finite(checkpoint)
                rows.write(read_vector(checkpoint.state).cpu().numpy().data)
                if not sys.stderr.isatty():
                    print(f"{number} of {len(files)}: {path}", flush=True)
        array = np.memmap(store, np.float32, "r", shape=(len(files), sum(sizes)))
        yield array, list(expected), sizes
    finally:
        store.unlink(missing_ok=True)


def check_finite(checkpoint: Checkpoint) -> None:
    """Raise InputError naming a tensor that holds NaN or infinity."""
    for name, tensor in named_layers(checkpoint.state):
        if not tensor.isfinite().all():
            raise InputError(f"CHECKPOINT {checkpoint.path}: tensor {name!r} is not finite")


def output_files(folder: Path, suffix: str, overwrite: bool) -> tuple[Path, Path]:
    """Where the results go; the folder is made.

    Raises InputError if there are results that may not be overwritten.
    """
    files = folder / PARAMETERS, folder / f"{RECONSTRUCTED}{suffix}"
    for file in files:
        if file.exists() and not overwrite:
            raise InputError(f"--output {folder} holds {file.name}: choose another, or --overwrite")
    folder.mkdir(parents=True, exist_ok=True)
    return files


def require_room(folder: Path, needed: int) -> None:
    """Raise InputError unless the folder has room for the weights of all checkpoints."""
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise InputError(f"--output {folder}: {needed:,} bytes are needed there for a while, "
                        f"{free:,} are free; choose another")  # fmt: skip


def find_device(name: str) -> torch.device:
    """The device by name.

    Raises InputError if it cannot be used.
    """
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"--device {name}: it cannot be used here ({reason}); try cpu") from error
    return device


def report(names: Sequence[str], found: Sequence[Description]) -> str:
    """The table: each tensor, and all of them together."""
    rows = [("tensor", "weights", "relative error", "mean |correlation|")]
    for name, entry in (*zip(names, found, strict=True), ("all", sum(found, Description()))):
        mean = entry.mean_correlation
        correlation = "never moves" if mean is None else f"{mean:.4f}"
        rows.append((name, f"{entry.weights:,}", f"{entry.relative_error:.2e}", correlation))
    first, *others = (max(map(len, column)) for column in zip(*rows, strict=True))
    lines = [
        "  ".join(
            [row[0].ljust(first), *(c.rjust(w) for c, w in zip(row[1:], others, strict=True))]
        )
        for row in rows
    ]
    lines.insert(1, "  ".join("─" * width for width in (first, *others)))
    return "\n".join(lines)


def at_least(lowest: int):
    """A type for argparse: whole numbers from `lowest` on."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None
        if value < lowest:
            raise argparse.ArgumentTypeError(f"{text} is too small: choose {lowest} or more")
        return value

    return parse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `fit_checkpoints`."""
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
    parser.add_argument("--overwrite", action="store_true", help="replace the results in it")
