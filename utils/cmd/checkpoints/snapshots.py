"""Snapshots that stay in the files of their checkpoints, served in ranges of weights."""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from ..errors import InputError
from ..ranges import PART_WEIGHTS, ranges
from .alignment import SeriesLayer


class StoredSnapshots:
    """Snapshots [T, N] in the files of T checkpoints, with the interface of `Snapshots`.

    An entry that is the same non-finite number at every moment, such as one of a mask of −∞, is
    served as 0, a weight that never moves.

    Attributes:
        n_weights: N.
        device: where parts are served.
        constant: where in θ entries are not finite, a list of int64 [n], as far as they were read.
        values: what they are there, a list of float32 [n].
    """

    def __init__(
        self,
        layers: Sequence[SeriesLayer],
        moments: Sequence[str],
        device: torch.device | str = "cpu",
        progress: Callable[[int], None] = lambda n_bytes: None,
    ) -> None:
        """Serve the layers.

        Args:
            moments: the checkpoints' names, for messages.
            device: where parts are served.
            progress: is told how many bytes of the files a part took.
        """
        self._layers, self._moments, self._progress = layers, moments, progress
        self.device = torch.device(device)
        sizes = torch.tensor([layer.numel() for layer in layers])
        self._ends = sizes.cumsum(0)
        self.n_weights = int(sizes.sum())
        self.constant: list[Tensor] = []
        self.values: list[Tensor] = []

    def __len__(self) -> int:
        return len(self._moments)

    def columns(self, index: Tensor) -> Tensor:
        """The snapshots of some weights, float32 [T, len(index)]."""
        index = index.cpu()
        found = torch.empty(len(self), len(index))
        layers = torch.searchsorted(self._ends, index, right=True)
        for number in layers.unique().tolist():
            layer, at = self._layers[number], (layers == number).nonzero().flatten()
            places = (index[at] - int(self._ends[number]) + layer.numel()).tolist()
            for moment, stored in enumerate(layer.moments):
                values = torch.cat([stored.read(place, place + 1) for place in places])
                found[moment, at] = values.float()
        self._check(found, index)
        return found.to(self.device)

    def parts(
        self, within: slice | None = None, products: int = 0
    ) -> Iterator[tuple[slice, Tensor]]:
        """All weights, or those of a range, some at a time: (range, their snapshots [T, n] on the
        device), as many as `Snapshots` has at once on a CPU.

        A part is valid until the next one is asked for: all use the same room.
        """
        within = within or slice(0, self.n_weights)
        room = torch.empty(len(self), min(PART_WEIGHTS, max(1, within.stop - within.start)))
        for part in ranges(within.stop, PART_WEIGHTS, within.start):
            columns = room[:, : part.stop - part.start]
            self._read(part, columns)
            constant, values = self._check(columns, torch.arange(part.start, part.stop))
            if len(constant):
                self.constant.append(constant)
                self.values.append(values)
            yield part, columns.to(self.device)

    def _read(self, part: slice, columns: Tensor) -> None:
        n_bytes, start = 0, part.start
        while start < part.stop:
            number = int(torch.searchsorted(self._ends, start, right=True))
            layer, end = self._layers[number], int(self._ends[number])
            first = end - layer.numel()
            stop = min(end, part.stop)
            for moment, stored in enumerate(layer.moments):
                values = stored.read(start - first, stop - first)
                columns[moment, start - part.start : stop - part.start].copy_(values)
                n_bytes += values.numel() * values.element_size()
            start = stop
        self._progress(n_bytes)

    def _check(self, columns: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        """Put 0 where columns hold the same non-finite number at every moment.

        Returns where, int64 [n] in θ, and what they hold, float32 [n].

        Raises InputError naming a tensor and file that holds NaN or infinity otherwise.
        """
        if not columns.numel() or torch.stack(torch.aminmax(columns)).isfinite().all():
            return index[:0], columns[0, :0]
        wrong = ~columns.isfinite()
        at = wrong.any(0).nonzero().flatten()
        first = columns[0, at]
        same = (columns[:, at] == first) | (columns[:, at].isnan() & first.isnan())
        moves = ~same.all(0) | self._too_large(index[at])
        if moves.any():
            column = int(at[moves.nonzero()[0]])
            moment = int(wrong[:, column].nonzero()[0])
            layer, place = self._locate(int(index[column]))
            value = layer.moments[moment].read(place, place + 1)
            reason = "is beyond float32" if value.isfinite().all() else "is not finite"
            raise InputError(
                f"CHECKPOINT {self._moments[moment]}: tensor {layer.name!r} {reason}: leave the "
                "tensor out with --exclude, or the checkpoint"
            )
        columns[:, at] = 0
        return index[at], first.clone()

    def _too_large(self, weights: Tensor) -> Tensor:
        """Whether each of some weights that are infinite in float32, int64 [n], is not so in a
        file: bool [n]."""
        found = torch.zeros(len(weights), dtype=torch.bool)
        for number, weight in enumerate(weights.tolist()):
            layer, place = self._locate(weight)
            if any(stored.dtype == torch.float64 for stored in layer.moments):
                found[number] = any(
                    bool(stored.read(place, place + 1).isfinite()) for stored in layer.moments
                )
        return found

    def _locate(self, weight: int) -> tuple[SeriesLayer, int]:
        """The layer that a weight of θ is in, and its place there."""
        number = int(torch.searchsorted(self._ends, weight, right=True))
        layer = self._layers[number]
        return layer, weight - int(self._ends[number]) + layer.numel()
