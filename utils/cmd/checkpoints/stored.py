"""Tensors where they are stored, read in ranges."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from math import prod

import torch
from torch import Tensor

from ..errors import InputError
from .faults import DamagedError
from .mapped import Record
from .pickles import MOST_DIMENSIONS

LONGEST = 1 << 62


@dataclass(frozen=True)
class View:
    """A strided view of a record's bytes.

    Attributes:
        offset: the first element, counted in elements.
        strides: in elements.
    """

    record: Record
    dtype: torch.dtype
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def __post_init__(self) -> None:
        """Raise DamagedError if the view leaves its record."""
        numbers = (self.offset, *self.shape, *self.strides)
        if len(self.shape) != len(self.strides) or len(self.shape) > MOST_DIMENSIONS:
            raise DamagedError("a tensor's shape and strides do not agree")
        if any(type(number) is not int or not 0 <= number < LONGEST for number in numbers):
            raise DamagedError("a tensor's shape or strides are no lengths")
        if (self.offset + self.extent()) * self.dtype.itemsize > self.record.length:
            raise DamagedError(f"a tensor needs more bytes than {self.record.key} has")

    def extent(self) -> int:
        """How many elements lie between the first and the last, both included."""
        if not prod(self.shape):
            return 0
        return 1 + sum((n - 1) * s for n, s in zip(self.shape, self.strides, strict=True))

    def contiguous(self) -> bool:
        return all(
            n == 1 or stride == prod(self.shape[i + 1 :])
            for i, (n, stride) in enumerate(zip(self.shape, self.strides, strict=True))
        )

    def bytes(self) -> Tensor:
        """The elements' bytes, uint8 [*shape, bytes of one element], through the file's map."""
        content, size = self.record.bytes(), self.dtype.itemsize
        return content.as_strided(
            (*self.shape, size),
            (*(stride * size for stride in self.strides), 1),
            content.storage_offset() + self.offset * size,
        )


@dataclass(frozen=True)
class Part:
    """A box of a tensor, as one view.

    Attributes:
        lows: where the box begins in each dimension.
        shape: its lengths.
        view: the view of that shape; a call, for one that has to be looked up first.
        place: what is equal for boxes stored as the same bytes.
    """

    lows: tuple[int, ...]
    shape: tuple[int, ...]
    view: Callable[[], View] = field(repr=False)
    place: tuple


@dataclass(frozen=True)
class Stored:
    """A tensor in a file.

    Attributes:
        plain: whether it is dense and of a type that has float32 values.
        parts: the boxes that it is stored in; none where its values cannot be read as they are.
    """

    name: str
    dtype: torch.dtype
    shape: torch.Size
    plain: bool
    parts: tuple[Part, ...] = field(default=(), repr=False)

    @classmethod
    def of(cls, view: View, name: str = "", plain: bool = True) -> "Stored":
        """A tensor that is stored as one view."""
        strides = tuple(0 if n == 1 else s for n, s in zip(view.shape, view.strides, strict=True))
        record = view.record
        place = (str(record.file.path), record.start, record.key, view.offset, strides, view.dtype)
        part = Part((0,) * len(view.shape), view.shape, lambda: view, place)
        return cls(name, view.dtype, torch.Size(view.shape), plain and real(view.dtype), (part,))

    def numel(self) -> int:
        return prod(self.shape)

    @property
    def place(self) -> tuple:
        """Equal for tensors that are stored as the same bytes: if their shapes are, they are tied.

        A part is (file, position, storage key, offset, strides, type).
        """
        return tuple(part.place for part in self.parts)

    def read(self, start: int = 0, stop: int | None = None) -> Tensor:
        """The flat elements from `start` to `stop` in row-major order, in their own type.

        Where the file has them in that order they are a view of its map, not to be changed in
        place.

        Raises InputError if the file is damaged, or has changed since it was opened.
        """
        stop = self.numel() if stop is None else stop
        if not 0 <= start <= stop <= self.numel():
            raise ValueError(f"{self.name} has {self.numel()} elements, not {start} to {stop}")
        if start == stop:
            return torch.empty(0, dtype=self.dtype)
        if not self.parts:
            raise InputError(f"tensor {self.name!r} is quantised or sparse: it has no plain values")
        size = self.dtype.itemsize
        if len(self.parts) == 1 and (view := self.parts[0].view()).contiguous():
            found = view.bytes().view(-1)[start * size : stop * size]
            # a type can be given only to bytes that are aligned for it
            aligned = found.storage_offset() % size == 0
            return (found if aligned else found.clone()).view(self.dtype)
        found = torch.zeros((stop - start) * size, dtype=torch.uint8)
        position = 0
        for lows, lengths in boxes(tuple(self.shape), start, stop):
            count = prod(lengths) * size
            box = found[position : position + count].view(*lengths, size)
            position += count
            for part in self.parts:
                shared = overlap(lows, lengths, part.lows, part.shape)
                if shared is not None:
                    box[shared[0]] = part.view().bytes()[shared[1]]
        return found.view(self.dtype)


@cache
def real(dtype: torch.dtype) -> bool:
    """Whether values of a type can be converted to float32."""
    if dtype.is_complex:
        return False
    try:
        torch.zeros(1, dtype=dtype).to(torch.float32)
    except (RuntimeError, NotImplementedError):  # of types that are but names for bits
        return False
    return True


def boxes(
    shape: tuple[int, ...], start: int, stop: int
) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """The boxes that together are a range of a tensor's flat elements, in its order.

    Yields (where a box begins in each dimension, its lengths).
    """
    if start >= stop:
        return
    if not shape:
        yield (), ()
        return
    inner = prod(shape[1:])
    (first, skipped), (last, rest) = divmod(start, inner), divmod(stop, inner)
    if first == last:
        ranges = [(first, skipped, rest)]
    else:
        ranges = [(first, skipped, inner)] if skipped else []
        first += bool(skipped)
        ranges += [(first, None, last - first)] if first < last else []
        ranges += [(last, 0, rest)] if rest else []
    for row, begin, end in ranges:
        if begin is None:
            yield (row, *(0 for _ in shape[1:])), (end, *shape[1:])
        else:
            for lows, lengths in boxes(shape[1:], begin, end):
                yield (row, *lows), (1, *lengths)


def overlap(
    lows: tuple[int, ...], shape: tuple[int, ...], others: tuple[int, ...], other: tuple[int, ...]
) -> tuple[tuple[slice, ...], tuple[slice, ...]] | None:
    """What two boxes share, as an index into each; None is nothing."""
    here, there = [], []
    for a, n, b, m in zip(lows, shape, others, other, strict=True):
        begin, end = max(a, b), min(a + n, b + m)
        if begin >= end:
            return None
        here.append(slice(begin - a, end - a))
        there.append(slice(begin - b, end - b))
    return tuple(here), tuple(there)
