"""Top-k: only the largest changes are sent, in both directions; the others wait on their sender.

"Sparsified SGD with Memory", NeurIPS 2018, and "Deep Gradient Compression", ICLR 2018, for what
clients send. The server answers in the same way, with a memory of its own, as in "Robust and
Communication-Efficient Federated Learning from Non-i.i.d. Data", IEEE TNNLS 2020: what several
clients chose is together most of θ, and would go down almost whole.
"""

import math
from collections.abc import Mapping

import numpy as np

from utils.federated.transport import Arrays, Coding, Layers, Vector, expected


class TopK(Coding):
    """The P % largest changes, and where they are: a bit for each weight, or 4 bytes for each of
    them, whichever is less."""

    def __init__(self, percentage: float, values: Coding) -> None:
        """Prepare.

        Args:
            percentage: P, of the weights.
            values: writes the changes that are sent.
        """
        self.percentage, self.values = percentage, values

    def encode(self, change: Vector, layers: Layers, draw: np.random.Generator) -> Arrays:
        places = largest(change, self._count(len(change)))
        where = {"places": places.astype(np.int32)}
        if self._in_bits(len(change)):
            which = np.zeros(len(change), dtype=bool)
            which[places] = True
            where = {"which": np.packbits(which)}
        return self.values.encode(change[places], layers.at(places), draw) | where

    def decode(self, arrays: Mapping[str, np.ndarray], layers: Layers) -> Vector:
        length, count = len(layers.of), self._count(len(layers.of))
        if self._in_bits(length):
            bits = expected(arrays, "which", np.uint8, -(-length // 8))
            places = np.flatnonzero(np.unpackbits(bits))
        else:
            places = expected(arrays, "places", np.int32, count)
        inside = not len(places) or (places[0] >= 0 and places[-1] < length)
        if len(places) != count or not inside or not (np.diff(places) > 0).all():
            raise ValueError(f"not {count} places among {length} weights, in order")
        change = np.zeros(length, dtype=np.float32)
        change[places] = self.values.decode(arrays, layers.at(places))
        return change

    def _count(self, length: int) -> int:
        return math.ceil(length * self.percentage / 100)

    def _in_bits(self, length: int) -> bool:
        return -(-length // 8) < 4 * self._count(length)


def largest(change: Vector, count: int) -> np.ndarray:
    """Find the places of the largest changes, rising; of equal ones those that come first.

    Args:
        change: float32 [n].
        count: how many, up to n.

    Returns:
        int64 [count].
    """
    if count == 0:
        return np.zeros(0, dtype=np.int64)
    size = np.abs(change)
    smallest = np.partition(size, len(size) - count)[len(size) - count]
    chosen = size > smallest
    equal = np.flatnonzero(size == smallest)
    chosen[equal[: count - int(chosen.sum())]] = True
    return np.flatnonzero(chosen)
