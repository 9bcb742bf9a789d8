"""What a run's weights depend on, and the environment it was obtained in."""

import platform
from collections.abc import Collection, Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from importlib import metadata
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
import scipy
import torch

from utils.base_utils import DOWNLOADED, MODELS, SCRATCH, get_model
from utils.data.datasets import DATASETS
from utils.data.downloads import DOWNLOADS
from utils.storage.sealed import file_digest
from utils.system.arguments import at_least, fraction, positive
from utils.system.devices import processor_name
from utils.system.errors import UserError
from utils.system.options import option
from utils.training.optimizers import OPTIMIZERS, SCHEDULERS, SGD, WARMUP_EPOCHS, WITH_WARMUP
from utils.training.precision import FP32, PRECISIONS

MODELS_OWN = "the model's"
Self = TypeVar("Self", bound="DataSettings")


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """Which images; the root of all settings.

    Attributes:
        data: the images' fingerprint, "" until they are loaded.
    """

    group: ClassVar[str] = "data"

    dataset: str = option(
        "cifar10",
        f"{', '.join(DOWNLOADS)} (downloaded unless it is there), folder (train/<class>/* and "
        "test/<class>/* in --data_dir), digits (no download)",
        choices=DATASETS,
    )
    limit: int | None = option(
        None, "only N images of each split, balanced over the classes", at_least(1), metavar="N",
        told="all",
    )  # fmt: skip
    data: str

    @classmethod
    def of(cls: type[Self], given: Mapping[str, Any]) -> Self:
        """The settings that flags stand for, with their defaults filled in.

        Args:
            given: the flags' values by name, None where one with a dependent default was left out.

        Raises UserError if they do not fit together.
        """
        complete = cls.complete(dict(given))
        return cls(**{field.name: complete[field.name] for field in fields(cls)})

    @classmethod
    def complete(cls, given: dict[str, Any]) -> dict[str, Any]:
        """Fill in the defaults that depend on other settings; classes that inherit add theirs.

        Raises UserError if settings do not fit together.
        """
        return {"data": ""} | given


@dataclass(frozen=True, kw_only=True)
class TrainingSettings(DataSettings):
    """All that the weights of a run depend on, and its tests' batch size.

    Attributes:
        weights: of a pretrained model, "imagenet", "none" or a digest of a file's content.
        momentum: of SGD; None for Adam.
        test_batch_size: None where the test batch is no part of the result.
    """

    group: ClassVar[str] = "model and training"

    model: str = option("res18", "the model, with the paper's settings for it", choices=MODELS)
    weights: str | None = option(
        None, "of vit: a state file of torchvision's vit_b_16, or 'none' to train from scratch",
        metavar="FILE", told="ImageNet's, downloaded",
    )  # fmt: skip
    epochs: int = option(None, "training epochs, T", at_least(1), metavar="T", told=MODELS_OWN)
    optimizer: str = option(None, "the optimizer", choices=OPTIMIZERS, told=MODELS_OWN)
    lr: float = option(None, "learning rate", positive, told=MODELS_OWN)
    momentum: float | None = option(None, "of SGD, from 0 to below 1", fraction, told="0.9")
    scheduler: str = option(
        None,
        "of the learning rate, every step: none; cosine, to 0; step, a tenth from 1/2 and 3/4 of "
        "the epochs on; warmup_cosine, up first, then cosine",
        choices=SCHEDULERS, told=f"none, of vit {WITH_WARMUP}",
    )  # fmt: skip
    lr_warmup: int = option(
        None, f"of the schedule {WITH_WARMUP}: epochs of linear warm-up", at_least(0),
        metavar="EPOCHS", told=str(WARMUP_EPOCHS), before=WARMUP_EPOCHS,
    )  # fmt: skip
    batch_size: int = option(
        128, "images in a training batch, of all processes together", at_least(1), metavar="B"
    )
    test_batch_size: int | None = option(
        None, "images tested at once; part of the result of res18, by its BatchNorm", at_least(1),
        metavar="B", told="128 of res18, else what suits the device", before=None,
    )  # fmt: skip
    precision: str = option(
        None,
        "of forward and backward passes: fp32, tf32, or bf16 (autocast); weights, trajectory and "
        "CMD are float32 in each, and P-BFGS computes in tf32 in place of bf16",
        choices=PRECISIONS, told="bf16 on GPUs that have it, else fp32", before=FP32,
    )  # fmt: skip
    seed: int = option(
        0, "of the initial weights, the order and augmentation of images, dropout and CMD's sample",
        at_least(0),
    )  # fmt: skip

    @classmethod
    def complete(cls, given: dict[str, Any]) -> dict[str, Any]:
        given = super().complete(given)
        entry = get_model(given["model"])
        if given["weights"] is not None and not entry.pretrained:
            raise UserError(
                f"--weights {given['weights']}: --model {given['model']} is trained from scratch"
            )
        given["weights"] = identify_weights(given["weights"]) if entry.pretrained else None
        given["scheduler"] = given["scheduler"] or entry.scheduler
        if given["lr_warmup"] is not None and given["scheduler"] != WITH_WARMUP:
            raise UserError(
                f"--lr_warmup {given['lr_warmup']} is of the schedule {WITH_WARMUP}: add "
                f"--scheduler {WITH_WARMUP}, or leave it"
            )
        given["epochs"] = given["epochs"] or entry.epochs
        if given["lr_warmup"] is None:
            given["lr_warmup"] = WARMUP_EPOCHS
        elif given["lr_warmup"] >= given["epochs"]:
            raise UserError(
                f"--lr_warmup {given['lr_warmup']}: the learning rate would only rise in --epochs "
                f"{given['epochs']}; choose fewer"
            )
        of_training = complete_training(
            given["model"], given["optimizer"], given["lr"], given["momentum"]
        )
        given["optimizer"], given["lr"], given["momentum"] = of_training
        given["precision"] = given["precision"] or FP32
        given["test_batch_size"] = entry.test_batch_size and (
            given["test_batch_size"] or entry.test_batch_size
        )
        return given


def complete_training(
    model: str, optimizer: str | None, lr: float | None, momentum: float | None
) -> tuple[str, float, float | None]:
    """Optimizer, learning rate and momentum (None but for SGD), the model's own where None.

    Raises UserError if they do not fit together.
    """
    entry = get_model(model)
    optimizer = optimizer or entry.optimizer
    if momentum is not None and optimizer != SGD:
        raise UserError(f"--momentum {momentum:g} is SGD's: add --optimizer sgd, or leave it")
    if lr is None and optimizer != entry.optimizer:
        raise UserError(
            f"--optimizer {optimizer}: {model}'s own rate, {entry.lr:g}, is of {entry.optimizer}: "
            "give --lr, too"
        )
    if optimizer == SGD and momentum is None:
        momentum = entry.momentum
    return optimizer, entry.lr if lr is None else lr, momentum


def identify_weights(given: str | None) -> str:
    """What --weights stands for: "imagenet" if None, "none", or a digest of the file's content.

    Raises UserError if there is no such file or it cannot be read.
    """
    if given in (None, DOWNLOADED, SCRATCH):
        return given or DOWNLOADED
    try:
        return f"sha256:{file_digest(Path(given))[:16]}"
    except OSError as error:
        raise UserError(
            f"--weights {given}: {error}; give a state file of torchvision's vit_b_16, or "
            "--weights none to train from scratch"
        ) from error


def differences(settings, stored: dict, undecided: Collection[str] = ()) -> list[str]:
    """Where settings from a file differ: one phrase each, naming the flag.

    Args:
        settings: a dataclass of flags with the images' fingerprint in `data`.
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
    versions = {library.__name__: library.__version__ for library in (torch, np, scipy)}
    # without importing them, which takes a second
    for name, package in (("torchvision", "torchvision"), ("sklearn", "scikit-learn")):
        versions[name] = metadata.version(package)
    return {
        "python": platform.python_version(),
        "versions": versions,
        "platform": f"{platform.system()}-{platform.machine()}",
        "device": str(device),
        "processor": processor_name(device),
        "threads": torch.get_num_threads(),
        "ranks": n_ranks,
    }
