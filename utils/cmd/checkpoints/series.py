"""Which files are the moments of a training run, and in which order."""

import itertools
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import InputError

PARAMETERS, RECONSTRUCTED = "cmd.safetensors", "reconstructed"  # what this package's command writes
NUMBER = re.compile(r"\d+(?:\.\d+)?")
SHARD = re.compile(r"-\d+-of-\d+\.(?:safetensors|bin)$|\.distcp$")
# the letters before a number that say what it counts, the coarser first
TIMES = (
    ("epoch", "epochs", "ep", "e"),
    ("step", "steps", "iteration", "iterations", "iter", "iters", "it", "update", "checkpoint",
     "ckpt", "batch"),
)  # fmt: skip
SCORES = ("loss", "acc", "accuracy", "val", "score", "ppl", "perplexity", "top", "lr", "f", "auc",
          "bleu", "map", "error", "err")  # fmt: skip
DEEPEST = 3  # folders within folders that are searched


@dataclass(frozen=True)
class Moment:
    """A checkpoint of a series.

    Attributes:
        path: a file, or a folder that is one checkpoint.
        when: the numbers in its path that order it.
    """

    path: Path
    when: tuple[float, ...] = ()


@dataclass
class Series:
    """The moments of a training run, in their order.

    Attributes:
        moments: the checkpoints.
        notes: a line for each file that was set aside, and for an order that was changed.
    """

    moments: list[Moment]
    notes: list[str] = field(default_factory=list)

    @property
    def paths(self) -> list[Path]:
        return [moment.path for moment in self.moments]


def find_series(
    paths: Sequence[Path], is_checkpoint: Callable[[Path], bool], as_given: bool = False
) -> Series:
    """Find the moments among files and folders.

    The numbers in the paths decide the order. What bears no number of the series, is the same file
    as another of it, holds no weights, or was made by this package, is set aside.

    Args:
        paths: checkpoints, or folders that hold some.
        is_checkpoint: tells whether a file or folder holds the weights of a model.
        as_given: whether to keep the order, and all checkpoints, as they are given.

    Raises:
        InputError: there are not two of them, or it is not clear which ones form the series.
    """
    notes: list[str] = []
    found: list[Path] = []
    for path in paths:
        if not path.exists():
            raise InputError(f"CHECKPOINT {path} is not there")
        candidates = _checkpoints(path, is_checkpoint, expand=len(paths) == 1)
        if not candidates:
            notes.append(f"set aside: {path} holds no weights")
        found += candidates
    found = _without_own(_whole(found), notes)
    if as_given:
        moments = [Moment(path, when) for path, when in _dated(found)]
        if [m.when for m in moments] != sorted(m.when for m in moments):
            notes.append("the order is that given, against the numbers in the names")
        return _enough(Series(moments, notes), paths)

    members = _largest_group(_without_same(found, notes), notes, paths)
    moments = [Moment(path, when) for path, when in _dated(members)]
    ordered = sorted(moments, key=lambda moment: moment.when)
    for one, other in itertools.pairwise(ordered):
        if one.when == other.when:
            raise InputError(
                f"CHECKPOINT {one.path} and {other.path} bear the same number: leave one out, or "
                "give all files in their order with --as_given"
            )
    if ordered != moments and len(paths) > 1:
        notes.append("taken in the order of their numbers, not as given (--as_given keeps that)")
    return _enough(Series(ordered, notes), paths)


def choose(
    series: Series,
    first: float | None = None,
    to: float | None = None,
    every: int = 1,
    last: int | None = None,
) -> Series:
    """Choose a part of a series.

    Args:
        first: the least number that counts (--from), the first one of each moment's `when`.
        to: the largest (--to).
        every: takes every so manieth of those, the last one included.
        last: takes so many of those, the last ones.

    Raises:
        InputError: fewer than two are left.
    """
    moments = [
        moment
        for moment in series.moments
        if (first is None or (moment.when and moment.when[0] >= first))
        and (to is None or (moment.when and moment.when[0] <= to))
    ]
    moments = moments[::-1][::every][::-1]
    moments = moments if last is None else moments[-last:]
    if len(moments) < 2:
        flags = {"--from": first, "--to": to, "--every": every, "--last": last}
        given = " ".join(f"{flag} {value:g}" for flag, value in flags.items() if value is not None)
        raise InputError(
            f"{given}: {len(moments)} of {len(series.moments)} checkpoints are left, and two are "
            f"the least; their numbers go from {_told(series.moments[0])} to "
            f"{_told(series.moments[-1])}"
        )
    return Series(moments, series.notes)


def _told(moment: Moment) -> str:
    return " / ".join(f"{number:g}" for number in moment.when) or moment.path.name


def _checkpoints(
    path: Path, is_checkpoint: Callable[[Path], bool], expand: bool, depth: int = 0
) -> list[Path]:
    """The checkpoints that a path stands for: itself, or those in it, hidden ones left out.

    Args:
        expand: whether a folder that is a checkpoint, and holds others, stands for these.
    """
    if not path.is_dir():
        return [path] if is_checkpoint(path) else []
    itself = is_checkpoint(path)
    if (itself and not expand) or depth > DEEPEST:
        return [path] if itself else []
    inside: list[Path] = []
    for entry in sorted(path.iterdir()):
        if not entry.name.startswith("."):
            inside += _checkpoints(entry, is_checkpoint, False, depth + 1)
    parts = [entry for entry in inside if _is_part(entry, path)]
    if itself and len(parts) == len(inside):
        return [path]
    return inside


def _is_part(entry: Path, folder: Path) -> bool:
    """Whether a file is a shard of the checkpoint that its folder is."""
    return entry.parent == folder and SHARD.search(entry.name) is not None


def _whole(found: Iterable[Path]) -> list[Path]:
    """The checkpoints, the folder in place of shards that were given one by one."""
    whole = (path.parent if SHARD.search(path.name) and path.is_file() else path for path in found)
    return list(dict.fromkeys(whole))


def _without_own(found: list[Path], notes: list[str]) -> list[Path]:
    """Leave out what this package's command wrote."""
    kept = []
    for path in found:
        folder = path if path.is_dir() else path.parent
        own = path.is_dir() or path.name == PARAMETERS or path.name.startswith(RECONSTRUCTED)
        if own and (folder / PARAMETERS).exists():
            notes.append(f"set aside: {path} was made by CMD")
        else:
            kept.append(path)
    return kept


def _without_same(found: list[Path], notes: list[str]) -> list[Path]:
    """Leave out other names, such as links, of files that are there already."""
    kept: dict[Path, Path] = {}
    # a link after what it stands for, whatever their order
    for path in sorted(found, key=lambda path: path.resolve() != path.absolute()):
        real = path.resolve()
        if real in kept:
            notes.append(f"set aside: {path} is the same as {kept[real]}")
        else:
            kept[real] = path
    chosen = set(kept.values())
    return [path for path in found if path in chosen]


def _largest_group(found: list[Path], notes: list[str], given: Sequence[Path]) -> list[Path]:
    """The paths that are alike but for their numbers; the others are set aside.

    Raises InputError if two groups are equally large.
    """
    groups: dict[str, list[Path]] = defaultdict(list)
    for path in found:
        groups[NUMBER.sub("#", str(path))].append(path)
    ranked = sorted(groups.values(), key=len, reverse=True)
    series = [group for group in ranked if len(group) > 1]
    if len(series) > 1 and len(series[0]) == len(series[1]):
        raise InputError(
            f"CHECKPOINT {given[0]}: there are two series of {len(series[0])} checkpoints, as "
            f"{series[0][0]} and as {series[1][0]}: give the files of one"
        )
    if not series and len(found) > 1:
        raise InputError(
            f"CHECKPOINT {found[0]} and {found[1]} are not alike but for numbers that order them: "
            "give all files in their order with --as_given"
        )
    members = series[0] if series else found
    for path in found:
        if path not in members:
            notes.append(f"set aside: {path} bears no number of the series of {members[0]}")
    return members


def _dated(paths: Sequence[Path]) -> list[tuple[Path, tuple[float, ...]]]:
    """Each path with the numbers that order it: those that count epochs or steps, if any are named
    so, else all that differ between the paths but scores."""
    texts = [str(path) for path in paths]
    rows = [[float(number) for number in NUMBER.findall(text)] for text in texts]
    if len({len(row) for row in rows}) != 1:  # not alike, as they were given
        return [(path, tuple(row[-1:])) for path, row in zip(paths, rows, strict=True)]
    labels = [
        re.search(r"([A-Za-z]*)[^A-Za-z]*$", texts[0][: found.start()]).group(1).lower()
        for found in NUMBER.finditer(texts[0])
    ]
    varying = [at for at in range(len(labels)) if len({row[at] for row in rows}) > 1]
    timed = [at for words in TIMES for at in varying if labels[at] in words]
    plain = [at for at in varying if labels[at] not in SCORES]
    columns = timed or plain or varying
    return [(path, tuple(row[at] for at in columns)) for path, row in zip(paths, rows, strict=True)]


def _enough(series: Series, given: Sequence[Path]) -> Series:
    if len(series.moments) < 2:
        aside = f" ({'; '.join(series.notes)})" if series.notes else ""
        raise InputError(
            f"CHECKPOINT {given[0]}: {len(series.moments)} checkpoints were found{aside}; two are "
            "the least that move"
        )
    return series
