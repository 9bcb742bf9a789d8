"""What several architectures share."""

import torch
from torch import Tensor, nn


def conv3x3(n_in: int, n_out: int, stride: int = 1, bias: bool = False) -> nn.Conv2d:
    """A 3 × 3 convolution that keeps the image size at stride 1."""
    return nn.Conv2d(n_in, n_out, kernel_size=3, stride=stride, padding=1, bias=bias)


class MaxPool2x2(nn.MaxPool2d):
    """The maximum of every 2 × 2 pixels of feature maps of even height and width."""

    def __init__(self) -> None:
        super().__init__(kernel_size=2)

    def forward(self, features: Tensor) -> Tensor:
        if torch.is_grad_enabled() or features.is_cuda:
            return super().forward(features)
        # On a CPU torch's own spends its time on where the maxima are, which only training needs.
        rows = torch.maximum(features[:, :, ::2], features[:, :, 1::2])
        return torch.maximum(rows[..., ::2], rows[..., 1::2])


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
