"""GoogLeNet for 32 × 32 images.

C. Szegedy et al., "Going Deeper with Convolutions", CVPR 2015, with batch normalisation, one
3 × 3 convolution as the stem, no auxiliary heads, and the 5 × 5 branch as two 3 × 3 convolutions,
as in the CMD paper's code. 6,166,250 parameters with ten classes.
"""

import torch
from torch import Tensor, nn

from models.layers import global_average, require_image_size


def conv_bn_relu(n_in: int, n_out: int, kernel_size: int) -> nn.Sequential:
    """Convolution with bias that keeps the image size, batch normalisation, ReLU."""
    return nn.Sequential(
        nn.Conv2d(n_in, n_out, kernel_size, padding=kernel_size // 2),
        nn.BatchNorm2d(n_out),
        nn.ReLU(inplace=True),
    )


class Inception(nn.Module):
    """Four branches, concatenated: 1 × 1; 3 × 3; 5 × 5 (as two 3 × 3); pooling.

    `reduce3` and `reduce5` are the channels of the 1 × 1 convolutions before the larger ones.
    """

    def __init__(
        self, n_in: int, n1: int, reduce3: int, n3: int, reduce5: int, n5: int, n_pool: int
    ) -> None:
        super().__init__()
        self.branch1 = conv_bn_relu(n_in, n1, 1)
        self.branch3 = nn.Sequential(conv_bn_relu(n_in, reduce3, 1), conv_bn_relu(reduce3, n3, 3))
        self.branch5 = nn.Sequential(
            conv_bn_relu(n_in, reduce5, 1), conv_bn_relu(reduce5, n5, 3), conv_bn_relu(n5, n5, 3)
        )
        self.branch_pool = nn.Sequential(
            nn.MaxPool2d(3, stride=1, padding=1), conv_bn_relu(n_in, n_pool, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        branches = (self.branch1, self.branch3, self.branch5, self.branch_pool)
        return torch.cat([branch(x) for branch in branches], dim=1)


class GoogLeNet(nn.Module):
    """GoogLeNet on images [B, 3, 32, 32] -> logits [B, num_classes]."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.features = nn.Sequential(
            conv_bn_relu(3, 192, 3),
            Inception(192, 64, 96, 128, 16, 32, 32),
            Inception(256, 128, 128, 192, 32, 96, 64),
            nn.MaxPool2d(3, stride=2, padding=1),  # 32 -> 16
            Inception(480, 192, 96, 208, 16, 48, 64),
            Inception(512, 160, 112, 224, 24, 64, 64),
            Inception(512, 128, 128, 256, 24, 64, 64),
            Inception(512, 112, 144, 288, 32, 64, 64),
            Inception(528, 256, 160, 320, 32, 128, 128),
            nn.MaxPool2d(3, stride=2, padding=1),  # 16 -> 8
            Inception(832, 256, 160, 320, 32, 128, 128),
            Inception(832, 384, 192, 384, 48, 128, 128),
        )
        self.head = nn.Linear(1024, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        require_image_size(images, 3, 32, "GoogLeNet")
        return self.head(global_average(self.features(images)))
