"""Where to compute."""

import torch

from utils.errors import UserError


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
