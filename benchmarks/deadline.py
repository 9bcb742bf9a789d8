"""Processes of their own that are ended when their time is up, and the time that is left."""

import contextlib
import multiprocessing
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

GRACE = 10.0  # seconds in which a command that is asked to end has to
PAUSE = 0.1  # seconds between looks at a command
START = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"


class Budget:
    """A number of seconds from now on."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    def left(self) -> float:
        return max(0.0, self._end - time.monotonic())


@dataclass(frozen=True)
class Outcome:
    """What came of work that may have been ended early.

    Attributes:
        found: what it yielded.
        problem: why there is no more, "" where it came to its end.
    """

    found: list
    problem: str = ""


def within(seconds: float, work: Callable[..., Iterable], *arguments: Any) -> Outcome:
    """Collect what `work` yields in a process of its own, which is ended after so many seconds.

    What was yielded before an error, a crash or the end of the time is kept.
    """
    context = multiprocessing.get_context(START)
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send_all, args=(sender, work, arguments))
    found, budget = [], Budget(seconds)
    process.start()
    sender.close()
    try:
        while receiver.poll(budget.left()):
            is_value, given = receiver.recv()
            if not is_value:
                return Outcome(found, given)
            found.append(given)
        return Outcome(found, f"cut at {seconds:.0f} s")
    except EOFError:
        process.join()
        return Outcome(found, f"crashed: {_ending(process.exitcode)}")
    finally:
        process.kill()
        process.join()
        receiver.close()


def _send_all(sender: Connection, work: Callable[..., Iterable], arguments: tuple) -> None:
    """Send each value that `work` yields, and at the end what went wrong or ""."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that reads this ends it
    try:
        for value in work(*arguments):
            sender.send((True, value))
        sender.send((False, ""))
    except Exception as error:
        sender.send((False, failure(error)))


def failure(error: Exception) -> str:
    """Describe an error in one line."""
    first = next(iter(str(error).splitlines()), "")
    return f"failed: {type(error).__name__}: {first}".rstrip(": ")


def command_within(seconds: float, command: Sequence[str], log: Path) -> str:
    """Run a command, which is ended after so many seconds.

    Args:
        seconds: in all; it is asked to end, by SIGTERM, GRACE seconds before.
        command: the program and its arguments.
        log: the file that gets all it prints.

    Returns:
        What went wrong, or that it was cut; "" where it ended well.
    """
    budget = Budget(seconds - GRACE)
    with log.open("wb") as file, _group(command, file) as process:
        while process.poll() is None and budget.left():
            time.sleep(PAUSE)
        if process.poll() is None:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(GRACE)
            return f"cut at {seconds:.0f} s"
    if process.returncode == 0:
        return ""
    lines = log.read_text(errors="replace").split("\n")
    last = next((line for line in reversed(lines) if line.strip()), "")
    return f"{_ending(process.returncode)}: {last}".rstrip(": ")


@contextlib.contextmanager
def _group(command: Sequence[str], output: Any) -> Iterator[subprocess.Popen]:
    """Provide a running command, and end it with all that it started when the block ends."""
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
        start_new_session=True,
    )  # fmt: skip
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _ending(code: int) -> str:
    if code < 0:
        hint = ", is there enough memory?" if -code == signal.SIGKILL else ""
        return f"killed by {signal.Signals(-code).name}{hint}"
    return f"exit code {code}"
