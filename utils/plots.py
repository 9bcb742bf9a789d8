"""Plots of runs, and the style they share."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from utils.files import atomic_write
from utils.methods import Method
from utils.metrics import Metrics
from utils.run import METRICS
from utils.settings import Settings

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
BAND = {"alpha": 0.18, "linewidth": 0}
ROW_HEIGHT = 0.24  # inches of a legend's line


def plot_test_accuracy(
    methods: Sequence[type[Method]], settings: Settings, folders: Sequence[Path], path: Path
) -> None:
    """Every method's test accuracy over the epochs of finished runs, its last one in the legend.

    folders: of one run, or of equal runs with several seeds, whose mean is drawn with a band of
    one sample standard deviation to either side. A panel below shows the share of weights embedded,
    where a method embeds any.
    """
    stored = [Metrics.stored(folder / METRICS) for folder in folders]
    curves = {
        method: np.array([[100 * row.test_acc for row in run.of(method.name)] for run in stored])
        for method in methods
    }
    shares = [method for method in methods if method.share(folders[0]) is not None]
    with matplotlib.rc_context(STYLE):
        figure = Figure(layout="constrained")
        if shares:
            figure.set_figheight(5.4)
            axes, below = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
            for method in shares:
                share = np.array([100 * method.share(folder).numpy() for folder in folders])
                _draw(below, method, share, drawstyle="steps-post")
            below.set_ylim(0, 105)
            below.set_ylabel("Embedded (%)")
        else:
            axes = below = figure.add_subplot()
        the_run_is_drawn = any(method.trains for method in methods)
        for method, curve in curves.items():
            label = f"{method.label}: {_last(curve)} %"
            # where a method is still the run's own model, the run's curve says so
            start = max(0, method.departs(settings) - 1)
            start = start if the_run_is_drawn and not method.trains else 0
            options = {"label": label, "linewidth": 2.2 if method.trains else None}
            _draw(axes, method, curve, start, **options)
        axes.set_ylim(*_limits(list(curves.values())))
        axes.set_ylabel("Test accuracy (%)")
        for end in {method.warmup_end(settings) for method in methods} - {None}:
            _mark(axes, end, "warm-up ends", settings.epochs)
        below.set_xlabel("Epoch")
        below.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.margins(x=0.02)
        if len(methods) <= 4:
            axes.legend(loc="best")
        else:  # too many to lie beside the curves
            rows = -(-len(methods) // 2)
            figure.set_figheight(figure.get_figheight() + ROW_HEIGHT * rows)
            figure.legend(loc="outside upper center", ncols=2, fontsize=10)
        with atomic_write(path) as file:
            figure.savefig(file, format="png")


def _draw(axes: Axes, method: type[Method], curves: np.ndarray, start: int = 0, **options) -> None:
    """The mean of [runs, T] over the epochs from `start` on, with a band where there are more."""
    n_epochs = curves.shape[1]
    curves = curves[:, start:]
    epochs, mean = np.arange(start, n_epochs), curves.mean(0)
    marker = "o" if n_epochs <= 15 else None
    options = {"color": method.color, "marker": marker, "markersize": 4} | options
    axes.plot(epochs, mean, **options)
    if len(curves) > 1:
        std = curves.std(0, ddof=1)
        axes.fill_between(epochs, mean - std, mean + std, color=method.color, **BAND)


def _last(curves: np.ndarray) -> str:
    spread = f" ± {curves[:, -1].std(ddof=1):.2f}" if len(curves) > 1 else ""
    return f"{curves[:, -1].mean():.2f}{spread}"


def _mark(axes: Axes, epoch: int, words: str, n_epochs: int) -> None:
    """A dashed line at an epoch, with words on the side where there is room."""
    axes.axvline(epoch, color="#999999", linewidth=1, linestyle=(0, (4, 3)), zorder=0)
    early = epoch < n_epochs / 2
    axes.annotate(
        words,
        (epoch, 0.02),
        xycoords=axes.get_xaxis_transform(),
        xytext=(4 if early else -4, 0),
        textcoords="offset points",
        ha="left" if early else "right",
        color="#777777",
        fontsize=9,
    )


def _limits(curves: list[np.ndarray]) -> tuple[float, float]:
    """Limits that show how the curves differ: the steep first epochs may start below them."""
    low = min(curve[:, curve.shape[1] // 15 :].min() for curve in curves)
    high = max(curve.max() for curve in curves)
    margin = max(0.06 * (high - low), 0.5)
    return max(0, low - margin), min(100.5, high + margin)
