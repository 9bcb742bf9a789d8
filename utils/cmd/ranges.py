"""Ranges of weights: so many at once that calls cost nothing and memory stays small."""

from collections.abc import Iterator

import torch

PART_WEIGHTS = 1 << 17  # small enough for a cache
GPU_PART_WEIGHTS = 1 << 24  # where calls cost more than memory


def ranges(stop: int, size: int, start: int = 0) -> Iterator[slice]:
    """Consecutive ranges of at most `size` weights that cover start … stop − 1."""
    for first in range(start, stop, size):
        yield slice(first, min(first + size, stop))


def part_weights(device: torch.device) -> int:
    """How many weights to handle at once on a device."""
    return PART_WEIGHTS if device.type == "cpu" else GPU_PART_WEIGHTS
