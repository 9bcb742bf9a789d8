"""Which weights are embedded in their modes, and what that makes of θ."""

from dataclasses import dataclass, fields
from functools import cached_property

import numpy as np

from utils.federated.exchange import Vector


@dataclass(frozen=True)
class Coefficients:
    """Which weights are embedded, and the affine functions that give them.

    Attributes:
        a, b: float32 [N].
        mode: int [N].
        reference: int64 [M], the modes' reference weights.
        embedded: bool [N], the weights that are a · w_r + b.
    """

    a: Vector
    b: Vector
    mode: np.ndarray
    reference: np.ndarray
    embedded: np.ndarray

    @classmethod
    def none(cls, n_weights: int) -> "Coefficients":
        """Make those of N weights that are all live."""
        zeros = np.zeros(n_weights, dtype=np.float32)
        nothing = np.zeros(0, dtype=np.int64)
        return cls(zeros, zeros, zeros.astype(np.int8), nothing, zeros.astype(bool))

    @cached_property
    def _of_embedded(self) -> tuple[np.ndarray, ...]:
        """Find the embedded weights, their a, b, and their references."""
        where = np.flatnonzero(self.embedded)
        return where, self.a[where], self.b[where], self.reference[self.mode[where]]

    def apply(self, theta: Vector) -> Vector:
        """Set the embedded weights by their references, in a copy of θ.

        Each operation is rounded by itself: the result is the same on every machine.
        """
        where, a, b, reference = self._of_embedded
        modelled = theta.copy()
        modelled[where] = a * theta[reference] + b
        return modelled

    def state_dict(self) -> dict[str, np.ndarray]:
        """Give the arrays by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @classmethod
    def from_state_dict(cls, state: dict) -> "Coefficients":
        """Make them from what `state_dict` gave; `state` may hold other things, too."""
        return cls(**{field.name: state[field.name] for field in fields(cls)})
