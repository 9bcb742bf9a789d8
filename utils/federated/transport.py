"""How changes of θ are written in messages: in 32, 16 or 8 bits, and nothing lost over the rounds.

What a message leaves out stays with its sender, who adds it to the next one (error feedback). All
of it is float32 in NumPy, elementwise but for a layer's largest change, and rounded the same on
every machine, so that a sender knows bit for bit what is read from its message.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from utils.federated.draws import drawing

Vector = np.ndarray  # float32 [n] unless said otherwise
Arrays = dict[str, np.ndarray]

FP32, BF16, INT8 = "fp32", "bf16", "int8"
STEPS = 127  # of int8, to either side of 0
LARGEST_SCALE = np.float32(3.4e38 / STEPS)  # beyond which a scale's largest multiple is infinite
LARGEST_BF16 = np.array([0x7F7F0000], dtype=np.uint32).view(np.float32)[0]


class Layers(NamedTuple):
    """Which layers of θ some weights are of.

    Attributes:
        of: int [n], of each weight.
        count: how many layers θ has.
    """

    of: np.ndarray
    count: int

    def at(self, where: np.ndarray) -> "Layers":
        """Pick out those of some of the weights."""
        return Layers(self.of[where], self.count)


class Coding(ABC):
    """Writes changes as the arrays of a message, and reads them.

    It is told which layer each change is of: no message tells it.
    """

    @abstractmethod
    def encode(self, change: Vector, layers: Layers, draw: np.random.Generator) -> Arrays:
        """Write changes, which are finite."""

    @abstractmethod
    def decode(self, arrays: Mapping[str, np.ndarray], layers: Layers) -> Vector:
        """Read changes.

        Raises:
            ValueError: the arrays are not those of a message about these weights.
        """


class Float32(Coding):
    """Four bytes a change."""

    def encode(self, change: Vector, layers: Layers, draw: np.random.Generator) -> Arrays:
        return {"values": change}

    def decode(self, arrays: Mapping[str, np.ndarray], layers: Layers) -> Vector:
        return expected(arrays, "values", np.float32, len(layers.of))


class BFloat16(Coding):
    """Two bytes a change, rounded to nearest, ties to even."""

    def encode(self, change: Vector, layers: Layers, draw: np.random.Generator) -> Arrays:
        bits = np.clip(change, -LARGEST_BF16, LARGEST_BF16).view(np.uint32)
        rounded = bits + np.uint32(0x7FFF) + (bits >> 16 & 1)
        return {"values": (rounded >> 16).astype(np.uint16)}

    def decode(self, arrays: Mapping[str, np.ndarray], layers: Layers) -> Vector:
        values = expected(arrays, "values", np.uint16, len(layers.of))
        return (values.astype(np.uint32) << 16).view(np.float32)


class Int8(Coding):
    """A byte a change, and a scale a layer: whole multiples of it, rounded up or down at random.

    The scale is 1/127 of the layer's largest change. The nearer a multiple, the likelier it is: the
    mean is the change itself ("QSGD", NeurIPS 2017).
    """

    def encode(self, change: Vector, layers: Layers, draw: np.random.Generator) -> Arrays:
        scales = np.zeros(layers.count, dtype=np.float32)
        np.maximum.at(scales, layers.of, np.abs(change))
        scales = np.minimum(scales / np.float32(STEPS), LARGEST_SCALE)
        of_each = scales[layers.of]
        multiple = np.zeros_like(change)  # where a layer does not move, or by less than a scale can
        np.divide(change, of_each, out=multiple, where=of_each > 0)
        below = np.floor(multiple)
        up = draw.random(len(change), dtype=np.float32) < multiple - below
        values = np.clip(below + up, -STEPS, STEPS).astype(np.int8)
        return {"values": values, "scales": scales}

    def decode(self, arrays: Mapping[str, np.ndarray], layers: Layers) -> Vector:
        values = expected(arrays, "values", np.int8, len(layers.of))
        scales = expected(arrays, "scales", np.float32, layers.count)
        return values.astype(np.float32) * scales[layers.of]


CODINGS: dict[str, Coding] = {FP32: Float32(), BF16: BFloat16(), INT8: Int8()}
TRANSPORTS = tuple(CODINGS)


class Sender:
    """One end of a line: writes its own changes with error feedback, and reads the other's.

    Statistics of layers (BatchNorm's) are written in float32, with nothing left over: training
    comes to them from wherever it begins, and a change that waited would be made twice.

    Attributes:
        coding: how both ends write.
        residual: float32 [N], what was meant and is not sent yet.
    """

    def __init__(
        self,
        coding: Coding,
        sizes: Sequence[int],
        stream: Sequence[int],
        statistics: Sequence[bool] = (),
    ) -> None:
        """Begin with nothing left to send.

        Args:
            coding: how both ends write.
            sizes: how many weights each layer of θ has.
            stream: what tells this sender's draws from others', see `drawing`.
            statistics: whether each layer is of statistics; none is, if it is left out.
        """
        self.coding = coding
        self.residual = np.zeros(sum(sizes), dtype=np.float32)
        of = np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)
        self._layers = Layers(of, len(sizes))
        self._statistics = np.repeat(np.array(statistics or [False] * len(sizes), bool), sizes)
        self._stream = tuple(stream)

    def send(self, change: Vector, which: np.ndarray, number: int) -> tuple[Arrays, Vector]:
        """Write a message: the changes, and what earlier messages left out.

        Args:
            change: float32 [n].
            which: bool [N], the n weights that change.
            number: the message's, of which its draws are.

        Returns:
            The message's arrays, and what is read from them, float32 [n].

        Raises:
            ValueError: changes are not finite; nothing has changed.
        """
        with np.errstate(over="ignore", invalid="ignore"):  # which is said by what follows
            meant = self.residual[which] + change
        if not np.isfinite(meant).all():
            raise ValueError("changes that are not finite")
        statistics, layers = self._split(which)
        draw = drawing(*self._stream, number)
        arrays = self.coding.encode(meant[~statistics], layers, draw)
        if statistics.any():
            arrays["statistics"] = meant[statistics]
        sent = self._decoded(arrays, statistics, layers)
        self.residual[which] = meant - sent
        return arrays, sent

    def read(self, arrays: Mapping[str, np.ndarray], which: np.ndarray) -> Vector:
        """Read what the other end wrote of the weights in `which`, bool [N]: float32 [n].

        Raises:
            ValueError: it is not a message about these weights, or not finite.
        """
        change = self._decoded(arrays, *self._split(which))
        if not np.isfinite(change).all():
            raise ValueError("changes that are not finite")
        return change

    def of_some(self, arrays: Arrays, which: np.ndarray, kept: np.ndarray) -> Arrays:
        """Keep of a message, in which each weight has a value, what is of some of the weights.

        Args:
            arrays: the message.
            which: bool [N], the n weights that it is about.
            kept: bool [n], those of them that are kept.
        """
        statistics = self._statistics[which]
        values = {"values": arrays["values"][kept[~statistics]]}
        if statistics.any():
            values["statistics"] = arrays["statistics"][kept[statistics]]
        return arrays | values

    def _split(self, which: np.ndarray) -> tuple[np.ndarray, Layers]:
        """Tell which of some weights are statistics, bool [n], and the layers of the others."""
        return self._statistics[which], self._layers.at(which & ~self._statistics)

    def _decoded(
        self, arrays: Mapping[str, np.ndarray], statistics: np.ndarray, layers: Layers
    ) -> Vector:
        change = np.empty(len(statistics), dtype=np.float32)
        change[~statistics] = self.coding.decode(arrays, layers)
        if statistics.any():
            length = int(statistics.sum())
            change[statistics] = expected(arrays, "statistics", np.float32, length)
        return change


def expected(
    arrays: Mapping[str, np.ndarray],
    name: str,
    dtype: type[np.generic],
    length: int | None = None,
) -> np.ndarray:
    """Return an array of a message, [length]; of any length, if that is None.

    Raises:
        ValueError: it is not there, or of another type or length.
    """
    found = arrays.get(name)
    right = found is not None and found.dtype == dtype and found.ndim == 1
    if not right or (length is not None and len(found) != length):
        has = None if found is None else f"{found.dtype} {list(found.shape)}"
        of_length = "" if length is None else f" [{length}]"
        raise ValueError(f"{name} {np.dtype(dtype)}{of_length} were expected, not {has}")
    return found
