"""Fitting CMD to a trajectory (paper, section 3; DESIGN: steps 2 to 4)."""

import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from os import PathLike

import numpy as np
import torch
from torch import Tensor

from utils.cmd.clustering import cluster, correlation
from utils.cmd.staging import stage
from utils.storage.sealed import load_tensors, save_tensors
from utils.system.ranks import ALONE, Ranks

# Elements of the trajectory multiplied at once, in float64 (8 MiB: near the cores' caches), in a
# batch of strips of at most so many weights; and weights handled at once elsewhere: large enough
# that calls cost nothing, small enough for a cache.
FIT_ELEMENTS = 1 << 20
BATCH = max(4, torch.get_num_threads())
STRIP_WEIGHTS = 2048
PART_WEIGHTS = 1 << 17
# The same on a GPU, where calls cost more than memory: weights, and elements of the trajectory
# (128 MiB; two copies are in flight where they come from the host).
GPU_PART_WEIGHTS = 1 << 24
STAGED_ELEMENTS = 1 << 25


# A reference's standard deviation at and below which a = σᵢ / σᵣ might not be finite in float32.
STILL = 1e-30


@dataclass
class CMDModel:
    """The CMD parameters of N weights in M modes: w_i(t) ≈ a_i · w_r(t) + b_i.

    a, b: float32 [N], the affine coefficients.
    mode: [N], each weight's mode, in the smallest signed integer type that holds M.
    reference: int64 [M], each mode's reference weight, as an index into θ. Modes are ordered by
        their size in the sample, largest first.
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

        reference_weights: [M], the reference weights' values, e.g. `theta[cmd.reference]`.

        Raises ValueError if there are not M of them.
        """
        values = torch.as_tensor(reference_weights, dtype=torch.float32, device=self.a.device)
        if values.shape != (self.modes,):
            raise ValueError(f"{self.modes} reference weights are needed, not {list(values.shape)}")
        if out is None:
            out = torch.empty_like(self.a)
        for part in parts(self.n_weights, part_weights(out.device)):
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

    def state(self) -> dict[str, Tensor]:
        """The parameters by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def save(self, path: str | PathLike) -> None:
        """Write the parameters to `path`, whole or not at all."""
        save_tensors(self.state(), path)

    @classmethod
    def load(cls, path: str | PathLike) -> "CMDModel":
        """Read what `save` wrote, onto the CPU; no pickled code runs.

        Raises ValueError if the file is something else, OSError if it cannot be read.
        """
        try:
            return cls.of_state(load_tensors(path))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    @classmethod
    def of_state(cls, state: dict) -> "CMDModel":
        """The parameters in what `state` gave.

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


def fit_cmd(
    trajectory: Tensor | np.ndarray,
    sample: Tensor,
    modes: int,
    start: int = 0,
    end: int | None = None,
    device: torch.device | str | None = None,
    ranks: Ranks = ALONE,
) -> CMDModel:
    """Fit CMD on snapshots start … end − 1 of a trajectory (paper, algorithm 1).

    trajectory: float32 [T, N], a tensor, array or memory map; read in chunks of weights.
    sample: int64 [K], the weights that are clustered, from `sample_weights`.
    modes: M, the most modes to find; fewer come back where the sample has fewer clusters.
    device: where to compute and to return the result; None is the tensor's own device, and for
        an array CUDA where there is one.
    ranks: those that fit a range of the weights each; all of them are given all parameters.

    Raises ValueError if M < 1, K < M, the snapshots are not in the trajectory, the sample is not
    of its weights, or a weight is not finite.
    """
    snapshots = Snapshots(trajectory, start, end, device)
    reference = shared_references(snapshots, sample, modes, ranks)
    moments = ReferenceMoments.of(snapshots.columns(reference))
    n_weights = snapshots.n_weights
    own = ranks.share(n_weights)
    a = torch.empty(own.stop - own.start, device=snapshots.device)
    b = torch.empty_like(a)
    mode = torch.empty(len(a), dtype=mode_dtype(len(reference)), device=a.device)
    table = moments.table()
    for part, mean, covariance, nearest in fit_parts(snapshots, reference, moments, own):
        here = slice(part.start - own.start, part.stop - own.start)
        a[here], b[here] = coefficients(mean, covariance, per_weight(table, nearest))
        mode[here] = nearest
    a, b, mode = (ranks.gather(values, n_weights) for values in (a, b, mode))
    a[reference], b[reference] = 1, 0
    return CMDModel(a, b, mode, reference, snapshots.columns(reference))


class Snapshots:
    """Snapshots start … end − 1 of a trajectory [T, N], served in pieces on a device."""

    def __init__(
        self,
        trajectory: Tensor | np.ndarray,
        start: int = 0,
        end: int | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        if isinstance(trajectory, np.ndarray):
            if device is None and torch.cuda.is_available():
                device = "cuda"
            with warnings.catch_warnings():  # of a read-only map, which nothing here writes to
                warnings.simplefilter("ignore", UserWarning)
                trajectory = torch.from_numpy(trajectory)
        if trajectory.ndim != 2 or not trajectory.is_floating_point():
            raise ValueError(
                f"a trajectory is float32 [T, N], this is {trajectory.dtype} "
                f"{list(trajectory.shape)}"
            )
        n_epochs, self.n_weights = trajectory.shape
        end = n_epochs if end is None else end
        if not 0 <= start < end <= n_epochs:
            raise ValueError(f"snapshots {start} … {end} − 1 are not among the {n_epochs} there")
        self._rows = trajectory[start:end]
        self.device = torch.device(trajectory.device if device is None else device)

    def __len__(self) -> int:
        return len(self._rows)

    def columns(self, index: Tensor) -> Tensor:
        """The snapshots of some weights, float32 [T, len(index)]."""
        return self._rows[:, index.to(self._rows.device)].to(self.device, torch.float32)

    def parts(self, within: slice | None = None) -> Iterator[tuple[slice, Tensor]]:
        """All weights, or those of a range, some at a time: (range, their snapshots [T, n] on the
        device).

        A part is valid until the next one is asked for. Parts that have to travel to a GPU are
        copied while the one before is worked on.
        """
        size = PART_WEIGHTS if self.device.type == "cpu" else max(1, STAGED_ELEMENTS // len(self))
        within = within or slice(0, self.n_weights)
        ranges = list(parts(within.stop, size, within.start))
        if self._rows.device == self.device:
            for part in ranges:
                yield part, self._rows[:, part]
        else:
            yield from stage(self._rows, ranges, self.device)


@dataclass
class ReferenceMoments:
    """How the reference weights moved over `count` snapshots: what a fit knows of each mode.

    count: how many, or the sum of their weights where they count differently. mean: float64 [M].
    square: float64 [M], the (weighted) sum of squared deviations from the mean.
    """

    count: float
    mean: Tensor
    square: Tensor

    @classmethod
    def of(cls, columns: Tensor, weights: Tensor | None = None) -> "ReferenceMoments":
        """Of snapshots float [T, M]. weights: float64 [T], how much each counts; None: all 1."""
        mean, deviation = centre(columns.double(), weights)
        if weights is None:
            return cls(len(columns), mean, deviation.square().sum(0))
        return cls(float(weights.sum()), mean, weights @ deviation.square())

    def add(self, values: Tensor, decay: float = 1) -> None:
        """Count one more snapshot, float [M], after those before count `decay` times as much."""
        deviation = values.double() - self.mean
        self.count = decay * self.count + 1
        self.mean += deviation / self.count
        self.square *= decay
        self.square += deviation * (values - self.mean)

    def table(self) -> Tensor:
        """What `coefficients` needs of each mode: float64 [2, M], 1 / square and the mean."""
        # 1 / ∞ = 0: no slope where the reference never moved, or by less than float32 can be
        # multiplied by
        square = torch.where(self.square > self.count * STILL**2, self.square, math.inf)
        return torch.stack([square.reciprocal(), self.mean])


def coefficients(mean: Tensor, covariance: Tensor, of_reference: Tensor) -> Tensor:
    """The least-squares a, b, float64 [2, n], of weights with these moments.

    mean, covariance: float64 [n], of each weight and with its reference (a sum, not divided by
    T). of_reference: float64 [2, n], `per_weight` of the references' table; a and b replace it.
    Where the reference does not move (its standard deviation is at most STILL), a = 0 and b is the
    mean.
    """
    scale, reference_mean = of_reference
    scale.mul_(covariance)
    torch.addcmul(mean, scale, reference_mean, value=-1, out=reference_mean)
    return of_reference


def per_weight(table: Tensor, mode: Tensor, out: Tensor | None = None) -> Tensor:
    """Each weight's column of a table of the modes: [rows, M] by mode int [n] is [rows, n]."""
    return torch.gather(table, 1, mode.long().expand(len(table), -1), out=out)


def find_references(snapshots: Snapshots, sample: Tensor, modes: int) -> Tensor:
    """The reference weights of at most M modes of the sample: int64 [M'], largest mode first."""
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
    """The same, found by the first rank for all."""
    found = ranks.object_from_first(lambda: find_references(snapshots, sample, modes).cpu())
    return found.to(snapshots.device)


def fit_parts(
    snapshots: Snapshots,
    reference: Tensor,
    moments: ReferenceMoments,
    within: slice | None = None,
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
    for part, columns in snapshots.parts(within):
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

    moments: of the references, with the same weights. weights: float64 [T], how much each
    snapshot counts. mode: [n], of the weights in the range.

    Yields (range, weighted mean float64 [n], weighted covariance with the reference float64 [n]).
    """
    _, deviation = centre(snapshots.columns(reference).double(), weights)
    n_modes = len(reference)
    rows = _rows(weights[:, None] * deviation, weights)
    first = 0 if within is None else within.start
    for part, columns in snapshots.parts(within):
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
    for strips in parts(whole, BATCH):
        count = strips.stop - strips.start
        block = columns[:, strips.start * width : strips.stop * width]
        wide[:count].copy_(block.view(n_epochs, count, width).transpose(0, 1))
        torch.bmm(batch[:count], wide[:count], out=product[strips])
    if whole < n_strips:
        rest = columns[:, whole * width :]
        product[whole] = 0
        product[whole, :, : rest.shape[1]] = rows @ rest.to(rows.dtype)
    return product


def centre(columns: Tensor, weights: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The mean over time of float64 [T, n], and the deviations from it, in place.

    weights: float64 [T], how much each snapshot counts; None: all alike.

    The first snapshot is subtracted first, which is exact where a weight's movement is small
    against its value, and gives exactly 0 for a weight that never moves.
    """
    first = columns[0].clone()
    columns -= first
    shift = columns.mean(0) if weights is None else (weights @ columns) / weights.sum()
    columns -= shift
    return first + shift, columns


def parts(stop: int, size: int, start: int = 0) -> Iterator[slice]:
    """Consecutive ranges of at most `size` weights that cover start … stop − 1."""
    for first in range(start, stop, size):
        yield slice(first, min(first + size, stop))


def part_weights(device: torch.device) -> int:
    """How many weights to handle at once on a device."""
    return PART_WEIGHTS if device.type == "cpu" else GPU_PART_WEIGHTS


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
