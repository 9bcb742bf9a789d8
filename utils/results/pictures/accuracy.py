"""Test accuracy over the epochs."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from utils.methods.draws import stored_draws
from utils.methods.registry import Method, Settings
from utils.results.paired import LEVEL, half_width
from utils.results.pictures.style import (
    STYLE,
    caption,
    draw_band,
    mark_epoch,
    save,
    standard_deviation,
)
from utils.results.summary import LAST, mean_and_deviation
from utils.storage.metrics import Metrics
from utils.training.folder import METRICS

ROW_HEIGHT = 0.24  # inches, of a line of the legend
THIN = {"alpha": 0.35, "linewidth": 0.7}
FEW = 15  # epochs at the most, for each to be marked


def plot_test_accuracy(
    methods: Sequence[type[Method]],
    settings: Settings,
    folders: Sequence[Path],
    path: Path,
    formats: Sequence[str] = ("png",),
    difference: bool = False,
    with_shares: bool = True,
) -> list[Path]:
    """Draw every method's test accuracy over the epochs, with its last value in the legend.

    Of several runs, the mean is drawn with a band of one sample standard deviation to either side.
    Further draws of a method's sample are thin lines.

    Args:
        methods: those drawn.
        settings: the runs', which differ in the seed only.
        folders: of one finished run, or of equal ones with several seeds.
        path: of the picture, without regard to its ending.
        formats: the endings of the files.
        difference: whether to draw, below, each method's difference to the run itself, if that is
            among the methods and not alone: as a mean of the last ten epochs, unless there are few,
            with the 95 % interval of the mean over seeds, paired by seed.
        with_shares: whether to draw, below, the share of weights embedded, if a method embeds any.

    Returns:
        The files.

    Raises UserError if the file with such a share is not there or damaged.
    """
    stored = [Metrics.stored(folder / METRICS) for folder in folders]
    fractions = {
        method: [[row.test_acc for row in run.of(method.name)] for run in stored]
        for method in methods
    }
    curves = {method: 100 * np.array(runs) for method, runs in fractions.items()}
    the_run = next((method for method in methods if method.trains), None)
    difference = difference and the_run is not None and len(methods) > 1
    shares = shares_of(methods, folders) if with_shares else {}
    panels = [4] + [2.2] * difference + [1] * bool(shares)
    with matplotlib.rc_context(STYLE):
        figure = Figure(layout="constrained", figsize=(6.4, 3.2 + 1.1 * sum(panels[1:])))
        figure.set_figheight(max(4.2, figure.get_figheight()) + 0.2)
        caption(figure, settings, len(folders))
        all_axes = figure.subplots(
            len(panels), 1, sharex=True, height_ratios=panels, squeeze=False
        )[:, 0]
        axes, *below = all_axes
        others = False  # whether there are further draws
        for method, curve in curves.items():
            x, shown, look = _departed(method, curve, settings, the_run)
            label = f"{method.label}: {_last(fractions[method])} %"
            draw_band(axes, x, shown, method.color, label=label, **look)
            for draw in _draws(method, stored, settings):
                axes.plot(x, draw[x], color=method.color, **THIN)
                others = True
        if others:
            axes.plot([], [], color="#666666", label="thin: other samples of weights", **THIN)
        axes.set_ylim(*_limits(list(curves.values()), standard_deviation))
        axes.set_ylabel("Test accuracy (%)")
        for end in {method.warmup_end(settings) for method in methods} - {None}:
            mark_epoch(axes, end, "warm-up ends", settings.epochs)
        if difference:
            under, few = below.pop(0), settings.epochs <= FEW
            differences = []
            for method, curve in curves.items():
                if method is the_run:
                    under.axhline(0, color=method.color, linewidth=2.2, zorder=1)
                    continue
                x, shown, look = _departed(method, curve, settings, the_run)
                shown = shown - curves[the_run][:, x[0] :]
                if not few:
                    shown = trailing_mean(shown, LAST)
                draw_band(under, x, shown, method.color, half_width, **look)
                differences.append(shown)
            under.set_ylim(*_limits(differences, half_width, at_most=100))
            told = ["points"] + [f"mean of last {LAST}"] * (not few)
            told += [f"{100 * LEVEL:.0f} % interval"] * (len(folders) > 1)
            words = ",\n".join(told)
            under.set_ylabel(f"Minus {the_run.label} ({words})")
        for method, share in shares.items():
            x = np.arange(share.shape[1])
            draw_band(below[0], x, share, method.color, drawstyle="steps-post")
            below[0].set_ylim(0, 105)
            below[0].set_ylabel("Embedded\n(%)")
        all_axes[-1].set_xlabel("Epoch")
        all_axes[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.margins(x=0.02)
        figure.align_ylabels(all_axes)
        last = f"At epoch {settings.epochs - 1}"
        if len(methods) <= 4:
            axes.legend(loc="best", title=last, alignment="left")
        else:  # too many to fit beside the curves
            rows = -(-len(methods) // 2)
            figure.set_figheight(figure.get_figheight() + ROW_HEIGHT * (rows + 1))
            axes.legend(
                loc="lower center", bbox_to_anchor=(0.47, 1), ncols=2, fontsize=10, title=last,
                alignment="left",
            )  # fmt: skip
        return save(figure, path, formats)


def _departed(
    method: type[Method], curves: np.ndarray, settings: Settings, the_run: type[Method] | None
) -> tuple[np.ndarray, np.ndarray, dict]:
    """Return the epochs at which a method has a curve of its own, the curves there, and their look.

    Where the method's model is still the run's own, the run's curve stands for it, if drawn.
    """
    start = 0
    if the_run is not None and method is not the_run:
        start = max(0, method.departs(settings) - 1)
    look = {"marker": "o" if curves.shape[1] <= FEW else None, "markersize": 4}
    if method is the_run:
        look["linewidth"] = 2.2
    return np.arange(start, curves.shape[1]), curves[:, start:], look


def trailing_mean(curves: np.ndarray, length: int) -> np.ndarray:
    """Return the mean of each value and of those before it, `length` in all where there are as
    many: [runs, T] to [runs, T]."""
    sums = np.cumsum(np.pad(curves, ((0, 0), (1, 0))), axis=1)
    ends = np.arange(1, sums.shape[1])
    starts = np.maximum(0, ends - length)
    return (sums[:, ends] - sums[:, starts]) / (ends - starts)


def _draws(
    method: type[Method], stored: Sequence[Metrics], settings: Settings
) -> Iterator[np.ndarray]:
    """Yield the accuracy, in percent, of each further draw of a method's sample: float [T]."""
    for run in stored:
        for draw in stored_draws(method, run, settings.epochs)[1:]:
            yield 100 * np.array([row.test_acc for row in run.of(draw.name)])


def shares_of(
    methods: Sequence[type[Method]], folders: Sequence[Path]
) -> dict[type[Method], np.ndarray]:
    """Return the share of weights that each embedding method has embedded, in %: float [runs, T].

    The shares are those after each epoch of each run; methods that embed none are left out.

    Raises UserError if a file with it is not there or damaged.
    """
    found = {}
    for method in methods:
        shares = [method.embedded_share(folder) for folder in folders]
        if shares[0] is not None:
            found[method] = np.array([100 * share.numpy() for share in shares])
    return found


def _last(runs: Sequence[Sequence[float]]) -> str:
    """Format the accuracy at the last epoch as the table does."""
    return mean_and_deviation([fractions[-1] for fractions in runs])


def _limits(
    curves: list[np.ndarray], width: Callable[[np.ndarray], np.ndarray], at_most: float = 100.5
) -> tuple[float, float]:
    """Return limits that show how the curves differ, and their bands at the end; the steep first
    epochs may be outside them, and bands before the end."""
    shown = [curve.mean(0)[curve.shape[1] // 10 :] for curve in curves]
    for curve in curves:
        if len(curve) > 1:
            mean, half = curve.mean(0)[-1], width(curve)[-1]
            shown.append(np.array([mean - half, mean + half]))
    low, high = min(each.min() for each in shown), max(each.max() for each in shown)
    margin = max(0.06 * (high - low), 0.5)
    low = low - margin if low < 0 else max(0, low - margin)
    return low, min(at_most, high + margin)
