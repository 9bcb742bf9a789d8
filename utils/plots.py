"""Plots of a run, and the style they share."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from utils.files import atomic_write
from utils.method_embedded import EmbeddedCMD
from utils.methods import Method
from utils.metrics import Metrics

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
}


def plot_test_accuracy(
    methods: Sequence[type[Method]],
    metrics: Metrics,
    warmup: int | None,
    path: Path,
    embedded: Tensor | None = None,
) -> None:
    """Every method's test accuracy over the epochs, its last one in the legend.

    warmup: the epoch at which online CMD takes over, marked; None marks nothing.
    embedded: [T], the share of weights that embedded CMD has embedded after each epoch, drawn
        below; None draws nothing.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(layout="constrained")
        axes = figure.add_subplot()
        if embedded is not None:
            figure.set_figheight(5.4)
            grid = figure.add_gridspec(2, 1, height_ratios=(4, 1))
            axes.set_subplotspec(grid[0])
            below = figure.add_subplot(grid[1], sharex=axes)
            below.plot(100 * embedded, color=EmbeddedCMD.color, drawstyle="steps-post")
            below.set_ylim(0, 105)
            below.set_xlabel("Epoch")
            below.set_ylabel("Embedded (%)")
            axes.tick_params(labelbottom=False)
        curves = {
            method: [100 * row.test_acc for row in metrics.of(method.name)] for method in methods
        }
        n_epochs = max(map(len, curves.values()))
        for method, curve in curves.items():
            axes.plot(
                range(len(curve)),
                curve,
                color=method.color,
                linewidth=2.2 if method.trains else None,
                marker="o" if n_epochs <= 15 else None,
                markersize=4,
                label=f"{method.label}: {curve[-1]:.2f} %",
            )
        axes.set_ylim(*_limits(list(curves.values())))
        if warmup is not None:
            axes.axvline(warmup, color="#999999", linewidth=1, linestyle=(0, (4, 3)), zorder=0)
            axes.annotate(
                "warm-up ends",
                (warmup, 0.02),
                xycoords=axes.get_xaxis_transform(),
                xytext=(4, 0) if warmup < n_epochs / 2 else (-4, 0),
                textcoords="offset points",
                ha="left" if warmup < n_epochs / 2 else "right",
                color="#777777",
                fontsize=9,
            )
        if embedded is None:
            axes.set_xlabel("Epoch")
        axes.set_ylabel("Test accuracy (%)")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.margins(x=0.02)
        axes.legend(loc="best")
        with atomic_write(path) as file:
            figure.savefig(file, format="png")


def _limits(curves: list[list[float]]) -> tuple[float, float]:
    """Limits that show how the curves differ: the steep first epochs may start below them."""
    settled = [value for curve in curves for value in curve[len(curve) // 15 :]]
    everything = [value for curve in curves for value in curve]
    low, high = min(settled), max(everything)
    margin = max(0.06 * (high - low), 0.5)
    return max(0, low - margin), min(100.5, high + margin)
