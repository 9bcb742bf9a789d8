"""The picture of federated runs."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from utils.federated.contenders import Contender
from utils.federated.equal_bytes import sent_so_far
from utils.federated.rounds import Round
from utils.federated.settings import FederatedSettings
from utils.results.pictures.style import STYLE, draw_band, save

Histories = Mapping[str, Sequence[Round]]  # by the contenders' names
FEW = 5  # contenders at the most, for the legend to be among the curves


def plot(settings: FederatedSettings, runs: Sequence[Histories], path: Path) -> None:
    """Draw test accuracy over rounds and over bytes, live weights, and bytes a round.

    Of several runs, the mean over seeds is drawn, with a band of one sample standard deviation to
    either side of the accuracy; contenders that not all runs have are left out.
    """
    names = [name for name in runs[0] if all(name in run for run in runs)]
    with matplotlib.rc_context(STYLE):
        figure = Figure(layout="constrained", figsize=(9.6, 5.2))
        over_rounds, over_bytes, live, per_round = figure.subplots(
            2, 2, height_ratios=[2.2, 1]
        ).flatten()
        lowest = 100.0
        for name in names:
            rounds = [run[name] for run in runs]
            accuracy = 100 * np.array([[each.test_acc for each in own] for own in rounds])
            sent = np.mean([sent_so_far(own) for own in rounds], axis=0) / 1e6
            shares = 100 * np.mean([[each.live for each in own] for own in rounds], axis=0)
            numbers = np.array([each.round for each in rounds[0]])
            contender = Contender.named(name)
            look = contender.look | {"label": contender.label}
            draw_band(over_rounds, numbers, accuracy, **look)
            draw_band(over_bytes, sent, accuracy, **look)
            if shares.min() < 100 or len(names) == 1:
                # a round is played with what was live after the one before
                live.plot(numbers, [100.0, *shares[:-1]], **look)
            per_round.plot(numbers, np.diff(sent, prepend=0), **look)
            lowest = min(lowest, np.percentile(accuracy, 10))
        over_rounds.set_ylim(bottom=lowest - 2)
        over_bytes.sharey(over_rounds)
        over_bytes.set_xscale("log")
        over_bytes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        over_bytes.xaxis.set_major_formatter("{x:g}")
        over_bytes.xaxis.set_minor_formatter(NullFormatter())
        over_rounds.set_ylabel("Test accuracy (%)")
        over_rounds.set_xlabel("Round")
        over_bytes.set_xlabel("MB sent so far, all clients, both ways")
        if len(names) <= FEW:
            over_bytes.legend(loc="lower right")
        else:
            figure.set_figwidth(11.4)
            figure.legend(*over_bytes.get_legend_handles_labels(), loc="outside right upper")
        live.set_ylabel("Live weights (%)")
        live.set_ylim(0, 105)
        per_round.set_ylabel("MB a round")
        per_round.set_ylim(bottom=0)
        for axes in (live, per_round):
            axes.set_xlabel("Round")
        which = settings.partition
        which += f", α = {settings.alpha:g}" if which == "dirichlet" else ""
        which += f", {len(runs)} seeds" if len(runs) > 1 else ""
        figure.suptitle(
            f"{settings.model} on {settings.dataset}, {settings.clients} clients, {which}",
            fontsize=11,
        )
        save(figure, path)
