"""Ctrl-C and SIGTERM where an exception that they raise would not get through.

This module does without torch, so that a command can call `end_quietly` before it imports
anything large.
"""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

SIGNALS = (signal.SIGINT, signal.SIGTERM)
Handler = Callable | int | None  # as signal.getsignal returns it


@contextlib.contextmanager
def held_back() -> Iterator[None]:
    """Hold SIGINT and SIGTERM back within a block; they take effect at its end.

    Python handles signals in its main thread; in any other thread this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    with handled(dict.fromkeys(SIGNALS, lambda number, _: came.append(number))):
        yield
    for number in came[:1]:
        signal.raise_signal(number)


@contextlib.contextmanager
def handled(handlers: dict[int, Handler]) -> Iterator[None]:
    """Give signals these handlers within a block, except signals that are ignored."""
    before = {number: signal.getsignal(number) for number in handlers}
    try:
        _handle(handlers)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def end_quietly() -> None:
    """Let SIGINT and SIGTERM, unless ignored, end this process at once from now on, with one line
    and exit code 130 or 143."""
    _handle(dict.fromkeys(SIGNALS, _end))


def leave(code: int) -> NoReturn:
    """End the process, whose work is done, and ignore signals meanwhile."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    sys.exit(code)


def _handle(handlers: dict[int, Handler]) -> None:
    for number, handler in handlers.items():
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, handler)


def _end(number: int, _) -> NoReturn:
    if int(os.environ.get("RANK", "0")) == 0:  # of several processes only the first prints
        os.write(2, f"{Path(sys.argv[0]).name}: interrupted\n".encode())
    os._exit(128 + number)
