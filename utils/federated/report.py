"""What a federated run reports: its summary, table, rounds and plot."""

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
    """Compute the figures of each method; accuracies are fractions, sizes bytes of all rounds.

    "share" is of what FedAvg's messages would carry, 4 bytes a weight in each. "wire_share" is of
    FedAvg's serialised bytes; it is None unless FedAvg was run, too.
    """
    figures = {}
    for method, rounds in histories.items():
        best = max(rounds, key=lambda each: each.test_acc)
        messages = sum(each.down_messages + each.up_messages for each in rounds)
        down, up = (
            sum(getattr(each, f"{way}_payload") for each in rounds) for way in ("down", "up")
        )
        wire = sum(each.down_wire + each.up_wire for each in rounds)
        figures[method] = {
            "label": METHODS[method].label,
            "last": rounds[-1].test_acc,
            f"mean_last_{LAST}": fmean(each.test_acc for each in rounds[-LAST:]),
            "best": best.test_acc,
            "best_round": best.round,
            "down": down,
            "up": up,
            "share": (down + up) / max(1, 4 * n_weights * messages),
            "wire": wire,
            "seconds": round(sum(each.seconds for each in rounds), 3),
        }
    plain = figures.get("fedavg")
    for own in figures.values():
        own["wire_share"] = own["wire"] / plain["wire"] if plain else None
    return {"settings": asdict(settings), "n_weights": n_weights, "methods": figures}


def table(summary: dict) -> str:
    """Lay out the summary for the terminal."""
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
    """Write all rounds of all methods, as CSV."""
    names = [field.name for field in fields(Round)]
    lines = [",".join(["method", *names])]
    for method, rounds in histories.items():
        for each in rounds:
            values = ("" if value is None else str(value) for value in asdict(each).values())
            lines.append(",".join([method, *values]))
    write_text("\n".join(lines) + "\n", path)


def plot(settings: FederatedSettings, histories: Mapping[str, Sequence[Round]], path: Path) -> None:
    """Draw test accuracy over rounds and over bytes, live weights, and bytes a round."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(layout="constrained", figsize=(9.6, 5.2))
        over_rounds, over_bytes, live, per_round = figure.subplots(
            2, 2, height_ratios=[2.2, 1]
        ).flatten()
        lowest = 100.0
        for method, rounds in histories.items():
            accuracy = [100 * each.test_acc for each in rounds]
            payloads = np.array([each.down_payload + each.up_payload for each in rounds])
            numbers = [each.round for each in rounds]
            look = {"color": METHODS[method].color, "label": METHODS[method].label}
            over_rounds.plot(numbers, accuracy, **look)
            over_bytes.plot(np.cumsum(payloads) / 1e6, accuracy, **look)
            # a round is played with what was live after the one before
            live.plot(numbers, [100.0, *(100 * each.live for each in rounds[:-1])], **look)
            per_round.plot(numbers, payloads / 1e6, **look)
            lowest = min(lowest, np.percentile(accuracy, 10))
        over_rounds.set_ylim(bottom=lowest - 2)
        over_bytes.sharey(over_rounds)
        over_rounds.set_ylabel("Test accuracy (%)")
        over_rounds.set_xlabel("Round")
        over_bytes.set_xlabel("MB sent so far, all clients, both ways")
        over_bytes.legend(loc="lower right")
        live.set_ylabel("Live weights (%)")
        live.set_ylim(0, 105)
        per_round.set_ylabel("MB a round")
        per_round.set_ylim(bottom=0)
        for axes in (live, per_round):
            axes.set_xlabel("Round")
        which = settings.partition
        which += f", α = {settings.alpha:g}" if which == "dirichlet" else ""
        figure.suptitle(
            f"{settings.model} on {settings.dataset}, {settings.clients} clients, {which}",
            fontsize=11,
        )
        save(figure, path)
