"""Checkpoints of any kind, opened by what they hold."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import InputError
from .choosing import choose
from .faults import DamagedError, NoWeightsError
from .folders import FILE_ENDINGS, Folder, find_folder
from .mapped import Mapped
from .rebuilt import Unreadable
from .safe_files import looks_safe, read_safe
from .stored import Stored
from .torch_files import read_torch
from .writing import save_file, save_folder

OLD_PICKLE = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # torch's mark before version 1.6
POINTER = b"version https://git-lfs"
HEAD = 512


@dataclass(frozen=True)
class Opened:
    """A checkpoint, whose tensors are read when they are needed.

    Attributes:
        path: the file or folder.
        taken: the dotted key of the model's state in it, "" for the whole.
        tensors: the tensors of the state by name, in the file's order.
        left_out: the names of those that cannot be read as tensors, each with why.
        folder: what a folder consists of; None for a file.
        safe: whether it is a safetensors file.
    """

    path: Path
    taken: str
    tensors: dict[str, Stored]
    left_out: list[str]
    folder: Folder | None = None
    safe: bool = False

    @property
    def suffix(self) -> str:
        """The ending of its name when it is saved, "" for a folder."""
        if self.folder is not None:
            return ""
        name = self.path.name.lower()
        known = [ending for ending in FILE_ENDINGS if name.endswith(ending)]
        return known[0] if known else ".safetensors" if self.safe else ".pt"

    def save(self, path: Path, replaced: Mapping[str, Callable[[], Tensor]]) -> str | None:
        """Write the checkpoint with the values of some tensors replaced, all else as it is.

        The files are copied and the values written into the copies: objects in them stay, and
        tensors that share values go on sharing them. The result is there as a whole or not at all.

        Args:
            path: the file or folder to write, which is replaced.
            replaced: what makes the new values of a tensor, by its name; called one at a time.

        Returns a sentence that says what could not be written, None where all was.

        Raises ValueError if there is no such tensor, or its values are of another number, and
        InputError if the checkpoint has changed since it was opened.
        """
        for name in replaced:
            if name not in self.tensors or not self.tensors[name].parts:
                raise ValueError(f"{self.path} has no tensor {name!r} that can be replaced")
        if self.folder is None:
            return save_file(self.path, path, self.tensors, replaced)
        return save_folder(self.folder, path, self.tensors, replaced)


def open_checkpoint(path: Path, key: str | None = None) -> Opened:
    """Open a file or folder; no pickled code runs, and no tensor is read.

    Args:
        key: the dotted key of the model's state in it; None is the usual one.

    Raises InputError if it cannot be read, or holds no state, or several.
    """
    path = Path(path)
    try:
        folder = find_folder(path, is_checkpoint) if path.is_dir() else None
        content, safe = read_file(path) if folder is None else (folder.content(read_file), False)
        taken, state = choose(content, key, path)
    except InputError:
        raise
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"CHECKPOINT {path} cannot be read: {reason}") from error
    except Exception as error:  # damage can show in many ways
        raise _damaged(path, error) from error
    named = {name: entry for name, entry in state.items() if isinstance(name, str)}
    tensors = {
        name: replace(entry, name=name)
        for name, entry in named.items()
        if isinstance(entry, Stored)
    }
    left_out = [f"{n}: {e.why}" for n, e in named.items() if isinstance(e, Unreadable)]
    return Opened(path, taken, tensors, left_out, folder, safe)


def is_checkpoint(path: Path) -> bool:
    """Whether a file or folder holds the weights of a model, by its content.

    A damaged one, or one that takes a key to open, is a checkpoint too: `open_checkpoint` says so.
    """
    path = Path(path)
    try:
        if not path.exists():
            return False
        open_checkpoint(path)
    except (NoWeightsError, OSError):
        return False
    except InputError:
        return True
    return True


def read_file(path: Path) -> tuple[Any, bool]:
    """What a file holds, with its tensors as Stored; whether it is a safetensors file.

    Raises InputError if it cannot be read, OSError if it is out of reach.
    """
    file = Mapped(path)
    head = file.at(0, HEAD)
    try:
        if looks_safe(head, file.size):
            return read_safe(file), True
        if head and file.path.suffix == ".safetensors" and not head.startswith(POINTER):
            raise DamagedError("it does not begin as a safetensors file does")
        if head[:4] in (b"PK\x03\x04", b"PK\x05\x06"):
            return read_torch(file), False
    except DamagedError as error:
        raise _damaged(path, error) from error
    _require_known(file, head)
    raise NoWeightsError(f"CHECKPOINT {path} is no file of torch.save, nor of safetensors")


def _require_known(file: Mapped, head: bytes) -> None:
    """Raise InputError if a file could be read once something is done about it."""
    if not head.strip(b"\0") and file.path.name.lower().endswith(FILE_ENDINGS):
        raise InputError(f"CHECKPOINT {file.path} is empty: save it again, or leave it out")
    if head.startswith(POINTER):
        raise InputError(f"CHECKPOINT {file.path} only points to a file of git-lfs: `git lfs pull`")
    if head.startswith(OLD_PICKLE) or (b"ustar" in head and is_old_tar(file)):
        raise InputError(f"CHECKPOINT {file.path} has torch's format from before 1.6: torch.load "
                        "it and torch.save its content again")  # fmt: skip


def is_old_tar(file: Mapped) -> bool:
    """Whether a tar file is one of the first versions of torch, by the name of its first file."""
    return file.at(0, HEAD).split(b"\0")[0] in (b"sys_info", b"storages", b"tensors", b"pickle")


def _damaged(path: Path, error: Exception) -> InputError:
    reason = str(error) if isinstance(error, DamagedError) else "its content contradicts itself"
    return InputError(f"CHECKPOINT {path} is damaged ({reason}): copy it again, or leave it out")
