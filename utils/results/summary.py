"""The figures of finished runs: summary.json, and the table on the terminal."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean, stdev

from utils.methods.registry import Method, Settings
from utils.storage.metrics import Metrics
from utils.system.tables import format_table

LAST = 10  # epochs, for the table's mean
ACCURACIES = ("last", f"mean_last_{LAST}", "best")


def summarise(
    methods: Sequence[type[Method]],
    metrics: Metrics,
    settings: Settings,
    n_weights: int,
    folder: Path,
) -> dict:
    """Return the figures of a finished run, by method; accuracies are fractions.

    Args:
        methods: those of the summary.
        metrics: the rows of all of them.
        settings: the run's.
        n_weights: N.
        folder: the run's.

    Returns:
        The settings and N; and under "methods", by name,
            last: accuracy at the last epoch.
            mean_last_10: its mean over the last ten epochs (or all, if fewer).
            best: the highest accuracy, at best_epoch.
            parameters: how many numbers describe the run.
            seconds: all the time that the method took.
    """
    figures = {}
    for method in methods:
        rows = metrics.of(method.name)
        best = max(rows, key=lambda row: row.test_acc)
        figures[method.name] = {
            "label": method.label,
            "last": rows[-1].test_acc,
            f"mean_last_{LAST}": fmean(row.test_acc for row in rows[-LAST:]),
            "best": best.test_acc,
            "best_epoch": best.epoch,
            "parameters": method.n_parameters(n_weights, settings, folder),
            "seconds": round(sum(row.seconds for row in rows), 3),
        } | method.figures(folder)
    return {"settings": asdict(settings), "n_weights": n_weights, "methods": figures}


def over_seeds(seeds: Sequence[int], summaries: Sequence[dict]) -> dict:
    """Return the figures of equal runs with several seeds, as means.

    Each accuracy comes with its sample standard deviation, in `…_std` (None for one seed), and
    with its values in the seeds' order, in `…_values`.
    """
    first = summaries[0]
    figures = {}
    for name, of_first in first["methods"].items():
        runs = [summary["methods"][name] for summary in summaries]
        own = {"label": of_first["label"]}
        for key in [key for key in of_first if key not in ("label", "best_epoch")]:
            values = [run[key] for run in runs]
            own[key] = fmean(values)
            if key in ACCURACIES:
                own[f"{key}_std"] = stdev(values) if len(values) > 1 else None
                own[f"{key}_values"] = values
        figures[name] = own
    settings = {key: value for key, value in first["settings"].items() if key != "seed"}
    return {
        "settings": settings | {"seeds": list(seeds)},
        "n_weights": first["n_weights"],
        "methods": figures,
    }


def percent(mean: float, std: float | None = None) -> str:
    """Format an accuracy, a fraction, in percent to two decimals: 75.36, or 75.36 ± 0.57."""
    return f"{100 * mean:.2f}" + ("" if std is None else f" ± {100 * std:.2f}")


def table(summary: dict) -> str:
    """Format the summary of a run, or of several seeds, for the terminal; accuracies in percent."""
    rows = []
    for figures in summary["methods"].values():
        accuracies = [f"{percent(figures[key], figures.get(f'{key}_std'))} %" for key in ACCURACIES]
        if "best_epoch" in figures:
            accuracies[-1] += f" ({figures['best_epoch']})"
        counts = (f"{figures['parameters']:,.0f}", f"{figures['seconds']:,.1f}")
        rows.append((figures["label"], *accuracies, *counts))
    best = "best (epoch)" if "seed" in summary["settings"] else "best"
    mean = f"mean of last {min(LAST, summary['settings']['epochs'])}"
    header = ("method", "last epoch", mean, best, "parameters", "seconds")
    return format_table(header, rows)
