"""What the modes are: their curves, their layers, and the movement that they explain."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from utils.finished import FinishedRun
from utils.fitting import CMDModel, Snapshots, centre
from utils.style import NAMED, STYLE, label_layers, layer_height, mode_color, save

MEMBERS = 2000  # of a mode, drawn at random, that the band is of
BAND = (0.05, 0.95)
COLUMNS = 5
STEEP = 1e-3  # share of the reference's movement below which a member cannot be scaled to it


@dataclass(frozen=True)
class Movement:
    """Sums of squared deviations from the mean over time, over the weights of each mode.

    total: of the weights, [M]. explained: of what CMD makes of them, [M].
    """

    total: np.ndarray
    explained: np.ndarray


def draw_modes(
    run: FinishedRun,
    path: Path,
    formats: Sequence[str],
    progress: Callable[[Iterable], Iterable] = iter,
) -> list[Path]:
    """Each mode's reference with the 5 – 95 % band of its members; the modes' share of every
    layer; and how much of all movement each explains. Returns the files.

    progress: wraps the one pass over the trajectory.
    """
    cmd = run.posthoc
    snapshots = Snapshots(run.trajectory.array, run.settings.start, device="cpu")
    rows = -(-cmd.modes // COLUMNS)
    with matplotlib.rc_context(STYLE | {"font.size": 9}):
        height = 1.45 * rows + max(2.6, 0.7 + layer_height(len(run.layers)))
        figure = Figure(figsize=(9.2, height), layout="constrained")
        above, below = figure.subfigures(2, 1, height_ratios=(1.45 * rows, height - 1.45 * rows))
        curves = above.subplots(rows, COLUMNS, sharex=True, squeeze=False).flatten()
        for mode in range(cmd.modes):
            _draw_curve(curves[mode], snapshots, cmd, mode, run.settings.start)
        for axes in curves[cmd.modes :]:
            axes.set_visible(False)
        above.supxlabel("Epoch", fontsize=9)
        above.supylabel("Weight, on its reference's scale", fontsize=9)
        layers, movement = below.subplots(1, 2, width_ratios=(3, 2))
        _draw_layers(layers, run.layers, cmd)
        _draw_movement(movement, movement_of(snapshots, cmd, progress))
        return save(figure, path, formats)


def movement_of(
    snapshots: Snapshots, cmd: CMDModel, progress: Callable[[Iterable], Iterable] = iter
) -> Movement:
    """How much the weights of each mode move, and CMD's model of them, in one pass."""
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
    """Members of a mode on the scale of its reference, (w − b) / a: float64 [T, m].

    Without those so flat that their map is not to be inverted.
    """
    members = torch.nonzero(cmd.mode == mode).flatten()
    members = members[cmd.a[members].abs() > STEEP * cmd.a[members].abs().max()]
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
    axes.set_ylim(
        max(curve.min() - room, min(low.min(), curve.min())),
        min(curve.max() + room, max(high.max(), curve.max())),
    )
    share = 100 * float((cmd.mode == mode).float().mean())
    axes.set_title(f"mode {mode}: {share:.1f} %", fontsize=9)
    axes.margins(x=0.02)


def _draw_layers(axes: Axes, layers: Sequence[tuple[str, int]], cmd: CMDModel) -> None:
    """A bar a layer, from the first at the top, each mode's share in its colour."""
    shares = np.stack(
        [
            np.bincount(mode.numpy(), minlength=cmd.modes) / len(mode)
            for mode in cmd.mode.split([size for _, size in layers])
        ]
    )
    left = np.zeros(len(layers))
    places = np.arange(len(layers))
    for mode in range(cmd.modes):
        axes.barh(
            places, 100 * shares[:, mode], left=100 * left, color=mode_color(mode),
            height=0.85 if len(layers) <= NAMED else 1, linewidth=0,
        )  # fmt: skip
        left += shares[:, mode]
    label_layers(axes, [name for name, _ in layers])
    axes.set_ylim(len(layers) - 0.5, -0.5)
    axes.set_xlim(0, 100)
    axes.set_xlabel("Share of the layer's weights, by mode (%)")
    axes.grid(False)


def _draw_movement(axes: Axes, movement: Movement) -> None:
    """What each mode explains of all movement, and what it leaves."""
    everything = movement.total.sum() or 1.0
    explained = 100 * movement.explained / everything
    rest = np.maximum(100 * movement.total / everything - explained, 0)
    places = np.arange(len(explained))
    colors = [mode_color(mode) for mode in places]
    axes.bar(places, explained, color=colors)
    axes.bar(
        places, rest, bottom=explained, color="white", edgecolor=colors, hatch="////", linewidth=0.8
    )
    axes.set_xticks(places, [str(place) for place in places])
    axes.set_xlabel(f"Mode (filled: explained, in all {explained.sum():.1f} %)")
    axes.set_ylabel("Share of all movement (%)")
    axes.grid(axis="x", visible=False)
