"""Test accuracy over the epochs."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from utils.methods import Method
from utils.metrics import Metrics
from utils.run import METRICS
from utils.settings import Settings
from utils.style import STYLE, draw_band, mark_epoch, save

ROW_HEIGHT = 0.24  # inches of a legend's line
FEW = 15  # epochs, each of which is marked


def plot_test_accuracy(
    methods: Sequence[type[Method]],
    settings: Settings,
    folders: Sequence[Path],
    path: Path,
    formats: Sequence[str] = ("png",),
    difference: bool = False,
) -> list[Path]:
    """Every method's test accuracy over the epochs of finished runs, its last one in the legend.

    folders: of one run, or of equal runs with several seeds, whose mean is drawn with a band of
    one sample standard deviation to either side. Below, where asked for, the difference to the run
    itself; and the share of weights embedded, where a method embeds any. Returns the files.
    """
    stored = [Metrics.stored(folder / METRICS) for folder in folders]
    curves = {
        method: np.array([[100 * row.test_acc for row in run.of(method.name)] for run in stored])
        for method in methods
    }
    the_run = next((method for method in methods if method.trains), None)
    shares = [method for method in methods if method.share(folders[0]) is not None]
    panels = [4] + [2.2] * (difference and the_run is not None) + [1] * bool(shares)
    with matplotlib.rc_context(STYLE):
        figure = Figure(layout="constrained", figsize=(6.4, 3.2 + 1.1 * sum(panels[1:])))
        figure.set_figheight(max(4.2, figure.get_figheight()))
        all_axes = figure.subplots(
            len(panels), 1, sharex=True, height_ratios=panels, squeeze=False
        )[:, 0]
        axes, *below = all_axes
        for method, curve in curves.items():
            x, shown, look = _departed(method, curve, settings, the_run)
            label = f"{method.label}: {_last(curve)} %"
            draw_band(axes, x, shown, method.color, label=label, **look)
        axes.set_ylim(*_limits(list(curves.values())))
        axes.set_ylabel("Test accuracy (%)")
        for end in {method.warmup_end(settings) for method in methods} - {None}:
            mark_epoch(axes, end, "warm-up ends", settings.epochs)
        if difference and the_run is not None:
            under = below.pop(0)
            differences = []
            for method, curve in curves.items():
                if method is the_run:
                    under.axhline(0, color=method.color, linewidth=2.2, zorder=1)
                    continue
                x, shown, look = _departed(method, curve, settings, the_run)
                shown = shown - curves[the_run][:, x[0] :]
                draw_band(under, x, shown, method.color, **look)
                differences.append(shown)
            if differences:
                under.set_ylim(*_limits(differences, at_most=100))
            under.set_ylabel(f"Minus {the_run.label}\n(percentage points)")
        for method in shares:
            share = np.array([100 * method.share(folder).numpy() for folder in folders])
            x = np.arange(share.shape[1])
            draw_band(below[0], x, share, method.color, drawstyle="steps-post")
            below[0].set_ylim(0, 105)
            below[0].set_ylabel("Embedded\n(%)")
        all_axes[-1].set_xlabel("Epoch")
        all_axes[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.margins(x=0.02)
        figure.align_ylabels(all_axes)
        if len(methods) <= 4:
            axes.legend(loc="best")
        else:  # too many to lie beside the curves
            rows = -(-len(methods) // 2)
            figure.set_figheight(figure.get_figheight() + ROW_HEIGHT * rows)
            figure.legend(loc="outside upper center", ncols=2, fontsize=10)
        return save(figure, path, formats)


def _departed(
    method: type[Method], curves: np.ndarray, settings: Settings, the_run: type[Method] | None
) -> tuple[np.ndarray, np.ndarray, dict]:
    """The epochs at which a method has a curve of its own, the curves there, and their look.

    Where its model is still the run's own, the run's curve says so, if that is drawn.
    """
    start = 0
    if the_run is not None and method is not the_run:
        start = max(0, method.departs(settings) - 1)
    look = {"marker": "o" if curves.shape[1] <= FEW else None, "markersize": 4}
    if method is the_run:
        look["linewidth"] = 2.2
    return np.arange(start, curves.shape[1]), curves[:, start:], look


def _last(curves: np.ndarray) -> str:
    spread = f" ± {curves[:, -1].std(ddof=1):.2f}" if len(curves) > 1 else ""
    return f"{curves[:, -1].mean():.2f}{spread}"


def _limits(curves: list[np.ndarray], at_most: float = 100.5) -> tuple[float, float]:
    """Limits that show how the curves differ: the steep first epochs may start outside them."""
    settled = [curve.mean(0)[curve.shape[1] // 10 :] for curve in curves]
    low, high = min(curve.min() for curve in settled), max(curve.max() for curve in settled)
    margin = max(0.06 * (high - low), 0.5)
    low = low - margin if low < 0 else max(0, low - margin)
    return low, min(at_most, high + margin)
