"""What the modes are: their curves, their layers, and the movement that they explain."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from utils.cmd.model import CMDModel
from utils.cmd.moments import centre
from utils.cmd.snapshots import Snapshots
from utils.results.pictures.needs import require_any_movement, require_two_epochs
from utils.results.pictures.style import (
    NAMED,
    STYLE,
    caption,
    label_layers,
    layer_height,
    mode_color,
    save,
    unit_of,
)
from utils.results.stored_run import StoredRun
from utils.results.stored_series import StoredSeries

MEMBERS = 2000  # of a mode at the most, drawn at random, that the band shows
BAND = (0.05, 0.95)
COLUMNS = (5, 4, 3)
NUMBERED = 12  # bars at the most, for each to have its number
SHOWN = 40  # modes at the most that are drawn one by one
REST = "#cccccc"  # for all other modes together
STEEP = 1e-3  # share of the reference's movement below which a member cannot be scaled to it


@dataclass(frozen=True)
class Movement:
    """Squared deviations from the mean over time, summed over the weights of each mode.

    Attributes:
        total: of the weights, [M].
        explained: of what CMD makes of them, [M].
    """

    total: np.ndarray
    explained: np.ndarray


def draw_modes(
    run: StoredRun | StoredSeries,
    path: Path,
    formats: Sequence[str],
    progress: Callable[[Iterable], Iterable] = iter,
) -> list[Path]:
    """Draw each mode's reference with the 5 – 95 % band of its members; the modes' share of every
    layer; and how much of all movement each explains.

    Of more than SHOWN modes, the first are drawn one by one, and the others together.

    Args:
        run: the finished run, or series of checkpoints.
        path: of the picture, without regard to its ending.
        formats: the endings of the files.
        progress: wraps the one pass over the trajectory.

    Returns:
        The files.

    Raises UserError if the run has no post-hoc CMD, or if no weight moves.
    """
    cmd, settings = run.posthoc, run.settings
    require_two_epochs(settings)
    snapshots = Snapshots(run.trajectory.array, settings.start, device="cpu")
    movement = movement_of(snapshots, cmd, progress)
    require_any_movement(movement.total, settings)
    shown = min(cmd.modes, SHOWN)
    columns = min(COLUMNS, key=lambda columns: -shown % columns)  # to leave the fewest places empty
    rows = -(-shown // columns)
    with matplotlib.rc_context(STYLE | {"font.size": 9}):
        height = 1.45 * rows + max(2.6, 0.7 + layer_height(len(run.layers)))
        figure = Figure(figsize=(9.2, height + 0.2), layout="constrained")
        caption(figure, settings)
        above, below = figure.subfigures(2, 1, height_ratios=(1.45 * rows, height - 1.45 * rows))
        curves = above.subplots(rows, columns, sharex=True, squeeze=False).flatten()
        for mode in range(shown):
            _draw_curve(curves[mode], snapshots, cmd, mode, settings.start)
            share = 100 * float((run.all_modes == mode).double().mean())
            curves[mode].set_title(f"mode {mode} ({share:.1f} %)", fontsize=9)
        curves[0].xaxis.set_major_locator(MaxNLocator(3, integer=True))
        for axes in curves[shown:]:
            axes.set_visible(False)
        for axes in curves[max(0, shown - columns) : shown]:
            axes.tick_params(labelbottom=True)  # there may be no panel below it
        which = f"the first {shown} of {cmd.modes} modes, " if shown < cmd.modes else ""
        unit = unit_of(settings)
        above.supxlabel(f"{unit} ({which}in brackets the share of all weights)", fontsize=9)
        above.supylabel("Weight, on its reference's scale", fontsize=9)
        left, right = below.subplots(1, 2, width_ratios=(3, 2))
        _draw_layers(left, run.layers, run.all_modes, cmd.modes)
        _draw_movement(right, movement)
        return save(figure, path, formats)


def movement_of(
    snapshots: Snapshots, cmd: CMDModel, progress: Callable[[Iterable], Iterable] = iter
) -> Movement:
    """Measure how much the weights of each mode, and CMD's model of them, move, in one pass."""
    _, deviation = centre(snapshots.columns(cmd.reference).double())
    of_reference = deviation.square().sum(0)
    total = torch.zeros(cmd.modes, dtype=torch.float64)
    explained = torch.zeros_like(total)
    for part, columns in progress(snapshots.parts()):
        _, moved = centre(columns.double())
        mode = cmd.mode[part].long()
        total.index_add_(0, mode, moved.square().sum(0))
        explained.index_add_(0, mode, cmd.a[part].double().square() * of_reference[mode])
    return Movement(total.numpy(), explained.numpy())


def mapped_members(snapshots: Snapshots, cmd: CMDModel, mode: int) -> Tensor:
    """Return members of a mode on the scale of its reference, (w − b) / a: float64 [T, m].

    Members so flat that their map cannot be inverted are left out.
    """
    members = torch.nonzero(cmd.mode == mode).flatten()
    members = members[cmd.a[members].abs() > STEEP]
    if len(members) > MEMBERS:
        generator = torch.Generator().manual_seed(mode)
        members = members[torch.randperm(len(members), generator=generator)[:MEMBERS]]
    return (snapshots.columns(members).double() - cmd.b[members]) / cmd.a[members]


def _draw_curve(axes: Axes, snapshots: Snapshots, cmd: CMDModel, mode: int, start: int) -> None:
    epochs = np.arange(start, start + len(snapshots))
    mapped = mapped_members(snapshots, cmd, mode)
    low, high = torch.quantile(mapped, torch.tensor(BAND, dtype=mapped.dtype), dim=1).numpy()
    curve = snapshots.columns(cmd.reference[mode : mode + 1])[:, 0].numpy()
    axes.fill_between(epochs, low, high, color=mode_color(mode), alpha=0.25, linewidth=0)
    axes.plot(epochs, curve, color=mode_color(mode))
    room = 1.5 * max(float(np.ptp(curve)), 1e-12)  # outliers must not flatten the curve
    bottom = max(curve.min() - room, min(low.min(), curve.min()))
    top = min(curve.max() + room, max(high.max(), curve.max()))
    if top > bottom:  # else none of its weights moves
        axes.set_ylim(bottom, top)
    axes.margins(x=0.02)


def _draw_layers(axes: Axes, layers: Sequence[tuple[str, int]], modes: Tensor, count: int) -> None:
    """Draw a bar for each layer, the first at the top, with each mode's share in its colour."""
    shares = np.stack(
        [
            np.bincount(mode.numpy(), minlength=count) / len(mode)
            for mode in modes.split([size for _, size in layers])
        ]
    )
    left = np.zeros(len(layers))
    places = np.arange(len(layers))
    shares = folded(shares)
    for share, color in zip(shares.T, _colors(shares.shape[1]), strict=True):
        axes.barh(
            places, 100 * share, left=100 * left, color=color,
            height=0.85 if len(layers) <= NAMED else 1, linewidth=0,
        )  # fmt: skip
        left += share
    label_layers(axes, [name for name, _ in layers])
    axes.set_ylim(len(layers) - 0.5, -0.5)
    axes.set_xlim(0, 100)
    axes.set_xlabel("Share of the layer's weights, by mode (%)")
    axes.grid(False)


def _draw_movement(axes: Axes, movement: Movement) -> None:
    """Draw how much of all movement each mode explains, and how much it leaves."""
    everything = movement.total.sum()
    explained = folded(100 * movement.explained / everything)
    rest = np.maximum(folded(100 * movement.total / everything) - explained, 0)
    places = np.arange(len(explained))
    colors = _colors(len(places))
    axes.bar(places, explained, color=colors)
    axes.bar(
        places, rest, bottom=explained, color="white", edgecolor=colors, hatch="////", linewidth=0.8
    )
    step = -(-len(places) // NUMBERED)
    names = {int(place): str(place) for place in places[::step]}
    if len(places) > SHOWN:
        names = {place: name for place, name in names.items() if place <= SHOWN - step}
        names[SHOWN] = "rest"
    axes.set_xticks(list(names), list(names.values()))
    axes.set_xlabel(f"Mode (filled: explained, in all {explained.sum():.1f} %)")
    axes.set_ylabel("Share of all movement (%)")
    axes.grid(axis="x", visible=False)


def folded(values: np.ndarray) -> np.ndarray:
    """Sum all but the first SHOWN of the values of M modes, […, M], into one more."""
    if values.shape[-1] <= SHOWN:
        return values
    rest = values[..., SHOWN:].sum(-1, keepdims=True)
    return np.concatenate([values[..., :SHOWN], rest], axis=-1)


def _colors(count: int) -> list[str]:
    """Return the colours of so many bars, of which one beyond SHOWN is the rest."""
    return [mode_color(place) if place < SHOWN else REST for place in range(count)]
