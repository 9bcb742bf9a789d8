"""Measure online updates; each function is to be run in a process of its own."""

import statistics
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks import public_code
from benchmarks.cases import Case
from benchmarks.measure import Measured, clock
from benchmarks.synthetic import Walk, module_of
from utils.cmd.online import OnlineCMD
from utils.cmd.vector import write_vector
from utils.storage.trajectory import Trajectory

FOLLOWED = 20_000  # weights whose whole history is kept, to check their a and b
PUBLIC_UPDATES = 2  # so few because each takes so long


@dataclass(frozen=True)
class Figures:
    """The cost of an update.

    Attributes:
        seconds: the median of all updates.
        peak: of anonymous memory, in bytes.
    """

    seconds: float
    peak: int


def vector_copies(case: Case) -> Figures:
    """Measure the floor of an update's cost: one copy of each vector that it must touch.

    These are θ of the followed module and of the modelled one (float32), the means and the
    covariances (float64), and the modes (int8).
    """
    types = (torch.float32, torch.float64, torch.float64, torch.int8)
    where = {"device": case.device}
    vectors = [torch.ones(case.n_weights, dtype=dtype, **where) for dtype in types]
    copies = [torch.ones_like(vector) for vector in vectors]
    seconds = []
    with Measured() as measured:
        for _ in range(max(10, case.repeats)):
            start = clock(torch.device(case.device))
            for vector, copied in zip(vectors, copies, strict=True):
                copied.copy_(vector)
            seconds.append(clock(torch.device(case.device)) - start)
    return Figures(statistics.median(seconds), measured.peak)


def our_updates(
    case: Case, warmup: int, results: Path | None, memory: float | None = None
) -> Figures:
    """Measure `OnlineCMD.update_parameters` on each snapshot after the warm-up.

    Args:
        case: what is followed.
        warmup: the last epoch of the warm-up.
        results: the path where CMD's parameters are saved, after as many updates as the public
            code is given; None for nowhere.
        memory: adaptive CMD's, in updates; None for online CMD.
    """
    module = module_of(case.n_weights).to(case.device)
    history = Trajectory(case.path, case.n_weights)
    online = OnlineCMD(module, case.modes, case.samples, warmup, case.seed, history=history,
                       memory=memory)  # fmt: skip
    snapshots = (history[epoch] for epoch in range(case.n_epochs))
    seconds = []
    with Measured() as measured:
        for epoch, each in enumerate(timed_updates(online, module, snapshots)):
            seconds.append(each)
            if results is not None and epoch == warmup + PUBLIC_UPDATES:
                online.model.save(results)
    return Figures(statistics.median(seconds[warmup + 1 :]), measured.peak)


def timed_updates(
    online: OnlineCMD, module: nn.Module, snapshots: Iterable[Tensor]
) -> Iterator[float]:
    """Yield the seconds of each update by a module that takes on the snapshots in turn."""
    device = next(module.parameters()).device
    for theta in snapshots:
        write_vector(theta, module)
        start = clock(device)
        online.update_parameters(module)
        yield clock(device) - start


def public_updates(case: Case, warmup: int, official: str, results: Path) -> Figures:
    """Measure the public code's update: its data frame, its a and b, and the reconstruction.

    Its writing of the result into the network, by a copy of the state dictionary, is left out.
    """
    public = public_code.load(official)
    weights = public_code.transposed(case.path, warmup + 1)
    sample = case.sample().tolist()
    seconds = []
    with public_code.quietly():
        a, b, reference, curves, mode = public.basic_cmd(weights, sample, 0, warmup + 1, case.modes)
        del weights
        reference = np.asarray(reference).astype(np.int64)
        stored = np.load(case.path, mmap_mode="r")
        with Measured() as measured:
            for theta in stored[warmup + 1 : warmup + 1 + PUBLIC_UPDATES]:
                theta = np.array(theta)
                start = time.perf_counter()
                values = theta[reference]
                curves = np.concatenate((curves, values[:, None]), axis=1)
                frame = public.create_AB_DF(theta, mode)
                a, b = public.update_AB_vec(a, b, curves, theta[:, None], frame)
                _ = values[mode] * a + b
                seconds.append(time.perf_counter() - start)
    np.savez(results, a=a, b=b, reference=reference, mode=mode)
    return Figures(statistics.median(seconds), measured.peak)


def drift(case: Case, warmup: int, updates: int) -> str:
    """Describe how far a and b are from the full fit after many updates, on some of the weights."""
    walk = Walk(case.n_weights, case.seed)
    module = module_of(case.n_weights).to(case.device)
    online = OnlineCMD(module, case.modes, case.samples, warmup, case.seed)
    generator = torch.Generator().manual_seed(case.seed)
    some = torch.randint(case.n_weights, (FOLLOWED,), generator=generator)
    kept, start = [], time.perf_counter()
    for _ in range(warmup + 1 + updates):
        theta = walk.step()
        write_vector(theta, module)
        online.update_parameters(module)
        kept.append(theta[some])
    cmd = online.model.to("cpu")
    references = unit_free(cmd.reference_history.double())
    weights = torch.stack(kept).double()
    deviation, follows = unit_free(weights), cmd.mode[some].long()
    own = references[:, follows]
    a = (own * deviation).sum(0) / own.square().sum(0)
    b = weights.mean(0) - a * cmd.reference_history.double().mean(0)[follows]
    off = [
        float((ours[some].double() - exact).abs().max() / exact.abs().max())
        for ours, exact in ((cmd.a, a), (cmd.b, b))
    ]
    return (
        f"after {updates:,} updates, against the float64 least squares over all "
        f"{warmup + 1 + updates:,} snapshots of {FOLLOWED:,} of the weights: the largest "
        f"difference in a is {off[0]:.1e} of the largest |a|, in b {off[1]:.1e} of the largest "
        f"|b| ({time.perf_counter() - start:,.0f} s)"
    )


def unit_free(columns: Tensor) -> Tensor:
    """Return the deviations of [T, n] from their means over time."""
    return columns - columns.mean(0)
