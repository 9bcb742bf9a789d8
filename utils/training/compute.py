"""How a run is computed: what every pass over images needs to know, as one object."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch

from utils.system.ranks import ALONE, Ranks
from utils.training.precision import PLAIN, Arithmetic

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Compute:
    """Where, how precisely and by whom a run is computed, and who sees its progress.

    Attributes:
        device: holds the model and all images.
        arithmetic: computes the model's passes.
        ranks: the processes that share the work.
        pieces: images that P-BFGS differentiates at once, None for what suits the model.
        progress: wraps the batches of an epoch, given with its number, e.g. in a progress bar.
    """

    device: torch.device = CPU
    arithmetic: Arithmetic = PLAIN
    ranks: Ranks = ALONE
    pieces: int | None = None
    progress: Callable[[Iterable, int], Iterable] = lambda batches, epoch: batches


SIMPLE = Compute()
