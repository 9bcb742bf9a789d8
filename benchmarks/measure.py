"""Measure the time and the peak of anonymous memory of calls, in processes of their own."""

import multiprocessing
import platform
import statistics
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from datetime import date
from pathlib import Path
from typing import Any

import torch

from utils.system.devices import choose_device, processor_name
from utils.system.errors import UserError

STATUS = Path("/proc/self/status")


def alone(function: Callable, *arguments: Any) -> Any:
    """Return the result of `function` in a fresh process.

    Raises:
        UserError: the process was killed, which is what happens when memory runs out.
    """
    print(f"… {function.__name__.strip('_').replace('_', ' ')}", file=sys.stderr, flush=True)
    context = multiprocessing.get_context("spawn")
    try:
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            return pool.submit(function, *arguments).result()
    except BrokenProcessPool as error:
        raise UserError(f"{function.__name__} was killed: is there enough memory?") from error


def anonymous_memory() -> int:
    """Count the bytes of this process's memory that no file backs (on Linux; elsewhere 0)."""
    if not STATUS.exists():
        return 0
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith("RssAnon"))
    return 1024 * int(line.split()[1])


def clock(device: torch.device) -> float:
    """Return the time in seconds, once the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


class Measured:
    """The time and memory of a block.

    Attributes:
        seconds: how long the block took.
        peak: the most anonymous memory that it held beyond what was held before it, in bytes.
    """

    def __enter__(self) -> "Measured":
        self._before = self._highest = anonymous_memory()
        self._done = threading.Event()
        self._watch = threading.Thread(target=self._sample)
        self._watch.start()
        self._start = time.perf_counter()
        return self

    def __exit__(self, *_) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.seconds = time.perf_counter() - self._start
        self._done.set()
        self._watch.join()
        self._look()
        self.peak = self._highest - self._before

    def _sample(self) -> None:
        while not self._done.wait(0.005):
            self._look()

    def _look(self) -> None:
        self._highest = max(self._highest, anonymous_memory())


def repeated(function: Callable[[], Any], times: int) -> tuple[float, int, Any]:
    """Return the median seconds and highest peak of `times` calls, and the last call's result."""
    runs = []
    for _ in range(times):
        result = None  # frees what the call before has returned
        with Measured() as measured:
            result = function()
        runs.append(measured)
    return statistics.median(run.seconds for run in runs), max(run.peak for run in runs), result


def environment(name: str) -> str:
    """Describe the hardware and the versions in one line, for the record.

    Raises:
        UserError: there is no such device.
    """
    device = choose_device(name)
    cuda = f"CUDA {torch.version.cuda}, " if device.type == "cuda" else ""
    return (
        f"{processor_name(device)}, {torch.get_num_threads()} threads, "
        f"torch {torch.__version__}, {cuda}"
        f"Python {platform.python_version()}, {date.today().isoformat()}"
    )
