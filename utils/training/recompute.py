"""Training passes that keep less: activations are computed again where they are needed.

"Training Deep Nets with Sublinear Memory Cost", 2016.
"""

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint


def normalises_batches(module: nn.Module) -> bool:
    """Whether a module has BatchNorm, so that an image's output depends on those beside it."""
    return any(isinstance(layer, _BatchNorm) for layer in module.modules())


@contextlib.contextmanager
def recomputed(model: nn.Module) -> Iterator[None]:
    """Around a pass and its differentiation: of each block, only the input is kept in between.

    A block is what has layers of its own, below the containers that list them. Results are the
    same, and BatchNorm's running statistics count the batch once.
    """
    blocks = list(_blocks(_unwrapped(model)))
    try:
        for block in blocks:
            block.forward = partial(_checkpointed, block, block.forward)
        yield
    finally:
        for block in blocks:
            block.__dict__.pop("forward", None)


def _unwrapped(model: nn.Module) -> nn.Module:
    """What a model holds that is nothing but another one."""
    while len(children := list(model.children())) == 1:
        model = children[0]
    return model


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    for child in module.children():
        if isinstance(child, (nn.Sequential, nn.ModuleList)):
            yield from _blocks(child)
        elif any(True for _ in child.children()):
            yield child


def _checkpointed(block: nn.Module, forward: Callable, *args: Any) -> Any:
    def contexts() -> tuple[contextlib.AbstractContextManager, ...]:
        return contextlib.nullcontext(), _statistics_kept(block)

    return checkpoint(forward, *args, use_reentrant=False, context_fn=contexts)


@contextlib.contextmanager
def _statistics_kept(block: nn.Module) -> Iterator[None]:
    """Have the running statistics, which the pass before has moved, move in copies alone."""
    layers = [layer for layer in block.modules() if isinstance(layer, _BatchNorm)]
    before = [dict(layer._buffers) for layer in layers]
    for layer in layers:
        for name, buffer in layer.named_buffers():
            layer._buffers[name] = buffer.clone()
    try:
        yield
    finally:
        for layer, buffers in zip(layers, before, strict=True):
            layer._buffers.update(buffers)
