"""From uint8 images to a model's input, in batches on the device.

A transform takes images uint8 [B, H, W, 3] and returns float32 [B, 3, size, size], normalised, in
channels-last memory. Training images take three steps, so that many can be augmented at once,
and numbers that are drawn for a batch applied to a part of it: `draw`, `cut`, `finish`.
"""

import math
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional

Channels = tuple[float, float, float]
Drawn = tuple[Tensor, ...]  # [B, …] each


@dataclass(frozen=True)
class CropFlip:
    """A random crop after zero padding, and a flip of every second image on average.

    Attributes:
        size: pixels to a side of the result.
        padding: zero pixels added at each side.
        mean, std: of the channels, as fractions of 255.
        resizes: whether images may come at another size than `size`.
    """

    size: int
    padding: int
    mean: Channels
    std: Channels
    resizes = False  # images must come at `size`

    @property
    def cut_bytes(self) -> int:
        """What an image takes between `cut` and `finish`."""
        return 3 * self.size**2

    def draw(
        self, n_images: int, shape: tuple[int, int], generator: torch.Generator, mirror: bool
    ) -> Drawn:
        """Draw the augmentation of a batch.

        Args:
            n_images: B.
            shape: H, W.
            generator: of numbers on the images' device.
            mirror: whether a flipped image is of the same class.

        Returns the first row and column of each crop, int64 [B], and whether it is flipped, bool
        [B].
        """
        del shape
        device = generator.device
        offset = torch.randint(
            2 * self.padding + 1, (2, n_images), generator=generator, device=device
        )
        if mirror:
            flipped = torch.rand(n_images, generator=generator, device=device) < 0.5
        else:
            flipped = torch.zeros(n_images, dtype=torch.bool, device=device)
        return *offset, flipped

    def cut(self, images: Tensor, drawn: Drawn) -> Tensor:
        """Crop and flip as was drawn: uint8 [B, size, size, 3]."""
        row, column, flipped = (each[:, None] for each in drawn)
        within, pad = torch.arange(self.size, device=images.device), self.padding
        rows, columns = row + within, column + within  # [B, size]
        columns = torch.where(flipped, columns.flip(1), columns)
        padded = functional.pad(images, (0, 0, pad, pad, pad, pad))
        image = torch.arange(len(images), device=images.device)[:, None, None]
        return padded[image, rows[:, :, None], columns[:, None, :]]

    def finish(self, cut: Tensor) -> Tensor:
        """Normalise."""
        return normalise(cut, self.mean, self.std)

    def test(self, images: Tensor) -> Tensor:
        return normalise(images, self.mean, self.std)


@dataclass(frozen=True)
class ResizedCrop:
    """A random part of the image's area, at a random aspect ratio, resized to `size`.

    Attributes:
        size: pixels to a side of the result.
        scale: the range of the part's area, as fractions of the image's.
        mean, std: of the channels, as fractions of 255.
        ratio: the range of the part's width over its height.
        resizes: whether images may come at another size than `size`.
    """

    size: int
    scale: tuple[float, float]
    mean: Channels
    std: Channels
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    resizes = True  # images may come at any one size

    @property
    def cut_bytes(self) -> int:
        """What an image takes between `cut` and `finish`."""
        return 4 * 3 * self.size**2

    def draw(
        self, n_images: int, shape: tuple[int, int], generator: torch.Generator, mirror: bool
    ) -> Drawn:
        """Draw the parts, as `CropFlip.draw` does, but no flips: `mirror` is ignored.

        Returns the affine maps from the result to each image, float32 [B, 2, 3].
        """
        del mirror
        (height, width), device = shape, generator.device
        # Crops that do not fit are drawn again, up to ten draws; then the whole image is taken.
        tries = (10, n_images)
        area = torch.empty(tries, device=device).uniform_(*self.scale, generator=generator)
        log_ratio = torch.empty_like(area).uniform_(*map(math.log, self.ratio), generator=generator)
        extent = torch.stack(  # width and height, as fractions of the image's
            [
                (area * log_ratio.exp() * height / width).sqrt(),
                (area / log_ratio.exp() * width / height).sqrt(),
            ]
        )
        fits = (extent <= 1).all(0)
        first = fits.int().argmax(0)
        extent = extent[:, first, torch.arange(n_images, device=device)]
        extent = torch.where(fits.any(0), extent, 1.0)
        shift = torch.rand(2, n_images, generator=generator, device=device)
        centre = (2 * shift - 1) * (1 - extent)  # in [−1, 1]
        affine = torch.zeros(n_images, 2, 3, device=device)
        affine[:, 0, 0], affine[:, 1, 1], affine[:, :, 2] = extent[0], extent[1], centre.T
        return (affine,)

    def cut(self, images: Tensor, drawn: Drawn) -> Tensor:
        """Normalise and resize the parts drawn: float32 [B, 3, size, size], channels-last."""
        channels_first = normalise(images, self.mean, self.std)
        grid = functional.affine_grid(
            *drawn, (len(channels_first), 3, self.size, self.size), align_corners=False
        )
        return functional.grid_sample(
            channels_first, grid, padding_mode="border", align_corners=False
        ).contiguous(memory_format=torch.channels_last)

    def finish(self, cut: Tensor) -> Tensor:
        """Return what `cut` made, which is what a model takes."""
        return cut

    def test(self, images: Tensor) -> Tensor:
        normalised = normalise(images, self.mean, self.std)
        return functional.interpolate(
            normalised, size=(self.size, self.size), mode="bilinear", antialias=True
        ).contiguous(memory_format=torch.channels_last)


def normalise(images: Tensor, mean: Channels, std: Channels) -> Tensor:
    """Return (x / 255 − mean) / std: uint8 [B, H, W, 3] -> float32 [B, 3, H, W], channels-last."""
    factor, shift = _of_a_row(mean, std, images.shape[2], images.device)
    rows = images.float().flatten(2)  # [B, H, 3 · W]
    return rows.mul_(factor).sub_(shift).view(images.shape).permute(0, 3, 1, 2)


@cache  # the host would wait for a copy to the GPU in every batch
def _of_a_row(
    mean: Channels, std: Channels, width: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return the factor and shift of each number in a row of pixels; a CPU's vector registers are
    longer than the three numbers of a pixel."""
    with torch.inference_mode(False):  # usable in training, too, even if first needed in a test
        of_mean, of_std = (torch.tensor(value, device=device) for value in (mean, std))
        return (1 / (255 * of_std)).repeat(width), (of_mean / of_std).repeat(width)
