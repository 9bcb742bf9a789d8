"""Images in class folders, decoded once and cached beside the folder."""

import contextlib
import hashlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torchvision.datasets import ImageFolder

from utils.data.decoding import DECODER, as_rgb, common_size, decode, readable
from utils.data.packed import SPLITS, read_packed, write_packed
from utils.system.errors import UserError

Samples = list[tuple[str, int]]


def load_image_folder(
    data_dir: Path, size: int, resizes: bool
) -> tuple[list[tuple[Tensor, Tensor]], list[str]]:
    """Read `train/<class>/*` and `test/<class>/*` below `data_dir`.

    Images of any format and size become RGB at `size` × `size`, or, where the model's transform
    resizes and all images share one smaller square size, at that size.

    Args:
        data_dir: the folder that holds `train` and `test`.
        size: pixels to a side.
        resizes: whether the model's transform also takes images of other sizes.

    Returns:
        (images uint8 [n, H, W, 3], labels int64 [n]) of train and of test, class by class; and the
        names of the training classes, sorted.

    Raises UserError if a split or class is missing or empty, or an image cannot be read.
    """
    listings, classes = _list_images(data_dir)
    if resizes:
        size = _common_size(listings, size)
    cache = data_dir.resolve().with_name(f"{data_dir.resolve().name}-{size}px.pt")
    key = _listing_key(data_dir, listings, size)
    with contextlib.suppress(OSError, ValueError):  # no cache, or not ours: decode
        return read_packed(cache, key), classes
    splits = [_decode(samples, size) for samples in listings]
    with contextlib.suppress(OSError):  # a folder that cannot be written to is decoded each time
        write_packed(cache, key, splits, classes)
    return splits, classes


def _list_images(data_dir: Path) -> tuple[list[Samples], list[str]]:
    """List (path, label) of every image, sorted, for train and test; and the classes."""
    formats = {
        ending for ending, name in Image.registered_extensions().items() if name in Image.OPEN
    }

    def is_image(path: str) -> bool:
        name = Path(path).name
        return not name.startswith(".") and Path(name).suffix.lower() in formats

    folders = []
    for split in SPLITS:
        try:
            _refuse_loops(data_dir / split)
            folders.append(_VisibleFolder(str(data_dir / split), is_valid_file=is_image))
        except FileNotFoundError as error:
            reason = str(error).splitlines()[0].split(" Supported extensions")[0].rstrip(".")
            raise UserError(
                f"--data_dir {data_dir}: {reason}; --dataset folder reads "
                f"{data_dir}/train/<class>/* and {data_dir}/test/<class>/*"
            ) from error
        except OSError as error:
            raise UserError(f"--data_dir {data_dir}: cannot read it: {error}") from error
    train, test = folders
    unknown = sorted(set(test.classes) - set(train.classes))
    if unknown:
        raise UserError(
            f"--data_dir {data_dir}: test/{unknown[0]} is a class that train does not have: "
            f"add train/{unknown[0]} or remove it"
        )
    to_train = [train.class_to_idx[name] for name in test.classes]
    return [train.samples, [(path, to_train[label]) for path, label in test.samples]], train.classes


class _VisibleFolder(ImageFolder):
    """A class folder without the hidden folders that other programs leave beside the classes."""

    def find_classes(self, directory: str) -> tuple[list[str], dict[str, int]]:
        names = sorted(
            entry.name
            for entry in os.scandir(directory)
            if entry.is_dir() and not entry.name.startswith(".")
        )
        if not names:
            raise FileNotFoundError(f"Couldn't find any class folder in {directory}.")
        return names, {name: label for label, name in enumerate(names)}


def _refuse_loops(split: Path) -> None:
    """Raise UserError if a link leads back to a folder that it is in: its images would be counted
    again and again."""
    for here, folders, _ in os.walk(split, followlinks=True):
        for name in folders:
            folder = Path(here) / name
            if folder.is_symlink():
                inside, target = Path(here).resolve(), folder.resolve()
                if inside.is_relative_to(target):
                    raise UserError(
                        f"--data_dir: {folder} is a link to a folder that it is in: remove it"
                    )


def _common_size(listings: list[Samples], size: int) -> int:
    def sizes() -> Iterator[tuple[int, int]]:
        for path, _ in (sample for samples in listings for sample in samples):
            with readable(path), Image.open(path) as image:
                yield image.size

    return common_size(sizes(), size)


def _listing_key(data_dir: Path, listings: list[Samples], size: int) -> str:
    """Return a digest of what the pixels depend on: how they are decoded, and the files' names,
    labels and contents. An image may have the size and time of another that it replaced."""
    digest = hashlib.blake2b(f"{size}, {DECODER}".encode(), digest_size=16)

    def content(sample: tuple[str, int]) -> bytes:
        with readable(sample[0]):
            return hashlib.blake2b(Path(sample[0]).read_bytes(), digest_size=16).digest()

    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        for samples in listings:
            for (path, label), found in zip(samples, pool.map(content, samples), strict=True):
                entry = (path[len(str(data_dir)) :], label, found)
                digest.update(repr(entry).encode(errors="surrogateescape"))
    return digest.hexdigest()


def _decode(samples: Samples, size: int) -> tuple[Tensor, Tensor]:
    def read(index: int) -> Image.Image:
        path = samples[index][0]
        with readable(path), Image.open(path) as image:
            return as_rgb(image)

    return decode(read, len(samples), size), torch.tensor([label for _, label in samples])
