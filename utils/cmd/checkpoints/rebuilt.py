"""Tensors as pickles describe them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import torch

from .faults import DamagedError
from .mapped import Record
from .pickles import MOST_DIMENSIONS, Foreign, Global
from .stored import LONGEST, Stored, View

# more than these bytes beyond its file's, an expanded view is not worth a read
MOST_EXPANDED = 1 << 24
STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexDoubleStorage": torch.complex128,
    "ComplexFloatStorage": torch.complex64,
    "QInt8Storage": torch.qint8,
    "QInt32Storage": torch.qint32,
    "QUInt8Storage": torch.quint8,
    "QUInt4x2Storage": torch.quint4x2,
    "QUInt2x4Storage": torch.quint2x4,
    "UntypedStorage": torch.uint8,
}


@dataclass(frozen=True)
class Storage:
    """A record with the type that its elements have."""

    record: Record
    dtype: torch.dtype


@dataclass(frozen=True)
class Unreadable:
    """A tensor whose values cannot be read.

    Attributes:
        why: in words that follow the tensor's name.
    """

    why: str


def storages(records: Mapping[str, Record], folder: str) -> Callable[[Any], Storage]:
    """What finds the storage that a pickle refers to.

    Args:
        folder: what the storages' names begin with.
    """

    def find(pid: Any) -> Storage:
        if not isinstance(pid, tuple) or len(pid) < 5 or pid[0] not in ("storage", b"storage"):
            raise DamagedError("its pickle refers to something that is no storage")
        _, kind, key, _, count = pid[:5]
        name = kind.name.rpartition(".")[2] if isinstance(kind, Global) else ""
        record = records.get(f"{folder}{key}") if isinstance(key, str) else None
        if record is None or name not in STORAGES or type(count) is not int:
            raise DamagedError("a storage is missing")
        if not 0 <= count * STORAGES[name].itemsize <= record.length:
            raise DamagedError(f"storage {key} is incomplete")
        return Storage(record, STORAGES[name])

    return find


def dtype_of(name: Any) -> torch.dtype:
    """The type that a pickle names."""
    found = getattr(torch, name.name[6:], None) if _in_torch(name) else None
    if not isinstance(found, torch.dtype):
        raise DamagedError("a tensor has a type that this version of torch does not know")
    return found


def _in_torch(name: Any) -> bool:
    return isinstance(name, Global) and name.name.startswith("torch.")


def tensor(storage: Any, offset: Any, size: Any, stride: Any, *others: Any) -> Any:
    """Describe a tensor from what torch._utils._rebuild_tensor and _v2 are called with."""
    dtype = storage.dtype if isinstance(storage, Storage) else None
    return _strided(storage, dtype, offset, size, stride, others[2:3])


def typed_tensor(storage: Any, offset: Any, size: Any, stride: Any, *others: Any) -> Any:
    """Describe a tensor from what torch._utils._rebuild_tensor_v3 is called with."""
    return _strided(storage, dtype_of(others[2]), offset, size, stride, others[3:4])


def _strided(storage: Any, dtype: Any, offset: Any, size: Any, stride: Any, marks: tuple) -> Any:
    if not isinstance(storage, Storage) or not _lengths(size, stride):
        raise DamagedError("a tensor is not described as one")
    found = Stored.of(View(storage.record, dtype, offset, tuple(size), tuple(stride)))
    if prod(size) * dtype.itemsize > storage.record.file.size + MOST_EXPANDED:
        return Unreadable("it is expanded to more than its file")
    # marks: a conjugate or negative, which is not what the bytes say
    return replace(found, plain=False) if marks and marks[0] else found


def _lengths(*shapes: Any) -> bool:
    return all(
        isinstance(shape, tuple | list) and len(shape) <= MOST_DIMENSIONS for shape in shapes
    )


def parameter(data: Any, *_: Any) -> Any:
    """Describe a parameter by its tensor."""
    return data if isinstance(data, Stored | Unreadable) else Unreadable("its tensor is missing")


def quantised(storage: Any, offset: Any, size: Any, *_: Any) -> Any:
    """Describe a quantised tensor, whose numbers are not its values."""
    if not isinstance(storage, Storage) or not _lengths(size):
        raise DamagedError("a tensor is not described as one")
    return Stored("", storage.dtype, _size(size), False)


def sparse(layout: Any, data: Any, *_: Any) -> Any:
    """Describe a sparse tensor by its values' type and its shape."""
    data = data if _lengths(data) else ()
    described = [item for item in data if isinstance(item, Stored)]
    shapes = [item for item in data if isinstance(item, tuple)]
    if not described or not shapes:
        return Unreadable("it is sparse")
    return Stored("", described[-1].dtype, _size(shapes[-1]), False)


def _size(numbers: Any) -> torch.Size:
    if not _lengths(numbers) or any(
        type(number) is not int or not 0 <= number < LONGEST for number in numbers
    ):
        raise DamagedError("a tensor's shape is no lengths")
    return torch.Size(numbers)


def of_class(function: Any, kind: Any, args: Any, *_: Any) -> Any:
    """Describe a tensor of a class of its own, where it is an ordinary tensor all the same."""
    known = TENSORS.get(function.name) if isinstance(function, Global) else None
    if known in (tensor, typed_tensor, parameter) and isinstance(args, tuple):
        return known(*args)
    return wrapper(kind)


def wrapper(kind: Any, *_: Any) -> Unreadable:
    """Describe a tensor that keeps others inside, in a way known to its class alone."""
    name = kind.name.rpartition(".")[2] if isinstance(kind, Global) else "class of its own"
    return Unreadable(f"it is a {name}, not a plain tensor")


def moved(data: Any, *_: Any) -> Any:
    """Describe a tensor of a device whose memory is saved as another tensor."""
    return data if isinstance(data, Stored) else Unreadable("it is saved as an array")


def _because(why: str) -> Callable[..., Unreadable]:
    return lambda *_: Unreadable(why)


UTILS = "torch._utils._rebuild_"
TENSORS: dict[str, Callable] = {
    f"{UTILS}tensor": tensor,
    f"{UTILS}tensor_v2": tensor,
    f"{UTILS}tensor_v3": typed_tensor,
    f"{UTILS}parameter": parameter,
    f"{UTILS}parameter_with_state": parameter,
    f"{UTILS}qtensor": quantised,
    f"{UTILS}sparse_tensor": sparse,
    f"{UTILS}sparse_csr_tensor": sparse,
    f"{UTILS}nested_tensor": _because("it is a nested tensor"),
    f"{UTILS}meta_tensor_no_storage": _because("it is on the meta device, without values"),
    f"{UTILS}wrapper_subclass": wrapper,
    f"{UTILS}device_tensor_from_cpu_tensor": moved,
    f"{UTILS}device_tensor_from_numpy": moved,
    f"{UTILS}xla_tensor": moved,
    "torch._tensor._rebuild_from_type": of_class,
    "torch._tensor._rebuild_from_type_v2": of_class,
    "torch.nn.parameter.UninitializedParameter": _because("it is not initialised"),
    "torch.nn.parameter.UninitializedBuffer": _because("it is not initialised"),
    "numpy.core.multiarray._reconstruct": _because("it is an array of numpy"),
    "numpy._core.multiarray._reconstruct": _because("it is an array of numpy"),
}


def is_module(value: Any) -> bool:
    """Whether this stands for a whole model, saved as an object."""
    return isinstance(value, Foreign) and {"_parameters", "_modules"} <= value.fields().keys()
