"""Fitting CMD to a trajectory (paper, section 3)."""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from .clustering import cluster, correlation
from .model import CMDModel
from .moments import ReferenceMoments, centre, coefficients, per_weight
from .ranges import ranges
from .ranks import ALONE, Ranks
from .snapshots import Snapshots

# Elements of the trajectory multiplied at once, in float64 (8 MiB: near the cores' caches), in a
# batch of strips of at most so many weights.
FIT_ELEMENTS = 1 << 20
BATCH = max(4, torch.get_num_threads())
STRIP_WEIGHTS = 2048

# It is called with a range of weights, their snapshots float32 [T, n], and for each of the weights
# its mean, its covariance with its reference and the square of the reference, float64 [n] (sums
# over time, not divided by T).
Watch = Callable[[slice, Tensor, Tensor, Tensor, Tensor], None]


def fit_cmd(
    trajectory: Tensor | np.ndarray,
    sample: Tensor,
    modes: int,
    start: int = 0,
    end: int | None = None,
    device: torch.device | str | None = None,
    ranks: Ranks = ALONE,
    watch: Watch | None = None,
) -> CMDModel:
    """Fit CMD on snapshots start … end − 1 of a trajectory (paper, algorithm 1).

    Args:
        trajectory: float32 [T, N], a tensor, array or memory map, or what has the interface of
            Snapshots; it is read in chunks of weights.
        sample: int64 [K], the weights that are clustered, from `sample_weights`.
        modes: M, the most modes to find; fewer come back where the sample has fewer clusters.
        start: the first snapshot used.
        end: the snapshot after the last one used, None for T.
        device: where to compute and to return the result; None is the tensor's own device, and for
            an array CUDA where there is one.
        ranks: the processes that fit a range of the weights each; all get all parameters.
        watch: is called with each range of this rank's weights (see `Watch`).

    Raises ValueError if M < 1, K < M, the snapshots are not in the trajectory, the sample is not
    of its weights, or a weight is not finite.
    """
    if isinstance(trajectory, (Tensor, np.ndarray)):
        snapshots = Snapshots(trajectory, start, end, device)
    else:
        snapshots = trajectory
    reference = shared_references(snapshots, sample, modes, ranks)
    moments = ReferenceMoments.of(snapshots.columns(reference))
    n_weights = snapshots.n_weights
    own = ranks.share(n_weights)
    a = torch.empty(own.stop - own.start, device=snapshots.device)
    b = torch.empty_like(a)
    mode = torch.empty(len(a), dtype=mode_dtype(len(reference)), device=a.device)
    table = moments.per_mode()
    for part, mean, covariance, nearest in fit_parts(snapshots, reference, moments, own, watch):
        here = slice(part.start - own.start, part.stop - own.start)
        a[here], b[here] = coefficients(mean, covariance, per_weight(table, nearest))
        mode[here] = nearest
    a, b, mode = (ranks.gather(values, n_weights) for values in (a, b, mode))
    a[reference], b[reference] = 1, 0
    return CMDModel(a, b, mode, reference, snapshots.columns(reference))


def find_references(snapshots: Snapshots, sample: Tensor, modes: int) -> Tensor:
    """Find the reference weights of at most M modes of the sample: int64 [M'], the largest mode's
    first."""
    sample = torch.as_tensor(sample, dtype=torch.int64, device="cpu")
    check_modes(modes, len(sample))
    if sample.min() < 0 or sample.max() >= snapshots.n_weights:
        raise ValueError(f"the sample is not of the {snapshots.n_weights:,} weights there are")
    if len(sample.unique()) != len(sample):
        raise ValueError("the sample holds a weight twice")
    columns = snapshots.columns(sample)
    if not columns.isfinite().all():
        raise ValueError("a sampled weight is not finite")
    _, reference = cluster(correlation(columns), modes)
    return sample[reference].to(snapshots.device)


def shared_references(
    snapshots: Snapshots, sample: Tensor, modes: int, ranks: Ranks = ALONE
) -> Tensor:
    """Find the reference weights as `find_references` does, on the first rank for all."""
    found = ranks.object_from_first(lambda: find_references(snapshots, sample, modes).cpu())
    return found.to(snapshots.device)


def fit_parts(
    snapshots: Snapshots,
    reference: Tensor,
    moments: ReferenceMoments,
    within: slice | None = None,
    watch: Watch | None = None,
) -> Iterator[tuple[slice, Tensor, Tensor, Tensor]]:
    """Assign and fit the weights, or those of a range, some at a time.

    Yields (range, mean float64 [n], covariance with the reference float64 [n], mode int64 [n]):
    each weight's mode is the one whose reference it correlates with most in absolute value, and
    mode 0 for a weight that never moves.

    One matrix product gives both moments: over time, the references' deviations sum to 0, so that
    their products with the weights are those with the weights' deviations.
    """
    _, deviation = centre(snapshots.columns(reference).double())
    norm = moments.square.sqrt()
    n_epochs, n_modes = deviation.shape
    rows = _rows(torch.where(norm > 0, deviation / norm, 0), torch.ones_like(deviation[:, 0]))
    rounding = n_epochs**1.5 * torch.finfo(rows.dtype).eps  # of a product, against |mean|
    for part, columns in snapshots.parts(within, len(rows)):
        product = _strips(rows, columns)
        n_weights = columns.shape[1]
        mean = product[:, n_modes].reshape(-1)[:n_weights]
        if not mean.isfinite().all():
            first = part.start + int((~mean.isfinite()).nonzero()[0])
            raise ValueError(f"weight {first} of the trajectory is not finite")
        mode = product[:, :n_modes].abs().max(1).indices[:, None]
        projection = product.gather(1, mode).reshape(-1)[:n_weights]
        mode = mode.reshape(-1)[:n_weights]
        covariance = projection * norm[mode]

        still = (projection.abs() <= rounding * mean.abs()).nonzero().flatten()
        still = still[(columns[:, still] == columns[0, still]).all(0)]
        mean[still], covariance[still], mode[still] = columns[0, still].double(), 0, 0

        here = (reference >= part.start) & (reference < part.stop)
        own, at = here.nonzero().flatten(), reference[here] - part.start
        mode[at], covariance[at] = own, moments.square[own]  # whatever ties with it
        if watch is not None:
            watch(part, columns, mean, covariance, moments.square[mode])
        yield part, mean, covariance, mode


def decaying_parts(
    snapshots: Snapshots,
    reference: Tensor,
    moments: ReferenceMoments,
    weights: Tensor,
    mode: Tensor,
    within: slice | None = None,
) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Fit the weights, or those of a range, to the modes that they are in, some at a time.

    Args:
        moments: of the references, with the same weights.
        weights: float64 [T], how much each snapshot counts.
        mode: [n], of the weights in the range.

    Yields (range, weighted mean float64 [n], weighted covariance with the reference float64 [n]).
    """
    _, deviation = centre(snapshots.columns(reference).double(), weights)
    n_modes = len(reference)
    rows = _rows(weights[:, None] * deviation, weights)
    first = 0 if within is None else within.start
    for part, columns in snapshots.parts(within, len(rows)):
        product = _strips(rows, columns)
        n_weights = columns.shape[1]
        own = mode[part.start - first : part.stop - first].long()
        mean = product[:, n_modes].reshape(-1)[:n_weights]
        strips = torch.zeros(product[:, 0].numel(), dtype=own.dtype, device=own.device)
        strips[:n_weights] = own
        covariance = product.gather(1, strips.view(len(product), 1, -1)).reshape(-1)[:n_weights]

        still = (columns == columns[0]).all(0)
        mean = torch.where(still, columns[0].double(), mean)
        covariance = torch.where(still, 0, covariance)
        here = (reference >= part.start) & (reference < part.stop)
        covariance[reference[here] - part.start] = moments.square[here]
        yield part, mean, covariance


def _rows(deviation: Tensor, weights: Tensor) -> Tensor:
    """What weights' snapshots [T, n] are multiplied by: float64 [m, T], the references' deviations
    [T, M], a row that gives the mean with the snapshots' weights [T], and zeros, for whole vector
    registers."""
    n_epochs, n_modes = deviation.shape
    rows = deviation.new_zeros(-(-(n_modes + 1) // 4) * 4, n_epochs)
    rows[:n_modes] = deviation.T
    rows[n_modes] = weights / weights.sum()
    return rows


def _strips(rows: Tensor, columns: Tensor) -> Tensor:
    """rows [m, T] @ columns [T, n] in the rows' precision, in strips of h columns: [S, m, h].

    S · h ≥ n; what lies beyond n is 0. Each core multiplies strips of its own, where one product
    shared by all of them would have them wait for each other.
    """
    if columns.is_cuda:
        return (rows @ columns.to(rows.dtype))[None]
    n_epochs, n_weights = columns.shape
    width = max(8, min(STRIP_WEIGHTS, FIT_ELEMENTS // (n_epochs * BATCH) // 8 * 8))
    n_strips = -(-n_weights // width)
    product = rows.new_empty(n_strips, len(rows), width)
    batch = rows.expand(BATCH, -1, -1).contiguous()
    wide = rows.new_empty(BATCH, n_epochs, width)
    whole = n_weights // width
    for strips in ranges(whole, BATCH):
        count = strips.stop - strips.start
        block = columns[:, strips.start * width : strips.stop * width]
        wide[:count].copy_(block.view(n_epochs, count, width).transpose(0, 1))
        torch.bmm(batch[:count], wide[:count], out=product[strips])
    if whole < n_strips:
        rest = columns[:, whole * width :]
        product[whole] = 0
        product[whole, :, : rest.shape[1]] = rows @ rest.to(rows.dtype)
    return product


def mode_dtype(modes: int) -> torch.dtype:
    """The smallest signed integer type for mode numbers 0 … M − 1.

    Signed, because torch takes uint8 in an index for a mask.
    """
    return next(
        dtype
        for dtype in (torch.int8, torch.int16, torch.int32, torch.int64)
        if modes - 1 <= torch.iinfo(dtype).max
    )


def check_modes(modes: int, samples: int) -> None:
    """Raise ValueError unless 1 ≤ M ≤ K."""
    if modes < 1:
        raise ValueError(f"modes must be at least 1, not {modes}")
    if samples < modes:
        raise ValueError(f"{modes} modes need at least as many samples, not {samples}")
