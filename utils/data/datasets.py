"""The data sets, held in memory as uint8.

- cifar10 (A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009) and others
  that torchvision downloads (utils.data.downloads).
- digits: the handwritten digits that scikit-learn carries.
- folder: your own images, `train/<class>/*` and `test/<class>/*` (utils.data.image_folder), or
  the one file that they are packed into (utils.data.packed).
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from utils.data.downloads import DOWNLOADS, load_download
from utils.data.packed import load_packed
from utils.data.transforms import Channels

DIGITS_SIZE = 32
ORDER_SEED = 0  # of fixed orders, which are the same for all seeds of runs


@dataclass(frozen=True)
class Split:
    """The images of a split, and their classes.

    Attributes:
        images: uint8 [n, H, W, 3].
        labels: int64 [n].
    """

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device) -> "Split":
        return Split(self.images.to(device), self.labels.to(device))

    def take(self, index: Tensor) -> "Split":
        return Split(self.images[index], self.labels[index])


@dataclass(frozen=True)
class Dataset:
    """A data set.

    Attributes:
        train, test: its splits.
        classes: their names, by label.
        mirror: whether a mirrored image is of the same class.
        normalisation: mean and std of the channels, as fractions of 255; None for the model's.
    """

    train: Split
    test: Split
    classes: list[str]
    mirror: bool = True
    normalisation: tuple[Channels, Channels] | None = None

    def to(self, device: torch.device) -> "Dataset":
        return replace(self, train=self.train.to(device), test=self.test.to(device))

    def limited(self, n_images: int) -> "Dataset":
        """Return the first `n_images` of each split, balanced over the classes, in their order."""
        return replace(
            self, train=_balanced(self.train, n_images), test=_balanced(self.test, n_images)
        )

    def fingerprint(self) -> str:
        """Return a digest of every image and label, in order: equal for equal data."""
        digest = hashlib.blake2b(digest_size=8)
        for split in (self.train, self.test):
            digest.update(str(tuple(split.images.shape)).encode())
            digest.update(split.images.numpy().data)
            digest.update(split.labels.numpy().data)
        return digest.hexdigest()


def load_dataset(name: str, data_dir: str, size: int, resizes: bool) -> Dataset:
    """Load a data set for models that take `size` × `size` images.

    Args:
        name: a key of DATASETS.
        data_dir: the folder of the images, or a packed data set.
        size: pixels to a side.
        resizes: whether the model's transform also takes images of other sizes.

    Raises UserError if the data is not there or not as it should be.
    """
    return DATASETS[name](Path(data_dir), size, resizes)


def _load_download(name: str, data_dir: Path, size: int, resizes: bool) -> Dataset:
    (train, test), classes = load_download(name, data_dir, size, resizes)
    entry = DOWNLOADS[name]
    return Dataset(Split(*train), Split(*test), classes, entry.mirror, entry.normalisation)


def _load_digits(data_dir: Path, size: int, resizes: bool) -> Dataset:
    del data_dir, size, resizes
    from sklearn.datasets import load_digits  # takes a second, for this data set only
    from sklearn.model_selection import train_test_split

    raw = load_digits()
    grey = torch.from_numpy(raw.images).float()[:, None] * (255 / 16)  # [n, 1, 8, 8]
    large = functional.interpolate(grey, size=(DIGITS_SIZE, DIGITS_SIZE), mode="bilinear")
    images = large.round().to(torch.uint8).permute(0, 2, 3, 1).expand(-1, -1, -1, 3).contiguous()
    labels = torch.from_numpy(raw.target).long()
    train, test = train_test_split(
        np.arange(len(labels)), test_size=0.2, random_state=ORDER_SEED, stratify=raw.target
    )
    everything = Split(images, labels)
    return Dataset(
        everything.take(torch.from_numpy(train)),
        everything.take(torch.from_numpy(test)),
        [str(digit) for digit in raw.target_names],
        mirror=False,
    )


def _load_folder(data_dir: Path, size: int, resizes: bool) -> Dataset:
    if data_dir.is_file():
        splits, classes = load_packed(data_dir, size, resizes)
    else:
        from utils.data.image_folder import load_image_folder  # torchvision takes a second

        splits, classes = load_image_folder(data_dir, size, resizes)
    # A folder is read class by class; a model whose BatchNorm keeps no running statistics would
    # normalise test batches of a single class, which is not what it meets in training.
    generator = torch.Generator().manual_seed(ORDER_SEED)
    train, test = (
        Split(images, labels).take(torch.randperm(len(labels), generator=generator))
        for images, labels in splits
    )
    return Dataset(train, test, classes)


DATASETS: dict[str, Callable[[Path, int, bool], Dataset]] = {
    "folder": _load_folder,
    "digits": _load_digits,
    **{name: partial(_load_download, name) for name in DOWNLOADS},
}


def _balanced(split: Split, n_images: int) -> Split:
    rank = torch.empty_like(split.labels)  # of each image within its class
    for label in split.labels.unique():
        member = split.labels == label
        rank[member] = torch.arange(int(member.sum()))
    chosen = rank.argsort(stable=True)[:n_images]
    return split.take(chosen.sort().values)
