"""ResNet18 for 32 × 32 images.

K. He, X. Zhang, S. Ren, J. Sun, "Deep Residual Learning for Image Recognition", CVPR 2016, with
the stem usual for CIFAR: one 3 × 3 convolution at stride 1 and no pooling. BatchNorm keeps no
running statistics, as in the CMD paper's code, so each test batch is normalised by its own mean
and variance. 11,173,962 parameters with ten classes.
"""

from functools import partial

from torch import Tensor, nn

from models.layers import conv3x3, require_image_size


class ResNet18(nn.Module):
    """ResNet18 on images [B, 3, 32, 32] -> logits [B, num_classes]."""

    def __init__(self, num_classes: int = 10) -> None:
        from torchvision import models  # takes a second or two, for this model only

        super().__init__()
        net = models.resnet18(
            num_classes=num_classes,
            norm_layer=partial(nn.BatchNorm2d, track_running_stats=False),
        )
        net.conv1 = conv3x3(3, 64)
        net.maxpool = nn.Identity()
        # torchvision draws convolutions from He's normal distribution (fan out); the paper's code
        # keeps each layer's own default.
        for module in net.modules():
            if isinstance(module, (nn.Conv2d, nn.BatchNorm2d, nn.Linear)):
                module.reset_parameters()
        self.net = net

    def forward(self, images: Tensor) -> Tensor:
        require_image_size(images, 3, 32, "ResNet18")
        return self.net(images)
