"""From images of any kind to arrays of one size."""

import contextlib
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import PIL
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from utils.system.errors import UserError

RESAMPLING = Image.Resampling.BICUBIC
DECODER = f"Pillow {PIL.__version__}, RGB, {RESAMPLING.name.lower()}"  # what the pixels depend on


def decode(read: Callable[[int], Image.Image], count: int, size: int) -> Tensor:
    """Decode images side by side: uint8 [n, size, size, 3].

    Args:
        read: opens image i, of any size, as `as_rgb` gives it.
        count: n.
        size: pixels to a side.

    Raises what `read` raises.
    """
    images = torch.empty(count, size, size, 3, dtype=torch.uint8)

    def decode_into(index: int) -> None:
        image = read(index)
        if image.size != (size, size):
            image = image.resize((size, size), RESAMPLING)
        images[index] = torch.from_numpy(np.array(image))

    if not sys.stderr.isatty():
        print(f"decoding {count:,} images to {size} × {size}", flush=True)
    pool = ThreadPoolExecutor(max_workers=os.cpu_count())
    try:
        decoded = pool.map(decode_into, range(count))
        for _ in tqdm(decoded, "decoding", count, unit="image", disable=None):
            pass
    finally:
        pool.shutdown(cancel_futures=True)  # do not decode the rest after a bad image or Ctrl-C
    return images


def as_rgb(image: Image.Image) -> Image.Image:
    """Return the image in 8-bit RGB, without its transparency.

    Raises ValueError if its numbers have no known range.
    """
    if image.mode.startswith("I;16"):  # Pillow would clip values above 255
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise ValueError(f"its pixels are of Pillow's mode {image.mode}, of no known range")
    if "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")


@contextlib.contextmanager
def readable(image: str) -> Iterator[None]:
    """Around the reading of an image, which is called `image`.

    Raises UserError if it cannot be read as one.
    """
    try:
        yield
    except (OSError, RuntimeError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"--data_dir: {image} cannot be read as an image ({reason}): mend or remove it"
        ) from error


def common_size(sizes: Iterable[tuple[int, int]], size: int) -> int:
    """Return the side to decode to for a model that also takes smaller images: the images' own
    where all are one square smaller than `size`, else `size`."""
    seen = set()
    for each in sizes:
        seen.add(each)
        if len(seen) > 1:
            return size
    width, height = seen.pop()
    return width if width == height and width < size else size
