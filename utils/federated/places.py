"""Some weights of θ, read and set where a module has them in its memory."""

from itertools import accumulate, pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn

from utils.cmd.vector import is_variance, layer_sizes, named_layers


class Piece(NamedTuple):
    """The weights that one layer has.

    Attributes:
        memory: float32 [numel], the layer as it lies in memory.
        places: int64 [n], where in it they are.
        span: which of all the weights they are.
        is_variance: whether the layer is a running variance.
    """

    memory: Tensor
    places: Tensor
    span: slice
    is_variance: bool


class Places:
    """Where some weights are in a module, for as long as it keeps its tensors, as training does.

    Once they are found, the host waits for no device.
    """

    def __init__(self, module: nn.Module, weights: Tensor) -> None:
        """Find them.

        Args:
            module: float32, of dense tensors.
            weights: int64 [n], their numbers in θ, rising, on the module's device.
        """
        starts = [0, *accumulate(layer_sizes(module))]
        bounds = torch.searchsorted(weights, weights.new_tensor(starts)).tolist()
        self._values = weights.new_empty(len(weights), dtype=torch.float32)
        self._pieces = []
        for (name, tensor), start, bound in zip(
            named_layers(module), starts, pairwise(bounds), strict=False
        ):
            span = slice(*bound)
            if span.start < span.stop:
                places = _places(tensor, weights[span] - start)
                self._pieces.append(Piece(_memory(tensor), places, span, is_variance(name)))

    def read(self) -> Tensor:
        """Return the weights, float32 [n], in a tensor that the next call overwrites."""
        for piece in self._pieces:
            values = self._values[piece.span]
            torch.index_select(piece.memory, 0, piece.places, out=values)
        return self._values

    def write(self, values: Tensor) -> None:
        """Set the weights to values, float32 [n]; running variances are clamped at 0."""
        for piece in self._pieces:
            own = values[piece.span]
            piece.memory.scatter_(0, piece.places, own.clamp(min=0) if piece.is_variance else own)


def _memory(tensor: Tensor) -> Tensor:
    """View a tensor as it lies in memory, [numel]."""
    return tensor.detach().as_strided((tensor.numel(),), (1,))


def _places(tensor: Tensor, numbers: Tensor) -> Tensor:
    """Find where in memory the elements of these numbers in row-major order are, int64 [n]."""
    if tensor.is_contiguous():
        return numbers
    every = torch.arange(tensor.numel(), device=tensor.device)
    return every.as_strided(tensor.shape, tensor.stride()).reshape(-1)[numbers]
