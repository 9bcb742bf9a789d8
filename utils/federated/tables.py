"""The tables on the terminal, of one federated run or of equal ones with several seeds."""

from collections.abc import Sequence
from statistics import fmean

from utils.federated.equal_bytes import FEDAVG, OVER, opponent
from utils.federated.report import LAST, MEAN_LAST, shared
from utils.results.paired import LEVEL, paired_difference
from utils.results.summary import mean_and_deviation
from utils.system.tables import format_table

HEADER = [
    "method", "last round", "mean of last {}", "best (round)",
    "MB down", "MB up", "of FedAvg's", "serialised MB", "of FedAvg's",
]  # fmt: skip
NOTHING, LOST = "–", "*"
Figures = Sequence[dict]  # of one contender, one a run


def tables(summaries: Sequence[dict]) -> str:
    """Lay out the summaries, in which contenders that not all have are left out."""
    runs = {name: [each["methods"][name] for each in summaries] for name in shared(summaries)}
    totals = [each["fedavg_bytes"] for each in summaries]
    n_rounds = summaries[0]["settings"]["rounds"]
    parts = [_overview(runs, min(LAST, n_rounds)), _within(runs, totals)]
    if FEDAVG in runs:
        ends = [each["fedavg_end"] for each in summaries]
        parts.append(_bytes_to(runs, totals, ends, min(OVER, n_rounds)))
    if len(summaries) > 1 and any(opponent(name, runs) for name in runs):
        parts.append(_differences(runs))
    return "\n\n".join(parts)


def _overview(runs: dict[str, Figures], n_rounds: int) -> str:
    """Lay out accuracies, and bytes of all rounds."""
    rows = []
    lost = {name for name, own in runs.items() if any(each["lost"] for each in own)}
    for name, own in runs.items():
        best = _accuracy([each["best"] for each in own])
        if len(own) == 1:
            best += f" ({own[0]['best_round']})"
        wire_share = [each["wire_share"] for each in own]
        rows.append(
            [
                own[0]["label"] + LOST * (name in lost),
                _accuracy([each["last"] for each in own]),
                _accuracy([each[MEAN_LAST] for each in own]),
                best,
                _megabytes([each["down"] for each in own]),
                _megabytes([each["up"] for each in own]),
                _share([each["share"] for each in own]),
                _megabytes([each["wire"] for each in own]),
                "" if None in wire_share else _share(wire_share),
            ]
        )
    words = f"\n{LOST} what clients had still to say was lost where the run was stopped"
    header = [heading.format(n_rounds) for heading in HEADER]
    return format_table(header, rows) + words * bool(lost)


def _within(runs: dict[str, Figures], totals: Sequence[int]) -> str:
    """Lay out the accuracy at equal bytes; in brackets where all rounds took fewer."""
    marks = list(next(iter(runs.values()))[0]["within"])
    rows, ended = [], False
    for own in runs.values():
        cells = []
        sent = sum(each["down"] + each["up"] for each in own)
        for mark in marks:
            cell = _accuracy([each["within"][mark] for each in own])
            if 100 * sent < int(mark) * sum(totals):
                cell, ended = f"({cell})", True
            cells.append(cell)
        rows.append([own[0]["label"], *cells])
    header = [f"within, of {_megabytes(totals)} MB", *(f"{mark} %" for mark in marks)]
    words = "\nin brackets: with all rounds, which took fewer bytes" if ended else ""
    return format_table(header, rows) + words


def _bytes_to(
    runs: dict[str, Figures], totals: Sequence[int], ends: Sequence[float], over: int
) -> str:
    """Lay out the bytes that it took to come to FedAvg's accuracy in the end, or near it, each the
    mean of some rounds."""
    rows = []
    for own in runs.values():
        cells = []
        for key in own[0]["bytes_to"]:
            values = [each["bytes_to"][key] for each in own]
            reached = [value for value in values if value is not None]
            if len(reached) < len(values):
                cells.append(NOTHING if not reached else f"{len(reached)} of {len(values)} runs")
            else:
                share = _share([fmean(values) / max(1, fmean(totals))])
                cells.append(f"{_megabytes(values)} ({share})")
        rows.append([own[0]["label"], *cells])
    below = (f"−{key} points" for key in list(runs[FEDAVG][0]["bytes_to"])[1:])
    header = [f"MB to a mean of {over} rounds as FedAvg's last", _accuracy(ends), *below]
    return format_table(header, rows)


def _differences(runs: dict[str, Figures]) -> str:
    """Lay out differences to FedAvg, at the same transport if it was run, in points, paired by
    seed."""
    first = next(iter(runs.values()))
    marks = list(first[0]["within"])
    rows = []
    for name, own in runs.items():
        other = opponent(name, runs)
        if other is None:
            continue
        theirs = runs[other]
        pairs = [([each["last"] for each in own], [each["last"] for each in theirs])]
        pairs += [
            ([each["within"][mark] for each in own], [each["within"][mark] for each in theirs])
            for mark in marks
        ]
        cells = [
            NOTHING if None in (*mine, *other) else paired_difference(mine, other).points()
            for mine, other in pairs
        ]
        rows.append([f"{own[0]['label']} − {theirs[0]['label']}", *cells])
    words = f"points ({100 * LEVEL:.0f} % interval, {len(first)} seeds)"
    header = [words, "last round", *(f"within {mark} %" for mark in marks)]
    return format_table(header, rows)


def _accuracy(values: Sequence[float | None]) -> str:
    """Format accuracies, fractions, over runs: mean, and ± standard deviation of several."""
    if any(value is None for value in values):
        return NOTHING
    return mean_and_deviation(values) + " %"


def _megabytes(values: Sequence[float]) -> str:
    """Format the mean of sizes in bytes."""
    return f"{fmean(values) / 1e6:,.1f}"


def _share(values: Sequence[float]) -> str:
    """Format the mean of fractions."""
    return f"{100 * fmean(values):.1f} %"
