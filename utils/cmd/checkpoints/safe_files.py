"""The headers of safetensors files."""

import json
import struct
from dataclasses import replace
from math import prod
from typing import Any

import torch

from .faults import DamagedError
from .mapped import Mapped, Record
from .pickles import MOST_DIMENSIONS
from .rebuilt import Unreadable
from .stored import LONGEST, Stored, View

LONGEST_HEADER = 100_000_000  # the format's own limit
LENGTH = struct.Struct("<Q")
TYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "F8_E8M0": "float8_e8m0fnu",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U64": "uint64",
    "U32": "uint32",
    "U16": "uint16",
    "U8": "uint8",
    "BOOL": "bool",
    "C64": "complex64",
}


def looks_safe(head: bytes, size: int) -> bool:
    """Whether a file's first nine bytes are those of a safetensors file."""
    if len(head) < 9 or head[8:9] != b"{":
        return False
    return LENGTH.unpack_from(head)[0] <= LONGEST_HEADER


def read_safe(file: Mapped) -> dict[str, Stored | Unreadable]:
    """The tensors of a safetensors file by name, in the order of their bytes.

    Raises DamagedError if its header and length contradict each other.
    """
    (length,) = LENGTH.unpack(file.at(0, LENGTH.size))
    begin = LENGTH.size + length
    if begin > file.size:
        raise DamagedError("its header is incomplete")
    try:
        header = json.loads(file.at(LENGTH.size, length), object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise DamagedError("its header is damaged") from error
    header.pop("__metadata__", None)
    spans = {name: _span(entry) for name, entry in header.items()}
    found: dict[str, Stored | Unreadable] = {}
    end = 0
    for name in sorted(header, key=spans.__getitem__):
        start, stop = spans[name]
        if start != end:
            raise DamagedError("its tensors do not lie side by side")
        end = stop
        if begin + stop > file.size:
            raise DamagedError("it is incomplete")
        record = Record(file, name, begin + start, stop - start)
        found[name] = _tensor(name, header[name], record)
    if begin + end != file.size:
        raise DamagedError("its length is another than its header says")
    return found


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise DamagedError("its header has a name twice")
    return found


def _span(entry: Any) -> tuple[int, int]:
    span = entry.get("data_offsets") if isinstance(entry, dict) else None
    if not _numbers(span) or len(span) != 2 or span[0] > span[1]:
        raise DamagedError("its header is damaged")
    return tuple(span)


def _tensor(name: str, entry: dict, record: Record) -> Stored | Unreadable:
    shape, kind = entry.get("shape"), entry.get("dtype")
    if not _numbers(shape) or len(shape) > MOST_DIMENSIONS or not isinstance(kind, str):
        raise DamagedError("its header is damaged")
    dtype = getattr(torch, TYPES.get(kind, ""), None)
    if dtype is None:
        return Unreadable(f"its type {kind[:20]} is unknown here")
    if prod(shape) * dtype.itemsize != record.length:
        raise DamagedError(f"tensor {name!r} is of another length than its shape")
    strides = tuple(prod(shape[i + 1 :]) for i in range(len(shape)))
    return replace(Stored.of(View(record, dtype, 0, tuple(shape), strides)), name=name)


def _numbers(values: Any) -> bool:
    return isinstance(values, list) and all(type(v) is int and 0 <= v < LONGEST for v in values)
