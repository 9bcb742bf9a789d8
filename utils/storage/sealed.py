"""Files sealed against damage, and read safely.

A sealed file of tensors is a zip archive, as torch.save makes it, whose comment (which readers of
zip archives skip) names the run that the file belongs to and ends in the SHA-256 of all bytes
before it.
A sealed JSON file has the SHA-256 of its content under "checksum". A file that grows has its
checksums beside it, a line for each piece.
"""

import hashlib
import io
import json
import os
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from utils.storage.files import append, atomic_write, write_json, write_text
from utils.system.interrupts import held_back

MARK = b"CMD seal"
RUN_BYTES, DIGEST_BYTES = 32, hashlib.sha256().digest_size
SEAL_BYTES = len(MARK) + RUN_BYTES + DIGEST_BYTES
CHECKSUM = "checksum"
MAX_JSON = 1 << 26  # bytes; the names of a million classes fit
PIECE = 1 << 22  # bytes read at once


def write_sealed_json(content: dict, path: str | os.PathLike) -> None:
    """Write a dictionary, as JSON with its checksum, to `path` atomically."""
    write_json(content | {CHECKSUM: _json_digest(content)}, path)


def read_sealed_json(path: str | os.PathLike) -> dict:
    """Read what `write_sealed_json` wrote, without the checksum.

    Raises ValueError if it is not whole, OSError if it cannot be read.
    """
    path = Path(path)
    if path.stat().st_size > MAX_JSON:
        raise ValueError(f"{path} is too large for what it should hold")
    try:
        content = json.loads(path.read_bytes())
        checksum = content.pop(CHECKSUM)
    except (ValueError, AttributeError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{path} is not a file of this suite") from error
    if checksum != _json_digest(content):
        raise ValueError(f"{path} is not as it was written")
    return content


def _json_digest(content: dict) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def save_tensors(state: dict, path: str | os.PathLike, run: str = "") -> None:
    """Write a dictionary of tensors and numbers to `path` atomically, by torch.save, and seal it.

    Args:
        state: the dictionary.
        path: the file to be written.
        run: the name of the run that it belongs to, at most 32 bytes.
    """
    # torch replaces an interruption that comes while it writes by an error of its own
    with held_back(), atomic_write(path, tensor_bytes(state)) as file:
        hashed = _Hashed(file)
        torch.save(state, hashed)
        file.seek(-2, io.SEEK_END)  # the length of the comment, an archive's last field
        ending = SEAL_BYTES.to_bytes(2, "little") + MARK + _run_field(run)
        file.write(ending + hashed.digest_with(ending))


class _Hashed:
    """A file that torch.save writes from its begin to its end, hashed meanwhile but for its last
    two bytes."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._found, self._last = file, hashlib.sha256(), b""
        self.flush = file.flush

    def write(self, data: bytes | memoryview) -> int:
        if len(data) < 2:
            ending = self._last + data
        else:
            self._found.update(self._last)
            ending = memoryview(data)
        self._found.update(ending[:-2])
        self._last = bytes(ending[-2:])
        return self._file.write(data)

    def digest_with(self, ending: bytes) -> bytes:
        """Return the SHA-256 of what was written, with another ending for its last two bytes."""
        self._found.update(ending)
        return self._found.digest()


def load_tensors(path: str | os.PathLike, run: str | None = None) -> dict:
    """Read what `save_tensors` wrote, onto the CPU; no pickled code runs.

    Args:
        path: the file to be read.
        run: the name of the run that it has to belong to; None for any.

    Raises ValueError if it is something else or not whole, OSError if it cannot be read.
    """
    path = Path(path)
    with path.open("rb") as file:
        end = file.seek(0, io.SEEK_END)
        file.seek(max(0, end - SEAL_BYTES))
        seal = file.read()
        if len(seal) < SEAL_BYTES or not seal.startswith(MARK):
            raise ValueError(f"{path} is cut short, or no file of this suite")
        if _file_digest(file, end - DIGEST_BYTES) != seal[-DIGEST_BYTES:]:
            raise ValueError(f"{path} is not as it was written")
    if run is not None and seal[len(MARK) : -DIGEST_BYTES] != _run_field(run):
        raise ValueError(f"{path} belongs to another run")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # torch raises many types for what is not tensors
        raise ValueError(f"{path} is not a file of tensors") from error
    if not isinstance(state, dict):
        raise ValueError(f"{path} holds a {type(state).__name__}, not a dictionary of tensors")
    return state


def tensor_bytes(state: Any) -> int:
    """Return the bytes of all tensors in nested dictionaries, lists and tuples."""
    if isinstance(state, Tensor):
        return state.nbytes
    inner = state.values() if isinstance(state, dict) else state
    return sum(map(tensor_bytes, inner)) if isinstance(state, (dict, list, tuple)) else 0


def digest(data: bytes | memoryview) -> str:
    """Return the checksum of a piece of a file: the first 32 hexadecimal digits of its SHA-256."""
    return hashlib.sha256(data).hexdigest()[:32]


def _run_field(run: str) -> bytes:
    return run.encode().ljust(RUN_BYTES)


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal.

    Raises OSError if it cannot be read.
    """
    with path.open("rb") as file:
        return _file_digest(file, path.stat().st_size).hex()


def _file_digest(file: BinaryIO, stop: int) -> bytes:
    """Return the SHA-256 of the bytes before `stop`, and leave the file at `stop`."""
    found = hashlib.sha256()
    file.seek(0)
    while (left := stop - file.tell()) > 0:
        piece = file.read(min(PIECE, left))
        if not piece:
            break
        found.update(piece)
    return found.digest()


class Sums:
    """The checksums of the pieces of a file, in the order they were added.

    They are in a file of their own, whose first line names the run that it belongs to.

    Attributes:
        path: of the file with the checksums.
        digests: of each piece, by `digest`.
    """

    def __init__(self, path: Path, run: str, writable: bool = True) -> None:
        """Open the checksums, or begin with none; a last line cut short by a kill is dropped.

        Args:
            path: the checksums' file.
            run: the name of the run that they have to belong to.
            writable: whether to create or mend the file so that lines can be added.

        Raises ValueError if they are of another run.
        """
        self.path, self._run = path, run
        if not self.read() and writable:
            self._write()

    def read(self) -> bool:
        """Read the file as far as it has grown; return whether it is there and whole.

        Each checksum is written before its piece counts, so whoever reads while a run goes on
        must read the pieces first and their checksums after them.

        Raises ValueError if they are of another run.
        """
        text = self.path.read_text(errors="replace") if self.path.exists() else ""
        whole = text[: text.rfind("\n") + 1]
        first, *self.digests = whole.splitlines() or [self._run]
        if first != self._run:
            raise ValueError(f"{self.path} belongs to another run, or is damaged")
        return bool(whole) and whole == text

    def add(self, data: bytes | memoryview) -> None:
        """Add a piece's checksum, and wait until it is on the disk."""
        self.digests.append(digest(data))
        append(self.path, self.digests[-1] + "\n")

    def truncate(self, count: int) -> None:
        """Forget all checksums but the first `count`."""
        if count < len(self.digests):
            del self.digests[count:]
            self._write()

    def _write(self) -> None:
        write_text("".join(f"{line}\n" for line in (self._run, *self.digests)), self.path)
