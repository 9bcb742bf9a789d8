"""How well CMD describes the weights it was fitted to, tensor by tensor."""

from collections.abc import Sequence
from dataclasses import astuple, dataclass
from operator import add

import torch
from torch import Tensor

from .ranks import Ranks


@dataclass
class Description:
    """Sums over some of the weights; `+` joins those of two sets of weights.

    Attributes:
        weights: how many.
        moving: how many of them ever move.
        residual: ‖Θ̂ − Θ‖², over weights and snapshots.
        square: ‖Θ‖².
        correlation: the sum of |Pearson correlation| of each moving weight with its reference.
    """

    weights: int = 0
    moving: int = 0
    residual: float = 0.0
    square: float = 0.0
    correlation: float = 0.0

    def __add__(self, other: "Description") -> "Description":
        return Description(*map(add, astuple(self), astuple(other)))

    @property
    def relative_error(self) -> float:
        """‖Θ̂ − Θ‖ / ‖Θ‖ in the Frobenius norm; 0 where all weights are 0."""
        return (self.residual / self.square) ** 0.5 if self.square else 0.0

    @property
    def mean_correlation(self) -> float | None:
        """The mean over the weights that move; None where none does."""
        return self.correlation / self.moving if self.moving else None


class Descriptions:
    """The description of each layer, from the ranges of weights that a fit works on.

    Attributes:
        layers: a Description of each, as far as its weights were seen.
    """

    def __init__(self, layer_sizes: Sequence[int]) -> None:
        """Describe the layers of θ, of so many weights each."""
        self._ends = torch.tensor(list(layer_sizes)).cumsum(0)
        self.layers = [Description() for _ in layer_sizes]

    def add(
        self, part: slice, columns: Tensor, mean: Tensor, covariance: Tensor, square: Tensor
    ) -> None:
        """Take in a range of weights, as `fit_cmd` tells of it."""
        moved = columns - columns[0]  # exact where the movement is small against the value
        moved -= moved.mean(0)
        own = moved.square().sum(0).double()
        if not own.isfinite().all():  # float32's squares end at 1e38
            own = moved.double().square_().sum(0)
        explained = torch.where(square > 0, covariance.square() / square, 0)
        residual = (own - explained).clamp_(min=0)
        of_all = own + len(columns) * mean.square()
        correlation = torch.where(own > 0, (explained / own).clamp_(max=1).sqrt_(), 0)
        sums = torch.stack([(own > 0).double(), residual, of_all, correlation]).cpu()
        first = int(torch.searchsorted(self._ends, part.start, right=True))
        start = part.start
        while start < part.stop:
            stop = min(int(self._ends[first]), part.stop)
            moving, *others = sums[:, start - part.start : stop - part.start].sum(1).tolist()
            self.layers[first] += Description(stop - start, int(moving), *others)
            first, start = first + 1, stop

    def over(self, ranks: Ranks) -> list[Description]:
        """The descriptions by all ranks together, each of which saw a range of the weights."""
        if ranks.size == 1:
            return self.layers
        own = torch.tensor([astuple(layer) for layer in self.layers], dtype=torch.float64)
        parts = ranks.gather(own.flatten(), ranks.size * own.numel())
        summed = parts.view(ranks.size, *own.shape).sum(0).tolist()
        return [Description(int(n), int(moving), *others) for n, moving, *others in summed]
