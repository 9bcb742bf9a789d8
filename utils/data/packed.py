"""A data set packed into one file, as the cache beside an image folder is."""

from pathlib import Path

import torch
from torch import Tensor

from utils.storage.sealed import load_tensors, save_tensors
from utils.system.errors import UserError

SPLITS = ("train", "test")
Splits = list[tuple[Tensor, Tensor]]  # (images uint8 [n, H, W, 3], labels int64 [n]) of each


def write_packed(path: Path, key: str, splits: Splits, classes: list[str]) -> None:
    """Write a data set to `path`.

    Args:
        path: the file to be written.
        key: a digest of what it was made of.
        splits: the images and labels.
        classes: the names of the classes, by label.
    """
    save_tensors({"key": key, "classes": classes, **dict(zip(SPLITS, splits, strict=True))}, path)


def read_packed(path: Path, key: str) -> Splits:
    """Read the images and labels that `write_packed` wrote.

    Raises ValueError if it is something else or has another key, OSError if it cannot be read.
    """
    state = load_tensors(path)
    if state.get("key") != key:
        raise ValueError(f"{path} is of other images")
    return [tuple(state[split]) for split in SPLITS]


def load_packed(path: Path, size: int, resizes: bool) -> tuple[Splits, list[str]]:
    """Read a packed data set for a model, without the folder that it was made of.

    Args:
        path: the file's.
        size: pixels to a side that the model takes.
        resizes: whether the model's transform also takes smaller images.

    Returns:
        The images and labels; and the names of the classes, which are numbers where an earlier
        version wrote the file.

    Raises UserError if it is something else, or its images are not of the model's size.
    """
    try:
        state = load_tensors(path)
        splits = [tuple(state[split]) for split in SPLITS]
        _check(splits, state.get("classes"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"--data_dir {path}: this is no packed data set ({error}), such as DIR-32px.pt, which "
            "is made beside DIR when that is loaded: give that, or DIR with train/<class>/* and "
            "test/<class>/*"
        ) from error
    height, width = splits[0][0].shape[1:3]
    if height != width or not (width == size or (resizes and width < size)):
        raise UserError(
            f"--data_dir {path}: its images are {height} × {width}, the model takes {size} × "
            f"{size}: give the folder that they are of, which packs them at that size"
        )
    numbers = range(int(splits[0][1].max()) + 1)
    return splits, state.get("classes") or [str(number) for number in numbers]


def _check(splits: Splits, classes: object) -> None:
    """Raise ValueError unless these are images with labels, no test label is new, and each has a
    name where there are names."""
    (train, known), (test, labels) = splits
    for images, of in splits:
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[3] != 3:
            raise ValueError("these are not images")
        if of.dtype != torch.int64 or of.shape != images.shape[:1] or not len(of) or of.min() < 0:
            raise ValueError("these are not labels of the images")
    if train.shape[1:] != test.shape[1:] or labels.max() > known.max():
        raise ValueError("train and test do not fit together")
    named = isinstance(classes, list) and all(isinstance(name, str) for name in classes)
    if classes is not None and not (named and len(classes) > known.max()):
        raise ValueError("these are not the classes of the labels")
