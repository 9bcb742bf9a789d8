"""Generate trajectories whose weights follow a few random walks, with noise of their own."""

from pathlib import Path

import torch
from torch import Tensor, nn

from utils.storage.trajectory import Trajectory

LATENT = 6  # random walks that the weights follow
PART = 1 << 20  # weights computed at once


class Walk:
    """A random walk of the weights, θ(0), θ(1), …, the same for the same seed and device."""

    def __init__(self, n_weights: int, seed: int, device: torch.device | str = "cpu") -> None:
        self._random = torch.Generator(device).manual_seed(seed)
        self._drawn = {"generator": self._random, "device": device}
        self._follows = torch.randint(LATENT, (n_weights,), **self._drawn)
        self._scale = torch.randn(n_weights, **self._drawn)
        self._noise = torch.randn(n_weights, **self._drawn).mul_(0.1)
        self._walks = torch.zeros(LATENT, device=device)

    def step(self) -> Tensor:
        """Return the next epoch's weights, float32 [N]."""
        self._walks += 0.01 * torch.randn(LATENT, **self._drawn)
        theta = torch.empty_like(self._noise)
        for part in torch.arange(len(theta)).split(PART):
            here = slice(int(part[0]), int(part[-1]) + 1)
            self._noise[here] += 0.002 * torch.randn(len(part), **self._drawn)
            walk = self._walks[self._follows[here]]
            torch.addcmul(self._noise[here], walk, self._scale[here], out=theta[here])
        return theta


def write_trajectory(path: Path, n_weights: int, n_epochs: int, seed: int) -> None:
    """Write T snapshots of N weights to `path`, a `.npy` file, unless it holds T already."""
    store = Trajectory(path, n_weights)
    if len(store) == n_epochs:
        return
    store.truncate(0)
    walk = Walk(n_weights, seed)
    for _ in range(n_epochs):
        store.append(walk.step())


def module_of(n_weights: int, n_layers: int = 62) -> nn.Module:
    """Make a module of N weights in as many layers as ResNet18 has, of very different sizes."""
    sizes = torch.logspace(0, 3, min(n_layers, n_weights), dtype=torch.float64)
    ends = (sizes.cumsum(0) / sizes.sum() * n_weights).long().tolist()
    ends[-1] = n_weights
    starts = [0, *ends[:-1]]
    return nn.ParameterList(
        torch.zeros(end - start) for start, end in zip(starts, ends, strict=True) if end > start
    )
