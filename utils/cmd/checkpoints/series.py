"""Which files are the moments of a training run, and in which order."""

import itertools
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import InputError
from .folders import is_trainers

# what this package's command writes
PARAMETERS, RECONSTRUCTED, SAMPLED = "cmd.safetensors", "reconstructed", "sampled.safetensors"
NUMBER = re.compile(r"(?:(?<==)-)?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?")
LABEL = re.compile(r"(?<![A-Za-z0-9])([A-Za-z]+)[^A-Za-z0-9]*$")  # the word before a number
ENDING = re.compile(r"\.(?:pth\.tar|pt|pth|bin|ckpt|safetensors)$")
SHARD = re.compile(r"-\d+-of-\d+\.(?:safetensors|bin)$|\.distcp$")
# the words before a number that say what it counts: all of the first two, the coarser first, or
# else the third
TIMES = (
    ("epoch", "epochs", "ep", "e"),
    ("step", "steps", "iteration", "iterations", "iter", "iters", "it", "update", "updates"),
)  # fmt: skip
OTHER_TIMES = ("checkpoint", "ckpt")
SCORES = ("loss", "acc", "accuracy", "val", "score", "ppl", "perplexity", "top", "lr", "f", "auc",
          "bleu", "map", "error", "err")  # fmt: skip
DAY_FIRST = re.compile(r"(?<!\d)\d{1,2}[-_.]\d{1,2}[-_.](?:19|20)\d\d(?!\d)")
DEEPEST = 5  # folders within folders that are searched


@dataclass(frozen=True)
class Moment:
    """A checkpoint of a series.

    Attributes:
        path: a file, or a folder that is one checkpoint.
        when: the numbers in its path that order it.
    """

    path: Path
    when: tuple[int | float, ...] = ()


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
        moments = [Moment(path, when) for path, when in _dated(found, strict=False)]
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
        flags = {"--from": first, "--to": to, "--every": every if every > 1 else None,
                 "--last": last}  # fmt: skip
        given = " ".join(f"{flag} {value:g}" for flag, value in flags.items() if value is not None)
        raise InputError(
            f"{given}: {len(moments)} of {len(series.moments)} checkpoints are left, and two are "
            f"the least; their numbers go from {_told(series.moments[0])} to "
            f"{_told(series.moments[-1])}"
        )
    return Series(moments, series.notes)


def _told(moment: Moment) -> str:
    return " / ".join(str(number) for number in moment.when) or moment.path.name


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
        return _numbered_file(path, is_checkpoint) if itself else []
    inside: list[Path] = []
    for entry in sorted(path.iterdir()):
        if not entry.name.startswith("."):
            inside += _checkpoints(entry, is_checkpoint, False, depth + 1)
    parts = [entry for entry in inside if _is_part(entry, path)]
    if itself and len(parts) == len(inside):
        return [path]
    return inside


def _numbered_file(folder: Path, is_checkpoint: Callable[[Path], bool]) -> list[Path]:
    """The one file of a folder that is a checkpoint, if its name bears a number, such as the step,
    and the folder is not a trainer's; else the folder."""
    if is_trainers(folder):
        return [folder]
    named = [
        entry
        for entry in folder.iterdir()
        if ENDING.search(entry.name) and NUMBER.search(ENDING.sub("", entry.name))
    ]
    if len(named) == 1 and not SHARD.search(named[0].name) and is_checkpoint(named[0]):
        return named
    return [folder]


def _is_part(entry: Path, folder: Path) -> bool:
    """Whether a file is a shard of the checkpoint that its folder is."""
    return entry.parent == folder and SHARD.search(entry.name) is not None


def _whole(found: Iterable[Path]) -> list[Path]:
    """The checkpoints, the folder in place of shards that were given one by one."""
    whole: list[Path] = []
    for path in found:
        shard = SHARD.search(path.name) is not None and path.is_file()
        if not shard:
            whole.append(path)
        elif path.parent not in whole:
            whole.append(path.parent)
    return whole


def _without_own(found: list[Path], notes: list[str]) -> list[Path]:
    """Leave out what this package's command wrote."""
    kept = []
    for path in found:
        named = path.name in (PARAMETERS, SAMPLED) or path.name.startswith(RECONSTRUCTED)
        if (path / PARAMETERS).exists() or (named and (path.parent / PARAMETERS).exists()):
            notes.append(f"set aside: {path} was made by CMD")
        else:
            kept.append(path)
    return kept


def _without_same(found: list[Path], notes: list[str]) -> list[Path]:
    """Leave out other names, such as links, of files that are there already."""
    kept: dict[tuple[int, int], Path] = {}
    # a link after what it stands for, whatever their order
    for path in sorted(found, key=lambda path: path.is_symlink()):
        place = path.stat().st_dev, path.stat().st_ino
        if place in kept:
            notes.append(f"set aside: {path} is the same as {kept[place]}")
        else:
            kept[place] = path
    chosen = set(kept.values())
    return [path for path in dict.fromkeys(found) if path in chosen]


def _largest_group(found: list[Path], notes: list[str], given: Sequence[Path]) -> list[Path]:
    """The paths that are alike but for their numbers; the others are set aside.

    Raises InputError if there are two groups of several.
    """
    groups: dict[str, list[Path]] = defaultdict(list)
    for path in found:
        groups[NUMBER.sub("#", ENDING.sub("", _text(path)))].append(path)
    series = [group for group in groups.values() if len(group) > 1]
    if len(series) > 1:
        raise InputError(
            f"CHECKPOINT {given[0]}: there are two series, as {series[0][0]} and as "
            f"{series[1][0]}: give the files of one"
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


def _text(path: Path) -> str:
    """A path in the one spelling that its folder has."""
    return str(path.parent.resolve() / path.name)


@dataclass(frozen=True)
class Column:
    """A number that differs between the paths.

    Attributes:
        label: the word before it.
        depth: the part of the path that it is in.
        values: what it is in each path.
        whole: whether all of them are whole numbers.
        texts: how they are written.
    """

    label: str
    depth: int
    values: tuple[int | float, ...]
    whole: bool
    texts: tuple[str, ...]


def _dated(
    paths: Sequence[Path], strict: bool = True
) -> list[tuple[Path, tuple[int | float, ...]]]:
    """Each path with the numbers that order it: those that count epochs and steps, if any are named
    so, else all whole ones that differ between the paths but scores, else all others.

    Raises InputError, if it is strict, where the numbers do not tell the order.
    """
    columns = _columns(paths)
    if columns is None:  # not alike, as they were given
        return [(path, ()) for path in paths]
    timed = [column for words in TIMES for column in columns if column.label in words]
    timed = timed or [column for column in columns if column.label in OTHER_TIMES]
    plain = [column for column in columns if column.label not in SCORES]
    chosen = timed or [column for column in plain if column.whole] or plain or columns
    if strict:
        _require_one_run(paths, columns, chosen)
        _require_clear(paths, chosen)
    return [(path, tuple(column.values[at] for column in chosen)) for at, path in enumerate(paths)]


def _columns(paths: Sequence[Path]) -> list[Column] | None:
    """The numbers that differ between paths, in their order; None where the paths are not alike."""
    texts = [ENDING.sub("", _text(path)) for path in paths]
    found = [list(NUMBER.finditer(text)) for text in texts]
    if len({len(each) for each in found}) != 1:
        return None
    columns = []
    for matches in zip(*found, strict=True):
        written = tuple(match.group() for match in matches)
        if len(set(written)) > 1:
            before = texts[0][: matches[0].start()]
            label = LABEL.search(before)
            whole = all(text.isdigit() for text in written)
            columns.append(
                Column(
                    label.group(1).lower() if label else "",
                    before.count("/"),
                    tuple(int(text) if text.isdigit() else float(text) for text in written),
                    whole,
                    written,
                )
            )
    return columns


def _require_one_run(
    paths: Sequence[Path], columns: Sequence[Column], chosen: Sequence[Column]
) -> None:
    """Raise InputError if another number, or that of a folder, tells several series apart."""
    ordering = chosen[-1].depth if chosen else 0
    for column in columns:
        apart = column not in chosen or column.depth != ordering
        if not (apart and column.whole) or column.label in SCORES:
            continue
        sizes = Counter(column.values)
        if len(sizes) > 1 and max(sizes.values()) > 1:
            one, other = (column.values.index(value) for value in list(sizes)[:2])
            raise InputError(
                f"CHECKPOINT {paths[0]}: there are two series, as {paths[one]} and as "
                f"{paths[other]}: give the files of one, or all in their order with --as_given"
            )


def _require_clear(paths: Sequence[Path], chosen: Sequence[Column]) -> None:
    """Raise InputError if numbers can be read in two ways."""
    for column in chosen:
        lengths = {len(text.partition(".")[2]) for text in column.texts}
        if not column.whole and len(lengths) > 1:
            raise InputError(
                f"CHECKPOINT {paths[0]}: {column.texts[0]} and {column.texts[-1]} can be versions "
                "or decimals: give all files in their order with --as_given"
            )
    if chosen and all(DAY_FIRST.search(path.name) for path in paths):
        raise InputError(
            f"CHECKPOINT {paths[0]}: its date does not begin with the year: give all files in "
            "their order with --as_given"
        )


def _enough(series: Series, given: Sequence[Path]) -> Series:
    if len(series.moments) < 2:
        aside = f" ({'; '.join(series.notes)})" if series.notes else ""
        raise InputError(
            f"CHECKPOINT {given[0]}: {len(series.moments)} checkpoints were found{aside}; two are "
            "the least that move"
        )
    return series
