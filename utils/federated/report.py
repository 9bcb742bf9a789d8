"""What federated runs say: tables, summary and plot."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from statistics import fmean

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from utils.federated.methods import METHODS
from utils.federated.rounds import Round
from utils.federated.settings import FederatedSettings
from utils.results.pictures.style import STYLE, save
from utils.storage.files import write_text
from utils.system.tables import format_table

LAST = 10  # rounds that the table's mean is over
HEADER = [
    "method", "last round", "mean of last {}", "best (round)",
    "MB down", "MB up", "of FedAvg's", "serialised MB", "of FedAvg's",
]  # fmt: skip


def summarise(
    settings: FederatedSettings, histories: Mapping[str, Sequence[Round]], n_weights: int
) -> dict:
    """The figures of each method; accuracies are fractions, sizes bytes of all rounds.

    share: of what FedAvg's messages would carry, 4 bytes a weight in each. wire_share: of FedAvg's
    serialised bytes, None unless FedAvg was run, too.
    """
    figures = {}
    for method, rows in histories.items():
        best = max(rows, key=lambda row: row.test_acc)
        messages = sum(row.down_messages + row.up_messages for row in rows)
        down, up = (sum(getattr(row, f"{way}_payload") for row in rows) for way in ("down", "up"))
        wire = sum(row.down_wire + row.up_wire for row in rows)
        figures[method] = {
            "label": METHODS[method].label,
            "last": rows[-1].test_acc,
            f"mean_last_{LAST}": fmean(row.test_acc for row in rows[-LAST:]),
            "best": best.test_acc,
            "best_round": best.round,
            "down": down,
            "up": up,
            "share": (down + up) / max(1, 4 * n_weights * messages),
            "wire": wire,
            "seconds": round(sum(row.seconds for row in rows), 3),
        }
    plain = figures.get("fedavg")
    for own in figures.values():
        own["wire_share"] = own["wire"] / plain["wire"] if plain else None
    return {"settings": asdict(settings), "n_weights": n_weights, "methods": figures}


def table(summary: dict) -> str:
    """The summary for the terminal."""
    rows = []
    for own in summary["methods"].values():
        wire_share = "" if own["wire_share"] is None else f"{100 * own['wire_share']:.1f} %"
        rows.append(
            [
                own["label"],
                f"{100 * own['last']:.2f} %",
                f"{100 * own[f'mean_last_{LAST}']:.2f} %",
                f"{100 * own['best']:.2f} % ({own['best_round']})",
                f"{own['down'] / 1e6:,.1f}",
                f"{own['up'] / 1e6:,.1f}",
                f"{100 * own['share']:.1f} %",
                f"{own['wire'] / 1e6:,.1f}",
                wire_share,
            ]
        )
    n_rounds = min(LAST, summary["settings"]["rounds"])
    return format_table([heading.format(n_rounds) for heading in HEADER], rows)


def write_rounds(histories: Mapping[str, Sequence[Round]], path: Path) -> None:
    """All rounds of all methods, as CSV."""
    names = [field.name for field in fields(Round)]
    lines = [",".join(["method", *names])]
    for method, rows in histories.items():
        for row in rows:
            values = ("" if value is None else str(value) for value in asdict(row).values())
            lines.append(",".join([method, *values]))
    write_text("\n".join(lines) + "\n", path)


def plot(settings: FederatedSettings, histories: Mapping[str, Sequence[Round]], path: Path) -> None:
    """Test accuracy over rounds and over bytes, and the share of weights that are still sent."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(layout="constrained", figsize=(9.6, 5.2))
        over_rounds, over_bytes, live, ratio = figure.subplots(
            2, 2, height_ratios=[2.2, 1]
        ).flatten()
        lowest = 100.0
        for method, rows in histories.items():
            accuracy = [100 * row.test_acc for row in rows]
            sent = np.cumsum([row.down_payload + row.up_payload for row in rows]) / 1e6
            numbers = [row.round for row in rows]
            look = {"color": METHODS[method].color, "label": METHODS[method].label}
            over_rounds.plot(numbers, accuracy, **look)
            over_bytes.plot(sent, accuracy, **look)
            # a round is played with what was live after the one before
            live.plot(numbers, [100.0, *(100 * row.live for row in rows[:-1])], **look)
            each = [(row.down_payload + row.up_payload) / 1e6 for row in rows]
            ratio.plot(numbers, each, **look)
            lowest = min(lowest, np.percentile(accuracy, 10))
        over_rounds.set_ylim(bottom=lowest - 2)
        over_bytes.sharey(over_rounds)
        over_rounds.set_ylabel("Test accuracy (%)")
        over_rounds.set_xlabel("Round")
        over_bytes.set_xlabel("MB sent so far, all clients, both ways")
        over_bytes.legend(loc="lower right")
        live.set_ylabel("Live weights (%)")
        live.set_ylim(0, 105)
        ratio.set_ylabel("MB a round")
        ratio.set_ylim(bottom=0)
        for axes in (live, ratio):
            axes.set_xlabel("Round")
        which = settings.partition
        which += f", α = {settings.alpha:g}" if which == "dirichlet" else ""
        figure.suptitle(
            f"{settings.model} on {settings.dataset}, {settings.clients} clients, {which}",
            fontsize=11,
        )
        save(figure, path)
