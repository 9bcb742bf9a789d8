"""Files of tensors: written whole or not at all, and read without running any code."""

import contextlib
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor


@contextlib.contextmanager
def whole(path: str | os.PathLike) -> Iterator[Path]:
    """A block that writes to another path, which replaces `path` when the block ends, and is
    removed if it raises."""
    path = Path(path)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield draft
        with draft.open("rb") as file:
            os.fsync(file.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def write_safe(
    tensors: dict[str, Tensor], path: str | os.PathLike, metadata: dict[str, str] | None = None
) -> None:
    """Write tensors by name to a safetensors file.

    Raises OSError if it cannot be written.
    """
    with whole(path) as draft:
        draft.touch()
        mode = draft.stat().st_mode  # safetensors replaces the file by one that others cannot read
        try:
            contiguous = {name: value.contiguous() for name, value in tensors.items()}
            save_file(contiguous, draft, metadata)
        except SafetensorError as error:
            raise OSError(str(error)) from error
        draft.chmod(mode)


def read_tensors(path: str | os.PathLike) -> dict:
    """Read a safetensors file, or one of torch.save, onto the CPU.

    Raises ValueError if it is neither, OSError if it cannot be read.
    """
    path = Path(path)
    with path.open("rb") as file:
        zipped = file.read(2) == b"PK"
    if zipped:
        return read_pickled(path)
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is no file of tensors: {error}") from error


def read_pickled(path: str | os.PathLike) -> dict:
    """Read a dictionary of tensors that torch.save wrote, onto the CPU; no pickled code runs, and
    no more memory is taken than the file has bytes.

    Raises ValueError if the file holds anything else or is damaged, OSError if it cannot be read.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            unpacked = sum(member.file_size for member in members)
            packed = any(member.compress_type != zipfile.ZIP_STORED for member in members)
            if packed or unpacked > Path(path).stat().st_size:
                raise ValueError("it unpacks to more than it is")
            if archive.testzip() is not None:
                raise ValueError("it is damaged")
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
