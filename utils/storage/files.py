"""Files written whole or not at all, and whether there is room for them."""

import contextlib
import errno
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from utils.system.errors import NoRoomError, UserError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextlib.contextmanager
def room_for(path: Path, needed: int) -> Iterator[None]:
    """Run a block that writes `needed` bytes to `path`.

    Raises UserError if there is no room for them.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:  # torch.save wraps what its file raises
        full = _full_disk(error)
        if full is None:
            raise
        free = shutil.disk_usage(path.parent).free
        raise NoRoomError(
            f"{path} cannot be written ({os.strerror(full.errno)}): it needs {needed:,} bytes, "
            f"{free:,} are free there: make room, and the same command (without --overwrite) "
            "goes on with what was finished"
        ) from error


def require_room(folder: Path, needed: int, what: str) -> None:
    """Raise UserError unless `needed` bytes, for `what`, are free where a run's folder will be."""
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
    """Open a binary file that replaces `path` when the block ends, and is dropped if it raises.

    Args:
        path: the file to be written.
        needed: its bytes, 0 if they are not known beforehand.

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
    """Remove what processes killed while writing these files have left."""
    for name in names:
        drafts = _draft(folder / name, "[0-9]*")
        for draft in drafts.parent.glob(drafts.name):
            draft.unlink(missing_ok=True)


def append(path: Path, text: str) -> None:
    """Add text to a file, and wait until it is on the disk.

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
