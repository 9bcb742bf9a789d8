"""How well CMD describes the weights it was fitted to, tensor by tensor."""

from collections.abc import Sequence
from dataclasses import astuple, dataclass
from operator import add

import torch

from .model import CMDModel
from .moments import centre
from .snapshots import Snapshots


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


def describe(snapshots: Snapshots, cmd: CMDModel, layer_sizes: Sequence[int]) -> list[Description]:
    """The description of each layer by `cmd`, in one pass over the snapshots it was fitted to.

    Args:
        layer_sizes: weights in each layer of θ, in order.

    Raises ValueError if the layers do not add up to N.
    """
    if sum(layer_sizes) != snapshots.n_weights:
        raise ValueError(f"the layers hold {sum(layer_sizes)} weights of {snapshots.n_weights}")
    curves = cmd.reference_history.double()
    _, deviation = centre(curves.clone())
    length = torch.linalg.vector_norm(deviation, dim=0)
    ends = torch.tensor(layer_sizes).cumsum(0)
    found = [Description() for _ in layer_sizes]
    for part, columns in snapshots.parts():
        mode = cmd.mode[part].long()
        a, b = cmd.a[part].double(), cmd.b[part].double()
        weights = columns.double()
        square = weights.square().sum(0)
        residual = torch.addcmul(b, a, curves[:, mode]).sub_(weights).square_().sum(0)
        _, moved = centre(weights)
        own = torch.linalg.vector_norm(moved, dim=0)
        correlation = torch.where(own > 0, a.abs() * length[mode] / own, 0)
        first = int(torch.searchsorted(ends, part.start, right=True))
        start = part.start
        while start < part.stop:
            stop = min(int(ends[first]), part.stop)
            here = slice(start - part.start, stop - part.start)
            found[first] += Description(
                stop - start,
                int((own[here] > 0).sum()),
                float(residual[here].sum()),
                float(square[here].sum()),
                float(correlation[here].sum()),
            )
            first, start = first + 1, stop
    return found
