"""What a result depends on, and the environment it was obtained in."""

import platform
from collections.abc import Collection
from dataclasses import asdict, dataclass

import numpy as np
import scipy
import sklearn
import torch
import torchvision

from utils.devices import processor_name


@dataclass(frozen=True)
class Settings:
    """Everything that the numbers of a run depend on; two runs with equal settings are one.

    optimizer, lr, momentum, scheduler: of the training; momentum is None for Adam. epochs: T.
    modes, samples: M, K. start, warmup_cmd: the first and last epoch of online CMD's warm-up.
    limit: images of each split, None for all. weights: of a pretrained model. data: the images'
    fingerprint. The rest belongs to one method each (`Method.own_settings`).
    """

    model: str
    dataset: str
    data: str
    limit: int | None
    weights: str | None
    seed: int
    epochs: int
    optimizer: str
    lr: float
    momentum: float | None
    scheduler: str
    batch_size: int
    modes: int
    samples: int
    start: int
    warmup_cmd: int
    embed_window: int
    embed_perc: float
    perc_rel: bool
    warmup_pbfgs: int
    pbfgs_num: int
    pbfgs_batch_size: int
    accumulate: int
    pbfgs_updates: str
    ema_decay: float
    swa_start: int

    def differences(self, stored: dict, undecided: Collection[str] = ()) -> list[str]:
        """Where `stored`, settings from a file, differ: one phrase each, naming the flag.

        undecided: names of settings that nothing stored depends on yet.
        """
        phrases = []
        for name, here in asdict(self).items():
            if name in undecided:
                continue
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
        "python": platform.python_version(),
        "versions": {library.__name__: library.__version__ for library in libraries},
        "platform": platform.platform(),
        "device": str(device),
        "processor": processor_name(device),
        "threads": torch.get_num_threads(),
    }
