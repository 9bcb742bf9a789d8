"""Trajectories to fit: [T, N] float32 arrays."""

import numpy as np


def drifting(n_epochs, n_weights, n_modes=4, noise=0.2, seed=0):
    """Weights that follow a few random walks, with noise; every 50th never moves."""
    random = np.random.default_rng(seed)
    walks = random.normal(size=(n_epochs, n_modes)).cumsum(0)
    follows = random.integers(n_modes, size=n_weights)
    scale = random.normal(size=n_weights)
    steps = noise * random.normal(size=(n_epochs, n_weights)).cumsum(0)
    trajectory = walks[:, follows] * scale + steps + random.normal(size=n_weights)
    trajectory[:, ::50] = trajectory[0, ::50]
    return trajectory.astype(np.float32)


def offset(n_epochs, n_weights, seed=0):
    """Mean 1 and movement 1e-4, where one-pass float32 sums see mostly rounding."""
    return (1 + 1e-4 * drifting(n_epochs, n_weights, seed=seed)).astype(np.float32)
