"""Folders that are one checkpoint: in shards, as a single file, or of several processes."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import InputError
from .distributed import METADATA, read_distributed
from .faults import NoWeightsError
from .rebuilt import Unreadable
from .stored import Stored

FILE_ENDINGS = (".safetensors", ".pth.tar", ".pt", ".pth", ".bin", ".ckpt")
OTHER_WEIGHTS = (".h5", ".msgpack", ".onnx", ".gguf", ".tflite")
INDEX = ".index.json"
# in the order of preference
INDICES = ("model.safetensors.index.json", "*.safetensors.index.json", "*.bin.index.json")
FILES = (
    "model.safetensors",
    "adapter_model.safetensors",
    "diffusion_pytorch_model.safetensors",
    "pytorch_model.bin",
    "adapter_model.bin",
)
LARGEST_INDEX = 1 << 28


@dataclass(frozen=True)
class Folder:
    """A folder that is one checkpoint.

    Attributes:
        path: the folder.
        weights: the names of the files that hold tensors.
        index: the name of the file that says which; None is no such file.
    """

    path: Path
    weights: tuple[str, ...]
    index: str | None = None

    def content(self, read: Callable[[Path], tuple[Any, bool]]) -> Any:
        """What the files hold together.

        Args:
            read: reads one file.
        """
        if self.index == METADATA:
            return read_distributed(self.path)
        if self.index is None:
            return read(self.path / self.weights[0])[0]
        return _shards(self.path / self.index, self.weights, read)

    def copied(self) -> list[str]:
        """The names of the files that make up a copy, in order: not those of other weights."""
        names = sorted(file.name for file in self.path.iterdir() if file.is_file())
        if self.index == METADATA:
            return names
        own = {*self.weights, self.index}
        foreign = (*FILE_ENDINGS, *OTHER_WEIGHTS, INDEX)
        return [name for name in names if name in own or not name.lower().endswith(foreign)]


def is_trainers(path: Path) -> bool:
    """Whether a folder has a file that is known by its name to be, or to list, the checkpoint."""
    named = any((path / name).is_file() for name in (METADATA, *FILES))
    return named or any(next(path.glob(pattern), None) for pattern in INDICES)


def find_folder(path: Path, is_checkpoint: Callable[[Path], bool]) -> Folder:
    """What a folder's checkpoint consists of.

    Args:
        is_checkpoint: whether a file is one.

    Raises NoWeightsError if it is not one checkpoint, InputError if its index cannot be read.
    """
    if (path / METADATA).is_file():
        return Folder(path, (), METADATA)
    for pattern in INDICES:
        found = sorted(path.glob(pattern))
        if len(found) > 1:
            raise NoWeightsError(f"CHECKPOINT {path} holds {len(found)} checkpoints in shards, "
                                f"such as {found[0].name}: keep one in the folder")  # fmt: skip
        if found:
            return Folder(path, tuple(dict.fromkeys(_places(found[0]).values())), found[0].name)
    for name in FILES:
        if (path / name).is_file():
            return Folder(path, (name,))
    found = []
    for file in sorted(path.iterdir()):
        if file.name.lower().endswith(FILE_ENDINGS) and file.is_file() and is_checkpoint(file):
            found.append(file.name)
        if len(found) == 2:
            raise NoWeightsError(f"CHECKPOINT {path} is a folder of several checkpoints, such as "
                                f"{found[0]} and {found[1]}: name one")  # fmt: skip
    if not found:
        raise NoWeightsError(f"CHECKPOINT {path} is a folder that holds no weights")
    return Folder(path, (found[0],))


def _places(index: Path) -> dict[str, str]:
    """The file of each tensor, by an index.

    Raises InputError if it is none.
    """
    try:
        if index.stat().st_size > LARGEST_INDEX:
            raise ValueError("too large")
        places = json.loads(index.read_bytes())["weight_map"]
        if not places or not all(type(name) is str for name in places.values()):
            raise ValueError("no names")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise InputError(f"CHECKPOINT {index} is not an index of shards: save the folder again") \
            from error  # fmt: skip
    for name in places.values():
        if name != Path(name).name or name in ("", "..") or "\0" in name:
            raise InputError(f"CHECKPOINT {index} names {name!r}, which is not a file beside it: "
                            "save the folder again")  # fmt: skip
    return places


def _shards(
    index: Path, names: tuple[str, ...], read: Callable[[Path], tuple[Any, bool]]
) -> dict[str, Stored | Unreadable]:
    """The tensors of all shards, in the order of the shards.

    Raises InputError if a shard or one of its tensors is missing.
    """
    places = _places(index)
    found: dict[str, Stored | Unreadable] = {}
    for shard in sorted(names):
        file = index.parent / shard
        if not file.is_file():
            raise InputError(f"CHECKPOINT {file} is missing, which {index.name} names: copy the "
                            "folder again")  # fmt: skip
        content = read(file)[0]
        content = content if isinstance(content, dict) else {}
        for name, entry in content.items():
            if places.get(name, shard) == shard and isinstance(entry, Stored | Unreadable):
                found[name] = entry
        for name, place in places.items():
            if place == shard and name not in content:
                raise InputError(f"CHECKPOINT {file} has no tensor {name!r}, which {index.name} "
                                "says it has: copy the folder again")  # fmt: skip
    return found
