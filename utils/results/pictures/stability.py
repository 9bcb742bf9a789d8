"""Whether modes last: how well members follow their reference, and how far off online CMD is."""

import warnings
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from utils.cmd.fitting import fit_cmd
from utils.cmd.model import CMDModel
from utils.cmd.moments import centre
from utils.cmd.ranges import ranges
from utils.cmd.snapshots import Snapshots
from utils.cmd.vector import read_vector, write_vector
from utils.methods.cmd import AdaptiveCMD, OnlineCMDMethod, online_cmd
from utils.results.pictures.needs import require_movement, require_sample, require_warmup
from utils.results.pictures.style import STYLE, caption, mark_epoch, mode_color, save, unit_of
from utils.results.stored_run import StoredRun
from utils.results.stored_series import StoredSeries

WINDOW = 20  # epochs of each correlation
RENEWED = 20  # epochs between two searches for modes
AT_ONCE = 1 << 14  # weights in a part
FLAT = 1e-12  # share of a weight's movement over the run; a window with no more has none


def draw_stability(
    run: StoredRun | StoredSeries,
    path: Path,
    formats: Sequence[str],
    progress: Callable[[Iterable], Iterable] = iter,
) -> list[Path]:
    """Draw how well each mode lasts, and how far off online CMD is.

    Above, for each mode, is its members' mean |correlation| with their reference over the last
    epochs. Below is the relative error of the movement, ‖θ̂(t) − θ(t)‖ / ‖θ(t) − θ(start)‖, of
    online CMD, of adaptive CMD, and of online CMD whose modes are found again.

    Args:
        run: the finished run, or series of checkpoints.
        path: of the picture, without regard to its ending.
        formats: the endings of the files.
        progress: wraps the epochs, and the pass over the trajectory.

    Returns:
        The files.

    Raises UserError if the run's settings allow no online CMD.
    """
    settings = run.settings
    require_sample(settings)
    require_warmup(settings)
    cmd = fit_cmd(
        run.trajectory.array, run.sample, settings.modes, settings.start, settings.warmup_cmd + 1,
        device="cpu",
    )  # fmt: skip
    snapshots = Snapshots(run.trajectory.array, settings.start, device="cpu")
    require_movement(snapshots.columns(run.sample), settings)
    correlations = of_members(snapshots, cmd, WINDOW, progress)
    epochs = np.arange(settings.start, settings.epochs)
    unit = unit_of(settings).lower()
    with matplotlib.rc_context(STYLE | {"font.size": 9}):
        figure = Figure(figsize=(8, 5.8), layout="constrained")
        caption(figure, settings)
        above, below = figure.subplots(2, 1, sharex=True)
        known = epochs >= settings.warmup_cmd
        for mode, curve in enumerate(correlations.T):
            share = 100 * float((cmd.mode == mode).float().mean())
            above.plot(
                epochs[known], curve[known], color=mode_color(mode),
                label=f"mode {mode}: {share:.1f} %",
            )  # fmt: skip
        above.set_ylim(0, 1.02)
        above.set_ylabel(f"Mean |correlation| of members\nwith their reference, {WINDOW} {unit}s")
        for name, color, dashes, errors in errors_of(run, progress):
            below.plot(
                np.arange(settings.epochs), errors, color=color, linestyle=dashes, label=name
            )
        below.set_ylim(bottom=0)
        below.set_ylabel("Relative error of the movement")
        below.set_xlabel(unit_of(settings))
        below.xaxis.set_major_locator(MaxNLocator(integer=True))
        mark_epoch(below, settings.warmup_cmd, "warm-up ends", settings.epochs)
        for axes, title in ((above, "Share of the weights"), (below, None)):
            axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), fontsize=8.5, title=title)
        return save(figure, path, formats)


def of_members(
    snapshots: Snapshots,
    cmd: CMDModel,
    window: int,
    progress: Callable[[Iterable], Iterable] = iter,
) -> np.ndarray:
    """Return the mean |correlation| of each mode's members with its reference, at each snapshot
    over the last `window` snapshots, or as many as there are: float64 [T, M].

    Weights that never move are left out; one that does not move within a window counts as 0.
    """
    _, references = centre(snapshots.columns(cmd.reference).double())
    total = torch.zeros(len(snapshots), cmd.modes, dtype=torch.float64)
    count = torch.zeros(cmd.modes, dtype=torch.float64)
    for part, columns in progress(snapshots.parts()):
        for some in ranges(columns.shape[1], AT_ONCE):
            weights, mode = columns[:, some].double(), cmd.mode[part][some].long()
            moving = (weights != weights[0]).any(0)
            weights, mode = weights[:, moving], mode[moving]
            _, weights = centre(weights)
            total.index_add_(1, mode, _windowed(weights, references[:, mode], window).abs())
            count += torch.bincount(mode, minlength=cmd.modes)
    return (total / count.clamp(min=1)).numpy()


def _windowed(x: Tensor, y: Tensor, window: int) -> Tensor:
    """Return the correlation of columns of x and y, float64 [T, n] and centred, over the last
    `window` rows at each row."""

    def over_window(values: Tensor) -> Tensor:
        sums = values.cumsum(0)
        sums[window:] -= sums[:-window].clone()
        return sums

    length = torch.arange(1, len(x) + 1, dtype=x.dtype).clamp(max=window)[:, None]
    of_x, of_y = over_window(x), over_window(y)
    covariance = over_window(x * y) - of_x * of_y / length
    variances = []
    for values, sums in ((x, of_x), (y, of_y)):
        squares = values.square()
        variance = over_window(squares) - sums.square() / length
        variances.append(torch.where(variance > FLAT * squares.sum(0), variance, torch.inf))
    return covariance / (variances[0] * variances[1]).sqrt()


def errors_of(
    run: StoredRun | StoredSeries, progress: Callable[[Iterable], Iterable] = iter
) -> list[tuple[str, str, str, np.ndarray]]:
    """Return (name, colour, line style, relative errors [T]) of each way to follow the run; errors
    before the warm-up's end are NaN."""
    settings = run.settings
    looks = [
        (OnlineCMDMethod.label, OnlineCMDMethod.color, "-"),
        (f"{AdaptiveCMD.label}, H = {settings.memory:g}", AdaptiveCMD.color, "-"),
        (f"modes found again\nevery {RENEWED} {unit_of(settings).lower()}s", "#999999", "--"),
    ]
    errors = np.full((len(looks), settings.epochs), np.nan)
    first = run.trajectory[settings.start].double()
    with warnings.catch_warnings():  # the run itself has warned of a small sample
        warnings.simplefilter("ignore", UserWarning)
        follower = partial(online_cmd, run.model, settings, run.trajectory)
        followers = [follower(), follower(memory=settings.memory), follower()]
        for epoch in progress(range(settings.epochs)):
            theta = run.trajectory[epoch]
            write_vector(theta, run.model)
            since = epoch - settings.warmup_cmd
            if since > 0 and since % RENEWED == 0:
                followers[-1] = follower(warmup=epoch)
                followers[-1].n_updates = epoch  # the trajectory has the earlier epochs
            moved = (theta.double() - first).norm()
            for number, online in enumerate(followers):
                online.update_parameters(run.model)
                if since >= 0 and moved > 0:
                    off = (read_vector(online.module).double() - theta.double()).norm()
                    errors[number, epoch] = off / moved
    return [(*look, found) for look, found in zip(looks, errors, strict=True)]
