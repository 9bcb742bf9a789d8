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
        """Find the embedded weights, their a, b and modes, and their references."""
        where = np.flatnonzero(self.embedded)
        mode = self.mode[where]
        return where, self.a[where], self.b[where], mode, self.reference[mode]

    def apply(self, theta: Vector) -> Vector:
        """Set the embedded weights by their references, in a copy of θ.

        Each operation is rounded by itself: the result is the same on every machine.
        """
        where, a, b, _, reference = self._of_embedded
        modelled = theta.copy()
        modelled[where] = a * theta[reference] + b
        return modelled

    def project(self, theta: Vector, trained: np.ndarray) -> Vector:
        """Find the nearest θ in which the embedded weights are as their references have it.

        It is the nearest in least squares over the trained weights.

        Args:
            theta: the θ that is projected.
            trained: bool [N]; a reference that is not trained stays as it is.
        """
        where, a, b, mode, _ = self._of_embedded
        own, modes = theta[self.reference], len(self.reference)
        pull = a * trained[where]
        moved = np.bincount(mode, weights=pull * (theta[where] - b), minlength=modes)
        squares = np.bincount(mode, weights=pull * a, minlength=modes)
        nearest = theta.copy()
        nearest[self.reference] = np.where(
            trained[self.reference], (own + moved) / (1 + squares), own
        )
        return self.apply(nearest)

    def state_dict(self) -> dict[str, np.ndarray]:
        """Give the arrays by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @classmethod
    def from_state_dict(cls, state: dict) -> "Coefficients":
        """Make them from what `state_dict` gave; `state` may hold other things, too."""
        return cls(**{field.name: state[field.name] for field in fields(cls)})
