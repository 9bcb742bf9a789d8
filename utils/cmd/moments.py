"""Means, squares and products of weights over time, and the affine functions that follow."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

# A reference's standard deviation at and below which a = σᵢ / σᵣ might not be finite in float32.
STILL = 1e-30
# The same, as a share of its mean. A float32 weight that moves once in 4,000 snapshots, by the
# least it can, is above it; below are the roundings of a float64 mean, of which a memory, once it
# has forgotten all that moved, would make slopes.
STILL_SHARE = 2.0**-30


@dataclass
class ReferenceMoments:
    """How the reference weights moved over `count` snapshots: what a fit knows of each mode.

    Attributes:
        count: how many, or the sum of their weights where they count differently.
        mean: float64 [M].
        square: float64 [M], the (weighted) sum of squared deviations from the mean.
    """

    count: float
    mean: Tensor
    square: Tensor

    @classmethod
    def of(cls, columns: Tensor, weights: Tensor | None = None) -> "ReferenceMoments":
        """The moments of snapshots, float [T, M].

        Args:
            weights: float64 [T], how much each snapshot counts; None: all 1.
        """
        mean, deviation = centre(columns.double(), weights)
        if weights is None:
            return cls(len(columns), mean, deviation.square().sum(0))
        return cls(float(weights.sum()), mean, weights @ deviation.square())

    def add(self, values: Tensor, decay: float = 1) -> None:
        """Count one more snapshot, float [M], after those before count `decay` times as much."""
        deviation = values.double() - self.mean
        self.count = decay * self.count + 1
        self.mean += deviation / self.count
        self.square *= decay
        self.square += deviation * (values - self.mean)

    def per_mode(self) -> Tensor:
        """What `coefficients` needs of each mode: float64 [2, M], 1 / square and the mean."""
        # 1 / ∞ = 0: no slope where the reference does not move
        still = (STILL_SHARE * self.mean.abs()).clamp(min=STILL)
        square = torch.where(self.square > self.count * still.square(), self.square, math.inf)
        return torch.stack([square.reciprocal(), self.mean])


def coefficients(mean: Tensor, covariance: Tensor, of_reference: Tensor) -> Tensor:
    """The least-squares a, b, float64 [2, n], of weights with these moments.

    Where the reference does not move (its standard deviation is at most STILL, or STILL_SHARE of
    its mean), a = 0 and b is the mean.

    Args:
        mean: float64 [n], of each weight.
        covariance: float64 [n], with its reference (a sum, not divided by T).
        of_reference: float64 [2, n], `per_weight` of the references' table; a and b replace it.
    """
    scale, reference_mean = of_reference
    scale.mul_(covariance)
    torch.addcmul(mean, scale, reference_mean, value=-1, out=reference_mean)
    return of_reference


def per_weight(table: Tensor, mode: Tensor, out: Tensor | None = None) -> Tensor:
    """Each weight's column of a table of the modes: [rows, M] by mode int [n] is [rows, n]."""
    return torch.gather(table, 1, mode.long().expand(len(table), -1), out=out)


def centre(columns: Tensor, weights: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The mean over time of float64 [T, n], and the deviations from it, in place.

    The first snapshot is subtracted first, which is exact where a weight's movement is small
    against its value, and gives exactly 0 for a weight that never moves.

    Args:
        weights: float64 [T], how much each snapshot counts; None: all alike.
    """
    first = columns[0].clone()
    columns -= first
    shift = columns.mean(0) if weights is None else (weights @ columns) / weights.sum()
    columns -= shift
    return first + shift, columns
