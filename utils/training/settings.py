"""What a result depends on, and the environment it was obtained in."""

import platform
from collections.abc import Collection
from dataclasses import MISSING, asdict, dataclass, fields

import numpy as np
import scipy
import sklearn
import torch
import torchvision

from utils.system.devices import processor_name


@dataclass(frozen=True)
class Settings:
    """Everything that the numbers of a run depend on; two runs with equal settings are one.

    optimizer, lr, momentum, scheduler: of the training; momentum is None for Adam. epochs: T.
    modes, samples: M, K. start, warmup_cmd: the first and last epoch of online CMD's warm-up.
    limit: images of each split, None for all. data: the images' fingerprint. weights: of a
    pretrained model, "imagenet", "none" or a digest of a file's content. precision: of forward and
    backward passes. test_batch_size: None where the test batch is no part of the result.
    lr_warmup: epochs that the learning rate rises for, where the schedule has it rise. The rest is
    of single methods (`Method.own_settings`).
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
    # with what runs had that were made before there was a choice
    precision: str = "fp32"
    test_batch_size: int | None = None
    lr_warmup: int = 5
    memory: float = 10
    embed_memory: float | None = None
    embed_in_place: bool = False
    lawa_epochs: int = 10


def differences(settings, stored: dict, undecided: Collection[str] = ()) -> list[str]:
    """Where settings from a file differ: one phrase each, naming the flag.

    settings: Settings, or another dataclass of flags with the images' fingerprint in `data`.
    undecided: names of settings that nothing stored depends on yet.
    """
    stored = {field.name: field.default for field in fields(settings)} | stored
    phrases = []
    for name, here in asdict(settings).items():
        if name in undecided:
            continue
        if stored[name] is MISSING:
            phrases.append(f"--{name} is {here} here and not recorded there")
        elif stored[name] != here and name == "data":
            phrases.append("the images (--data_dir) are not the same")
        elif stored[name] != here:
            phrases.append(f"--{name} is {here} here and {stored[name]} there")
    return phrases


def environment(device: torch.device, n_ranks: int = 1) -> dict:
    """Versions and hardware, for the record. n_ranks: processes that share the work."""
    libraries = (torch, torchvision, np, scipy, sklearn)
    return {
        "python": platform.python_version(),
        "versions": {library.__name__: library.__version__ for library in libraries},
        "platform": platform.platform(),
        "device": str(device),
        "processor": processor_name(device),
        "threads": torch.get_num_threads(),
        "ranks": n_ranks,
    }
