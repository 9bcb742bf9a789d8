"""Optimizers and learning-rate schedules, by name."""

import math

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, MultiStepLR

OPTIMIZERS = SGD, ADAM = ("sgd", "adam")
# cosine: to 0 at the end. step: a tenth from each of STEP_AT on. warmup_cosine: linearly from 0
# over some epochs, then cosine.
SCHEDULERS = ("none", "cosine", "step", WITH_WARMUP := "warmup_cosine")
STEP_AT = (0.5, 0.75)  # shares of the run
WARMUP_EPOCHS = 5


def make_optimizer(name: str, model: nn.Module, lr: float, momentum: float | None) -> Optimizer:
    """The optimizer for a model; without weight decay, as in the paper.

    Args:
        name: one of OPTIMIZERS.
        momentum: of SGD; Adam has none.
    """
    parameters = list(model.parameters())
    fused = parameters[0].device.type in ("cpu", "cuda")
    if name == ADAM:
        return torch.optim.Adam(parameters, lr=lr, fused=fused)
    return torch.optim.SGD(parameters, lr=lr, momentum=momentum, fused=fused)


def make_scheduler(
    name: str,
    optimizer: Optimizer,
    epochs: int,
    steps_per_epoch: int,
    warmup_epochs: int = WARMUP_EPOCHS,
) -> LRScheduler | None:
    """The learning-rate schedule, to be stepped after every optimizer step; None if constant.

    Args:
        name: one of SCHEDULERS.
        warmup_epochs: the length of the linear warm-up, where the schedule has one.
    """
    total = epochs * steps_per_epoch
    if name == "none":
        return None
    if name == "step":
        milestones = [round(share * total) for share in STEP_AT]
        return MultiStepLR(optimizer, milestones, gamma=0.1)
    warmup = warmup_epochs * steps_per_epoch if name == WITH_WARMUP else 0

    def factor(step: int) -> float:
        if step < warmup:
            return step / warmup
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))

    return LambdaLR(optimizer, factor)
