"""Folders of torch.distributed.checkpoint: boxes of tensors in the files of several processes."""

import io
from functools import cache
from math import prod
from pathlib import Path
from typing import Any

import torch

from ..errors import InputError
from .faults import DamagedError
from .mapped import Mapped
from .pickles import MOST_DIMENSIONS, Foreign, unpickled
from .rebuilt import Unreadable, dtype_of
from .stored import LONGEST, Part, Stored, View, real
from .torch_files import read_torch

METADATA = ".metadata"


def read_distributed(path: Path) -> dict:
    """What a folder holds, its tensors as Stored, nested as it was saved.

    Raises InputError if a file is missing, DamagedError if the files contradict each other.
    """
    described = Mapped(path / METADATA)
    content = _fields(unpickled(io.BytesIO(described.at(0, described.size))))
    tensors, kept = content.get("state_dict_metadata"), content.get("storage_data")
    if not isinstance(tensors, dict) or not isinstance(kept, dict):
        raise DamagedError(f"{METADATA} describes no tensors")
    found, places = _Files(path), content.get("planner_data")
    spans: dict[str, dict[tuple, dict]] = {}
    for index, span in kept.items():
        where = _fields(index)
        spans.setdefault(where.get("fqn"), {})[where.get("offset")] = _fields(span)
    nested: dict = {}
    for name, entry in tensors.items():
        route = places.get(name) if isinstance(places, dict) else None
        kind = entry.name.rpartition(".")[2] if isinstance(entry, Foreign) else ""
        value: Any = entry
        if kind == "TensorStorageMetadata":
            value = _tensor(name, _fields(entry), spans.get(name, {}), found)
        _put(nested, route if isinstance(route, tuple) and route else (name,), value)
    return nested


def _fields(record: Any) -> dict:
    return record.fields() if isinstance(record, Foreign) else {}


def _put(nested: dict, route: tuple, value: Any) -> None:
    for step in route[:-1]:
        inner = nested.setdefault(step, {})
        if not isinstance(inner, dict):
            raise DamagedError(f"{METADATA} has a tensor within another")
        nested = inner
    nested[route[-1]] = value


class _Files:
    """The files of the folder, each opened once."""

    def __init__(self, path: Path) -> None:
        self.path, self._files = path, {}

    def get(self, name: Any) -> Mapped:
        if (
            not isinstance(name, str)
            or name != Path(name).name
            or name in ("", "..")
            or "\0" in name
        ):
            raise DamagedError(f"{METADATA} names a file that is not beside it")
        if name not in self._files:
            file = self.path / name
            if not file.is_file():
                raise InputError(f"CHECKPOINT {file} is missing, which {METADATA} names: copy the "
                                "folder again")  # fmt: skip
            self._files[name] = Mapped(file)
        return self._files[name]


def _tensor(name: str, fields: dict, spans: dict, files: _Files) -> Stored | Unreadable:
    """A tensor by its record and where its boxes lie."""
    properties = fields.get("properties")
    state = properties.state if isinstance(properties, Foreign) else None
    kind = state[0] if isinstance(state, tuple) and state else _fields(properties).get("dtype")
    dtype, shape = dtype_of(kind), _numbers(fields.get("size"))
    parts = []
    for chunk in map(_fields, fields.get("chunks") or ()):
        lows, lengths = _numbers(chunk.get("offsets")), _numbers(chunk.get("sizes"))
        if not len(lows) == len(lengths) == len(shape) or any(
            low + n > most for low, n, most in zip(lows, lengths, shape, strict=True)
        ):
            raise DamagedError(f"a part of tensor {name!r} leaves it")
        span = spans.get(lows, spans.get(None))
        if span is None:
            raise DamagedError(f"a part of tensor {name!r} is nowhere")
        if span.get("transform_descriptors"):
            return Unreadable("it is stored compressed")
        file = files.get(span.get("relative_path"))
        start, length = _numbers((span.get("offset"), span.get("length")))
        if start + length > file.size:
            raise DamagedError(f"{file.path.name} is incomplete")
        place = (str(file.path), start, name, 0, lengths, dtype)
        parts.append(Part(lows, lengths, _box(file, start, length, lengths, dtype), place))
    if sum(prod(part.shape) for part in parts) != prod(shape):
        raise DamagedError(f"parts of tensor {name!r} are missing")
    return Stored(name, dtype, torch.Size(shape), real(dtype) and bool(parts), tuple(parts))


def _box(file: Mapped, start: int, length: int, shape: tuple[int, ...], dtype: torch.dtype):
    """What finds a box's view, by a zip file of its own within the file."""

    @cache
    def view() -> View:
        try:
            stored = read_torch(file, start, length)
        except DamagedError as error:
            raise InputError(
                f"CHECKPOINT {file.path} is damaged ({error}): copy it again"
            ) from error
        if not isinstance(stored, Stored) or stored.dtype != dtype or stored.shape != shape:
            raise InputError(f"CHECKPOINT {file.path} is damaged (a part is another than "
                            f"{METADATA} says): copy it again")  # fmt: skip
        return stored.parts[0].view()

    return view


def _numbers(values: Any) -> tuple[int, ...]:
    if not isinstance(values, tuple) or len(values) > MOST_DIMENSIONS:
        raise DamagedError(f"{METADATA} has a shape that is none")
    if any(type(value) is not int or not 0 <= value < LONGEST for value in values):
        raise DamagedError(f"{METADATA} has a length that is none")
    return values
