"""What a result depends on, and the environment it was obtained in."""

import platform
import sys
from dataclasses import asdict, dataclass

import numpy as np
import scipy
import sklearn
import torch
import torchvision


@dataclass(frozen=True)
class Settings:
    """Everything that the numbers of a run depend on; two runs with equal settings are one.

    lr: the learning rate. epochs: T. modes, samples: M, K. start, warmup_cmd: the first and last
    epoch of online CMD's warm-up. limit: images of each split, None for all. weights: of a
    pretrained model. data: the images' fingerprint.
    """

    model: str
    dataset: str
    data: str
    limit: int | None
    weights: str | None
    seed: int
    epochs: int
    lr: float
    batch_size: int
    modes: int
    samples: int
    start: int
    warmup_cmd: int

    def differences(self, stored: dict) -> list[str]:
        """Where `stored`, settings from a file, differ: one phrase each, naming the flag."""
        phrases = []
        for name, here in asdict(self).items():
            if name not in stored:
                phrases.append(f"--{name} is {here} here and not recorded there")
            elif stored[name] != here and name == "data":
                phrases.append("the images (--data_dir) are not the same")
            elif stored[name] != here:
                phrases.append(f"--{name} is {here} here and {stored[name]} there")
        return phrases


def environment(device: torch.device) -> dict:
    """Versions and hardware, for the record."""
    libraries = (torch, torchvision, np, scipy, sklearn)
    return {
        "command": sys.argv,
        "python": platform.python_version(),
        "versions": {library.__name__: library.__version__ for library in libraries},
        "platform": platform.platform(),
        "device": str(device),
        "processor": torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
    }
