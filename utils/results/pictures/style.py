"""The one style of all plots, and how a figure is saved."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from utils.methods.registry import Settings
from utils.results.stored_series import SeriesSettings
from utils.storage.files import atomic_write

STYLE = {
    "figure.figsize": (6.4, 4.2),
    "figure.dpi": 100,
    "savefig.dpi": 200,
    "font.size": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "lines.linewidth": 1.4,
    "pdf.fonttype": 42,  # keeps text as text
}
BAND = {"alpha": 0.18, "linewidth": 0}
MARK = "#777777"
# Wong's and Tol's colours, which the colour-blind can tell apart; more modes repeat them.
MODE_COLORS = (
    "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9",
    "#D55E00", "#882255", "#999933", "#332288", "#666666",
)  # fmt: skip


NAMED = 40  # layers at the most, for each to have a line and its name


def layer_height(n_layers: int) -> float:
    """Return the inches that a panel with a line for each layer needs."""
    return max(1.6, 0.18 * min(n_layers, NAMED))


def label_layers(axes: Axes, names: Sequence[str]) -> None:
    """Write the layers' names along the y axis; where they are too many, their numbers."""
    if len(names) <= NAMED:
        size = min(8.5, 340 / len(names))
        axes.set_yticks(np.arange(len(names)), names, fontsize=size)
    else:
        axes.set_ylabel("Layer, from the first to the last")


def mode_color(mode: int) -> str:
    """Return the colour of a mode, by its number."""
    return MODE_COLORS[mode % len(MODE_COLORS)]


def unit_of(settings: Settings | SeriesSettings) -> str:
    """Return what a snapshot is of."""
    return settings.unit if isinstance(settings, SeriesSettings) else "Epoch"


def caption(figure: Figure, settings: Settings | SeriesSettings, n_seeds: int = 1) -> None:
    """Write a small line above a figure: the run that it shows, or the runs with several seeds."""
    if isinstance(settings, SeriesSettings):
        figure.suptitle(settings.words, x=0.01, ha="left", fontsize=8, color=MARK)
        return
    words = f"{settings.model} on {settings.dataset}"
    if settings.limit is not None:
        words += f", --limit {settings.limit}"
    if n_seeds > 1:
        words += f", mean ± sample standard deviation over {n_seeds} seeds"
    else:
        words += f", seed {settings.seed}"
    figure.suptitle(words, x=0.01, ha="left", fontsize=8, color=MARK)


def save(figure: Figure, path: Path, formats: Sequence[str] = ("png",)) -> list[Path]:
    """Write a figure as `path` with each format's ending, whole or not at all; return the files.

    No file contains the time of writing: the same picture is the same file.
    """
    files = [path.with_suffix(f".{name}") for name in formats]
    for file, name in zip(files, formats, strict=True):
        metadata = {"CreationDate": None} if name == "pdf" else {}
        with atomic_write(file) as target:
            figure.savefig(target, format=name, metadata=metadata)
    return files


def standard_deviation(curves: np.ndarray) -> np.ndarray:
    """Return the sample standard deviation over runs: [runs, T] to [T]."""
    return curves.std(0, ddof=1)


def draw_band(
    axes: Axes,
    x: np.ndarray,
    curves: np.ndarray,
    color: str,
    width: Callable[[np.ndarray], np.ndarray] = standard_deviation,
    **options,
) -> None:
    """Draw the mean of [runs, T], with a band of some width to either side for several runs."""
    mean = curves.mean(0)
    axes.plot(x, mean, color=color, **options)
    if len(curves) > 1:
        half = width(curves)
        axes.fill_between(x, mean - half, mean + half, color=color, **BAND)


def mark_epoch(axes: Axes, epoch: int, words: str, n_epochs: int) -> None:
    """Draw a dashed line at an epoch, with words on the side where there is room."""
    axes.axvline(epoch, color="#999999", linewidth=1, linestyle=(0, (4, 3)), zorder=0)
    early = epoch < n_epochs / 2
    axes.annotate(
        words,
        (epoch, 0.02),
        xycoords=axes.get_xaxis_transform(),
        xytext=(4 if early else -4, 0),
        textcoords="offset points",
        ha="left" if early else "right",
        color=MARK,
        fontsize=9,
    )
