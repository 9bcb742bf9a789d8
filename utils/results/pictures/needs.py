"""What pictures need of a run, beyond its files."""

import torch
from torch import Tensor

from utils.methods.registry import Settings
from utils.system.errors import UserError


def require_sample(settings: Settings) -> None:
    """Raise UserError unless there are modes, and at least as many sampled weights."""
    modes, samples = settings.modes, settings.samples
    if modes < 1:
        raise UserError(f"--modes {modes}: it needs a run with 1 or more")
    if samples < modes:
        raise UserError(f"--samples {samples}: it needs a run with at least --modes {modes}")


def require_two_epochs(settings: Settings) -> None:
    """Raise UserError unless there are two epochs from `start` on: in one, nothing moves."""
    start, epochs = settings.start, settings.epochs
    if epochs < 2:
        raise UserError(f"--epochs {epochs}: it needs a run with 2 or more")
    if start > epochs - 2:
        raise UserError(
            f"--start {start}: it needs a run with 0 … {epochs - 2}, so that two of --epochs "
            f"{epochs} are left"
        )


def require_warmup(settings: Settings) -> None:
    """Raise UserError unless the run has a warm-up of two epochs or more."""
    require_two_epochs(settings)
    start, warmup, last = settings.start, settings.warmup_cmd, settings.epochs - 1
    if not start < warmup <= last:
        raise UserError(
            f"--warmup_cmd {warmup}: it needs a run with {start + 1} … {last}, after --start "
            f"{start} and below --epochs {settings.epochs}"
        )


def require_movement(columns: Tensor, settings: Settings) -> None:
    """Raise UserError unless a weight moves over the snapshots, float [T, n]."""
    if bool((columns == columns[0]).all()):
        raise UserError(
            f"--lr {settings.lr:g}: none of the {columns.shape[1]:,} weights sampled moves from "
            f"epoch {settings.start} on; it needs a run with a larger one, or more --samples"
        )


def require_any_movement(total: Tensor, settings: Settings) -> None:
    """Raise UserError unless any weight moves, given the sums of squares of modes, float [M]."""
    if not torch.as_tensor(total).sum() > 0:
        raise UserError(
            f"--lr {settings.lr:g}: no weight moves from epoch {settings.start} on; it needs a run "
            "with a larger one"
        )
