"""Files written whole or not at all, and read safely."""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import torch


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """A binary file that replaces `path` when the block ends, and is dropped if it raises."""
    path = Path(path)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with draft.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def write_text(text: str, path: str | os.PathLike) -> None:
    """Write `text` to `path` atomically, in UTF-8."""
    with atomic_write(path) as file:
        file.write(text.encode())


def write_json(value: Any, path: str | os.PathLike) -> None:
    """Write `value` to `path` atomically, as indented JSON."""
    write_text(json.dumps(value, indent=2) + "\n", path)


def save_tensors(state: dict, path: str | os.PathLike) -> None:
    """Write a dictionary of tensors and numbers to `path` atomically, by torch.save."""
    with atomic_write(path) as file:
        torch.save(state, file)


def load_tensors(path: str | os.PathLike) -> dict:
    """Read what `save_tensors` wrote, onto the CPU; no pickled code runs.

    Raises ValueError if the file holds anything else, OSError if it cannot be read.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # torch raises many types for a file that is not its own
        raise ValueError(f"{path} is not a file of tensors saved with torch.save") from error
    if not isinstance(state, dict):
        raise ValueError(f"{path} holds a {type(state).__name__}, not a dictionary of tensors")
    return state
