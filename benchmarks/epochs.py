"""Measure epochs of a model on random images; to be run in a process of its own."""

import itertools
import statistics
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.deadline import Budget
from benchmarks.measure import clock
from benchmarks.training import Training, start_run
from utils.data.datasets import Dataset, Split
from utils.system.devices import choose_device
from utils.training.precision import choose_precision

N_TRAIN, N_TEST, SIDE, N_CLASSES = 50_000, 10_000, 32, 10  # CIFAR-10's
FEW = {"cpu": 20, "cuda": 2560}  # images trained on at first, to see how long an epoch takes
COUNTED = 2  # epochs, after one that is not counted
CAREFUL = 0.7  # share of the time left that more images may take, by what was seen


@dataclass(frozen=True)
class Cost:
    """What an epoch of a model costs, in seconds, scaled to CIFAR-10's number of images.

    Attributes:
        model: its name.
        precision: that it is trained in.
        training: of an epoch's training.
        test: of one test.
        writer: of writing the snapshot and the checkpoint, while nothing else is done; not scaled.
        images: how many of CIFAR-10's 50,000 were trained on.
        epochs: how many these are medians of; 0 is the first one, with all that begins in it.
    """

    model: str
    precision: str
    training: float
    test: float
    writer: float
    images: int
    epochs: int


def epochs(model: str, device_name: str, seconds: float, folder: Path) -> Iterator[Cost]:
    """Yield what an epoch costs each time it is known better: by more epochs, of more images.

    Args:
        model: its name.
        device_name: the device's.
        seconds: the time for all.
        folder: where runs are stored for a while.
    """
    device, budget = choose_device(device_name), Budget(seconds)
    images = FEW.get(device.type, FEW["cpu"])
    while True:
        cost = None
        for cost in _measured(model, device, images, folder):
            yield cost
        room = CAREFUL * budget.left() / (1 + COUNTED) - cost.writer
        more = min(N_TRAIN, int(N_TRAIN * room / (cost.training + cost.test)))
        if images == N_TRAIN or more < min(2 * images, N_TRAIN):
            return
        images = more


def _measured(model: str, device: torch.device, images: int, folder: Path) -> Iterator[Cost]:
    """Yield the cost of an epoch after each of a few on so many images."""
    share = images / N_TRAIN
    case = Training(model, "cifar10", "", None, str(device), choose_precision(None, device),
                    False, COUNTED)  # fmt: skip
    parts: list[tuple[float, float, float]] = []
    with (
        tempfile.TemporaryDirectory(dir=folder) as place,
        start_run(case, random_images(images), device, Path(place)) as run,
    ):
        training = run.epochs()
        for _ in range(1 + COUNTED):
            times = [clock(device)]
            _, module = next(training)
            times.append(clock(device))
            run.wait()
            times.append(clock(device))
            run.test(module)
            times.append(clock(device))
            trained, written, tested = (b - a for a, b in itertools.pairwise(times))
            parts.append((trained / share, tested / share, written))
            counted = parts[1:] or parts
            seconds = [statistics.median(each) for each in zip(*counted, strict=True)]
            yield Cost(model, case.precision, *seconds, images, len(parts) - 1)


def random_images(n_train: int) -> Dataset:
    """Make a data set of random images and labels, with as many to test on for each to train on
    as CIFAR-10 has."""
    random = torch.Generator().manual_seed(0)

    def split(n_images: int) -> Split:
        shape = (n_images, SIDE, SIDE, 3)
        pixels = torch.randint(256, shape, generator=random, dtype=torch.uint8)
        return Split(pixels, torch.randint(N_CLASSES, (n_images,), generator=random))

    names = [str(number) for number in range(N_CLASSES)]
    return Dataset(split(n_train), split(n_train * N_TEST // N_TRAIN), names)
