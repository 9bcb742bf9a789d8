"""A model as one vector θ: the only place that knows how.

θ holds every floating-point parameter and buffer of a module's state dictionary, in its order,
flattened in the logical (row-major) order of each tensor, as float32. Tensors tied together
appear once; integer buffers are not part of θ.
"""

import torch
from ordered_set import OrderedSet
from torch import Tensor, nn


def _named_layers(module: nn.Module) -> list[tuple[str, Tensor]]:
    """(name, tensor) of each layer; a tensor reached by several names keeps its first one."""
    seen: OrderedSet[int] = OrderedSet()
    layers = []
    for name, tensor in module.state_dict(keep_vars=True).items():
        if isinstance(tensor, Tensor) and tensor.is_floating_point() and id(tensor) not in seen:
            seen.add(id(tensor))
            layers.append((name, tensor))
    return layers


def layer_names(module: nn.Module) -> OrderedSet[str]:
    """The names of θ's layers, in θ's order; a layer is one tensor of the state."""
    return OrderedSet(name for name, _ in _named_layers(module))


def layer_sizes(module: nn.Module) -> list[int]:
    """The number of weights in each layer, in θ's order; their sum is N."""
    return [tensor.numel() for _, tensor in _named_layers(module)]


@torch.no_grad()
def read_vector(module: nn.Module, out: Tensor | None = None) -> Tensor:
    """θ of `module`: float32 [N], on the module's device unless `out` is given.

    Raises ValueError if the module has no floating-point state, or `out` has another length.
    """
    layers = _named_layers(module)
    n_weights = sum(tensor.numel() for _, tensor in layers)
    if n_weights == 0:
        raise ValueError("the module has no floating-point parameters or buffers")
    if out is None:
        out = torch.empty(n_weights, dtype=torch.float32, device=layers[0][1].device)
    elif out.numel() != n_weights:
        raise ValueError(f"out has {out.numel()} elements, the module {n_weights} weights")
    start = 0
    for _, tensor in layers:
        stop = start + tensor.numel()
        out[start:stop].view(tensor.shape).copy_(tensor)
        start = stop
    return out


@torch.no_grad()
def write_vector(vector: Tensor, module: nn.Module) -> None:
    """Write θ, float [N], into `module` in place, whatever its device and dtype.

    BatchNorm's running variances are clamped at 0: an affine model of them may fall below, and
    their square root would be NaN.

    Raises ValueError if the lengths differ.
    """
    layers = _named_layers(module)
    n_weights = sum(tensor.numel() for _, tensor in layers)
    if vector.shape != (n_weights,):
        raise ValueError(f"θ is {list(vector.shape)}, the module has {n_weights} weights")
    start = 0
    for name, tensor in layers:
        stop = start + tensor.numel()
        tensor.copy_(vector[start:stop].view(tensor.shape))
        if name.rpartition(".")[2] == "running_var":
            tensor.clamp_(min=0)
        start = stop


@torch.no_grad()
def copy_integer_buffers(source: nn.Module, target: nn.Module) -> None:
    """Copy what θ leaves out (BatchNorm's batch counters and the like) between equal modules."""
    ours = target.state_dict(keep_vars=True)
    for name, tensor in source.state_dict(keep_vars=True).items():
        if isinstance(tensor, Tensor) and not tensor.is_floating_point():
            ours[name].copy_(tensor)
