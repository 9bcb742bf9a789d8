"""Which tensors of the checkpoints of a series belong together, and which of them are fitted."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from ..errors import InputError
from ..names import DATA_PARALLEL, WRAPPERS, without
from .choosing import listed
from .opened import Opened
from .stored import Stored


@dataclass(frozen=True)
class SeriesLayer:
    """A tensor that is fitted.

    Attributes:
        name: in the last checkpoint.
        moments: its tensor in each checkpoint.
    """

    name: str
    moments: tuple[Stored, ...]

    def numel(self) -> int:
        return self.moments[-1].numel()


@dataclass
class Alignment:
    """What is fitted of a series.

    Attributes:
        layers: the tensors of θ, in the order of the last checkpoint.
        notes: a line for what is not, and is copied from the last checkpoint.
    """

    layers: list[SeriesLayer]
    notes: list[str] = field(default_factory=list)


def align(
    opened: Sequence[Opened], include: Sequence[str] = (), exclude: Sequence[str] = ()
) -> Alignment:
    """Align the tensors of checkpoints by name, without the names of wrappers, and by shape.

    Dense floating-point tensors are fitted, those tied together once. All others, and those that
    patterns leave out, are copied from the last checkpoint.

    Args:
        include: patterns of names, as in shells, with those of wrappers or without; none is all.
        exclude: patterns of names that are left out, also where they are included.

    Raises:
        InputError: a tensor to be fitted is missing from a checkpoint, or has another shape there;
            or there is none; or a pattern matches no name.
    """
    last = opened[-1]
    plain = [_plain_names(each) for each in opened]
    names = _without_prefixes(plain)
    spelled = _spellings(plain, names)
    unread = {entry.partition(": ")[0] for one in opened for entry in one.left_out}
    known = unread.union(*spelled.values())
    for flag, patterns in (("--include", include), ("--exclude", exclude)):
        for pattern in patterns:
            if not _matches(known, [pattern]):
                raise InputError(
                    f"{flag} {pattern}: no tensor has such a name; in CHECKPOINT {last.path} "
                    f"there are {listed(last.tensors)}"
                )
    chosen = {
        name
        for name, spellings in spelled.items()
        if (not include or _matches(spellings, include)) and not _matches(spellings, exclude)
    }
    wanted = {
        name: stored
        for name, stored in names[-1].items()
        if stored.dtype.is_floating_point and stored.numel() and name in chosen
    }
    odd = [name for name, stored in wanted.items() if not stored.plain]
    wanted = {name: stored for name, stored in wanted.items() if stored.plain}
    notes = [f"copied from {last.path}, not fitted: {name} (not dense)" for name in odd]
    for one in opened:
        notes += [f"left out of {one.path}: {entry}" for entry in one.left_out]
    if not wanted:
        raise InputError(
            f"CHECKPOINT {last.path} has no dense floating-point tensor to fit"
            + (" that the patterns choose" if include or exclude else "")
        )
    for one, own in zip(opened[:-1], names[:-1], strict=True):
        _require_same(one, own, last, wanted)
        for name, stored in own.items():
            fits = stored.dtype.is_floating_point and stored.plain and stored.numel()
            if name not in names[-1] and fits and name in chosen:
                raise InputError(
                    f"CHECKPOINT {one.path} has a tensor {name!r}, which {last.path} has not: "
                    "leave it out with --exclude, or the checkpoint"
                )
    layers, seen, places = [], set(), {}
    for name in wanted:
        moments = tuple(own[name] for own in names)
        tied = tuple((stored.place, stored.shape) for stored in moments)
        if tied in seen:
            continue
        if places.setdefault(tied[-1], name) != name:
            raise InputError(
                f"CHECKPOINT {last.path}: {places[tied[-1]]!r} and {name!r} are tied, and not in "
                "all others: leave one out with --exclude"
            )
        seen.add(tied)
        layers.append(SeriesLayer(moments[-1].name, moments))
    return Alignment(layers, notes)


def _require_same(
    one: Opened, own: Mapping[str, Stored], last: Opened, wanted: Mapping[str, Stored]
) -> None:
    """Raise InputError naming the first tensor that a checkpoint has not as the last one has it."""
    for name, stored in wanted.items():
        if name not in own:
            raise InputError(
                f"CHECKPOINT {one.path} has no tensor {name!r}, which {last.path} has: leave it "
                "out with --exclude, or the checkpoint"
            )
        if own[name].shape != stored.shape:
            raise InputError(
                f"CHECKPOINT {one.path}: tensor {name!r} is {list(own[name].shape)}, in "
                f"{last.path} it is {list(stored.shape)}: leave it out with --exclude, or the "
                "checkpoint"
            )
        if not own[name].plain:
            raise InputError(
                f"CHECKPOINT {one.path}: tensor {name!r} is not dense: leave it out with "
                "--exclude, or the checkpoint"
            )


def _plain_names(opened: Opened) -> dict[str, Stored]:
    """The tensors by their names without those of wrappers, where these tell them apart."""
    for parts in ((*WRAPPERS, DATA_PARALLEL), WRAPPERS):
        names = [without(name, parts) for name in opened.tensors]
        if len(set(names)) == len(names):
            return dict(zip(names, opened.tensors.values(), strict=True))
    return dict(opened.tensors)


def _without_prefixes(found: Sequence[dict[str, Stored]]) -> list[dict[str, Stored]]:
    """The tensors of each checkpoint by the names of the last one, where they differ from it by
    what stands before all of their names, as a trainer's `model.` does."""
    last = found[-1]
    aligned = []
    for own in found:
        if own.keys() != last.keys():
            shorter, longer = (last, own) if len(min(own)) > len(min(last)) else (own, last)
            prefix = next(iter(longer)).partition(".")[0] + "."
            if all(name.startswith(prefix) for name in longer):
                stripped = {name.removeprefix(prefix) for name in longer}
                if longer is own and stripped & last.keys():
                    own = {name.removeprefix(prefix): stored for name, stored in own.items()}
                elif longer is last and stripped & shorter.keys():
                    own = {prefix + name: stored for name, stored in own.items()}
        aligned.append(own)
    return aligned


def _spellings(
    plain: Sequence[dict[str, Stored]], names: Sequence[dict[str, Stored]]
) -> dict[str, set[str]]:
    """How each tensor is spelled in the checkpoints, with the names of wrappers and without.

    Args:
        plain: the tensors of each checkpoint by their names without those of wrappers.
        names: the same, in the same order, by the names that align them.
    """
    spelled: dict[str, set[str]] = defaultdict(set)
    for own, aligned in zip(plain, names, strict=True):
        for name, (without_wrappers, stored) in zip(aligned, own.items(), strict=True):
            spelled[name] |= {name, without_wrappers, stored.name}
    return spelled


def _matches(names: Iterable[str], patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for name in names for pattern in patterns)
