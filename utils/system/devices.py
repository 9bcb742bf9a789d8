"""Where to compute."""

import platform
from pathlib import Path

import torch

from utils.system.errors import UserError


def choose_device(name: str) -> torch.device:
    """The device by name; "auto" is CUDA where there is one, else the CPU.

    Raises UserError if it is not to be had.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"--device {name}: not to be had here ({reason}); try cpu") from error
    return device


def processor_name(device: torch.device) -> str:
    """What the device calls itself; of a CPU what the system calls it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(": ")[1]
    return platform.processor() or platform.machine()
