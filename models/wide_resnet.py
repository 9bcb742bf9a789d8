"""Wide-ResNet-28-10.

S. Zagoruyko, N. Komodakis, "Wide Residual Networks", BMVC 2016: pre-activation blocks with
dropout between the convolutions. As in the CMD paper's code, convolutions have biases, the stride
is taken by a block's second convolution, and the last BatchNorm has momentum 0.9. 36,489,290
parameters with ten classes.
"""

from itertools import pairwise

from torch import Tensor, nn
from torch.nn.functional import relu

from models.layers import conv3x3, global_average, require_image_size


class WideBlock(nn.Module):
    """BN-ReLU-conv-dropout-BN-ReLU-conv, plus the shortcut."""

    def __init__(self, n_in: int, n_out: int, dropout: float, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(n_in)
        self.conv1 = conv3x3(n_in, n_out, bias=True)
        self.dropout = nn.Dropout(dropout)
        self.bn2 = nn.BatchNorm2d(n_out)
        self.conv2 = conv3x3(n_out, n_out, stride, bias=True)
        keeps_shape = stride == 1 and n_in == n_out
        self.shortcut = (
            nn.Identity() if keeps_shape else nn.Conv2d(n_in, n_out, kernel_size=1, stride=stride)
        )

    def forward(self, x: Tensor) -> Tensor:
        out = self.dropout(self.conv1(relu(self.bn1(x))))
        return self.conv2(relu(self.bn2(out))) + self.shortcut(x)


class WideResNet(nn.Module):
    """Wide ResNet of depth 6n + 4 on images [B, 3, 32, 32] -> logits [B, num_classes].

    Raises ValueError if `depth` is not 6n + 4.
    """

    def __init__(
        self, num_classes: int = 10, depth: int = 28, widen: int = 10, dropout: float = 0.3
    ) -> None:
        super().__init__()
        if depth < 10 or (depth - 4) % 6:
            raise ValueError(f"a wide ResNet's depth is 6n + 4 (10, 16, 22, 28, …), not {depth}")
        blocks_per_group = (depth - 4) // 6
        widths = [16, 16 * widen, 32 * widen, 64 * widen]
        blocks = []
        for group, (n_in, n_out) in enumerate(pairwise(widths)):
            for block in range(blocks_per_group):
                first = block == 0
                stride = 2 if first and group > 0 else 1
                blocks.append(WideBlock(n_in if first else n_out, n_out, dropout, stride))
        self.stem = conv3x3(3, widths[0], bias=True)
        self.blocks = nn.Sequential(*blocks)  # 32 -> 32 -> 16 -> 8
        self.bn = nn.BatchNorm2d(widths[-1], momentum=0.9)
        self.head = nn.Linear(widths[-1], num_classes)

    def forward(self, images: Tensor) -> Tensor:
        require_image_size(images, 3, 32, "WideResNet")
        features = relu(self.bn(self.blocks(self.stem(images))))
        return self.head(global_average(features))
