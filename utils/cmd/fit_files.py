"""Fit CMD to checkpoints: a series of state files or folders of one model, of any kind.

    PROGRAM epoch_*.pt --modes 10
    PROGRAM FOLDER --output described
    PROGRAM run/checkpoint-* --last 20 --exclude "*.bias"

The numbers in the names decide the order. The weights are read once, straight from the files. The
output folder gets cmd.safetensors, CMD's parameters for `CMDModel.load`; the last checkpoint with
its weights replaced by their reconstruction, in the format given; and sampled.safetensors, the
weights that were clustered at each moment.
"""

import argparse
import contextlib
import json
import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from .checkpoints import Opened, Stored, is_checkpoint, open_checkpoint
from .checkpoints.alignment import SeriesLayer, align
from .checkpoints.folders import FILE_ENDINGS
from .checkpoints.series import (
    PARAMETERS,
    RECONSTRUCTED,
    SAMPLED,
    Series,
    choose,
    find_series,
)
from .checkpoints.snapshots import StoredSnapshots
from .clustering import sample_weights
from .errors import InputError
from .files import whole, write_safe
from .fitting import fit_cmd
from .model import CMDModel
from .quality import Description, Descriptions
from .ranks import ALONE, Ranks
from .vector import is_variance, own_where_equal

INTERRUPTED = "interrupted; nothing was written"
BYTES_A_WEIGHT = 9  # of a, b and the mode


def fit_checkpoints(args: argparse.Namespace, ranks: Ranks = ALONE) -> None:
    """Fit CMD to the files, write the results, and print the report.

    Args:
        args: the arguments of `add_arguments`.
        ranks: the processes that fit a range of the weights each; the first one writes.
    """
    if args.samples < args.modes:
        raise InputError(f"--samples {args.samples} is below --modes {args.modes}: raise it")
    device = find_device(args.device)
    series = find_series(args.checkpoints, is_checkpoint, args.as_given)
    first = getattr(args, "from")
    if first is not None and args.to is not None and first > args.to:
        raise InputError(f"--from {first:g} is above --to {args.to:g}: exchange them")
    series = choose(series, first, args.to, args.every, args.last)
    opened = [open_checkpoint(path, args.key) for path in series.paths]
    alignment = align(opened, args.include, args.exclude)
    sizes = [layer.numel() for layer in alignment.layers]
    if args.modes > sum(sizes):
        raise InputError(f"--modes {args.modes} is more than the {sum(sizes)} weights: lower it")
    with output_files(args.output, opened[-1].suffix, args.overwrite) as outputs:
        require_room(args.output, BYTES_A_WEIGHT * sum(sizes) + size_of(series.paths[-1]))
        for line in (*series.notes, *alignment.notes, told(series, opened)):
            print(one_line(line), flush=True)
        fit(args, device, opened, alignment.layers, outputs, ranks)


def fit(
    args: argparse.Namespace,
    device: torch.device,
    opened: Sequence[Opened],
    layers: Sequence[SeriesLayer],
    outputs: Sequence[Path],
    ranks: Ranks,
) -> None:
    """Fit the layers of the series, write the results, and print the report."""
    sizes = [layer.numel() for layer in layers]
    sample = sample_weights(sizes, args.samples, args.seed)
    descriptions = Descriptions(sizes)
    with Progress(layers, ranks) as progress:
        snapshots = StoredSnapshots(layers, [str(one.path) for one in opened], device, progress)
        sampled = snapshots.columns(sample)
        cmd = fit_cmd(snapshots, sample, args.modes, ranks=ranks, watch=descriptions.add)
    cmd = cmd.to("cpu")
    put_constants(cmd, snapshots, ranks)
    found = descriptions.over(ranks)
    ranks.object_from_first(lambda: write(cmd, sample, sampled, layers, opened, outputs))
    print(
        f"\n{report([layer.name for layer in layers], found)}\n\n{len(opened)} checkpoints of "
        f"{cmd.n_weights:,} weights in {cmd.modes} modes: {', '.join(map(str, outputs))}"
    )


def put_constants(cmd: CMDModel, snapshots: StoredSnapshots, ranks: Ranks) -> None:
    """Make b what the entries are that are not finite and never change, by all ranks; a is 0."""
    if ranks.size == 1:
        for at, values in zip(snapshots.constant, snapshots.values, strict=True):
            cmd.b[at] = values
        return
    own = ranks.share(cmd.n_weights)
    part = torch.zeros(own.stop - own.start)
    for at, values in zip(snapshots.constant, snapshots.values, strict=True):
        part[at - own.start] = values
    cmd.b += ranks.gather(part, cmd.n_weights)  # elsewhere it is 0


def told(series: Series, opened: Sequence[Opened]) -> str:
    """What is fitted, by name."""
    first, last = opened[0], opened[-1]
    taken = {each.taken for each in opened} - {""}
    where = f", of each its {' or '.join(sorted(taken))}" if taken else ""
    return (
        f"{len(opened)} checkpoints, from {first.path} to {last.path}{where}; "
        f"{last.path} is reconstructed"
    )


def write(
    cmd: CMDModel,
    sample: Tensor,
    sampled: Tensor,
    layers: Sequence[SeriesLayer],
    opened: Sequence[Opened],
    outputs: Sequence[Path],
) -> None:
    """Write the results, all of them or none."""
    parameters, reconstructed, curves = outputs
    draft = reconstructed.with_name(f".{reconstructed.name}.{os.getpid()}")
    try:
        with signals_held() as hold, whole(parameters) as own, whole(curves) as others:
            cmd.save(own)
            content = {"sample": sample, "trajectory": sampled.cpu()}
            write_safe(content, others, sampled_metadata(layers, opened))
            note = opened[-1].save(draft, reconstruction(cmd, opened[-1], layers))
            hold()
            for stale in reconstructions(reconstructed.parent):
                remove(stale)
            draft.replace(reconstructed)
    finally:
        remove(draft)
    if note is not None:
        print(f"note: {one_line(note)}")


@contextlib.contextmanager
def signals_held() -> Iterator[Callable[[], None]]:
    """Yield a function that holds SIGINT and SIGTERM back from its call to the block's end, after
    which the other results follow at once."""
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    try:
        yield lambda: signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def remove(path: Path) -> None:
    """Remove a file or folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def one_line(words: str) -> str:
    """The words with line breaks and other unprintable characters escaped."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in words)


def sampled_metadata(layers: Sequence[SeriesLayer], opened: Sequence[Opened]) -> dict[str, str]:
    """Which weights the sample is of: names and sizes of the layers, and the moments."""
    return {
        "layers": json.dumps([layer.name for layer in layers]),
        "sizes": json.dumps([layer.numel() for layer in layers]),
        "moments": json.dumps([str(each.path) for each in opened]),
    }


def reconstruction(
    cmd: CMDModel, last: Opened, layers: Sequence[SeriesLayer]
) -> Mapping[str, Callable[[], Tensor]]:
    """What makes the last checkpoint's tensors, by name, each when it is needed."""
    made, start = {}, 0
    for layer in layers:
        stop = start + layer.numel()
        stored = last.tensors[layer.name]
        made[layer.name] = partial(reconstructed_layer, cmd, stored, slice(start, stop))
        start = stop
    return made


def reconstructed_layer(cmd: CMDModel, stored: Stored, part: slice) -> Tensor:
    """A layer of the last checkpoint by CMD, within the range of its dtype; a running variance is
    at least 0, and float64 values that equal CMD's in float32 stay as they are stored."""
    values = cmd.of_weights(part).reconstruct(cmd.reference_history[-1])
    most = min(torch.finfo(stored.dtype).max, torch.finfo(values.dtype).max)
    values = torch.where(values.isinf(), values, values.clamp(-most, most))
    if is_variance(stored.name):
        values.clamp_(min=0)
    return own_where_equal(values, stored.read()) if stored.dtype == torch.float64 else values


class Progress:
    """The bytes that were read: a bar, or where there is no terminal a line every tenth."""

    def __init__(self, layers: Sequence[SeriesLayer], ranks: Ranks) -> None:
        """Show the reading of this rank's share of the layers."""
        total = sum(
            stored.numel() * stored.dtype.itemsize for layer in layers for stored in layer.moments
        )
        self._total, self._done, self._told = max(1, total // ranks.size), 0, 0
        self._bar = tqdm(total=self._total, unit="B", unit_scale=True, desc="reading", disable=None)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def __call__(self, n_bytes: int) -> None:
        """Count bytes."""
        self._done += n_bytes
        self._bar.update(n_bytes)
        tenth = min(10, 10 * self._done // self._total)
        if not sys.stderr.isatty() and tenth > self._told:
            self._told = tenth
            print(f"{10 * tenth} % of {self._total:,} bytes read", flush=True)


def reconstructions(folder: Path) -> list[Path]:
    """The reconstructed checkpoints there, of any form."""
    paths = [folder / f"{RECONSTRUCTED}{ending}" for ending in ("", *FILE_ENDINGS)]
    return [path for path in paths if path.exists()]


@contextlib.contextmanager
def output_files(folder: Path, suffix: str, overwrite: bool) -> Iterator[tuple[Path, Path, Path]]:
    """Yield where the results go; the folder is made, and removed if the block leaves none.

    Raises InputError if there are results that may not be overwritten.
    """
    files = folder / PARAMETERS, folder / f"{RECONSTRUCTED}{suffix}", folder / SAMPLED
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--output {folder} is a file: choose a folder")
    for file in (*files, *reconstructions(folder)):
        if file.exists() and not overwrite:
            raise InputError(f"--output {folder} holds {file.name}: choose another, or --overwrite")
        if file.is_dir() and file.suffix:
            raise InputError(f"--output {folder} holds a folder {file.name}: choose another")
    there = folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield files
    finally:
        if not there:
            with contextlib.suppress(OSError):  # it is not empty
                folder.rmdir()


def size_of(path: Path) -> int:
    """The bytes of a file, or of the files in a folder."""
    if path.is_dir():
        return sum(file.stat().st_size for file in path.iterdir() if file.is_file())
    return path.stat().st_size


def require_room(folder: Path, needed: int) -> None:
    """Raise InputError unless the folder has room for the results."""
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise InputError(f"--output {folder}: {needed:,} bytes are needed there, "
                        f"{free:,} are free; choose another")  # fmt: skip


def find_device(name: str) -> torch.device:
    """The device by name.

    Raises InputError if it cannot be used.
    """
    try:
        device = torch.device(name)
        torch.empty(1, device=device).tolist()
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


def at_least(lowest: int, highest: int | None = None):
    """A type for argparse: whole numbers from `lowest` on, up to `highest` if there is one."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None
        if value < lowest:
            raise argparse.ArgumentTypeError(f"{text} is too small: choose {lowest} or more")
        if highest is not None and value > highest:
            raise argparse.ArgumentTypeError(f"{text} is too large: choose {highest} or less")
        return value

    return parse


def number(text: str) -> float:
    """A type for argparse: numbers."""
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `fit_checkpoints`."""
    parser.add_argument(
        "checkpoints", nargs="+", type=Path, metavar="CHECKPOINT",
        help="files, or folders that are checkpoints, or one folder that holds them",
    )  # fmt: skip
    parser.add_argument(
        "--modes", type=at_least(1), default=10, metavar="M", help="at the most (default: 10)"
    )
    parser.add_argument(
        "--samples", type=at_least(1), default=1000, metavar="K",
        help="weights that are clustered (default: 1000)",
    )  # fmt: skip
    parser.add_argument(
        "--seed", type=at_least(0, 2**64 - 1), default=0, help="of the sample (default: 0)"
    )
    parser.add_argument(
        "--from", type=number, metavar="N", help="the first number of the series (default: all)"
    )
    parser.add_argument(
        "--to", type=number, metavar="N", help="the last number of the series (default: all)"
    )
    parser.add_argument(
        "--every", type=at_least(1), default=1, metavar="N",
        help="every Nth of these, the last one among them (default: 1)",
    )  # fmt: skip
    parser.add_argument(
        "--last", type=at_least(2), metavar="N", help="the last N of these (default: all)"
    )
    parser.add_argument(
        "--as_given", action="store_true", help="keep the order given, whatever the numbers are"
    )
    parser.add_argument(
        "--key",
        help="the entry of each file that holds the model's state, such as state.model "
        "(default: the usual one)",
    )
    parser.add_argument(
        "--include", action="append", default=[], metavar="PATTERN",
        help="fit only tensors with such names; may be given again (default: all)",
    )  # fmt: skip
    parser.add_argument(
        "--exclude", action="append", default=[], metavar="PATTERN",
        help="copy tensors with such names from the last checkpoint (default: none)",
    )  # fmt: skip
    parser.add_argument("--device", default="cpu", help="where to fit (default: cpu)")
    parser.add_argument(
        "--output", type=Path, default=Path("cmd"), metavar="DIR", help="(default: %(default)s)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the results in it")
