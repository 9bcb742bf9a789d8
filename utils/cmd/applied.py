"""Other weights and buffers for a model, which can be taken back."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from .copies import writable
from .parallel import reshard
from .vector import Entry, assign, whole


class Applied:
    """Parameters and buffers of another module in a model, until `take_back`.

    Tensors are written in place where they can be, so that whoever holds them sees it. Taking back
    restores each tensor's value, and the tensor itself where another has taken its place since.
    """

    def __init__(self, model: nn.Module, theirs: Mapping[str, Entry], ours: Mapping[str, Entry]):
        """Write ours into the model.

        Args:
            model: whose tensors are overwritten.
            theirs: its parameters and buffers by name.
            ours: those that they get; others are left alone.
        """
        self._model = model
        self._kept: list[tuple[Entry, Tensor | None]] = []  # None where the tensor was replaced
        try:
            for name, entry in theirs.items():
                if name in ours and ours[name].tensor.shape == entry.tensor.shape:
                    self._write(entry, ours[name].tensor.detach())
        except BaseException:
            self.take_back()
            raise

    @torch.no_grad()
    def _write(self, entry: Entry, value: Tensor) -> None:
        tensor = entry.tensor
        mine = whole(tensor.detach())
        value = whole(value).to(mine.device, mine.dtype)
        parameter = isinstance(tensor, nn.Parameter)
        if parameter and not tensor.requires_grad and torch.equal(mine, value):
            return  # a large model's base need not be there twice
        if parameter or writable(tensor):
            before = tensor.detach().clone()
            self._kept.append((entry, before))
            assign(tensor, value)
        else:
            self._kept.append((entry, None))
            entry.owner._buffers[entry.key] = value.clone()

    @torch.no_grad()
    def take_back(self) -> None:
        """Give the model its own tensors and values; a second call does nothing."""
        reshard(self._model)
        kept, self._kept = self._kept, []
        for entry, before in reversed(kept):
            if not isinstance(entry.tensor, nn.Parameter):
                entry.owner._buffers[entry.key] = entry.tensor
            if before is not None:
                entry.tensor.copy_(before)
