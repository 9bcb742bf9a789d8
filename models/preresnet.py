"""PreResNet164 of basic blocks.

K. He, X. Zhang, S. Ren, J. Sun, "Identity Mappings in Deep Residual Networks", ECCV 2016. The CMD
paper's code builds its 164 layers from basic blocks (two 3 × 3 convolutions), 27 in each of three
groups of 16, 32 and 64 channels. 2,605,466 parameters with ten classes.
"""

from torch import Tensor, nn
from torch.nn.functional import relu

from models.layers import conv3x3, global_average, require_image_size


class PreActBlock(nn.Module):
    """BN-ReLU-conv-BN-ReLU-conv, plus the shortcut."""

    def __init__(self, n_in: int, n_out: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(n_in)
        self.conv1 = conv3x3(n_in, n_out, stride)
        self.bn2 = nn.BatchNorm2d(n_out)
        self.conv2 = conv3x3(n_out, n_out)
        keeps_shape = stride == 1 and n_in == n_out
        self.shortcut = (
            nn.Identity()
            if keeps_shape
            else nn.Conv2d(n_in, n_out, kernel_size=1, stride=stride, bias=False)
        )

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv1(relu(self.bn1(x)))
        return self.conv2(relu(self.bn2(out))) + self.shortcut(x)


class PreResNet(nn.Module):
    """Pre-activation ResNet of depth 6n + 2 on images [B, 3, 32, 32] -> logits [B, num_classes].

    Raises ValueError if `depth` is not 6n + 2.
    """

    def __init__(self, num_classes: int = 10, depth: int = 164) -> None:
        super().__init__()
        if depth < 8 or (depth - 2) % 6:
            raise ValueError(f"a PreResNet's depth is 6n + 2 (8, 14, …, 164), not {depth}")
        blocks, n_in = [], 16
        for group, n_out in enumerate((16, 32, 64)):
            for block in range((depth - 2) // 6):
                stride = 2 if block == 0 and group > 0 else 1
                blocks.append(PreActBlock(n_in, n_out, stride))
                n_in = n_out
        self.stem = conv3x3(3, 16)
        self.blocks = nn.Sequential(*blocks)  # 32 -> 32 -> 16 -> 8
        self.bn = nn.BatchNorm2d(n_in)
        self.head = nn.Linear(n_in, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        require_image_size(images, 3, 32, "PreResNet")
        features = relu(self.bn(self.blocks(self.stem(images))))
        return self.head(global_average(features))
