"""Files written whole or not at all, sealed against damage, and read safely.

A sealed file of tensors is a zip archive, as torch.save makes it, whose comment (which readers of
zip archives skip) names the run that the file belongs to and ends in the SHA-256 of all before it.
A sealed JSON file has the SHA-256 of its content under "checksum".
"""

import contextlib
import errno
import hashlib
import io
import json
import os
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from utils.errors import UserError
from utils.interrupts import held_back

MARK = b"CMD seal"
RUN_BYTES, DIGEST_BYTES = 32, hashlib.sha256().digest_size
SEAL_BYTES = len(MARK) + RUN_BYTES + DIGEST_BYTES
CHECKSUM = "checksum"
MAX_JSON = 1 << 26  # bytes; the names of a million classes fit
PIECE = 1 << 22  # bytes read at once
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextlib.contextmanager
def room_for(path: Path, needed: int) -> Iterator[None]:
    """A block that writes `needed` bytes to `path`.

    Raises UserError if there is no room for them.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:  # torch.save wraps what its file raises
        full = _full_disk(error)
        if full is None:
            raise
        free = shutil.disk_usage(path.parent).free
        raise UserError(
            f"{path} cannot be written ({os.strerror(full.errno)}): it needs {needed:,} bytes, "
            f"{free:,} are free there: make room, and the same command goes on with what was "
            "finished"
        ) from error


def require_room(folder: Path, needed: int, what: str) -> None:
    """Raise UserError unless `needed` bytes, for `what`, are free where a run's folder is or will
    be.
    """
    existing = next(path for path in (folder, *folder.resolve().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if needed > free:
        raise UserError(
            f"--results_dir: {needed:,} bytes are needed in {folder} ({what}), {free:,} are free: "
            "make room, or choose another --results_dir"
        )


def _full_disk(error: BaseException | None) -> OSError | None:
    while error is not None:
        if isinstance(error, OSError) and error.errno in FULL:
            return error
        error = error.__cause__ or error.__context__
    return None


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike, needed: int = 0) -> Iterator[BinaryIO]:
    """A binary file that replaces `path` when the block ends, and is dropped if it raises.

    needed: its bytes, if they are known before.

    Raises UserError if there is no room for it.
    """
    path = Path(path)
    draft = _draft(path, os.getpid())
    try:
        with room_for(path, needed), draft.open("w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def _draft(path: Path, process: int | str) -> Path:
    return path.with_name(f".{path.name}.{process}")


def remove_drafts(folder: Path, names: tuple[str, ...]) -> None:
    """Remove what processes that were killed while writing these files have left."""
    for name in names:
        for draft in folder.glob(_draft(folder / name, "[0-9]*").name):
            draft.unlink(missing_ok=True)


def append(path: Path, text: str) -> None:
    """Add text to a file, and have it on the disk.

    Raises UserError if there is no room for it.
    """
    data = text.encode()
    with room_for(path, len(data)), path.open("ab") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def write_text(text: str, path: str | os.PathLike) -> None:
    """Write `text` to `path` atomically, in UTF-8."""
    data = text.encode()
    with atomic_write(path, len(data)) as file:
        file.write(data)


def write_json(value: Any, path: str | os.PathLike) -> None:
    """Write `value` to `path` atomically, as indented JSON."""
    write_text(json.dumps(value, indent=2) + "\n", path)


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

    run: the name of the run that it belongs to, at most 32 bytes.
    """
    # torch makes its own error of an interruption that comes while it writes
    with held_back(), atomic_write(path, tensor_bytes(state)) as file:
        torch.save(state, file)
        file.seek(-2, io.SEEK_END)  # the length of the comment, which is the last of an archive
        file.write(SEAL_BYTES.to_bytes(2, "little") + MARK + _run_field(run))
        file.write(_file_digest(file, file.tell()))


def load_tensors(path: str | os.PathLike, run: str | None = None) -> dict:
    """Read what `save_tensors` wrote, onto the CPU; no pickled code runs.

    run: the run that it has to belong to; None for any.

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
    return load_any_tensors(path)


def load_any_tensors(path: str | os.PathLike) -> dict:
    """Read a dictionary of tensors that torch.save wrote anywhere, onto the CPU; no pickled code
    runs, and no more memory is taken than the file has bytes.

    Raises ValueError if the file holds anything else, OSError if it cannot be read.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
        unpacked = sum(member.file_size for member in members)
        packed = any(member.compress_type != zipfile.ZIP_STORED for member in members)
        if packed or unpacked > Path(path).stat().st_size:
            raise ValueError("it unpacks to more than it is")
        state = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # torch raises many types for a file that is not its own
        raise ValueError(
            f"{path} is not a file of tensors saved with torch.save (since torch 1.6)"
        ) from error
    if not isinstance(state, dict):
        raise ValueError(f"{path} holds a {type(state).__name__}, not a dictionary of tensors")
    return state


def tensor_bytes(state: Any) -> int:
    """What the tensors in nested dictionaries, lists and tuples take, in bytes."""
    if isinstance(state, Tensor):
        return state.nbytes
    inner = state.values() if isinstance(state, dict) else state
    return sum(map(tensor_bytes, inner)) if isinstance(state, (dict, list, tuple)) else 0


def digest(data: bytes | memoryview) -> str:
    """The checksum of a piece of a file, 32 characters: the first half of its SHA-256."""
    return hashlib.sha256(data).hexdigest()[:32]


def _run_field(run: str) -> bytes:
    return run.encode().ljust(RUN_BYTES)


def file_digest(path: Path) -> str:
    """The SHA-256 of a file's content, in hexadecimal.

    Raises OSError if it cannot be read.
    """
    with path.open("rb") as file:
        return _file_digest(file, path.stat().st_size).hex()


def _file_digest(file: BinaryIO, stop: int) -> bytes:
    """The SHA-256 of the bytes before `stop`; the file is left there."""
    found = hashlib.sha256()
    file.seek(0)
    while (left := stop - file.tell()) > 0:
        piece = file.read(min(PIECE, left))
        if not piece:
            break
        found.update(piece)
    return found.digest()
