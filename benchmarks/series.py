"""Fit CMD to a series of large checkpoints by the command: time, memory and bytes written.

    python benchmarks/series.py                      # 12 sharded bf16 checkpoints of 400 M weights
    python benchmarks/series.py -N 20000000 -T 6 --folder DIR

The checkpoints are made in a folder that is removed at the end, of 10 shards each. The plain read
reads all of their bytes, of the same files in the same order, in blocks of 4 MiB. Before each of
the two the files are dropped from the system's memory, as far as it does so for this user. Memory
is anonymous memory beyond what the process held before, at its peak; the results, 9 bytes a
weight, are part of it and told beside it.
"""

import os
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import json

import torch
from safetensors.torch import save_file

from benchmarks.measure import Measured, alone, environment
from utils import cmd_utils
from utils.system.arguments import Parser, at_least
from utils.system.tables import format_table

SHARDS, LATENT, BLOCK = 10, 4, 1 << 22


def main(argv: list[str] | None = None) -> int:
    """Run the command, and return its exit code."""
    parser = Parser(prog="benchmarks/series.py", description=__doc__)
    parser.add_argument("-N", "--weights", type=at_least(1000), default=400_000_000, metavar="N")
    parser.add_argument("-T", "--moments", type=at_least(2), default=12, metavar="T")
    parser.add_argument("--folder", type=Path, help="where the checkpoints are made for a while")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        alone(make_series, Path(folder), args.weights, args.moments)
        files = sorted(Path(folder).rglob("*.safetensors"))
        size = sum(file.stat().st_size for file in files)
        print(f"N = {args.weights:,}, T = {args.moments}: {size / 1e9:.2f} GB, {len(files)} files")
        print(environment("cpu"), flush=True)
        forget(files)
        read = alone(plain_read, files)
        forget(files)
        seconds, peak, written = alone(fit_by_command, Path(folder))
        results = 9 * args.weights
        rows = [
            ["plain read", f"{read:.1f}", "", "", ""],
            ["the command", f"{seconds:.1f}", f"{seconds / read:.2f}",
             f"{(peak - results) / 1e6:,.0f}", f"{written / 1e9:.2f}"],
        ]  # fmt: skip
        header = ["", "s", "× read", "MB beyond the results", "GB written"]
        print("\n" + format_table(header, rows))
    return 0


def make_series(folder: Path, n_weights: int, n_moments: int) -> None:
    """Write sharded bf16 checkpoints of weights that follow a few random walks."""
    generator = torch.Generator().manual_seed(0)
    each = -(-n_weights // SHARDS)
    walks = torch.randn(n_moments, LATENT, generator=generator).cumsum(0)
    for shard in range(SHARDS):
        size = min(each, n_weights - shard * each)
        start, slope = (torch.randn(size, generator=generator) for _ in range(2))
        which = torch.randint(LATENT, (size,), generator=generator)
        for moment in range(n_moments):
            noise = torch.randn(size, generator=generator)
            theta = start + 0.1 * slope * walks[moment][which] + 0.01 * noise
            place = folder / f"checkpoint-{100 * moment}"
            place.mkdir(exist_ok=True)
            name = f"model-{shard + 1:05d}-of-{SHARDS:05d}.safetensors"
            save_file({f"layers.{shard}.weight": theta.bfloat16()}, place / name)
    names = {f"layers.{n}.weight": f"model-{n + 1:05d}-of-{SHARDS:05d}.safetensors"
             for n in range(SHARDS)}  # fmt: skip
    for place in folder.iterdir():
        index = {"metadata": {}, "weight_map": names}
        (place / "model.safetensors.index.json").write_text(json.dumps(index))


def plain_read(files: list[Path]) -> float:
    """Read every byte; returns the seconds."""
    start = time.perf_counter()
    for path in files:
        with path.open("rb", buffering=0) as file:
            while file.read(BLOCK):
                pass
    return time.perf_counter() - start


def fit_by_command(folder: Path) -> tuple[float, int, int]:
    """Fit by the command.

    Returns:
        (seconds, peak of anonymous memory in bytes, bytes written).
    """
    output = folder / "described"
    with Measured() as measured:
        code = cmd_utils.main([str(folder), "--output", str(output)])
    if code:
        raise RuntimeError(f"the command ended with {code}")
    return (
        measured.seconds,
        measured.peak,
        sum(f.stat().st_size for f in output.rglob("*") if f.is_file()),
    )


def forget(files: list[Path]) -> None:
    """Ask the system to drop what it holds of the files."""
    os.sync()
    for path in files:
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


if __name__ == "__main__":
    sys.exit(main())
