"""Measure what a device itself can do: copies, uploads and products of matrices."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from benchmarks.measure import clock
from utils.system.errors import UserError
from utils.training.precision import BF16, PRECISIONS, Arithmetic, choose_precision

MATRIX = {"cpu": 2048, "cuda": 8192}  # sides of the matrices that measure a device's rate
COPIED = {"cpu": 1 << 28, "cuda": 1 << 30}  # bytes
TIMES = 5  # repeats of which the best counts


@dataclass(frozen=True)
class Rate:
    """How much of something a device does in a second.

    Attributes:
        what: what it does.
        value: the rate, None where the device cannot.
        unit: of the value.
    """

    what: str
    value: float | None
    unit: str


def rates(device_name: str) -> Iterator[Rate]:
    """Yield a device's rates."""
    device = torch.device(device_name)
    yield Rate("copy on the device, read + written", copy_rate(device) / 1e9, "GB/s")
    if device.type == "cuda":
        yield Rate("copy from the host's pinned memory", upload_rate(device) / 1e9, "GB/s")
    for precision in reversed(PRECISIONS):
        try:
            value = matrix_rate(device, choose_precision(precision, device)) / 1e12
        except UserError:
            value = None
        yield Rate(f"product of matrices, {precision}", value, "TFLOP/s")


def copy_rate(device: torch.device) -> float:
    """Measure the bytes a second, read and written, of a copy within the device's memory."""
    source = torch.ones(COPIED.get(device.type, COPIED["cpu"]), dtype=torch.uint8, device=device)
    target = torch.zeros_like(source)
    return 2 * source.nbytes / least(lambda: target.copy_(source), device)


def upload_rate(device: torch.device) -> float:
    """Measure the bytes a second from the host's pinned memory to the device."""
    source = torch.ones(COPIED["cpu"], dtype=torch.uint8).pin_memory()
    target = torch.zeros_like(source, device=device)
    return source.nbytes / least(lambda: target.copy_(source, non_blocking=True), device)


def matrix_rate(device: torch.device, precision: str) -> float:
    """Measure the floating-point operations a second in a product of two large square matrices."""
    side = MATRIX.get(device.type, MATRIX["cpu"])
    dtype = torch.bfloat16 if precision == BF16 else torch.float32
    left = torch.rand(side, side, device=device, dtype=dtype)
    with Arithmetic(precision).products():
        return 2 * side**3 / least(lambda: left @ left, device)


def least(call: Callable[[], object], device: torch.device, times: int = TIMES) -> float:
    """Return the seconds of the fastest of some calls, after one that is not counted."""
    call()
    seconds = []
    for _ in range(times):
        start = clock(device)
        call()
        seconds.append(clock(device) - start)
    return min(seconds)
