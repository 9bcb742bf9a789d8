"""State files of any model: read safely, compared, and written back as they were."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .errors import InputError
from .files import SAFE, read_pickled, whole, write_safe
from .vector import named_layers

PICKLED = (".pt", ".pth", ".bin", ".ckpt")
# where a file keeps the model's state beside other things
KEYS = ("state_dict", "model_state_dict", "model", "module", "net", "network")


class Checkpoint:
    """One file's content.

    Attributes:
        state: the model's state dictionary, which may be changed in place before `save`.
    """

    def __init__(self, path: Path, key: str | None = None) -> None:
        """Read a file onto the CPU; no pickled code runs.

        Args:
            key: the entry that holds the model's state; None is the first of the usual ones.

        Raises InputError if the file cannot be read or holds no such state.
        """
        self.path, self.metadata = path, None
        try:
            if path.suffix == SAFE:
                with safe_open(path, "pt") as file:
                    self.content: dict[str, Any] = {
                        name: file.get_tensor(name)
                        for name in file.keys()  # noqa: SIM118
                    }
                    self.metadata = file.metadata()
            else:
                self.content = read_pickled(path)
        except (OSError, ValueError, SafetensorError) as error:
            raise InputError(f"CHECKPOINT {path} cannot be read: {error}") from error
        self.state = self._find(key)

    def save(self, path: Path) -> None:
        """Write the content in the format that it was read in."""
        if self.path.suffix == SAFE:
            write_safe(self.content, path, self.metadata)
        else:
            with whole(path) as draft:
                torch.save(self.content, str(draft))  # by its own writer, which no signal reaches

    def _find(self, key: str | None) -> Mapping[str, Tensor]:
        nested = {name: value for name, value in self.content.items() if is_state(value)}
        if key is not None:
            if key not in nested:
                raise InputError(
                    f"--key {key}: {self.path} has no such state; it has "
                    f"{', '.join(map(str, nested)) or 'none'}"
                )
            return nested[key]
        usual = [name for name in KEYS if name in nested]
        if usual:
            return nested[usual[0]]
        if is_state(self.content):
            return self.content
        if len(nested) == 1:
            return next(iter(nested.values()))
        if nested:
            raise InputError(
                f"CHECKPOINT {self.path} holds {len(nested)} states: choose one with --key, "
                f"{', '.join(map(str, nested))}"
            )
        raise InputError(f"CHECKPOINT {self.path} holds no floating-point tensors by name")


def is_state(value: Any) -> bool:
    """Whether this is a dictionary in which floating-point tensors have names."""
    return isinstance(value, Mapping) and any(
        isinstance(name, str)
        and isinstance(entry, Tensor)
        and entry.is_floating_point()
        and entry.numel()
        for name, entry in value.items()
    )


def layers_of(checkpoint: Checkpoint) -> dict[str, tuple[int, ...]]:
    """The name and shape of each layer of θ, in order."""
    return {name: tuple(tensor.shape) for name, tensor in named_layers(checkpoint.state)}


def check_same(checkpoint: Checkpoint, first: Path, expected: Mapping[str, tuple]) -> None:
    """Raise InputError naming the first tensor in which a file's layers are not as expected."""
    path, layers = checkpoint.path, layers_of(checkpoint)
    for name, shape in expected.items():
        if name not in layers:
            raise InputError(f"CHECKPOINT {path} has no tensor {name!r}, which {first} has")
        if layers[name] != shape:
            raise InputError(
                f"CHECKPOINT {path}: tensor {name!r} is {list(layers[name])}, "
                f"in {first} it is {list(shape)}"
            )
    for name in layers:
        if name not in expected:
            raise InputError(f"CHECKPOINT {path} has a tensor {name!r}, which {first} has not")
    for name, other in zip(layers, expected, strict=True):
        if name != other:
            raise InputError(
                f"CHECKPOINT {path}: tensor {name!r} comes where {first} has {other!r}; "
                "save the states in one order"
            )


def find_files(paths: Sequence[Path]) -> list[Path]:
    """The checkpoints named: files in the order given, or a folder's in the order of their numbers.

    Raises InputError if there are not two of them, of one format.
    """
    files = list(paths)
    if len(paths) == 1 and paths[0].is_dir():
        known = (*PICKLED, SAFE)
        files = sorted((f for f in paths[0].iterdir() if f.suffix in known), key=by_number)
        if len(files) < 2:
            raise InputError(f"CHECKPOINT {paths[0]}: the folder holds {len(files)} files that end "
                            f"in {', '.join(known)}; two are the least")  # fmt: skip
    for file in files:
        if not file.is_file():
            raise InputError(f"CHECKPOINT {file} is not a file: give files in order, or one folder")
        if file.suffix not in (*PICKLED, SAFE):
            raise InputError(f"CHECKPOINT {file}: its name should end in "
                            f"{', '.join((*PICKLED, SAFE))}")  # fmt: skip
        if (file.suffix == SAFE) != (files[0].suffix == SAFE):
            raise InputError(f"CHECKPOINT {file} is not of the format of {files[0]}: give one kind")
    if len(files) < 2:
        raise InputError(f"CHECKPOINT {files[0]}: two checkpoints are the least that move")
    return files


def by_number(path: Path) -> list:
    """A key that sorts epoch_2 before epoch_10."""
    words = re.split(r"(\d+)", path.name)
    return [(int(word), "") if word.isdigit() else (-1, word) for word in words if word]
