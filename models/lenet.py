"""LeNet-5 for colour images.

Y. LeCun, L. Bottou, Y. Bengio, P. Haffner, "Gradient-Based Learning Applied to Document
Recognition", Proc. IEEE 1998. As in the CMD paper: tanh, max pooling, and every layer's channels
tripled for three colour channels. 548,878 parameters with ten classes.
"""

from torch import Tensor, nn

from models.layers import MaxPool2x2, require_image_size


class LeNet5(nn.Module):
    """LeNet-5 on images [B, in_channels, 32, 32] -> logits [B, num_classes]."""

    def __init__(self, num_classes: int = 10, in_channels: int = 3) -> None:
        super().__init__()
        self.in_channels = in_channels
        width = in_channels
        self.features = nn.Sequential(
            nn.Conv2d(in_channels, 6 * width, kernel_size=5),  # 32 -> 28
            MaxPool2x2(),  # -> 14; tanh rises, so the maximum's is the tanhs' maximum
            nn.Tanh(),  # of a quarter as many values, then
            nn.Conv2d(6 * width, 16 * width, kernel_size=5),  # -> 10
            MaxPool2x2(),  # -> 5
            nn.Tanh(),
            nn.Flatten(),
        )
        self.classifier = nn.Sequential(
            nn.Linear(16 * width * 5 * 5, 120 * width),
            nn.Tanh(),
            nn.Linear(120 * width, 84 * width),
            nn.Tanh(),
            nn.Linear(84 * width, num_classes),
        )

    def forward(self, images: Tensor) -> Tensor:
        require_image_size(images, self.in_channels, 32, "LeNet5")
        return self.classifier(self.features(images))
