"""The principal directions of a trajectory, exactly, without a second copy of it.

"Low Dimensional Trajectory Hypothesis is True: DNNs Can Be Trained in Tiny Subspaces", TPAMI 2022.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from utils.fitting import Snapshots

# Elements of the trajectory taken at once on a CPU, in float64 (2 MiB: near the cores' caches).
PIECE_ELEMENTS = 1 << 18


def principal_directions(
    snapshots: Snapshots, n_directions: int, ranges: Sequence[slice] | None = None
) -> Tensor:
    """The directions in which T snapshots vary most, largest first: float32 [d, n], orthonormal.

    ranges: the parts of θ that are looked at, in order, n weights in all; None is all of them.

    The T × T Gram matrix of the centred snapshots has their singular values and left singular
    vectors (float64, summed over chunks); a second pass over the trajectory gives the right ones.
    Signs are such that each direction's largest entry is positive.

    Raises ValueError if d < 1 or the snapshots vary in fewer than d directions.
    """
    ranges = [slice(0, snapshots.n_weights)] if ranges is None else list(ranges)
    n_epochs, device = len(snapshots), snapshots.device
    gram = torch.zeros(n_epochs, n_epochs, dtype=torch.float64, device=device)
    for _, moved in _centred(snapshots, ranges):
        gram.addmm_(moved, moved.T)
    values, vectors = torch.linalg.eigh(gram)
    values, vectors = values.flip(0), vectors.flip(1)
    rounding = n_epochs * torch.finfo(values.dtype).eps * values[0]
    rank = min(int((values > rounding).sum()), n_epochs - 1)
    if not 1 <= n_directions <= rank:
        raise ValueError(f"{n_directions} directions: the {n_epochs} snapshots span {rank}")

    project = (vectors[:, :n_directions] / values[:n_directions].sqrt()).T.contiguous()
    n_weights = sum(part.stop - part.start for part in ranges)
    directions = torch.empty(n_directions, n_weights, device=device)
    for part, moved in _centred(snapshots, ranges):
        directions[:, part] = project @ moved
    low, high = directions.aminmax(dim=1)
    return directions.mul_(torch.where(high >= -low, 1.0, -1.0)[:, None])


def _centred(snapshots: Snapshots, ranges: Sequence[slice]) -> Iterator[tuple[slice, Tensor]]:
    """The weights of the ranges, without their mean over time, a piece at a time.

    Yields (the piece's place among the n weights, float64 [T, m], valid until the next one is
    asked for).
    """
    n_epochs, on_cpu = len(snapshots), snapshots.device.type == "cpu"
    room = torch.empty(0, dtype=torch.float64, device=snapshots.device)
    for part, columns in snapshots.parts():
        width = max(1, PIECE_ELEMENTS // n_epochs) if on_cpu else columns.shape[1]
        before = 0
        for kept in ranges:
            first, last = max(part.start, kept.start), min(part.stop, kept.stop)
            for start in range(first, last, width):
                here = slice(start, min(start + width, last))
                n_weights = here.stop - start
                if room.numel() < n_epochs * n_weights:
                    room = room.new_empty(n_epochs * n_weights)
                moved = room[: n_epochs * n_weights].view(n_epochs, n_weights)
                moved.copy_(columns[:, start - part.start : here.stop - part.start])
                moved -= moved[0].clone()  # exact where the movement is small
                moved -= moved.mean(0)
                place = before + start - kept.start
                yield slice(place, place + n_weights), moved
            before += kept.stop - kept.start
