"""Which weights are embedded in their modes, and what that makes of θ."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from utils.federated.exchange import Vector


@dataclass(frozen=True)
class Coefficients:
    """a, b: float32 [N], of the affine functions. mode: int [N]. reference: int64 [M], the modes'
    reference weights. embedded: bool [N], the weights that are a · w_r + b."""

    a: Vector
    b: Vector
    mode: np.ndarray
    reference: np.ndarray
    embedded: np.ndarray

    @classmethod
    def none(cls, n_weights: int) -> "Coefficients":
        """Of N weights that are all live."""
        zeros = np.zeros(n_weights, dtype=np.float32)
        nothing = np.zeros(0, dtype=np.int64)
        return cls(zeros, zeros, zeros.astype(np.int8), nothing, zeros.astype(bool))

    @cached_property
    def _of_embedded(self) -> tuple[np.ndarray, ...]:
        """Where the embedded weights lie, their a, b and modes, and where their references lie."""
        where = np.flatnonzero(self.embedded)
        mode = self.mode[where]
        return where, self.a[where], self.b[where], mode, self.reference[mode]

    def apply(self, theta: Vector) -> Vector:
        """θ with the embedded weights set by their references, each operation rounded by itself:
        the same on every machine."""
        where, a, b, _, reference = self._of_embedded
        modelled = theta.copy()
        modelled[where] = a * theta[reference] + b
        return modelled

    def project(self, theta: Vector, trained: np.ndarray) -> Vector:
        """The θ nearest to the given one, in least squares over its trained weights, among those
        in which the embedded weights are as their references have it.

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
        """The arrays by name, as the constructor takes them."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}

    @classmethod
    def of_state(cls, state: dict) -> "Coefficients":
        """From what `state_dict` gave, among other things."""
        return cls(**{name: state[name] for name in cls.__dataclass_fields__})
