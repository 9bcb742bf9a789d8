"""Weights as trained, as CMD reconstructs them, and as a DMD of the same rank has them.

Dynamic mode decomposition: "Dynamic mode decomposition of numerical and experimental data", J.
Fluid Mech. 2010, by PyDMD. It works on the snapshots' coordinates in an orthonormal basis of the
space that they span, T numbers a snapshot, which gives the DMD of the weights themselves: a DMD
never leaves that space.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter
from torch import Tensor

from utils.finished import FinishedRun
from utils.fitting import CMDModel, Snapshots, fit_cmd
from utils.flat import read_vector, write_vector
from utils.method_cmd import online_cmd
from utils.style import STYLE, mark_epoch, mode_color, save

SHOWN = 30  # sampled weights
TRAINED, FROM_WARMUP, ONLINE = "As trained", "CMD, a and b of the warm-up", "CMD, updated online"
DMD_WARMUP, DMD_ALL = "DMD of the warm-up", "DMD of all epochs"
LOOKS = {
    FROM_WARMUP: {"color": "#56B4E9"},
    ONLINE: {"color": "#0072B2"},
    DMD_WARMUP: {"color": "#E69F00", "linestyle": "--"},
    DMD_ALL: {"color": "#D55E00", "linestyle": "--"},
}


@dataclass(frozen=True)
class Reconstruction:
    """shown: the sampled weights that are drawn, [T, n]. error: of all weights, relative, [T]."""

    shown: np.ndarray
    error: np.ndarray


def draw_dynamics(
    run: FinishedRun,
    path: Path,
    formats: Sequence[str],
    progress: Callable[[Iterable], Iterable] = iter,
    with_dmd: bool = True,
) -> list[Path]:
    """Sampled weights over the epochs by each model of them, and each model's relative error,
    ‖θ̂(t) − θ(t)‖ / ‖θ(t)‖. Returns the files.

    progress: wraps the epochs, and each pass over the trajectory. with_dmd: needs PyDMD.
    """
    settings = run.settings
    snapshots = Snapshots(run.trajectory.array, settings.start, device="cpu")
    warmup = settings.warmup_cmd + 1 - settings.start  # snapshots of the warm-up
    cmd = fit_cmd(
        run.trajectory.array, run.sample, settings.modes, settings.start, settings.warmup_cmd + 1,
        device="cpu",
    )  # fmt: skip
    generator = torch.Generator().manual_seed(settings.seed)
    some = run.sample[torch.randperm(len(run.sample), generator=generator)[:SHOWN]].sort().values
    found = {
        FROM_WARMUP: of_warmup(snapshots, cmd, some, progress),
        ONLINE: updated_online(run, some, progress),
    }
    if with_dmd:
        coordinates, basis = in_their_span(snapshots, some, progress)
        found[DMD_WARMUP] = by_dmd(coordinates, basis, cmd.modes, warmup)
        found[DMD_ALL] = by_dmd(coordinates, basis, cmd.modes, len(snapshots))

    epochs = np.arange(settings.start, settings.epochs)
    trained = snapshots.columns(some).numpy()
    colors = [mode_color(mode) for mode in cmd.mode[some].tolist()]
    with matplotlib.rc_context(STYLE | {"font.size": 9, "lines.linewidth": 0.9}):
        columns = 3 if with_dmd else 2
        figure = Figure(figsize=(3.1 * columns, 5.3), layout="constrained")
        panels = figure.subplots(2, columns, sharex=True).flatten()
        curves = {TRAINED: trained} | {name: model.shown for name, model in found.items()}
        for axes, (name, weights) in zip(panels, curves.items(), strict=False):
            _draw_weights(axes, epochs, weights, colors, trained)
            axes.set_title(name, fontsize=9)
            axes.axvline(settings.warmup_cmd, color="#999999", lw=1, ls=(0, (4, 3)), zorder=0)
        for axes in panels[::columns]:
            axes.set_ylabel("Weight")
        _draw_errors(panels[-1], epochs, found, settings.warmup_cmd)
        for axes in panels[-columns:]:
            axes.set_xlabel("Epoch")
        handles, names = panels[-1].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside lower right", ncols=columns + 1, fontsize=8.5)
        return save(figure, path, formats)


def of_warmup(
    snapshots: Snapshots,
    cmd: CMDModel,
    some: Tensor,
    progress: Callable[[Iterable], Iterable] = iter,
) -> Reconstruction:
    """CMD with a, b as they are, following its references through every snapshot."""
    references = snapshots.columns(cmd.reference)
    off = torch.zeros(len(snapshots), dtype=torch.float64)
    norm = torch.zeros_like(off)
    for part, columns in progress(snapshots.parts()):
        modelled = cmd.a[part] * references[:, cmd.mode[part].long()] + cmd.b[part]
        off += (modelled - columns).double().square().sum(1)
        norm += columns.double().square().sum(1)
    shown = cmd.a[some] * references[:, cmd.mode[some].long()] + cmd.b[some]
    return Reconstruction(shown.numpy(), (off / norm).sqrt().numpy())


def updated_online(
    run: FinishedRun, some: Tensor, progress: Callable[[Iterable], Iterable]
) -> Reconstruction:
    """Online CMD, shown the run again; nothing before the warm-up ends."""
    settings = run.settings
    online = online_cmd(run)
    shown, error = [], []
    for epoch in progress(range(settings.epochs)):
        write_vector(run.trajectory[epoch], run.model)
        online.update_parameters(run.model)
        if epoch < settings.start:
            continue
        theta, modelled = read_vector(run.model), read_vector(online.module)
        known = epoch >= settings.warmup_cmd
        shown.append(modelled[some].numpy() if known else np.full(len(some), np.nan))
        off = (modelled - theta).double().norm() / theta.double().norm()
        error.append(float(off) if known else np.nan)
    return Reconstruction(np.stack(shown), np.array(error))


def in_their_span(
    snapshots: Snapshots, some: Tensor, progress: Callable[[Iterable], Iterable] = iter
) -> tuple[np.ndarray, np.ndarray]:
    """The snapshots' coordinates in an orthonormal basis of their span, float64 [r, T], and some
    weights' rows of that basis, [n, r]."""
    n_epochs = len(snapshots)
    gram = torch.zeros(n_epochs, n_epochs, dtype=torch.float64)
    for _, columns in progress(snapshots.parts()):
        wide = columns.double()
        gram.addmm_(wide, wide.T)
    values, vectors = torch.linalg.eigh(gram)
    kept = values > n_epochs * torch.finfo(values.dtype).eps * values[-1]
    scale = values[kept].sqrt()
    basis = snapshots.columns(some).double().T @ vectors[:, kept] / scale
    return (scale[:, None] * vectors[:, kept].T).numpy(), basis.numpy()


def by_dmd(coordinates: np.ndarray, basis: np.ndarray, rank: int, n_fitted: int) -> Reconstruction:
    """A DMD fitted on the first snapshots, and what it makes of all of them."""
    from pydmd import DMD  # optional

    dmd = DMD(svd_rank=min(rank, n_fitted - 1))
    dmd.fit(coordinates[:, :n_fitted])
    dmd.dmd_time["tend"] = coordinates.shape[1] - 1
    found = dmd.reconstructed_data.real
    off = np.linalg.norm(found - coordinates, axis=0) / np.linalg.norm(coordinates, axis=0)
    return Reconstruction((basis @ found).T, off)


def _draw_weights(
    axes: Axes, epochs: np.ndarray, weights: np.ndarray, colors: Sequence[str], trained: np.ndarray
) -> None:
    for curve, color in zip(weights.T, colors, strict=True):
        axes.plot(epochs, curve, color=color)
    room = 0.05 * np.ptp(trained)
    axes.set_ylim(trained.min() - room, trained.max() + room)
    axes.margins(x=0.02)


def _draw_errors(
    axes: Axes, epochs: np.ndarray, found: dict[str, Reconstruction], warmup: int
) -> None:
    for name, model in found.items():
        axes.plot(epochs, 100 * model.error, label=name, linewidth=1.6, **LOOKS[name])
    axes.set_yscale("log")
    seen = np.concatenate([100 * model.error for model in found.values()])
    seen = seen[np.isfinite(seen) & (seen > 0)]
    if len(seen):
        axes.set_ylim(max(seen.min() * 0.7, 1e-3), min(seen.max() * 1.4, 1e3))
    axes.set_ylabel("Relative error of all weights (%)")
    mark_epoch(axes, warmup, "warm-up ends", epochs[-1] + 1)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.margins(x=0.02)
