"""What pictures need of a run, beyond its files; each raises UserError where it is not so."""

import torch
from torch import Tensor

from utils.methods.registry import Settings
from utils.system.errors import UserError


def require_sample(settings: Settings) -> None:
    """Modes, and as many weights to find them among."""
    modes, samples = settings.modes, settings.samples
    if modes < 1:
        raise UserError(f"--modes {modes}: it needs a run with 1 or more")
    if samples < modes:
        raise UserError(f"--samples {samples}: it needs a run with at least --modes {modes}")


def require_two_epochs(settings: Settings) -> None:
    """Two epochs from `start` on: in one, nothing moves."""
    start, epochs = settings.start, settings.epochs
    if epochs < 2:
        raise UserError(f"--epochs {epochs}: it needs a run with 2 or more")
    if start > epochs - 2:
        raise UserError(
            f"--start {start}: it needs a run with 0 … {epochs - 2}, so that two of --epochs "
            f"{epochs} are left"
        )


def require_warmup(settings: Settings) -> None:
    """A warm-up of two epochs or more within the run."""
    require_two_epochs(settings)
    start, warmup, last = settings.start, settings.warmup_cmd, settings.epochs - 1
    if not start < warmup <= last:
        raise UserError(
            f"--warmup_cmd {warmup}: it needs a run with {start + 1} … {last}, after --start "
            f"{start} and below --epochs {settings.epochs}"
        )


def require_movement(columns: Tensor, settings: Settings) -> None:
    """A weight that moves over the snapshots, float [T, n]."""
    if bool((columns == columns[0]).all()):
        raise UserError(
            f"--lr {settings.lr:g}: of {columns.shape[1]:,} weights looked at none moves from "
            f"epoch {settings.start} on; it needs a run with a larger one, or more --samples"
        )


def require_any_movement(total: Tensor, settings: Settings) -> None:
    """Movement of any weight, given its sums of squares, float [M]."""
    if not torch.as_tensor(total).sum() > 0:
        raise UserError(
            f"--lr {settings.lr:g}: no weight moves from epoch {settings.start} on; it needs a run "
            "with a larger one"
        )
