"""The parameters of CMD, and the weights that they stand for."""

from dataclasses import dataclass, fields, replace
from os import PathLike

import torch
from torch import Tensor

from .files import read_tensors, write_safe
from .ranges import part_weights, ranges


@dataclass
class CMDModel:
    """The CMD parameters of N weights in M modes: w_i(t) ≈ a_i · w_r(t) + b_i.

    Attributes:
        a: float32 [N], the slopes.
        b: float32 [N], the offsets.
        mode: [N], each weight's mode, in the smallest signed integer type that holds M.
        reference: int64 [M], each mode's reference weight, as an index into θ. Modes are ordered
            by their size in the sample, largest first.
        reference_history: float32 [T, M], the reference weights at the snapshots fitted on.
    """

    a: Tensor
    b: Tensor
    mode: Tensor
    reference: Tensor
    reference_history: Tensor

    @property
    def n_weights(self) -> int:
        return len(self.a)

    @property
    def modes(self) -> int:
        return len(self.reference)

    def reconstruct(self, reference_weights: Tensor, out: Tensor | None = None) -> Tensor:
        """θ̂ = a · w_r[mode] + b: float32 [N], written into `out` where it is given.

        Args:
            reference_weights: [M], the reference weights' values, e.g. `theta[cmd.reference]`.

        Raises ValueError if there are not M of them.
        """
        values = torch.as_tensor(reference_weights, dtype=torch.float32, device=self.a.device)
        if values.shape != (self.modes,):
            raise ValueError(f"{self.modes} reference weights are needed, not {list(values.shape)}")
        if out is None:
            out = torch.empty_like(self.a)
        for part in ranges(self.n_weights, part_weights(out.device)):
            w_r = values[self.mode[part].long()]
            torch.addcmul(self.b[part], self.a[part], w_r, out=out[part])
        return out

    def of_weights(self, part: slice) -> "CMDModel":
        """The parameters of a range of the weights, to reconstruct those alone; the references
        keep their place in θ."""
        own = {name: getattr(self, name)[part] for name in ("a", "b", "mode")}
        return replace(self, **own)

    def to(self, device: torch.device | str) -> "CMDModel":
        """The same parameters on another device."""
        return CMDModel(**{f.name: getattr(self, f.name).to(device) for f in fields(self)})

    def state_dict(self) -> dict[str, Tensor]:
        """The parameters by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def save(self, path: str | PathLike) -> None:
        """Write the parameters to a safetensors file, whole or not at all."""
        write_safe(self.state_dict(), path)

    @classmethod
    def load(cls, path: str | PathLike) -> "CMDModel":
        """Read what `save` wrote, or a file of torch.save with the same content, onto the CPU.

        Raises ValueError if the file is something else, OSError if it cannot be read.
        """
        try:
            return cls.from_state_dict(read_tensors(path))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    @classmethod
    def from_state_dict(cls, state: dict) -> "CMDModel":
        """The parameters in what `state_dict` gave.

        Raises ValueError if they are something else, or do not fit together.
        """
        names = {field.name for field in fields(cls)}
        if set(state) != names or not all(isinstance(value, Tensor) for value in state.values()):
            raise ValueError("these are not CMD's parameters")
        model = cls(**state)
        if model.a.ndim != 1 or not model.a.shape == model.b.shape == model.mode.shape:
            raise ValueError("a, b and mode differ in length")
        for index, end in ((model.mode, model.modes), (model.reference, model.n_weights)):
            within = not index.is_floating_point() and bool(((index >= 0) & (index < end)).all())
            if not within:
                raise ValueError(f"modes or references are not from 0 to below {end}")
        if model.reference_history.shape[1:] != model.reference.shape:
            raise ValueError("the references have no history")
        return model
