"""Data sets by name, which torchvision downloads."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from utils.data.decoding import as_rgb, common_size, decode, readable
from utils.data.transforms import Channels
from utils.system.errors import UserError

Flagged = tuple[Mapping[str, Any], Mapping[str, Any]]
BY_TRAIN: Flagged = ({"train": True}, {"train": False})
BY_SPLIT: Flagged = ({"split": "train"}, {"split": "test"})


@dataclass(frozen=True)
class Download:
    """A data set of torchvision.

    Attributes:
        source: the name of torchvision's class.
        splits: what its constructor is given for the training and for the test images.
        mean, std: of the channels, as fractions of 255; one number for grey images.
        mirror: whether a mirrored image is of the same class.
        n_classes: how many there are where torchvision does not name them, which are numbers then.
        n_images: in each split, where torchvision takes what is there for all of it.
    """

    source: str
    splits: Flagged
    mean: tuple[float, ...]
    std: tuple[float, ...]
    mirror: bool = True
    n_classes: int | None = None
    n_images: tuple[int, int] | None = None

    @property
    def normalisation(self) -> tuple[Channels, Channels]:
        """mean and std of three channels."""
        return tuple(values * (3 // len(values)) for values in (self.mean, self.std))


IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of photographs

# To add one, add a line.
# fmt: off
DOWNLOADS: dict[str, Download] = {
    "cifar10": Download("CIFAR10", BY_TRAIN,  # the paper's constants
                        (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "cifar100": Download("CIFAR100", BY_TRAIN, (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "svhn": Download("SVHN", BY_SPLIT, (0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970),
                     mirror=False, n_classes=10),
    "mnist": Download("MNIST", BY_TRAIN, (0.1307,), (0.3081,), mirror=False),
    "fashion_mnist": Download("FashionMNIST", BY_TRAIN, (0.2860,), (0.3530,)),
    "kmnist": Download("KMNIST", BY_TRAIN, (0.1918,), (0.3483,), mirror=False),
    "usps": Download("USPS", BY_TRAIN, (0.2469,), (0.2989,), mirror=False, n_classes=10),
    "stl10": Download("STL10", BY_SPLIT, (0.4467, 0.4398, 0.4066), (0.2603, 0.2566, 0.2713)),
    "gtsrb": Download("GTSRB", BY_SPLIT, (0.3403, 0.3121, 0.3214), (0.2724, 0.2608, 0.2669),
                      mirror=False, n_classes=43, n_images=(26_640, 12_630)),
    "flowers102": Download("Flowers102", BY_SPLIT, *IMAGENET, n_classes=102),
    "pets": Download("OxfordIIITPet", ({"split": "trainval"}, {"split": "test"}), *IMAGENET),
    "dtd": Download("DTD", BY_SPLIT, *IMAGENET),
}
# fmt: on
LONGEST = 120  # characters of an error's reason
ARCHIVES = {
    "cifar10": "cifar-10-python.tar.gz from https://www.cs.toronto.edu/~kriz/cifar.html",
    "cifar100": "cifar-100-python.tar.gz from https://www.cs.toronto.edu/~kriz/cifar.html",
}


def load_download(
    name: str, data_dir: Path, size: int, resizes: bool
) -> tuple[list[tuple[Tensor, Tensor]], list[str]]:
    """Read a data set, which is downloaded unless it is there.

    Grey images get three equal channels. Images become `size` × `size`, or, where the model's
    transform resizes and all share one smaller square size, keep that.

    Args:
        name: a key of DOWNLOADS.
        data_dir: the folder that it is in, or downloaded to.
        size: pixels to a side.
        resizes: whether the model's transform also takes images of other sizes.

    Returns:
        (images uint8 [n, H, W, 3], labels int64 [n]) of train and of test; and the names of the
        classes.

    Raises UserError if it is not there and cannot be downloaded, or an image cannot be read.
    """
    entry = DOWNLOADS[name]
    if data_dir.is_file():
        raise UserError(f"--dataset {name}: --data_dir {data_dir} is a file: give a folder")
    try:
        raws = [_open(entry, data_dir, split) for split in entry.splits]
    except Exception as error:  # each set has errors of its own for what is cut short
        reason = " ".join(str(error).split()) or type(error).__name__
        if len(reason) > LONGEST:
            reason = f"… {reason[-LONGEST:]}"  # the cause comes last
        remedy = f"have torchvision.datasets.{entry.source} download it where there is a network"
        if name in ARCHIVES:
            remedy = f"put {ARCHIVES[name]} into {data_dir}"
        raise UserError(
            f"--dataset {name}: it is not in --data_dir {data_dir}, or not whole, and could not be "
            f"downloaded ({reason}); remove what there is of it and {remedy}, or run without a "
            "download: --dataset digits, or --dataset folder with images of your own"
        ) from error
    for raw, expected in zip(raws, entry.n_images or (), strict=False):
        if len(raw) != expected:
            raise UserError(
                f"--dataset {name}: --data_dir {data_dir} has {len(raw):,} of {expected:,} images "
                f"of a split: remove {type(raw).__name__.lower()} there, and it is downloaded again"
            )
    if resizes:
        images = (_image(raw, i)[0] for raw in raws for i in range(len(raw)))
        size = common_size((image.size for image in images), size)
    classes = list(map(str, getattr(raws[0], "classes", None) or range(entry.n_classes)))
    return [_read(raw, size) for raw in raws], classes


def _open(entry: Download, data_dir: Path, split: Mapping[str, Any]) -> Any:
    from torchvision import datasets  # takes a second or two, for what is downloaded only

    source = getattr(datasets, entry.source)
    try:
        return source(str(data_dir), download=False, **split)
    except Exception:  # not there, or not whole
        return source(str(data_dir), download=True, **split)


def _read(raw: Any, size: int) -> tuple[Tensor, Tensor]:
    """The images and labels of a split."""
    held = getattr(raw, "data", None)
    if isinstance(held, np.ndarray) and held.shape[1:] == (size, size, 3):  # as they are wanted
        return torch.from_numpy(np.ascontiguousarray(held)), torch.tensor(raw.targets)
    labels = torch.empty(len(raw), dtype=torch.int64)

    def read(index: int) -> Image.Image:
        image, labels[index] = _image(raw, index)
        return image

    return decode(read, len(raw), size), labels


def _image(raw: Any, index: int) -> tuple[Image.Image, int]:
    """An image, in RGB, and its label."""
    with readable(f"image {index:,} of torchvision's {type(raw).__name__}"):
        image, label = raw[index]
        return as_rgb(image), label
