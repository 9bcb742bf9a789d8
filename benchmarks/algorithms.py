"""Measure CMD's algorithms in a device's memory, beside copies of as many bytes there."""

import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch

from benchmarks.following import timed_updates
from benchmarks.rates import copy_rate, least
from benchmarks.synthetic import Walk, module_of
from utils.cmd.clustering import sample_weights
from utils.cmd.fitting import find_references, fit_cmd
from utils.cmd.online import OnlineCMD
from utils.cmd.snapshots import Snapshots
from utils.cmd.vector import layer_sizes

N_WEIGHTS = {"cpu": 1_117_000, "cuda": 11_170_000}  # ResNet18's on a GPU, a tenth on a CPU
EPOCHS, MODES, SAMPLES, WARMUP = 150, 10, 1000, 20
UPDATES = 10  # measured, after the warm-up and one that is not counted
TIMES = 3  # repeats of a fit


@dataclass(frozen=True)
class Cost:
    """What an algorithm costs.

    Attributes:
        what: its name.
        n_weights: N.
        n_epochs: T, of the trajectory that it works on.
        seconds: that it takes.
        moved: the bytes that it has to read and write at least; None where that says little.
        floor: the seconds that a copy which reads and writes as many takes.
    """

    what: str
    n_weights: int
    n_epochs: int
    seconds: float
    moved: int | None = None
    floor: float | None = None


def algorithms(device_name: str) -> Iterator[Cost]:
    """Yield the costs of a fit, a reconstruction and an online update."""
    device, seed = torch.device(device_name), 0
    rate = copy_rate(device)
    n_weights = N_WEIGHTS.get(device.type, N_WEIGHTS["cpu"])
    n_epochs = longest(n_weights, device)

    def cost(what: str, n_epochs: int, seconds: float, moved: int) -> Cost:
        return Cost(what, n_weights, n_epochs, seconds, moved, moved / rate)

    walk = Walk(n_weights, seed, device)
    trajectory = torch.empty(n_epochs, n_weights, device=device)
    for snapshot in trajectory:
        snapshot.copy_(walk.step())
    module = module_of(n_weights).to(device)
    sample = sample_weights(layer_sizes(module), SAMPLES, seed)
    fit = least(partial(fit_cmd, trajectory, sample, MODES), device, TIMES)
    yield cost("fit", n_epochs, fit, trajectory.nbytes)
    find = partial(find_references, Snapshots(trajectory), sample, MODES)
    references = least(find, device, TIMES)
    yield Cost("of it, finding the references", n_weights, n_epochs, references)
    cmd = fit_cmd(trajectory, sample, MODES)
    values, theta = trajectory[-1, cmd.reference], torch.empty_like(cmd.a)
    del trajectory, find
    touched = sum(each.nbytes for each in (cmd.a, cmd.b, cmd.mode, theta))
    reconstruction = least(lambda: cmd.reconstruct(values, out=theta), device)
    yield cost("reconstruction", n_epochs, reconstruction, touched)

    online = OnlineCMD(module, MODES, SAMPLES, WARMUP, seed)
    followed = WARMUP + 2 + UPDATES
    updates = [*timed_updates(online, module, (walk.step() for _ in range(followed)))]
    each = 4 + 4 + 1 + 2 * (8 + 8)  # a weight's θ, θ̂ and mode; mean, covariance read and written
    update = statistics.median(updates[-UPDATES:])
    yield cost("online update", followed, update, each * n_weights)


def longest(n_weights: int, device: torch.device) -> int:
    """Return how many snapshots are fitted: no more than fill half of a GPU's free memory."""
    if device.type != "cuda":
        return EPOCHS
    free, _ = torch.cuda.mem_get_info(device)
    return max(2, min(EPOCHS, free // 2 // (4 * n_weights)))
