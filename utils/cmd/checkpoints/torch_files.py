"""Files of torch.save, and of torch.jit.save to the extent that they are told apart."""

import io
from typing import Any

from ..errors import InputError
from .archive import read_archive
from .faults import DamagedError, NoWeightsError
from .mapped import Mapped, Record
from .pickles import unpickled
from .rebuilt import TENSORS, storages

AGAIN = "torch.load it and torch.save its state_dict() again"


def read_torch(file: Mapped, start: int = 0, length: int | None = None) -> Any:
    """What a zip of torch.save holds, its tensors as Stored.

    Args:
        start: where in the file it begins.
        length: its length in bytes; None is up to the end.

    Raises NoWeightsError if it is a zip of another kind, InputError if it is one of torch that
    cannot be read as it is, DamagedError if it is damaged.
    """
    records = read_archive(file, start, length)
    pickle = _pickle(records)
    if pickle is None:
        raise NoWeightsError(f"CHECKPOINT {file.path} is a zip file, not one of torch.save")
    folder = pickle.key[: -len("data.pkl")]
    if f"{folder}constants.pkl" in records:
        raise InputError(f"CHECKPOINT {file.path} is a TorchScript program: torch.jit.load it and "
                        "torch.save its state_dict()")  # fmt: skip
    if any(record.packed for record in records.values()):
        raise InputError(f"CHECKPOINT {file.path} is a compressed zip file: {AGAIN}")
    if content_of(records.get(f"{folder}byteorder")) == b"big":
        raise InputError(f"CHECKPOINT {file.path} has its bytes in big-endian order: {AGAIN}")
    found = storages(records, f"{folder}data/")
    return unpickled(io.BytesIO(content_of(pickle)), TENSORS, found)


def _pickle(records: dict[str, Record]) -> Record | None:
    """The record that describes the others."""
    found = [r for key, r in records.items() if key.endswith("/data.pkl") and key.count("/") == 1]
    if len(found) > 1:
        raise DamagedError("it holds two checkpoints")
    return found[0] if found else None


def content_of(record: Record | None) -> bytes:
    """A record's bytes; none of no record."""
    if record is None:
        return b""
    record.check()
    return record.file.at(record.start, record.length)
