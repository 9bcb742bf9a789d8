"""Measure fits; each function is to be run in a process of its own."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks import public_code
from benchmarks.cases import Case
from benchmarks.measure import Measured, repeated
from utils.cmd.fitting import find_references, fit_cmd
from utils.cmd.model import CMDModel
from utils.cmd.snapshots import Snapshots


@dataclass(frozen=True)
class Figures:
    """The cost of a fit.

    Attributes:
        seconds: the median of the repeats.
        peak: of anonymous memory, in bytes.
        clustering: seconds of finding the references, which are part of `seconds`.
    """

    seconds: float
    peak: int
    clustering: float = 0.0


def sequential_read(case: Case) -> Figures:
    """Measure the floor of a fit's cost: reading a snapshot at a time into one buffer."""
    row = np.empty(case.n_weights, dtype=np.float32)

    def read() -> None:
        with case.path.open("rb", buffering=0) as file:
            while file.readinto(row.data.cast("B")):
                pass

    seconds, peak, _ = repeated(read, case.repeats)
    return Figures(seconds, peak)


def our_fit(case: Case, results: Path | None) -> Figures:
    """Measure `fit_cmd` on the memory-mapped file, and its search for the references by itself.

    Args:
        case: what is fitted.
        results: the path where CMD's parameters are saved, None for nowhere.
    """
    sample = case.sample()
    tiny = np.random.default_rng(0).normal(size=(case.n_epochs, 4096)).astype(np.float32)
    fit_cmd(
        tiny, torch.arange(case.modes + 1), case.modes, device=case.device
    )  # starts threads and loads libraries beforehand

    def references() -> Tensor:
        snapshots = Snapshots(np.load(case.path, mmap_mode="r"), device=case.device)
        return find_references(snapshots, sample, case.modes)

    def fit() -> CMDModel:
        return fit_cmd(np.load(case.path, mmap_mode="r"), sample, case.modes, device=case.device)

    seconds, peak, cmd = repeated(fit, case.repeats)
    clustering, _, _ = repeated(references, case.repeats)
    if results is not None:
        cmd.save(results)
    return Figures(seconds, peak, clustering)


def public_fit(case: Case, official: str, results: Path) -> Figures:
    """Measure the public code's fit of the same weights, which it holds in memory."""
    public = public_code.load(official)
    weights = public_code.transposed(case.path)
    sample = case.sample().tolist()
    with Measured() as measured, public_code.quietly():
        found = public.basic_cmd(weights, sample, 0, case.n_epochs, case.modes)
    a, b, reference, _, mode = found
    np.savez(results, a=a, b=b, reference=np.asarray(reference).astype(np.int64), mode=mode)
    return Figures(measured.seconds, measured.peak)


def agreement(case: Case, ours: Path, public: Path, end: int) -> list[str]:
    """Describe how far two results agree.

    Args:
        case: what both have fitted.
        ours: the path of our results.
        public: the path of the public code's.
        end: how many snapshots the modes were fitted to.

    Returns:
        The lines of the description.
    """
    cmd = CMDModel.load(ours)
    theirs = np.load(public)
    a, b, mode = cmd.a.numpy(), cmd.b.numpy(), cmd.mode.numpy()
    ours_at = {reference: number for number, reference in enumerate(cmd.reference.tolist())}
    if set(ours_at) != set(theirs["reference"].tolist()):
        return ["the references differ, so nothing else can be compared"]
    # the public code numbers modes of equal size in no particular order
    renumbered = np.array([ours_at[reference] for reference in theirs["reference"].tolist()])
    their_mode = renumbered[theirs["mode"]]
    same = mode == their_mode
    differ = np.flatnonzero(~same)
    lines = [
        f"the same {cmd.modes} references; the same mode for {100 * same.mean():.5f} % of the "
        f"weights, another for {len(differ):,}",
        "the largest difference where the mode is the same: "
        f"a {np.abs(a - theirs['a'])[same].max():.2g} (of up to {np.abs(a).max():.3g}), "
        f"b {np.abs(b - theirs['b'])[same].max():.2g} (of up to {np.abs(b).max():.3g})",
    ]
    if len(differ):
        stored = np.load(case.path, mmap_mode="r")[:end]
        weights = unit(stored[:, differ])
        references = unit(stored[:, cmd.reference.numpy()])
        here = np.abs((weights * references[:, mode[differ]]).sum(0))
        there = np.abs((weights * references[:, their_mode[differ]]).sum(0))
        lines.append(
            f"of those {len(differ):,}, ours has the higher |correlation| in float64 for "
            f"{100 * (here >= there).mean():.2f} %; theirs is higher by at most "
            f"{max(0, (there - here).max()):.1e}"
        )
    return lines


def unit(columns: np.ndarray) -> np.ndarray:
    """Scale the deviations over time of [T, n] to columns of length 1 (0 if one never moves)."""
    moved = columns.astype(np.float64)
    moved -= moved.mean(0)
    length = np.linalg.norm(moved, axis=0)
    return np.divide(moved, length, out=np.zeros_like(moved), where=length > 0)
