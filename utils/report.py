"""What a finished run says: summary.json and the table on the terminal."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean

from utils.methods import Method
from utils.metrics import Metrics
from utils.settings import Settings
from utils.tables import format_table

LAST = 10  # epochs that the table's mean is over
COLUMNS = ("method", "last epoch", f"mean of last {LAST}", "best (epoch)", "parameters", "seconds")


def summarise(
    methods: Sequence[type[Method]],
    metrics: Metrics,
    settings: Settings,
    n_weights: int,
    folder: Path,
) -> dict:
    """The figures of a finished run, by method; accuracies are fractions.

    last: at the last epoch. mean_last_10: over the last ten (or all, if fewer). best: the highest,
    at best_epoch. parameters: how many numbers describe the run. seconds: all the method took.
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


def table(summary: dict) -> str:
    """The summary as a table for the terminal, accuracies in percent."""
    rows = [
        (
            figures["label"],
            f"{100 * figures['last']:.2f} %",
            f"{100 * figures[f'mean_last_{LAST}']:.2f} %",
            f"{100 * figures['best']:.2f} % ({figures['best_epoch']})",
            f"{figures['parameters']:,}",
            f"{figures['seconds']:,.1f}",
        )
        for figures in summary["methods"].values()
    ]
    return format_table(COLUMNS, rows)
