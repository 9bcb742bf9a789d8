"""Top-k: only the largest changes are sent, in both directions; the others wait on their sender.

"Sparsified SGD with Memory", NeurIPS 2018, and "Deep Gradient Compression", ICLR 2018, for what
clients send. The server answers in the same way, with a memory of its own, as in "Robust and
Communication-Efficient Federated Learning from Non-i.i.d. Data", IEEE TNNLS 2020: what several
clients chose is together most of θ, and would go down almost whole.
"""

import math
from collections.abc import Mapping

import numpy as np

from utils.federated.gaps import read_gaps, write_gaps
from utils.federated.transport import Arrays, Coding, Layers, Vector, expected


class TopK(Coding):
    """The P % largest changes, and the gaps between them."""

    def __init__(self, percentage: float, values: Coding) -> None:
        """Prepare.

        Args:
            percentage: P, of the weights.
            values: writes the changes that are sent.
        """
        self.percentage, self.values = percentage, values

    def encode(self, change: Vector, layers: Layers, draw: np.random.Generator) -> Arrays:
        places = largest(change, self._count(len(change)))
        gaps = write_gaps(places, len(change))
        return self.values.encode(change[places], layers.at(places), draw) | {"gaps": gaps}

    def decode(self, arrays: Mapping[str, np.ndarray], layers: Layers) -> Vector:
        length = len(layers.of)
        gaps = expected(arrays, "gaps", np.uint8)
        places = read_gaps(gaps, self._count(length), length)
        change = np.zeros(length, dtype=np.float32)
        change[places] = self.values.decode(arrays, layers.at(places))
        return change

    def _count(self, length: int) -> int:
        return math.ceil(length * self.percentage / 100)


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
