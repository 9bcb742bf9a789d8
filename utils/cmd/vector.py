"""A model as one vector θ: the only place that knows how.

θ holds every floating-point parameter and buffer of a module's state dictionary, in its order,
flattened in the logical (row-major) order of each tensor, as float32. Tensors tied together
appear once; integer buffers are not part of θ.

Every function here takes a module, or a state dictionary as one loads it from a file.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

Stateful = nn.Module | Mapping[str, Tensor]


def _state(module: Stateful) -> Mapping[str, Tensor]:
    """The tensors of a module's state dictionary in its order, or the dictionary that is given.

    The modules are walked, so that no hook on a state dictionary changes what θ is.
    """
    if not isinstance(module, nn.Module):
        return module
    return {entry.name: entry.tensor for entry in walk(module) if entry.persistent}


class Entry(NamedTuple):
    """A parameter or buffer, and where it is.

    Attributes:
        name: as in the module's state dictionary.
        owner: the submodule that it belongs to.
        key: its name there.
        tensor: the parameter or buffer itself.
        persistent: whether it is in the state dictionary.
    """

    name: str
    owner: nn.Module
    key: str
    tensor: Tensor
    persistent: bool


def walk(module: nn.Module) -> Iterator[Entry]:
    """Yield every parameter and buffer of a module in the order of its state dictionary; what is
    shared is yielded under each of its names."""
    for prefix, owner in module.named_modules(remove_duplicate=False):
        dot = f"{prefix}." if prefix else ""
        for key, tensor in owner._parameters.items():
            if tensor is not None:
                yield Entry(dot + key, owner, key, tensor, True)
        for key, tensor in owner._buffers.items():
            if tensor is not None:
                persistent = key not in owner._non_persistent_buffers_set
                yield Entry(dot + key, owner, key, tensor, persistent)


def is_layer(entry: Entry) -> bool:
    """Whether CMD can model this tensor: a floating-point parameter or persistent buffer."""
    tensor = entry.tensor
    return entry.persistent and tensor.is_floating_point() and tensor.layout == torch.strided


def named_layers(module: Stateful) -> list[tuple[str, Tensor]]:
    """(name, tensor) of each layer of θ; tensors tied together keep their first name.

    Raises ValueError if there is no floating-point state.
    """
    seen: set[tuple] = set()
    layers = []
    for name, tensor in _state(module).items():
        if not (isinstance(tensor, Tensor) and tensor.is_floating_point()):
            continue
        place = (tensor.device, tensor.data_ptr() or id(tensor), tensor.shape, tensor.stride())
        if place not in seen:
            seen.add(place)
            layers.append((name, tensor))
    if not any(tensor.numel() for _, tensor in layers):
        raise ValueError("there is no floating-point parameter or buffer")
    return layers


def layer_names(module: Stateful) -> list[str]:
    """The names of θ's layers, in θ's order; a layer is one tensor of the state."""
    return [name for name, _ in named_layers(module)]


def layer_sizes(module: Stateful) -> list[int]:
    """The number of weights in each layer, in θ's order; their sum is N."""
    return [tensor.numel() for _, tensor in named_layers(module)]


def trainable_ranges(module: nn.Module) -> list[slice]:
    """Where in θ the parameters that are trained lie, in the order of `module.parameters()`."""
    ranges, start = [], 0
    for _, tensor in named_layers(module):
        stop = start + tensor.numel()
        if tensor.requires_grad:
            ranges.append(slice(start, stop))
        start = stop
    return ranges


@torch.no_grad()
def read_vector(module: Stateful, out: Tensor | None = None) -> Tensor:
    """θ of `module`: float32 [N], on the module's device unless `out` is given.

    Raises ValueError if the module has no floating-point state, or `out` has another length.
    """
    layers = named_layers(module)
    n_weights = sum(tensor.numel() for _, tensor in layers)
    if out is None:
        out = torch.empty(n_weights, dtype=torch.float32, device=layers[0][1].device)
    elif out.numel() != n_weights:
        raise ValueError(f"out has {out.numel()} elements, the module {n_weights} weights")
    start = 0
    for _, tensor in layers:
        stop = start + tensor.numel()
        out[start:stop].view(tensor.shape).copy_(whole(tensor))
        start = stop
    return out


@torch.no_grad()
def write_vector(vector: Tensor, module: Stateful) -> None:
    """Write θ, float [N], into `module` in place, whatever its device and dtype.

    BatchNorm's running variances are clamped at 0: an affine model of them may fall below, and
    their square root would be NaN.

    Raises ValueError if the lengths differ.
    """
    layers = named_layers(module)
    n_weights = sum(tensor.numel() for _, tensor in layers)
    if vector.shape != (n_weights,):
        raise ValueError(f"θ is {list(vector.shape)}, the module has {n_weights} weights")
    # a vector on the host comes to a GPU at once, not a layer at a time
    write_pieces([vector.to(layers[0][1].device)], module)


def not_in_vector(state: Mapping[str, Any]) -> dict[str, Any]:
    """What of a state dictionary θ does not hold to the last bit."""
    return {
        name: value
        for name, value in state.items()
        if not (isinstance(value, Tensor) and value.dtype == torch.float32)
    }


@torch.no_grad()
def restore(module: nn.Module, vector: Tensor, others: Mapping[str, Any]) -> None:
    """Write θ, float32 [N], into `module` to the last bit, and what it does not hold.

    Args:
        others: from `not_in_vector`, or a whole state dictionary.

    Raises RuntimeError if the length of θ is another, or the others do not fit.
    """
    layers = [tensor for _, tensor in named_layers(module)]
    pieces = vector.split([tensor.numel() for tensor in layers])
    for tensor, piece in zip(layers, pieces, strict=True):
        tensor.copy_(piece.view(tensor.shape))
    state = module.state_dict()
    for name in not_in_vector(state):
        del state[name]
    state.update(others)
    module.load_state_dict(state)


@torch.no_grad()
def write_pieces(pieces: Iterable[Tensor], module: Stateful) -> None:
    """Write θ, given as consecutive pieces, float [n] each, into `module` in place.

    A piece is used up before the next is asked for. Running variances are clamped at 0, as by
    `write_vector`.

    Raises StopIteration if the pieces are shorter than θ.
    """
    pieces = iter(pieces)
    piece = torch.empty(0)
    for name, tensor in named_layers(module):
        # row-major order in memory, or a copy of it that is laid out as the tensor is at the end
        flat = whole(tensor.detach()).reshape(-1)
        filled = 0
        while filled < len(flat):
            if not len(piece):
                piece = next(pieces)
            taken = min(len(piece), len(flat) - filled)
            flat[filled : filled + taken].copy_(piece[:taken])
            piece, filled = piece[taken:], filled + taken
        if is_variance(name):
            flat.clamp_(min=0)
        if is_sharded(tensor) or not tensor.is_contiguous():
            assign(tensor, flat.view(tensor.shape))


def own_where_equal(modelled: Tensor, own: Tensor) -> Tensor:
    """Return float64 values: the model's own where what is modelled of them, of the same shape, is
    equal in float32, and what is modelled elsewhere. So a weight that never moves is exact."""
    return torch.where(modelled.float() == own.float(), own, modelled.double())


def is_variance(name: str) -> bool:
    """Whether a layer is BatchNorm's running variances, which are never below 0."""
    return name.rpartition(".")[2] == "running_var"


def is_sharded(tensor: Tensor) -> bool:
    """Whether this is a DTensor, of which each process holds a part."""
    return hasattr(tensor, "full_tensor")


def whole(tensor: Tensor) -> Tensor:
    """The tensor, or all of a sharded one; then every process has to call this."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor


@torch.no_grad()
def assign(tensor: Tensor, value: Tensor) -> None:
    """Write a whole value of the same shape into a tensor, which may be sharded."""
    if is_sharded(tensor):
        from torch.distributed.tensor import distribute_tensor

        value = value.to(tensor.to_local().device)
        value = distribute_tensor(value, tensor.device_mesh, tensor.placements)
    tensor.copy_(value)
