"""Which of the things in a checkpoint is the model's state."""

import re
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from ..errors import InputError
from .faults import NoWeightsError
from .pickles import Foreign
from .rebuilt import Unreadable, is_module
from .stored import Stored

# where a file keeps the model's state beside other things
KEYS = ("state_dict", "model_state_dict", "model", "module", "net", "network")
DEEPEST, LONGEST_LIST, MOST_NAMED = 6, 64, 12
# what training keeps beside the model
OTHERS = re.compile(r"(^|_)(optimi[sz]ers?|optims?|sched\w*|scalers?|rng|random)(_|$)", re.I)
# the entries of a file that CMD's callbacks write beside the model, and some of its `cmd`
CALLBACKS, OF_CMD = {"cmd", "step", "update_every"}, {"settings", "n_updates", "reference_history"}
AVERAGED = re.compile(r"(^|[_.])(ema|swa|averaged?|shadow)([_.]|$)", re.I)


def choose(content: Any, key: str | None, path: Path) -> tuple[str, Mapping[Any, Any]]:
    """Find the state to take.

    Args:
        content: what the checkpoint holds.
        key: the dotted key of a state; None is the usual one.
        path: the checkpoint, for messages.

    Returns (the state's dotted key, "" for the content itself; its entries).

    Raises NoWeightsError if there is none, InputError if it takes a key to tell, or the key is of
    none.
    """
    if key is None and _is_callbacks(entries(content)):
        raise NoWeightsError(f"CHECKPOINT {path} holds CMD's state beside a model, and no model")
    found = states(content)
    if key is not None:
        value = at(content, key)
        if not is_state(entries(value)):
            there = listed(name for name in found if name)
            whole = "one without a key: leave --key out" if "" in found else "none"
            raise InputError(f"--key {key}: {path} has no such state; it has {there or whole}")
        return key, entries(value)
    found = {name: held for name, held in found.items() if not AVERAGED.search(name)} or found
    name = _usual(content, found)
    if name is None:
        _require_one(content, found, path)
        (name,) = found
    return name, found.get(name) or entries(at(content, name))


def states(content: Any) -> dict[str, Mapping[Any, Any]]:
    """The states in a checkpoint by their dotted keys.

    A state has tensors of floating-point numbers by name, not all of them single numbers.
    """
    found: dict[str, Mapping[Any, Any]] = {}
    level, seen = [("", content)], set()
    for _ in range(DEEPEST):
        deeper = []
        for path, value in level:
            held = entries(value)
            if "param_groups" in held:  # an optimizer
                continue
            if is_state(held, dimensions=1):
                found[path] = held
            if id(value) in seen:
                continue
            seen.add(id(value))
            deeper += [
                (f"{path}.{name}" if path else f"{name}", child)
                for name, child in held.items()
                if entries(child) and not OTHERS.search(str(name))
            ]
        level = deeper
    return found


def entries(value: Any) -> Mapping[Any, Any]:
    """What a container holds by its keys or places; nothing of other things."""
    if isinstance(value, dict):
        return value
    if isinstance(value, list | tuple):
        return dict(enumerate(islice(value, LONGEST_LIST)))
    return value.entries if isinstance(value, Foreign) else {}


def is_state(held: Mapping[Any, Any], dimensions: int = 0) -> bool:
    """Whether there are tensors of floating-point numbers by name, one of so many dimensions."""
    return any(
        isinstance(name, str)
        and isinstance(entry, Stored)
        and entry.dtype.is_floating_point
        and entry.numel() > 0
        and len(entry.shape) >= dimensions
        for name, entry in held.items()
    )


def at(content: Any, key: str) -> Any:
    """What a dotted key leads to, whose parts may have dots themselves; None is nothing."""
    places = [(content, key)]
    while places:
        value, rest = places.pop()
        if not rest:
            return value
        for name, child in entries(value).items():
            name = str(name)
            if rest == name:
                return child
            if rest.startswith(f"{name}.") and entries(child):
                places.append((child, rest[len(name) + 1 :]))
    return None


def _is_callbacks(held: Mapping[Any, Any]) -> bool:
    """Whether these are the entries of a file that a callback of CMD's wrote."""
    own = {"cmd", "step"} <= held.keys() and held.keys() <= CALLBACKS
    return own and entries(held["cmd"]).keys() >= OF_CMD


def _usual(content: Any, found: Mapping[str, Any]) -> str | None:
    """The key that goes without saying, if there is one."""
    here = entries(content)
    for name in KEYS:
        if name in found or (name in here and is_state(entries(here[name]))):
            return name
    nested = {name.rpartition(".")[0]: name for name in found if _last(name) in KEYS}
    if len(nested) == 1:
        (parent,) = nested
        return next(f"{parent}.{name}" for name in KEYS if f"{parent}.{name}" in found)
    if "" in found or (not found and is_state(here)):
        return ""
    return None


def _last(name: str) -> str:
    return name.rpartition(".")[2] if "." in name else ""


def _require_one(content: Any, found: Mapping[str, Any], path: Path) -> None:
    """Raise what is wrong unless there is one state."""
    if len(found) > 1:
        raise InputError(f"CHECKPOINT {path} holds {len(found)} states: choose one with --key, "
                        f"{listed(found)}")  # fmt: skip
    if found:
        return
    values = [content, *(child for name, child in entries(content).items())]
    if any(is_module(value) for value in values):
        raise InputError(f"CHECKPOINT {path} holds a whole model as an object: torch.load it and "
                        "torch.save its state_dict()")  # fmt: skip
    for value in values:
        for name, child in entries(value).items():
            if isinstance(child, Unreadable):
                raise InputError(f"CHECKPOINT {path} holds no tensor that can be read: of "
                                f"{str(name)!r}, {child.why}")  # fmt: skip
    raise NoWeightsError(f"CHECKPOINT {path} holds no floating-point tensors by name")


def listed(names: Any) -> str:
    """The names, or the first of many and how many more there are."""
    names = list(names)
    more = [f"{len(names) - MOST_NAMED} more"] if len(names) > MOST_NAMED else []
    return ", ".join([*names[:MOST_NAMED], *more])
