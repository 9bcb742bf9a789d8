"""The figures of federated runs: rounds.csv, and summary.json of one run or of several seeds."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from statistics import fmean, stdev

from utils.federated.contenders import Contender
from utils.federated.equal_bytes import FEDAVG, decisive, whole
from utils.federated.rounds import Round
from utils.federated.settings import FederatedSettings
from utils.results.paired import paired_difference
from utils.storage.files import write_text

LAST = 10  # rounds that the table's mean is over
MEAN_LAST = f"mean_last_{LAST}"


def summarise(
    settings: FederatedSettings, histories: Mapping[str, Sequence[Round]], n_weights: int
) -> dict:
    """Compute the figures of each contender; accuracies are fractions, sizes bytes of all rounds.

    "share" is of what FedAvg's messages would carry, 4 bytes a weight in each. "wire_share" is of
    FedAvg's serialised bytes; it is None unless FedAvg was run, too. For "within" and "bytes_to"
    see `decisive`; "fedavg_bytes" is what 100 % are there.
    """
    figures = {}
    decided = decisive(settings, histories, n_weights)
    for name, rounds in histories.items():
        best = max(rounds, key=lambda each: each.test_acc)
        messages = sum(each.down_messages + each.up_messages for each in rounds)
        down, up = (
            sum(getattr(each, f"{way}_payload") for each in rounds) for way in ("down", "up")
        )
        wire = sum(each.down_wire + each.up_wire for each in rounds)
        figures[name] = {
            "label": Contender.named(name).label,
            "last": rounds[-1].test_acc,
            MEAN_LAST: fmean(each.test_acc for each in rounds[-LAST:]),
            "best": best.test_acc,
            "best_round": best.round,
            "down": down,
            "up": up,
            "share": (down + up) / max(1, 4 * n_weights * messages),
            "wire": wire,
            "seconds": round(sum(each.seconds for each in rounds), 3),
        } | decided[name]
    plain = figures.get(FEDAVG)
    for own in figures.values():
        own["wire_share"] = own["wire"] / plain["wire"] if plain else None
    return {
        "settings": asdict(settings),
        "n_weights": n_weights,
        "fedavg_bytes": whole(settings, histories, n_weights),
        "methods": figures,
    }


def over_seeds(seeds: Sequence[int], summaries: Sequence[dict]) -> dict:
    """Compute the figures of equal runs with several seeds: of each, the values in their order,
    the mean, and the sample standard deviation (None for one seed).

    Those of contenders that not all runs have are left out, and so is what not all runs reached.
    Accuracies have their differences to FedAvg's, paired by seed, with 95 % intervals.
    """
    first = summaries[0]
    figures = {}
    for name in shared(summaries):
        own = {"label": first["methods"][name]["label"]}
        for key in ("last", MEAN_LAST, "best", "down", "up", "share", "wire"):
            own[key] = _spread([summary["methods"][name][key] for summary in summaries])
        for group in ("within", "bytes_to"):
            own[group] = {
                key: _spread([summary["methods"][name][group].get(key) for summary in summaries])
                for key in first["methods"][name][group]
            }
        figures[name] = own
    theirs = figures.get(FEDAVG)
    for own in figures.values() if theirs else ():
        for mine, other in _compared(own, theirs):
            if mine is not None and other is not None and mine is not other:
                found = paired_difference(mine["values"], other["values"])
                mine["minus_fedavg"] = {"mean": found.mean, "interval": found.interval}
    settings = {key: value for key, value in first["settings"].items() if key != "seed"}
    return {
        "settings": settings | {"seeds": list(seeds)},
        "n_weights": first["n_weights"],
        "methods": figures,
    }


def shared(summaries: Sequence[dict]) -> list[str]:
    """Name the contenders that all summaries have."""
    return [
        name
        for name in summaries[0]["methods"]
        if all(name in summary["methods"] for summary in summaries)
    ]


def _compared(own: dict, theirs: dict) -> list[tuple[dict | None, dict | None]]:
    """Pair one contender's accuracies with another's."""
    pairs = [(own[key], theirs[key]) for key in ("last", MEAN_LAST)]
    return pairs + [(own["within"][mark], theirs["within"][mark]) for mark in own["within"]]


def _spread(values: Sequence[float | None]) -> dict | None:
    """Describe values over seeds; None where one of them is."""
    if any(value is None for value in values):
        return None
    std = stdev(values) if len(values) > 1 else None
    return {"mean": fmean(values), "std": std, "values": list(values)}


def write_rounds(histories: Mapping[str, Sequence[Round]], path: Path) -> None:
    """Write all rounds of all contenders, as CSV."""
    names = [field.name for field in fields(Round)]
    lines = [",".join(["method", *names])]
    for method, rounds in histories.items():
        for each in rounds:
            values = ("" if value is None else str(value) for value in asdict(each).values())
            lines.append(",".join([method, *values]))
    write_text("\n".join(lines) + "\n", path)
