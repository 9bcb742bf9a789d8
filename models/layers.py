"""What several architectures share."""

import torch
from torch import Tensor, nn


def conv3x3(n_in: int, n_out: int, stride: int = 1, bias: bool = False) -> nn.Conv2d:
    """A 3 × 3 convolution that keeps the image size at stride 1."""
    return nn.Conv2d(n_in, n_out, kernel_size=3, stride=stride, padding=1, bias=bias)


def require_image_size(images: Tensor, channels: int, size: int, model: str) -> None:
    """Raise ValueError unless `images` is [B, channels, size, size].

    Pooling would accept some other sizes in silence, or fail layers later with a message about
    matrix shapes.
    """
    if images.ndim != 4 or tuple(images.shape[1:]) != (channels, size, size):
        raise ValueError(
            f"{model} takes images [batch, {channels}, {size}, {size}], "
            f"these are {list(images.shape)}: resize them to {size} × {size}"
        )


def global_average(features: Tensor) -> Tensor:
    """The mean over each feature map, [B, C, H, W] -> [B, C]."""
    return torch.flatten(nn.functional.adaptive_avg_pool2d(features, 1), 1)
