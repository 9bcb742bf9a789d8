"""CMD written plainly in float64 NumPy from the paper's equations, to test the fast one against."""

import numpy as np
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import pdist


def correlations(x, y):
    """|Pearson| of the columns of x [T, n] with those of y [T, m]; 0 where one never moves."""
    x, y = x.astype(np.float64), y.astype(np.float64)
    x, y = x - x.mean(0), y - y.mean(0)
    covariance = x.T @ y
    scale = np.sqrt((x**2).sum(0))[:, None] * np.sqrt((y**2).sum(0))[None]
    moves = np.outer(~(np.ptp(x, axis=0) < 1e-14), ~(np.ptp(y, axis=0) < 1e-14))
    return np.abs(np.divide(covariance, scale, out=np.zeros_like(covariance), where=moves))


def references(trajectory, sample, modes):
    """Clusters of the sample, largest first, and each one's reference weight."""
    sampled = np.asarray(trajectory)[:, sample]
    c = correlations(sampled, sampled)
    labels = fcluster(linkage(pdist(c), "complete"), modes, "maxclust")
    clusters = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    clusters.sort(key=len, reverse=True)
    # the two members of a pair always tie: the first is taken, whatever the last digits say
    best = [members[c[np.ix_(members, members)].mean(1).round(12).argmax()] for members in clusters]
    return np.asarray(sample)[best]


def least_squares(trajectory, reference, mode):
    """a, b of each weight on its mode's reference, by a linear solver, one mode at a time."""
    trajectory = np.asarray(trajectory, dtype=np.float64)
    a, b = np.zeros(trajectory.shape[1]), np.zeros(trajectory.shape[1])
    for m, r in enumerate(reference):
        members = np.flatnonzero(mode == m)
        # about the first snapshot: the solver's own rounding would hide a small movement
        design = np.stack([trajectory[:, r] - trajectory[0, r], np.ones(len(trajectory))], axis=1)
        offset = trajectory[0, members]
        slope, constant = np.linalg.lstsq(design, trajectory[:, members] - offset, rcond=1e-14)[0]
        a[members] = slope
        b[members] = constant + offset - slope * trajectory[0, r]
    a[reference], b[reference] = 1, 0
    return a, b


def fit(trajectory, sample, modes):
    """(reference, mode, a, b) of algorithm 1."""
    trajectory = np.asarray(trajectory, dtype=np.float64)
    reference = references(trajectory, sample, modes)
    to_reference = correlations(trajectory, trajectory[:, reference])
    mode = to_reference.argmax(1)
    mode[reference] = np.arange(len(reference))
    a, b = least_squares(trajectory, reference, mode)
    return reference, mode, a, b, to_reference


def weighted_least_squares(trajectory, reference, mode, memory):
    """a, b as by `least_squares`, snapshot s of T counting (1 − 1 / memory)^(T − 1 − s)."""
    trajectory = np.asarray(trajectory, dtype=np.float64)
    weights = (1 - 1 / memory) ** np.arange(len(trajectory) - 1, -1, -1)
    centred = trajectory - trajectory[0]  # exact: the movement may be small against the value
    mean = weights @ centred / weights.sum()
    moved = centred - mean
    a = np.zeros(trajectory.shape[1])
    for m, r in enumerate(reference):
        members = mode == m
        square = weights @ moved[:, r] ** 2
        if square > 0:
            a[members] = (weights * moved[:, r]) @ moved[:, members] / square
    b = trajectory[0] + mean - a * (trajectory[0] + mean)[np.asarray(reference)[mode]]
    a[reference], b[reference] = 1, 0
    return a, b
