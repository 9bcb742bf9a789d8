"""A copy of a module, also where parts of it cannot be copied."""

import copy
import inspect
from functools import partial
from types import MethodType, TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.optim.swa_utils import AveragedModel


def unwrapped(module: nn.Module) -> nn.Module:
    """Return the module within DataParallel, DistributedDataParallel, AveragedModel and the result
    of torch.compile."""
    while True:
        if isinstance(module, (DataParallel, DistributedDataParallel, AveragedModel)):
            module = module.module
        elif "_orig_mod" in module._modules:
            module = module._orig_mod
        else:
            return module


def copy_module(module: nn.Module) -> nn.Module:
    """Return a copy that needs no gradients.

    What deepcopy cannot copy is shared, such as a lock, and a tensor that was computed, such as a
    cached activation or weight_norm's weight, is copied by its value. A method that something was
    put around on the instance, such as a compiled `forward`, is the bare method in the copy.

    Raises:
        ValueError: the module, one within it, its `forward` or a parameter cannot be copied.
    """
    module = unwrapped(module)
    replaced: dict[int, Any] = {}
    while True:
        try:
            with torch.inference_mode(False), torch.no_grad():
                copied = copy.deepcopy(module, dict(replaced))
            break
        except Exception as error:
            refused = _refused(error.__traceback__)
            if refused is None or id(refused) in replaced or _has_to_be_copied(refused):
                raise ValueError(
                    f"{type(module).__name__} cannot be copied ({error}): give module= a copy of "
                    "your own"
                ) from error
            computed = isinstance(refused, Tensor)
            replaced[id(refused)] = refused.detach().clone() if computed else refused
    for parameter in copied.parameters():
        parameter.requires_grad_(False).grad = None
    _own_memory(copied)
    _own_forward(module, copied)
    return copied


def _refused(traceback: TracebackType | None) -> Any:
    """Return what deepcopy was copying when it failed: the argument of its innermost call."""
    refused = None
    while traceback is not None:
        if traceback.tb_frame.f_code is copy.deepcopy.__code__:
            refused = traceback.tb_frame.f_locals.get("x")
        traceback = traceback.tb_next
    return refused


def _has_to_be_copied(value: Any) -> bool:
    return isinstance(value, (nn.Module, nn.Parameter, dict, list, tuple, set))


def _own_memory(module: nn.Module) -> None:
    """Give each element of the buffers a place of its own, as writing to them needs: that of an
    expanded tensor stands for several elements."""
    for owner in module.modules():
        for key, buffer in owner._buffers.items():
            if buffer is not None and buffer.layout == torch.strided and overlaps(buffer):
                owner._buffers[key] = buffer.contiguous()


def _own_forward(module: nn.Module, copied: nn.Module) -> None:
    """Give each module of the copy a `forward` of its own where one was put on the instance and
    deepcopy shared it, as it does functions: that would compute with the original's weights.

    Raises ValueError if it is not a method of the original, nor wrapped around one.
    """
    copies = dict(copied.named_modules())
    for name, original in module.named_modules():
        forward, ours = vars(original).get("forward"), copies.get(name)
        if forward is None or ours is None or vars(ours).get("forward") is not forward:
            continue
        method = inspect.unwrap(forward, stop=partial(_is_method, module=original))
        if not _is_method(method, original):
            raise ValueError(
                f"the forward of {name or type(module).__name__!r} was replaced by a function, "
                "which may compute with the original's weights: give module= a copy of your own"
            )
        ours.forward = MethodType(method.__func__, ours)


def _is_method(value: Any, module: nn.Module) -> bool:
    return isinstance(value, MethodType) and value.__self__ is module


def overlaps(tensor: Tensor) -> bool:
    """Whether a tensor was expanded, so that one number in memory stands for several of it."""
    return any(
        size > 1 and stride == 0 for size, stride in zip(tensor.shape, tensor.stride(), strict=True)
    )


def writable(buffer: Tensor) -> bool:
    """Whether a buffer can be written to in place: not if it was expanded, is sparse, or was made
    in inference mode."""
    return buffer.layout == torch.strided and not overlaps(buffer) and not buffer.is_inference()
