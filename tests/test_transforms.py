import pytest
import torch

from utils.base_utils import CIFAR, IMAGENET
from utils.data.transforms import normalise


def images(n=64, size=32):
    return torch.randint(1, 256, (n, size, size, 3), dtype=torch.uint8)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def augmented(transform, x, generator, mirror):
    return transform.finish(
        transform.cut(x, transform.draw(len(x), tuple(x.shape[1:3]), generator, mirror))
    )


def as_uint8(x):
    mean, std = torch.tensor(CIFAR.mean)[:, None, None], torch.tensor(CIFAR.std)[:, None, None]
    return ((x * std + mean) * 255).round().to(torch.uint8).permute(0, 2, 3, 1)


def test_normalisation():
    x = images()
    expected = (x.permute(0, 3, 1, 2) / 255 - torch.tensor(CIFAR.mean)[:, None, None]) / (
        torch.tensor(CIFAR.std)[:, None, None]
    )
    torch.testing.assert_close(CIFAR.test(x), expected, rtol=1e-4, atol=1e-5)
    assert CIFAR.test(x).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("mirror", [True, False])
def test_every_crop_is_a_window_of_the_padded_image(mirror):
    x = images()
    out = as_uint8(augmented(CIFAR, x, generator(), mirror))
    padded = torch.nn.functional.pad(x, (0, 0, 4, 4, 4, 4))
    shifts, flips = set(), 0
    for original, cropped in zip(padded, out, strict=True):
        found = []
        for dy in range(9):
            for dx in range(9):
                window = original[dy : dy + 32, dx : dx + 32]
                found += [(dy, dx, False)] if torch.equal(window, cropped) else []
                found += [(dy, dx, True)] if torch.equal(window.flip(1), cropped) else []
        assert len(found) == 1
        shifts.add(found[0][:2])
        flips += found[0][2]
    assert len(shifts) > 30  # of 81
    assert 16 < flips < 48 if mirror else flips == 0


@pytest.mark.parametrize("transform", [CIFAR, IMAGENET])
def test_augmentation_follows_its_generator(transform):
    x = images(8)
    first, again, other = (augmented(transform, x, generator(seed), True) for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert first.shape == (8, 3, transform.size, transform.size)
    assert first.is_contiguous(memory_format=torch.channels_last)


def test_resized_crop_shows_parts_of_5_to_100_percent():
    """On an image whose channels are its coordinates, the result tells which part it shows."""
    ramp = torch.arange(0, 250, 250 / 64).to(torch.uint8)
    x = torch.stack([ramp[:, None].expand(64, 64), ramp.expand(64, 64), ramp.expand(64, 64)], 2)
    out = augmented(IMAGENET, x.expand(500, -1, -1, -1), generator(), True) * 127.5 + 127.5
    height = (out[:, 0, -1, :] - out[:, 0, 0, :]).mean(1) / 250
    width = (out[:, 1, :, -1] - out[:, 1, :, 0]).mean(1) / 250
    assert (height > 0).all() and (width > 0).all()  # never flipped
    area, ratio = height * width, width / height
    assert area.min() < 0.12 and 0.8 < area.max() <= 1.001
    assert 0.4 < area.mean() < 0.56
    assert ratio.min() < 0.85 and ratio.max() > 1.2
    assert ratio.min() > 0.6 and ratio.max() < 1.7  # up to the ramp's rounding


def test_vit_test_images_are_resized_whole():
    x = images(2)
    out = IMAGENET.test(x)
    assert out.shape == (2, 3, 224, 224)
    torch.testing.assert_close(
        out.mean((2, 3)), normalise(x, IMAGENET.mean, IMAGENET.std).mean((2, 3)), atol=0.02, rtol=0
    )
