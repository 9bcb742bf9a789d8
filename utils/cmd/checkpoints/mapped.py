"""Files seen as bytes, without reading them."""

import os
import stat
import zlib
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from ..errors import InputError
from .faults import NoWeightsError

BLOCK = 1 << 20


class Mapped:
    """A file that is mapped into memory when it is first needed.

    Attributes:
        path: the file.
        size: its length in bytes.
    """

    def __init__(self, path: Path) -> None:
        """Raise NoWeightsError unless it is a file; OSError if it is out of reach."""
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise NoWeightsError(f"CHECKPOINT {path} is not a file")
        self.path, self.size = path, found.st_size
        self._stamp = found.st_mtime_ns, found.st_size, found.st_ino
        self._bytes: Tensor | None = None

    def bytes(self) -> Tensor:
        """The whole file, uint8; pages are loaded as they are touched.

        Raises InputError if the file is gone or no longer the one that was opened.
        """
        self.require_same()
        if self._bytes is None:
            if not self.size:
                return torch.empty(0, dtype=torch.uint8)
            # torch's own map, unlike Python's, keeps no file descriptor
            storage = torch.UntypedStorage.from_file(str(self.path), False, self.size)
            self._bytes = torch.empty(0, dtype=torch.uint8).set_(storage)
        return self._bytes

    def require_same(self) -> None:
        """Raise InputError if the file has changed: a map of one that shrank ends the process."""
        try:
            found = self.path.stat()
        except OSError as error:
            raise InputError(
                f"CHECKPOINT {self.path} cannot be read any more: {error.strerror}"
            ) from error
        if (found.st_mtime_ns, found.st_size, found.st_ino) != self._stamp:
            raise InputError(
                f"CHECKPOINT {self.path} changed while it was read: start again once it is complete"
            )

    def at(self, start: int, length: int) -> bytes:
        """A few bytes, fewer where the file ends."""
        with self.path.open("rb") as file:
            file.seek(start)
            return file.read(min(length, max(0, self.size - start)))


@dataclass(eq=False)
class Record:
    """A run of bytes in a file.

    Attributes:
        key: what the file calls it.
        crc: its CRC-32; None is unknown.
        crc_places: where in the file the CRC-32 is written.
        packed: whether the bytes are compressed.
    """

    file: Mapped
    key: str
    start: int
    length: int
    crc: int | None = None
    crc_places: tuple[int, ...] = ()
    packed: bool = False
    _checked: bool = field(default=False, repr=False)

    def bytes(self) -> Tensor:
        """The bytes through the file's map.

        Raises InputError if they are damaged, which is found out the first time.
        """
        everything = self.file.bytes()
        self.check()
        return everything[self.start : self.start + self.length]

    def check(self) -> None:
        """Raise InputError unless the bytes have their checksum."""
        if self.crc is None or self._checked:
            return
        with self.file.path.open("rb") as file:
            if checksum(file, self.start, self.length) != self.crc:
                raise InputError(
                    f"CHECKPOINT {self.file.path} is damaged (the checksum of {self.key} is "
                    "another): copy it again, or leave it out"
                )
        self._checked = True


def checksum(file, start: int, length: int) -> int:
    """The CRC-32 of a part of an open file, which is read block by block."""
    file.seek(start, os.SEEK_SET)
    value, left = 0, length
    while left and (block := file.read(min(BLOCK, left))):
        value = zlib.crc32(block, value)
        left -= len(block)
    return value
