"""Writing while the next epoch trains."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch


class Background:
    """Runs calls one after another, in the order given, in a thread of its own.

    On CUDA the thread has a stream of its own, so that its copies to the host wait for the work
    launched before the call was given, not for later work.
    """

    def __init__(self, device: torch.device) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="writer")
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._last: Future | None = None

    def submit(self, call: Callable, *arguments: Any) -> None:
        """Queue a call, whose tensor arguments must not change until it was made.

        If an earlier call raised, later ones are not made, and `wait` raises its error.
        """
        before, ready = self._last, None
        if self._stream is not None:
            ready = torch.cuda.current_stream(self._stream.device).record_event()
        self._last = self._pool.submit(self._make, before, ready, call, arguments)

    def wait(self) -> None:
        """Wait until all calls given so far were made; raise what one of them raised."""
        if self._last is not None:
            self._last.result()

    def close(self) -> None:
        """Finish the calls given so far, and raise nothing."""
        self._pool.shutdown(wait=True)

    def _make(
        self,
        before: Future | None,
        ready: torch.cuda.Event | None,
        call: Callable,
        arguments: tuple,
    ) -> None:
        if before is not None:
            before.result()
        with torch.cuda.stream(self._stream):  # does nothing where there is none
            if ready is not None:
                self._stream.wait_event(ready)
            call(*arguments)
