"""Weights as trained, as reconstructed by CMD, and by a DMD of the same rank.

PyDMD computes the dynamic mode decomposition ("Dynamic mode decomposition of numerical and
experimental data", J. Fluid Mech. 2010). It works on the snapshots' coordinates in an orthonormal
basis of the space that they span, T numbers a snapshot. This gives the DMD of the weights
themselves, because a DMD never leaves that space.
"""

import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from torch import Tensor

from utils.cmd.fitting import fit_cmd
from utils.cmd.model import CMDModel
from utils.cmd.snapshots import Snapshots
from utils.cmd.vector import read_vector, write_vector
from utils.methods.cmd import AdaptiveCMD, OnlineCMDMethod, online_cmd
from utils.methods.registry import Settings
from utils.pbfgs_utils import gram_eigenvectors
from utils.results.pictures.needs import require_movement, require_sample, require_warmup
from utils.results.pictures.style import STYLE, caption, mark_epoch, mode_color, save
from utils.results.stored_run import StoredRun

SHOWN = 30  # sampled weights
FAR = 100  # panel heights away, where the curve of a diverging model is clipped
TRAINED, FROM_WARMUP, ONLINE = "As trained", "CMD, a and b of the warm-up", "CMD, updated online"
ADAPTIVE = "Adaptive CMD, H = {memory}"
DMD_WARMUP, DMD_ALL = "DMD of the warm-up, rank {rank}", "DMD of all epochs, rank {rank}"
LOOKS = {
    FROM_WARMUP: {"color": "#56B4E9"},
    ONLINE: {"color": OnlineCMDMethod.color},
    ADAPTIVE: {"color": AdaptiveCMD.color},
    DMD_WARMUP: {"color": "#E69F00", "linestyle": "--"},
    DMD_ALL: {"color": "#D55E00", "linestyle": "--"},
}


@dataclass(frozen=True)
class Reconstruction:
    """What a model makes of the weights.

    Attributes:
        shown: the sampled weights that are drawn, [T, n].
        error: the relative error of all weights, [T].
        rank: of a DMD.
    """

    shown: np.ndarray
    error: np.ndarray
    rank: int | None = None


def draw_dynamics(
    run: StoredRun,
    path: Path,
    formats: Sequence[str],
    progress: Callable[[Iterable], Iterable] = iter,
    with_dmd: bool = True,
) -> list[Path]:
    """Draw sampled weights over the epochs by each model of them, and each model's relative error,
    ‖θ̂(t) − θ(t)‖ / ‖θ(t)‖.

    Args:
        run: the finished run.
        path: of the picture, without regard to its ending.
        formats: the endings of the files.
        progress: wraps the epochs, and each pass over the trajectory.
        with_dmd: whether to draw DMD, too, which needs PyDMD.

    Returns:
        The files.

    Raises UserError if the run's settings leave no warm-up or nothing to sample, or nothing moves.
    """
    settings = run.settings
    require_sample(settings)
    require_warmup(settings)
    snapshots = Snapshots(run.trajectory.array, settings.start, device="cpu")
    require_movement(snapshots.columns(run.sample), settings)
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
        ADAPTIVE: updated_online(run, some, progress, settings.memory),
    }
    if with_dmd:
        coordinates, basis = in_their_span(snapshots, some, progress)
        found[DMD_WARMUP] = by_dmd(coordinates, basis, cmd.modes, warmup)
        found[DMD_ALL] = by_dmd(coordinates, basis, cmd.modes, len(snapshots))

    epochs = np.arange(settings.start, settings.epochs)
    trained = snapshots.columns(some).numpy()
    colors = [mode_color(mode) for mode in cmd.mode[some].tolist()]
    with matplotlib.rc_context(STYLE | {"font.size": 9, "lines.linewidth": 0.9}):
        columns = 4 if with_dmd else 3
        figure = Figure(figsize=(2.7 * columns, 5.5), layout="constrained")
        caption(figure, settings)
        panels = figure.subplots(2, columns, sharex=True).flatten()
        curves = {TRAINED: trained} | {name: model.shown for name, model in found.items()}
        for axes, (name, weights) in zip(panels, curves.items(), strict=False):
            _draw_weights(axes, epochs, weights, colors, trained)
            axes.set_title(title(name, found.get(name), settings), fontsize=9)
            axes.axvline(settings.warmup_cmd, color="#999999", lw=1, ls=(0, (4, 3)), zorder=0)
        for axes in panels[::columns]:
            axes.set_ylabel("Weight")
        *_, errors, beside = panels
        _draw_errors(errors, epochs, found, settings)
        for axes in panels[columns:-1]:
            axes.set_xlabel("Epoch")
            axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        handles, names = errors.get_legend_handles_labels()
        beside.set_axis_off()
        panels[columns - 1].tick_params(labelbottom=True)  # there is no panel below it
        beside.legend(handles, names, loc="center left", fontsize=9, title="Relative error of")
        return save(figure, path, formats)


def title(name: str, model: Reconstruction | None, settings: Settings) -> str:
    """Return a model's name, with the rank of a DMD or the memory of adaptive CMD."""
    return name.format(rank=model and model.rank, memory=f"{settings.memory:g}")


def of_warmup(
    snapshots: Snapshots,
    cmd: CMDModel,
    some: Tensor,
    progress: Callable[[Iterable], Iterable] = iter,
) -> Reconstruction:
    """Reconstruct every snapshot from its reference weights, with the warm-up's a and b."""
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
    run: StoredRun,
    some: Tensor,
    progress: Callable[[Iterable], Iterable],
    memory: float | None = None,
) -> Reconstruction:
    """Show online CMD the run again; what comes before the end of the warm-up is NaN.

    Args:
        run: the finished run.
        some: the numbers of the weights to be drawn, int64 [n].
        progress: wraps the epochs.
        memory: adaptive CMD's, in updates; None for online CMD.
    """
    settings = run.settings
    with warnings.catch_warnings():  # the run itself has warned of a small sample
        warnings.simplefilter("ignore", UserWarning)
        online = online_cmd(run.model, settings, run.trajectory, memory=memory)
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
    """Return the snapshots' coordinates in an orthonormal basis of their span, float64 [r, T], and
    some weights' rows of that basis, [n, r]."""
    n_epochs = len(snapshots)
    pieces = (columns for _, columns in progress(snapshots.parts()))
    values, vectors = gram_eigenvectors(pieces, n_epochs, snapshots.device)
    kept = values > n_epochs * torch.finfo(values.dtype).eps * values[-1]
    scale = values[kept].sqrt()
    basis = snapshots.columns(some).double().T @ vectors[:, kept] / scale
    return (scale[:, None] * vectors[:, kept].T).numpy(), basis.numpy()


def by_dmd(coordinates: np.ndarray, basis: np.ndarray, rank: int, n_fitted: int) -> Reconstruction:
    """Fit a DMD to the first snapshots, and reconstruct all of them.

    Args:
        coordinates: of the snapshots, float64 [r, T].
        basis: rows of the weights to be drawn, [n, r].
        rank: of the DMD, which is lower where the snapshots allow no such rank.
        n_fitted: how many snapshots to fit, two or more.
    """
    from pydmd import DMD  # optional

    fitted = coordinates[:, :n_fitted]
    rank = min(rank, int(np.linalg.matrix_rank(fitted[:, :-1]))) if len(fitted) else 0
    found = np.zeros_like(coordinates)
    if rank:  # 0 would have PyDMD choose one
        dmd = DMD(svd_rank=rank)
        # a warm-up that moves little is ill-conditioned, as the errors drawn show
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            dmd.fit(fitted)
            dmd.dmd_time["tend"] = coordinates.shape[1] - 1
            found = dmd.reconstructed_data.real
    norm = np.linalg.norm(coordinates, axis=0)
    with np.errstate(all="ignore"):  # where the DMD diverges
        off = np.linalg.norm(found - coordinates, axis=0) / np.where(norm > 0, norm, 1)
        return Reconstruction((basis @ found).T, off, rank)


def _draw_weights(
    axes: Axes, epochs: np.ndarray, weights: np.ndarray, colors: Sequence[str], trained: np.ndarray
) -> None:
    low, high = trained.min(), trained.max()
    height = float(high - low) or abs(float(low)) or 1.0
    far = FAR * height
    for curve, color in zip(np.clip(weights, low - far, high + far).T, colors, strict=True):
        axes.plot(epochs, curve, color=color)
    axes.set_ylim(low - 0.05 * height, high + 0.05 * height)
    axes.margins(x=0.02)


def _draw_errors(
    axes: Axes, epochs: np.ndarray, found: dict[str, Reconstruction], settings: Settings
) -> None:
    seen = np.concatenate([100 * model.error for model in found.values()])
    seen = seen[np.isfinite(seen) & (seen > 0)]
    limits = (0.1, 100.0)  # where every model is exact
    if len(seen):
        high = max(min(seen.max() * 1.4, 1e3), seen.min() * 1.4)
        limits = (max(seen.min() * 0.7, min(1e-3, high / 10)), high)
    for name, model in found.items():
        error = np.clip(100 * model.error, limits[0] / FAR, limits[1] * FAR)
        label = title(name, model, settings)
        axes.plot(epochs, error, label=label, linewidth=1.6, **LOOKS[name])
    axes.set_yscale("log")
    axes.set_ylim(limits)
    axes.set_ylabel("Relative error of all weights (%)")
    mark_epoch(axes, settings.warmup_cmd, "warm-up ends", epochs[-1] + 1)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.margins(x=0.02)
