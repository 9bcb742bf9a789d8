"""Clustering of the sampled weights into modes (paper, section 3)."""

import warnings
from collections.abc import Sequence

import numpy as np
import torch
from scipy.cluster.hierarchy import fcluster, linkage
from torch import Tensor
from torch.nn import functional

# Correlations are compared after rounding to this many decimals, far above float64's error and
# far below any difference that matters, so that weights moving exactly alike tie on every machine.
DECIMALS = 12
# Up to this many rows, distances are computed directly; above, by matrix products.
DIRECT_ROWS = 2048
BLOCK_ROWS = 512


def sample_weights(
    layer_sizes: Sequence[int], k: int, generator: torch.Generator | int | None = None
) -> Tensor:
    """Draw K weights without replacement, balanced over the layers: int64 [K], ascending.

    Half of K is shared out equally over the layers, the other half in proportion to their sizes;
    what a layer is too small for goes to the others by the same rule, and the total is exactly K.
    Where K/2 is smaller than the number of layers the sample is uniform over all weights, with a
    warning. K ≥ N gives all N.

    Args:
        layer_sizes: weights in each layer, in θ's order (see `layer_sizes`).
        k: K.
        generator: a seeded CPU torch.Generator, or a seed; None for torch's own default.

    Raises ValueError if K < 1 or there is no weight to draw.
    """
    sizes = np.asarray(list(layer_sizes), dtype=np.int64)
    n_weights = int(sizes.sum())
    if k < 1:
        raise ValueError(f"samples must be at least 1, not {k}")
    if n_weights == 0 or sizes.min() < 0:
        raise ValueError("layer_sizes must hold at least one weight, and no negative size")
    if k >= n_weights:
        return torch.arange(n_weights)

    if isinstance(generator, int):
        generator = torch.Generator().manual_seed(generator)
    seed = torch.randint(2**63 - 1, (1,), generator=generator).item()
    random = np.random.default_rng(seed)  # draws a few of many without a permutation of all
    n_layers = int(np.count_nonzero(sizes))
    if k < 2 * n_layers:
        warnings.warn(
            f"{k} samples are fewer than two for each of {n_layers} layers: "
            "sampling uniformly instead of balanced over the layers",
            stacklevel=2,
        )
        drawn = random.choice(n_weights, size=k, replace=False, shuffle=False)
        return torch.from_numpy(np.sort(drawn).astype(np.int64))

    starts = np.cumsum(sizes) - sizes
    drawn = [
        start + random.choice(size, size=count, replace=False, shuffle=False)
        for start, size, count in zip(starts, sizes, _counts(sizes, k), strict=True)
        if count
    ]
    return torch.from_numpy(np.sort(np.concatenate(drawn)).astype(np.int64))


def _counts(sizes: np.ndarray, k: int) -> np.ndarray:
    """How many of the K samples each layer gives, int64 [L]."""
    equal = _apportion(k // 2, (sizes > 0).astype(np.int64), sizes)
    return equal + _apportion(k - k // 2, sizes, sizes - equal)


def _apportion(total: int, weights: np.ndarray, room: np.ndarray) -> np.ndarray:
    """`total` in whole parts as near to the proportion of `weights` as `room` allows, int64 [L].

    What a layer has no room for goes to the others by the same proportion; fractions are rounded
    by largest remainder. `room` must hold more than `total`.
    """
    given = np.zeros_like(room)
    free = weights > 0
    while True:
        shared = np.where(free, weights, 0)
        part, remainder = np.divmod(total * shared, shared.sum())
        full = free & (part >= room)
        if not full.any():
            break
        given[full] = room[full]
        total -= room[full].sum()
        free &= ~full
    given += part
    given[np.argsort(-remainder, kind="stable")[: total - part.sum()]] += 1
    return given


def correlation(snapshots: Tensor) -> Tensor:
    """|Pearson correlation over time| of the columns of [T, K]: float64 [K, K].

    A column that never moves has correlation 0 with every column, itself included.
    """
    return signed_correlation(snapshots).abs_().clamp_(max=1).round_(decimals=DECIMALS)


def signed_correlation(snapshots: Tensor) -> Tensor:
    """Pearson's correlation over time of the columns of [T, K], with its sign: float64 [K, K].

    0 where a column never moves.
    """
    moved = snapshots.double()
    moved = moved - moved[0]  # exact where the movement is small against the value
    moved -= moved.mean(0)
    norm = torch.linalg.vector_norm(moved, dim=0)
    moved = torch.where(norm > 0, moved / norm, 0)
    return moved.T @ moved


def cluster(correlations: Tensor, modes: int) -> tuple[Tensor, Tensor]:
    """Cluster the rows of the correlation matrix, float64 [K, K], into at most M modes.

    Euclidean distances between the rows, complete linkage, cut into at most M clusters.

    Returns
        labels: int64 [K], the mode of each sampled weight; modes are ordered by size, largest
            first.
        reference: int64 [M'], M' ≤ M, each mode's reference as a position in the sample: its
            member with the highest mean |correlation| to its members.
    """
    n_samples = len(correlations)
    if n_samples == 1:
        found = np.zeros(1, dtype=np.int64)
    else:
        tree = linkage(row_distances(correlations).cpu().numpy(), method="complete")
        found = fcluster(tree, modes, criterion="maxclust") - 1
    by_size = np.argsort(-np.bincount(found), kind="stable")
    labels = torch.from_numpy(np.argsort(by_size)[found])
    # mean |correlation| of each weight to the members of each mode, without a copy of the matrix
    member = functional.one_hot(labels).to(correlations)
    within = (correlations @ member / member.sum(0)).round(decimals=DECIMALS).cpu()
    reference = []
    for mode in range(len(by_size)):
        members = torch.nonzero(labels == mode).flatten()
        reference.append(members[within[members, mode].argmax()])
    return labels, torch.stack(reference)


def row_distances(rows: Tensor) -> Tensor:
    """Euclidean distances between the rows of [K, K], condensed as scipy's pdist has them.

    Many rows take |x − y|² = |x|² + |y|² − 2 x·y, a matrix product over blocks of the upper
    triangle: an order of magnitude faster than differences at K = 10,000. Rows are centred first,
    which leaves less to cancel, and what rounding cannot tell from 0 is 0.
    """
    n_rows = len(rows)
    if n_rows <= DIRECT_ROWS:
        return torch.pdist(rows)
    centred = rows - rows.mean(0)
    square = centred.square().sum(1)
    condensed = torch.empty(n_rows * (n_rows - 1) // 2, dtype=rows.dtype)
    filled = 0
    for start in range(0, n_rows, BLOCK_ROWS):
        block = slice(start, start + BLOCK_ROWS)
        scale = square[block, None] + square[start:]
        distance = (scale - 2 * centred[block] @ centred[start:].T).clamp_(min=0)
        distance[distance < 1e-13 * scale] = 0
        distance = distance.sqrt_().cpu()
        for row in range(len(distance)):
            rest = distance[row, row + 1 :]
            condensed[filled : filled + len(rest)] = rest
            filled += len(rest)
    return condensed
