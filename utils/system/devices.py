"""The device to compute on."""

import platform
from pathlib import Path

import torch

from utils.system.errors import UserError


def choose_device(name: str) -> torch.device:
    """Return the device by name, with its number; "auto" is CUDA where there is one, else the CPU.

    Raises UserError if the device is not available.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.empty(1, device=torch.device(name)).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"--device {name}: not available here ({reason}); try cpu") from error
    if device.type == "meta":
        raise UserError(f"--device {name}: it has no numbers; try cpu")
    return device


def processor_name(device: torch.device) -> str:
    """Return the name of a GPU, or of the CPU as the system reports it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(": ")[1]
    return platform.processor() or platform.machine()
