"""A trajectory, served in pieces on a device."""

import warnings
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from .ranges import PART_WEIGHTS, ranges
from .staging import stage

# Elements of a trajectory in the host's memory that are sent to a GPU at once (128 MiB; two copies
# are in flight).
STAGED_ELEMENTS = 1 << 25


class Snapshots:
    """Snapshots start … end − 1 of a trajectory [T, N], served in pieces on a device."""

    def __init__(
        self,
        trajectory: Tensor | np.ndarray,
        start: int = 0,
        end: int | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        if isinstance(trajectory, np.ndarray):
            if device is None and torch.cuda.is_available():
                device = "cuda"
            with warnings.catch_warnings():  # of a read-only map, which nothing here writes to
                warnings.simplefilter("ignore", UserWarning)
                trajectory = torch.from_numpy(trajectory)
        if trajectory.ndim != 2 or not trajectory.is_floating_point():
            raise ValueError(
                f"a trajectory is float32 [T, N], this is {trajectory.dtype} "
                f"{list(trajectory.shape)}"
            )
        n_epochs, self.n_weights = trajectory.shape
        end = n_epochs if end is None else end
        if not 0 <= start < end <= n_epochs:
            raise ValueError(f"snapshots {start} … {end} − 1 are not among the {n_epochs} there")
        self._rows = trajectory[start:end]
        # with its number, as tensors have it
        self.device = torch.empty(0, device=trajectory.device if device is None else device).device

    def __len__(self) -> int:
        return len(self._rows)

    def columns(self, index: Tensor) -> Tensor:
        """The snapshots of some weights, float32 [T, len(index)]."""
        return self._rows[:, index.to(self._rows.device)].to(self.device, torch.float32)

    def parts(
        self, within: slice | None = None, products: int = 0
    ) -> Iterator[tuple[slice, Tensor]]:
        """All weights, or those of a range, some at a time: (range, their snapshots [T, n] on the
        device).

        A part is valid until the next one is asked for. Parts that have to travel to a GPU are
        copied while the one before is worked on.

        Args:
            products: how many numbers of each weight are computed of its snapshots.
        """
        size = PART_WEIGHTS
        if self.device.type != "cpu":
            size = max(1, STAGED_ELEMENTS // (len(self) + products))
        within = within or slice(0, self.n_weights)
        pieces = list(ranges(within.stop, size, within.start))
        if self._rows.device == self.device:
            for part in pieces:
                yield part, self._rows[:, part]
        else:
            yield from stage(self._rows, pieces, self.device)
