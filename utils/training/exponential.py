"""An exponential moving average of a model's weights over the steps of its training."""

import copy

import torch
from torch import Tensor, nn


class ExponentialAverage:
    """θ̄ ← d·θ̄ + (1 − d)·θ, the first θ̄ being θ, with floating-point buffers as parameters.

    It has the numbers of torch's AveragedModel with `get_ema_multi_avg_fn` and `use_buffers`, to
    the bit on a CPU, and its state dictionary. But the tensors are listed once, and the host keeps
    the count of steps, so that a step is one call and waits for no GPU; and integers, which are
    BatchNorm's counts of batches, are the model's, from `copy_counts`.

    Attributes:
        module: has the average.
        decay: d.
        n_averaged: how many steps it has taken in.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        """Average the weights of a model, which is copied."""
        self.module, self.decay, self.n_averaged = copy.deepcopy(model), decay, 0
        self._model: nn.Module | None = None  # whose tensors are listed

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Take in the weights of the model after a step."""
        if model is not self._model:
            self._list(model)
        if self.n_averaged:
            torch._foreach_lerp_(self._own, self._theirs, 1 - self.decay)
        else:
            torch._foreach_copy_(self._own, self._theirs)
        self.n_averaged += 1

    @torch.no_grad()
    def copy_counts(self, model: nn.Module) -> None:
        """Give the average the model's integers."""
        for own, theirs in zip(self.module.buffers(), model.buffers(), strict=True):
            if not own.is_floating_point():
                own.copy_(theirs)

    def _list(self, model: nn.Module) -> None:
        self._model = model
        pairs = zip(_floats(self.module), _floats(model), strict=True)
        self._own, self._theirs = map(list, zip(*pairs, strict=True))

    def state_dict(self) -> dict[str, Tensor]:
        """All that `load_state_dict` needs to go on."""
        own = {f"module.{name}": value for name, value in self.module.state_dict().items()}
        return {"n_averaged": torch.tensor(self.n_averaged)} | own

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on from a state dictionary, which may be AveragedModel's.

        Raises KeyError or RuntimeError if it is of another model.
        """
        prefix = "module."
        own = {name[len(prefix) :]: v for name, v in state.items() if name.startswith(prefix)}
        n_averaged = int(state["n_averaged"])
        self.module.load_state_dict(own)
        self.n_averaged = n_averaged


def _floats(model: nn.Module) -> list[Tensor]:
    tensors = (*model.parameters(), *model.buffers())
    return [tensor.detach() for tensor in tensors if tensor.is_floating_point()]
