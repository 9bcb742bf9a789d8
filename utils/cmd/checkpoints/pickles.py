"""Pickles read as data: no class or function that they name is ever looked up.

Python's own unpickler written in Python is the base. Unlike the one in C, it takes no memory for
numbers that a pickle only claims, and each step that could call something can be replaced.
"""

import pickle
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO, ClassVar

from .faults import DamagedError

MOST_DIMENSIONS = 64  # torch's own limit

SCALARS = (str, int, float, bytes, bool, type(None))


class Global:
    """The name of a class or function, which stands in for it."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name


class Foreign:
    """What stands in for an object that a pickle makes by code: inert.

    Attributes:
        name: the class or function, in full.
        args: what it was called with.
        state: what the object was given after it was made.
        entries: the items set in it, for kinds of dictionaries.
    """

    __slots__ = ("args", "entries", "name", "state")

    def __init__(self, name: str, args: Any = ()) -> None:
        self.name, self.args, self.state = name, args, None
        self.entries: dict = {}

    def fields(self) -> dict:
        """The attributes of an ordinary object."""
        states = self.state if isinstance(self.state, tuple) else (self.state,)
        return {k: v for state in states if isinstance(state, dict) for k, v in state.items()}


class Unpickler(pickle._Unpickler):
    """Reads one pickle.

    Args:
        build: what to make of a call, by the name called; others become Foreign.
        stored: what to make of a reference to something outside the pickle.
    """

    dispatch: ClassVar = dict(pickle._Unpickler.dispatch)

    def __init__(
        self,
        file: BinaryIO,
        build: Mapping[str, Callable] | None = None,
        stored: Callable[[Any], Any] | None = None,
    ) -> None:
        super().__init__(file, encoding="utf-8", errors="backslashreplace")
        self._build, self._stored = build or {}, stored

    def find_class(self, module: str, name: str) -> Global:
        return Global(f"{module}.{name}")

    def persistent_load(self, pid: Any) -> Any:
        if self._stored is None:
            raise DamagedError("its pickle refers to something outside itself")
        return self._stored(pid)

    def made(self, called: Any, args: Any) -> Any:
        """What a call becomes: nothing runs but the functions given."""
        name = called.name if isinstance(called, Global) else type(called).__name__
        if name in self._build and isinstance(called, Global) and isinstance(args, tuple):
            return self._build[name](*args)
        return Foreign(name, args)

    def _instantiate(self, klass: Any, args: Any) -> None:
        self.append(self.made(klass, tuple(args)))

    def load_reduce(self) -> None:
        args = self.stack.pop()
        self.stack[-1] = self.made(self.stack[-1], args)

    def load_newobj_ex(self) -> None:
        self.stack.pop()  # arguments by name
        self.load_reduce()

    def load_build(self) -> None:
        state = self.stack.pop()
        if isinstance(self.stack[-1], Foreign):
            self.stack[-1].state = state

    def load_append(self) -> None:
        self._extend([self.stack.pop()])

    def load_appends(self) -> None:
        self._extend(self.pop_mark())

    def _extend(self, items: list) -> None:
        if isinstance(self.stack[-1], list):
            self.stack[-1].extend(items)

    def load_setitem(self) -> None:
        value = self.stack.pop()
        self._set([self.stack.pop(), value])

    def load_setitems(self) -> None:
        self._set(self.pop_mark())

    def _set(self, items: list) -> None:
        target = self.stack[-1]
        target = target.entries if isinstance(target, Foreign) else target
        if isinstance(target, dict):
            target.update(_pairs(items))

    def load_dict(self) -> None:
        items = self.pop_mark()  # before `append` is looked up, which it changes
        self.append(_pairs(items))

    def load_empty_set(self) -> None:
        self.append(Foreign("builtins.set"))

    def load_additems(self) -> None:
        self.pop_mark()

    def load_frozenset(self) -> None:
        items = self.pop_mark()
        self.append(Foreign("builtins.frozenset", tuple(items)))

    def load_extension(self) -> None:
        raise DamagedError("its pickle uses the registry of extensions")

    def load_bytes(self) -> None:
        length = int.from_bytes(self.read(8), "little")
        self.append(self.read(length))

    dispatch.update(
        {
            pickle.REDUCE[0]: load_reduce,
            pickle.NEWOBJ[0]: load_reduce,
            pickle.NEWOBJ_EX[0]: load_newobj_ex,
            pickle.BUILD[0]: load_build,
            pickle.APPEND[0]: load_append,
            pickle.APPENDS[0]: load_appends,
            pickle.SETITEM[0]: load_setitem,
            pickle.SETITEMS[0]: load_setitems,
            pickle.DICT[0]: load_dict,
            pickle.EMPTY_SET[0]: load_empty_set,
            pickle.ADDITEMS[0]: load_additems,
            pickle.FROZENSET[0]: load_frozenset,
            pickle.EXT1[0]: load_extension,
            pickle.EXT2[0]: load_extension,
            pickle.EXT4[0]: load_extension,
            pickle.BYTEARRAY8[0]: load_bytes,
        }
    )


def _pairs(items: list) -> dict:
    return {_key(key): value for key, value in zip(items[::2], items[1::2], strict=True)}


def _key(key: Any) -> Any:
    """A key that takes no time to hash, as nested tuples can; others matter to nobody."""
    if isinstance(key, (*SCALARS, Foreign)):
        return key
    if isinstance(key, tuple) and all(isinstance(item, SCALARS) for item in key):
        return key
    return Foreign(type(key).__name__)


def dictionary(*args: Any) -> dict:
    """A dictionary of whatever kind, from what its class was called with."""
    if args and isinstance(args[0], dict):
        return args[0]
    pairs: list = []
    if args and isinstance(args[0], list):
        # emptied, for a pickle that makes a dictionary of one list again and again would grow
        pairs, args[0][:] = args[0][:], []
    return {_key(key): value for key, value in pairs}


def sizes(numbers: Any = ()) -> tuple[int, ...]:
    """A torch.Size."""
    if len(numbers) > MOST_DIMENSIONS or not all(type(number) is int for number in numbers):
        raise DamagedError("a shape holds something else than numbers")
    return tuple(numbers)


CONTAINERS: dict[str, Callable] = {
    "collections.OrderedDict": dictionary,
    "collections.defaultdict": lambda *args: dictionary(*args[1:]),
    "builtins.dict": dictionary,
    "__builtin__.dict": dictionary,
    "torch.Size": sizes,
}


def unpickled(
    file: BinaryIO,
    build: Mapping[str, Callable] | None = None,
    stored: Callable[[Any], Any] | None = None,
) -> Any:
    """What a pickle holds: containers, numbers and text as they are, all else as Foreign.

    Args:
        build: more calls than those of containers, as for Unpickler.
        stored: as for Unpickler.

    Raises DamagedError if it is incomplete or contradicts itself.
    """
    try:
        return Unpickler(file, {**CONTAINERS, **(build or {})}, stored).load()
    except (DamagedError, OSError):
        raise
    except Exception as error:  # a damaged pickle can raise any type
        raise DamagedError("its pickle is damaged") from error
