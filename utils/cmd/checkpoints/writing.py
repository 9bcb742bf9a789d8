"""Checkpoints copied, with the values of some tensors replaced in the copy."""

import contextlib
import os
import shutil
import struct
from collections.abc import Callable, Iterator, Mapping
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
import torch
from torch import Tensor

from ..files import whole
from .mapped import Record, checksum
from .stored import Part, Stored

if TYPE_CHECKING:
    from .folders import Folder

Replaced = Mapping[str, Callable[[], Tensor]]


def save_file(
    source: Path, path: Path, tensors: Mapping[str, Stored], replaced: Replaced
) -> str | None:
    """Write a copy of a file, as Opened.save describes it."""
    with whole(path) as draft:
        shutil.copyfile(source, draft)
        return replace_values(tensors, replaced, lambda _: draft)


def save_folder(
    folder: "Folder", path: Path, tensors: Mapping[str, Stored], replaced: Replaced
) -> str | None:
    """Write a copy of a folder, as Opened.save describes it."""
    with whole_folder(path) as draft:
        for name in folder.copied():
            shutil.copyfile(folder.path / name, draft / name)
        return replace_values(tensors, replaced, lambda file: draft / file.name)


@contextlib.contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A block that fills another folder, which replaces `path` when the block ends, and is removed
    if it raises."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    before = path.with_name(f".{path.name}.{os.getpid()}.before")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir()
    try:
        yield draft
        for file in draft.iterdir():
            with file.open("rb") as content:
                os.fsync(content.fileno())
        if path.exists():
            path.replace(before)  # a folder with files in it cannot be replaced in one step
        draft.replace(path)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
        if before.exists() and not path.exists():
            before.replace(path)
        elif before.is_dir():
            shutil.rmtree(before, ignore_errors=True)
        else:
            before.unlink(missing_ok=True)


def replace_values(
    tensors: Mapping[str, Stored], replaced: Replaced, copy_of: Callable[[Path], Path]
) -> str | None:
    """Replace the values of some tensors in the copies of their files, one tensor at a time.

    Args:
        copy_of: the copy of a file.

    Returns a sentence that names tensors whose values did not fit, None where all did.
    """
    records: dict[Record, None] = {}
    unfit = []
    for name, stored in tensors.items():
        if name not in replaced:
            continue
        value = replaced[name]()
        if value.numel() != stored.numel():
            raise ValueError(f"{name} has {stored.numel()} values, not {value.numel()}")
        value = value.detach().to("cpu", stored.dtype).reshape(stored.shape)
        fits = True
        for part in stored.parts:
            box = [slice(low, low + n) for low, n in zip(part.lows, part.shape, strict=True)]
            record = part.view().record
            record.file.require_same()
            records[record] = None
            with copy_of(record.file.path).open("r+b") as file:
                fits &= _write(file, part, value[tuple(box)])
        if not fits:
            unfit.append(name)
    for record in records:
        with copy_of(record.file.path).open("r+b") as file:
            _write_checksum(file, record)
    if not unfit:
        return None
    return f"{', '.join(unfit)}: several elements are stored as one, which has the last one's value"


def _write(file: BinaryIO, part: Part, values: Tensor) -> bool:
    """Write a box's values where they are stored.

    Returns whether they are all there: not if elements that differ share a place.
    """
    view, size = part.view(), values.dtype.itemsize
    file.seek(view.record.start + view.offset * size)
    if not prod(view.shape):
        return True
    content = values.contiguous().reshape(-1).view(torch.uint8).numpy()
    if view.contiguous():
        file.write(content)
        return True
    held = bytearray(file.read(view.extent() * size))
    there = np.lib.stride_tricks.as_strided(
        np.frombuffer(held, np.uint8),
        (*view.shape, size),
        (*(stride * size for stride in view.strides), 1),
    )
    there[...] = content.reshape(there.shape)
    fits = np.array_equal(there, content.reshape(there.shape))
    file.seek(view.record.start + view.offset * size)
    file.write(held)
    return fits


def _write_checksum(file: BinaryIO, record: Record) -> None:
    """Write the checksum of a record whose bytes have changed."""
    if not record.crc_places:
        return
    value = struct.pack("<L", checksum(file, record.start, record.length))
    for place in record.crc_places:
        file.seek(place)
        file.write(value)
