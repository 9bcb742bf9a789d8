"""Differences between two methods on the same runs, with their uncertainty over seeds."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np
from scipy.special import stdtrit

LEVEL = 0.95  # of the intervals


@dataclass(frozen=True)
class Difference:
    """A mean difference, paired by run.

    Attributes:
        mean: of the differences.
        n_runs: how many runs there are.
        interval: its LEVEL confidence interval by Student's t; None for one run.
    """

    mean: float
    n_runs: int
    interval: tuple[float, float] | None

    def points(self) -> str:
        """Say a difference of fractions in percentage points: +1.41, or +1.41 (−0.52 … +3.34)."""
        mean, *ends = (
            f"{round(100 * value, 2) + 0.0:+.2f}".replace("-", "−")  # + 0.0: no −0.00
            for value in (self.mean, *(self.interval or ()))
        )
        return f"{mean} ({' … '.join(ends)})" if ends else mean


def paired_difference(ours: Sequence[float], theirs: Sequence[float]) -> Difference:
    """Compare values of the same runs, in the same order.

    Raises ValueError if there are none, or not as many of both.
    """
    if not ours:
        raise ValueError("no runs to compare")
    differences = [mine - other for mine, other in zip(ours, theirs, strict=True)]
    mean, n_runs = fmean(differences), len(differences)
    if n_runs == 1:
        return Difference(mean, 1, None)
    half = float(half_width(np.array(differences)))
    return Difference(mean, n_runs, (mean - half, mean + half))


def half_width(values: np.ndarray) -> np.ndarray:
    """How far the LEVEL confidence interval of a mean over runs goes to either side.

    Args:
        values: float [runs, …], of two runs or more.

    Returns float […].
    """
    n_runs = len(values)
    quantile = stdtrit(n_runs - 1, (1 + LEVEL) / 2)  # of Student's t
    return quantile * values.std(0, ddof=1) / n_runs**0.5
