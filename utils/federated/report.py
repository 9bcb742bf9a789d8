"""The figures of federated runs: rounds.csv, and summary.json of one run or of several seeds."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from statistics import fmean, stdev

from utils.federated.contenders import Contender
from utils.federated.equal_bytes import FEDAVG, decisive, means, opponent, whole
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
    FedAvg's serialised bytes; it is None unless FedAvg was run, too. "lost" tells whether clients
    elsewhere lost what they had still to say, as they do where a run is stopped. For "within" and
    "bytes_to" see `decisive`; "fedavg_bytes" is what 100 % are there, "fedavg_end" what is to be
    reached.
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
            "lost": any(each.lost for each in rounds),
            "seconds": round(sum(each.seconds for each in rounds), 3),
        } | decided[name]
    plain = figures.get(FEDAVG)
    for own in figures.values():
        own["wire_share"] = own["wire"] / max(1, plain["wire"]) if plain else None
    return {
        "settings": asdict(settings),
        "n_weights": n_weights,
        "fedavg_bytes": whole(settings, histories, n_weights),
        "fedavg_end": float(means(histories[FEDAVG])[-1]) if plain else None,
        "methods": figures,
    }


def over_seeds(seeds: Sequence[int], summaries: Sequence[dict]) -> dict:
    """Compute the figures of equal runs with several seeds: of each, the values in their order,
    the mean, and the sample standard deviation (None for one seed); the mean is None of what not
    all runs reached.

    Contenders that not all runs have are left out. Accuracies have their differences to those of
    FedAvg, at the same transport if it was run, paired by seed, with 95 % intervals.
    """
    first = summaries[0]
    figures = {}
    for name in shared(summaries):
        own = {"label": first["methods"][name]["label"]}
        for key in ("last", MEAN_LAST, "best", "down", "up", "share", "wire"):
            own[key] = _spread([summary["methods"][name][key] for summary in summaries])
        own["lost"] = [summary["methods"][name]["lost"] for summary in summaries]
        for group in ("within", "bytes_to"):
            own[group] = {
                key: _spread([summary["methods"][name][group].get(key) for summary in summaries])
                for key in first["methods"][name][group]
            }
        figures[name] = own
    for name, own in figures.items():
        own["compared_with"] = opponent(name, figures)
        if own["compared_with"] is None:
            continue
        for mine, other in _compared(own, figures[own["compared_with"]]):
            if mine["mean"] is not None and other["mean"] is not None:
                found = paired_difference(mine["values"], other["values"])
                mine["minus_fedavg"] = {"mean": found.mean, "interval": found.interval}
    settings = {key: value for key, value in first["settings"].items() if key != "seed"}
    return {
        "settings": settings | {"seeds": list(seeds)},
        "n_weights": first["n_weights"],
        "fedavg_bytes": _spread([summary["fedavg_bytes"] for summary in summaries]),
        "fedavg_end": _spread([summary["fedavg_end"] for summary in summaries]),
        "methods": figures,
    }


def shared(summaries: Sequence[dict]) -> list[str]:
    """Name the contenders that all summaries have."""
    return [
        name
        for name in summaries[0]["methods"]
        if all(name in summary["methods"] for summary in summaries)
    ]


def _compared(own: dict, theirs: dict) -> list[tuple[dict, dict]]:
    """Pair one contender's accuracies with another's."""
    pairs = [(own[key], theirs[key]) for key in ("last", MEAN_LAST)]
    return pairs + [(own["within"][mark], theirs["within"][mark]) for mark in own["within"]]


def _spread(values: Sequence[float | None]) -> dict:
    """Describe values over seeds; without a mean if one of them is None."""
    if None in values:
        return {"mean": None, "std": None, "values": list(values)}
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
