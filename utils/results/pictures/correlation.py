"""The sampled weights' correlations over time, as sampled and by mode (paper, section 3)."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from utils.cmd.clustering import cluster, correlation, signed_correlation
from utils.cmd.snapshots import Snapshots
from utils.results.pictures.needs import require_movement, require_sample, require_two_epochs
from utils.results.pictures.style import MARK, STYLE, caption, save, unit_of
from utils.results.stored_run import StoredRun
from utils.results.stored_series import StoredSeries

LABEL_ROOM = 0.036  # share of the picture's height that a label needs
LABELS = int(1 / LABEL_ROOM)  # labels that there is room for
DRAWN = 1000  # weights at the most; more would be finer than the picture's dots


def draw_correlation(
    run: StoredRun | StoredSeries, path: Path, formats: Sequence[str]
) -> list[Path]:
    """Draw the signed correlation matrix of the sample, [K, K], beside the same ordered by mode.

    Within a mode, weights are ordered by their correlation with its reference. Of a large sample,
    every n-th weight is drawn. Returns the files.

    Raises UserError if the run's settings leave nothing to correlate, or nothing moves.
    """
    settings = run.settings
    require_sample(settings)
    require_two_epochs(settings)
    snapshots = Snapshots(run.trajectory.array, settings.start, device="cpu")
    columns = snapshots.columns(run.sample)
    require_movement(columns, settings)
    labels, reference = cluster(correlation(columns), settings.modes)
    step = -(-len(labels) // DRAWN)
    thinned = torch.arange(0, len(labels), step)
    signed = signed_correlation(columns)
    order = by_mode(signed, labels, reference)
    order = order[torch.isin(order, thinned)]
    counts = torch.bincount(labels, minlength=len(reference)).tolist()
    shown = torch.bincount(labels[order], minlength=len(reference)).tolist()

    what = f"{len(labels):,} sampled weights" if len(labels) > 1 else "The one sampled weight"
    if step > 1:
        what = f"Every {ordinal(step)} of {what}"

    with matplotlib.rc_context(STYLE | {"axes.grid": False}):
        figure = Figure(figsize=(9.2, 3.95), layout="constrained")
        caption(figure, settings)
        figure.get_layout_engine().set(rect=(0, 0, 0.97, 1))  # leaves room for the labels
        left, right = figure.subplots(1, 2)
        look = {"cmap": "RdBu_r", "vmin": -1, "vmax": 1, "interpolation": "nearest"}
        left.imshow(signed[thinned][:, thinned].numpy(), **look)
        image = right.imshow(signed[order][:, order].numpy(), **look)
        _outline(right, shown, counts)
        left.set_xlabel(f"{what},\nin the order of their layers")
        all_of_them = f"\n(beside: how many of all {len(labels):,})" if step > 1 else ""
        right.set_xlabel(f"The same, ordered by mode{all_of_them}")
        for axes in (left, right):
            axes.set_xticks([])
            axes.set_yticks([])
            for side in axes.spines.values():
                side.set_visible(True)
        bar = figure.colorbar(image, ax=left, location="left", shrink=0.8, pad=0.03)
        unit = unit_of(settings).lower()
        bar.set_label(f"Correlation over {unit}s {settings.start} … {settings.epochs - 1}")
        return save(figure, path, formats)


def by_mode(signed: Tensor, labels: Tensor, reference: Tensor) -> Tensor:
    """Order the sample by mode, and in each by correlation with its reference: int64 [K]."""
    order = []
    for mode, row in enumerate(reference.tolist()):
        members = torch.nonzero(labels == mode).flatten()
        order.append(members[signed[row, members].argsort(descending=True, stable=True)])
    return torch.cat(order)


def ordinal(number: int) -> str:
    """Return 2nd for 2, 3rd for 3, 4th for 4, …"""
    teens = 10 < number % 100 < 20
    return f"{number}{'th' if teens else {1: 'st', 2: 'nd', 3: 'rd'}.get(number % 10, 'th')}"


def _outline(axes: Axes, shown: Sequence[int], counts: Sequence[int]) -> None:
    """Draw a frame around each mode's block, and its size beside it.

    Labels are kept apart; where they would be too many, the smallest modes share one.
    """
    ends = np.cumsum(shown)
    starts, total = ends - shown, ends[-1]
    for start, size in zip(starts, shown, strict=True):
        axes.add_patch(
            Rectangle((start - 0.5, start - 0.5), size, size, fill=False, lw=0.8, ec="black")
        )
    middles = (starts + ends) / 2 / total
    words = [f"mode {mode}: {count:,}" for mode, count in enumerate(counts)]
    if len(words) > LABELS:
        first = LABELS - 1
        words[first:] = [f"{len(counts) - first} more: {sum(counts[first:]):,}"]
        middles = np.append(middles[:first], (starts[first] + total) / 2 / total)
    heights = apart(middles, LABEL_ROOM)
    for label, middle, height in zip(words, middles, heights, strict=True):
        axes.annotate(
            label,
            (1, 1 - middle), xycoords="axes fraction",
            xytext=(1.06, 1 - height), textcoords="axes fraction",
            va="center", fontsize=9, annotation_clip=False,
            arrowprops={
                "arrowstyle": "-", "color": MARK, "lw": 0.6, "shrinkA": 0, "shrinkB": 0,
                "relpos": (0, 0.5),  # not through the label
            },
        )  # fmt: skip


def apart(places: np.ndarray, room: float) -> np.ndarray:
    """Move ascending places between 0 and 1 to be at least `room` apart, or as far apart as so many
    can be."""
    room = min(room, 1 / len(places))
    apart = room * np.arange(len(places))
    pushed_down = np.maximum.accumulate(np.maximum(places, room / 2) - apart) + apart
    most = 1 - room / 2 - apart[::-1]
    return np.minimum(pushed_down, most)
