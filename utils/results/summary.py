"""The figures of finished runs: summary.json, and the table on the terminal."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean, stdev

from utils.methods.draws import stored_draws
from utils.methods.registry import METHODS, Method, Settings
from utils.results.paired import LEVEL, Difference, paired_difference
from utils.storage.metrics import Metrics, Row
from utils.system.tables import format_table

LAST = 10  # epochs, for the table's mean
COMPARED = ("last", f"mean_last_{LAST}")
ACCURACIES = (*COMPARED, "best")
DIFFERENCES = tuple(f"{key}_minus_sgd" for key in COMPARED)
THE_RUN = next(method for method in METHODS if method.trains)  # which all others are compared with


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
            draws: of a method with several draws of its sample, last and mean_last_10 of each, in a
                list for each run.
            last_minus_sgd, mean_last_10_minus_sgd: how far last and mean_last_10 are above SGD's,
                if that is in the summary.
    """
    figures = {}
    for method in methods:
        rows = metrics.of(method.name)
        best = max(rows, key=lambda row: row.test_acc)
        figures[method.name] = {
            "label": method.label,
            **settled(rows),
            "best": best.test_acc,
            "best_epoch": best.epoch,
            "parameters": method.n_parameters(n_weights, settings, folder),
            "seconds": round(sum(row.seconds for row in rows), 3),
        } | method.figures(folder)
        draws = stored_draws(method, metrics, settings.epochs)
        if len(draws) > 1:
            each = [settled(metrics.of(draw.name)) for draw in draws]
            figures[method.name]["draws"] = {key: [[one[key] for one in each]] for key in COMPARED}
    compare_with_the_run(figures)
    return {"settings": asdict(settings), "n_weights": n_weights, "methods": figures}


def settled(rows: Sequence[Row]) -> dict[str, float]:
    """Return where a method's accuracy ends: at the last epoch, and as a mean of the last ones."""
    mean = fmean(row.test_acc for row in rows[-LAST:])
    return dict(zip(COMPARED, (rows[-1].test_acc, mean), strict=True))


def over_seeds(seeds: Sequence[int], summaries: Sequence[dict]) -> dict:
    """Return the figures of equal runs with several seeds, as means.

    Each accuracy comes with its sample standard deviation, in `…_std` (None for one seed), and
    with its values in the seeds' order, in `…_values`. Each difference to SGD, paired by seed, has
    its 95 % confidence interval in `…_interval`, which one seed has not. Of the draws of the
    sample, every seed has as many.
    """
    first = summaries[0]
    figures = {}
    for name, of_first in first["methods"].items():
        runs = [summary["methods"][name] for summary in summaries]
        own = {"label": of_first["label"]}
        if all("draws" in run for run in runs):
            fewest = min(len(run["draws"][COMPARED[0]][0]) for run in runs)
            own["draws"] = {
                key: [run["draws"][key][0][:fewest] for run in runs] for key in COMPARED
            }
        not_averaged = ("label", "best_epoch", "draws", *DIFFERENCES)
        for key in [key for key in of_first if key not in not_averaged]:
            values = [run[key] for run in runs]
            own[key] = fmean(values)
            if key in ACCURACIES:
                own[f"{key}_std"] = stdev(values) if len(values) > 1 else None
                own[f"{key}_values"] = values
        figures[name] = own
    compare_with_the_run(figures)
    settings = {key: value for key, value in first["settings"].items() if key != "seed"}
    return {
        "settings": settings | {"seeds": list(seeds)},
        "n_weights": first["n_weights"],
        "methods": figures,
    }


def compare_with_the_run(figures: dict[str, dict]) -> None:
    """Add to each method's figures its differences to the run itself, if that is among them."""
    if THE_RUN.name not in figures:
        return
    for name, own in figures.items():
        for key in COMPARED if name != THE_RUN.name else ():
            found = difference(figures, name, key)
            own[f"{key}_minus_sgd"] = found.mean
            if found.interval is not None:
                own[f"{key}_minus_sgd_interval"] = list(found.interval)


def difference(figures: dict[str, dict], name: str, key: str) -> Difference:
    """Compare a method's accuracy with the run's, paired by seed where there are several."""
    ours, theirs = (
        figures[method].get(f"{key}_values", [figures[method][key]])
        for method in (name, THE_RUN.name)
    )
    return paired_difference(ours, theirs)


def percent(mean: float, std: float | None = None) -> str:
    """Format an accuracy, a fraction, in percent to two decimals: 75.36, or 75.36 ± 0.57."""
    return f"{100 * mean:.2f}" + ("" if std is None else f" ± {100 * std:.2f}")


def mean_and_deviation(values: Sequence[float]) -> str:
    """Return the mean of fractions, in percent, ± the sample standard deviation of two or more."""
    return percent(fmean(values), stdev(values) if len(values) > 1 else None)


def table(summary: dict) -> str:
    """Format the summary of a run, or of several seeds, for the terminal: accuracies in percent,
    and below them their differences to the run, in percentage points."""
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
    others = (*_differences(summary, mean), *_draws(summary, mean))
    return "\n\n".join([format_table(header, rows), *others])


def _differences(summary: dict, mean: str) -> list[str]:
    """Return the table of differences, if there are any."""
    figures, rows, n_runs = summary["methods"], [], 1
    for name, own in figures.items():
        if DIFFERENCES[0] in own:
            found = [difference(figures, name, key) for key in COMPARED]
            rows.append((own["label"], *(each.points() for each in found)))
            n_runs = found[0].n_runs
    if not rows:
        return []
    over = f" ({100 * LEVEL:.0f} % interval, {n_runs} seeds)" if n_runs > 1 else ""
    header = (f"minus {THE_RUN.label}, points{over}", "last epoch", mean)
    return [format_table(header, rows)]


def _draws(summary: dict, mean: str) -> list[str]:
    """Return the table of the methods with several draws of their sample, if there are any: the
    mean ± the standard deviation between draws of the same run (the lowest … the highest)."""
    rows = []
    for own in summary["methods"].values():
        if "draws" in own:
            cells = []
            for runs in map(own["draws"].get, COMPARED):
                every = [value for draws in runs for value in draws]
                between = fmean(stdev(draws) ** 2 for draws in runs) ** 0.5
                span = f"{percent(min(every))} … {percent(max(every))}"
                cells.append(f"{percent(fmean(every), between)} % ({span})")
            of_seeds = f" of {len(runs)} seeds each" if len(runs) > 1 else ""
            rows.append((f"{own['label']}, {len(runs[0])}{of_seeds}", *cells))
    return [format_table(("over draws of the sample", "last epoch", mean), rows)] if rows else []
