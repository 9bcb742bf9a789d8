"""The table of models behind `get_model()`, with the paper's settings for each.

To change a model's hyperparameters, change its line in MODELS; to add a model, add a line.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from models.googlenet import GoogLeNet
from models.lenet import LeNet5
from models.preresnet import PreResNet
from models.resnet import ResNet18
from models.vit import vit_b_16
from models.wide_resnet import WideResNet
from utils.cmd.files import read_pickled
from utils.data.datasets import Dataset, load_dataset
from utils.data.transforms import CropFlip, ResizedCrop
from utils.system.errors import UserError

# The paper's normalisation constants.
CIFAR = CropFlip(32, padding=4, mean=(0.4914, 0.4822, 0.4465), std=(0.2023, 0.1994, 0.2010))
IMAGENET = ResizedCrop(224, scale=(0.05, 1.0), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))

DOWNLOADED, SCRATCH = "imagenet", "none"  # what a pretrained model starts from, but for a file


@dataclass(frozen=True)
class ModelEntry:
    """A model and the paper's settings for it. There is no weight decay.

    Attributes:
        constructor: takes num_classes, and a pretrained model's `state`.
        optimizer: "sgd" or "adam".
        lr: the learning rate.
        epochs: T.
        modes: M.
        samples: K.
        transform: makes the model's input of images.
        momentum: of SGD.
        scheduler: the learning rate's schedule, a name of utils.training.optimizers.SCHEDULERS.
        pretrained: whether it starts from weights trained elsewhere.
        test_batch_size: images tested at once, where they are part of the result, as they are
            where BatchNorm has no running statistics; else None.
        pieces: images that P-BFGS differentiates at once, for at most 16 GB of activations (0.1 to
            118 MB an image); None for whole mini-batches.
    """

    constructor: Callable[..., nn.Module]
    optimizer: str
    lr: float
    epochs: int
    modes: int
    samples: int
    transform: CropFlip | ResizedCrop = CIFAR
    momentum: float = 0.9
    scheduler: str = "none"
    pretrained: bool = False
    test_batch_size: int | None = None
    pieces: int | None = None

    def build(self, num_classes: int, weights: str = SCRATCH) -> nn.Module:
        """The model, on the CPU.

        Args:
            num_classes: how many outputs it has.
            weights: where a pretrained model starts: "imagenet" (torchvision's download), "none"
                (from scratch), or the path of a state file saved with torch.save.

        Raises UserError if the weights cannot be read or downloaded, or are of another model.
        """
        if not self.pretrained or weights == SCRATCH:
            return self.constructor(num_classes=num_classes)
        try:
            state = weights if weights == DOWNLOADED else read_pickled(Path(weights))
            return self.constructor(num_classes=num_classes, state=state)
        except (OSError, ValueError) as error:
            raise UserError(
                f"--weights {weights}: {error}; give a state file of torchvision's vit_b_16, or "
                "--weights none to train from scratch"
            ) from error

    def load_dataset(self, name: str, data_dir: str, limit: int | None = None) -> Dataset:
        """A data set of utils.data.datasets.DATASETS as the model takes it, on the CPU.

        Args:
            limit: images of each split, balanced over the classes; None for all.

        Raises UserError if the data is not there or not as it should be.
        """
        dataset = load_dataset(name, data_dir, self.transform.size, self.transform.resizes)
        return dataset if limit is None else dataset.limited(limit)

    def transform_of(self, dataset: Dataset) -> CropFlip | ResizedCrop:
        """What makes the model's input of a data set's images: with the normalisation of that set,
        but for a pretrained model, which keeps the one that it knows."""
        if dataset.normalisation is None or self.pretrained:
            return self.transform
        mean, std = dataset.normalisation
        return replace(self.transform, mean=mean, std=std)


# fmt: off
MODELS: dict[str, ModelEntry] = {
    #                       constructor optimizer  lr     T    M   K
    "res18":     ModelEntry(ResNet18,   "sgd",  0.05,  150, 10, 1_000, test_batch_size=128),
    "preres164": ModelEntry(PreResNet,  "sgd",  0.1,   150, 2,  10_000),
    "wideres":   ModelEntry(WideResNet, "sgd",  0.1,   120, 5,  1_000, pieces=512),
    "lenet":     ModelEntry(LeNet5,     "adam", 0.001, 150, 10, 1_000),
    "googlenet": ModelEntry(GoogLeNet,  "adam", 0.001, 120, 7,  5_000, pieces=256),
    "vit":       ModelEntry(vit_b_16,   "sgd",  0.03,  90,  10, 1_000,
                            transform=IMAGENET, scheduler="warmup_cosine", pretrained=True,
                            pieces=128),
}
# fmt: on


def get_model(name: str) -> ModelEntry:
    """The entry of a model: its constructor, transform and the paper's hyperparameters.

    Raises UserError if there is no such model.
    """
    if name not in MODELS:
        raise UserError(f"--model {name}: choose one of {', '.join(MODELS)}")
    return MODELS[name]
