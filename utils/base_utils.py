"""The table of models behind `get_model()`, and one epoch of training and of testing.

To change a model's hyperparameters, change its line in MODELS; to add a model, add a line.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, MultiStepLR

from models.googlenet import GoogLeNet
from models.lenet import LeNet5
from models.preresnet import PreResNet
from models.resnet import ResNet18
from models.vit import vit_b_16
from models.wide_resnet import WideResNet
from utils.data.datasets import Dataset, Split, load_dataset
from utils.data.transforms import CropFlip, ResizedCrop
from utils.system.errors import UserError
from utils.system.ranks import ALONE, Ranks
from utils.training.precision import PLAIN, Arithmetic

# The paper's normalisation constants.
CIFAR = CropFlip(32, padding=4, mean=(0.4914, 0.4822, 0.4465), std=(0.2023, 0.1994, 0.2010))
IMAGENET = ResizedCrop(224, scale=(0.05, 1.0), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))

OPTIMIZERS = ("sgd", "adam")
# cosine: to 0 at the end. step: a tenth from each of STEP_AT on. warmup_cosine: linearly from 0
# over WARMUP_EPOCHS or another number of epochs, then cosine.
SCHEDULERS = ("none", "cosine", "step", WITH_WARMUP := "warmup_cosine")
STEP_AT = (0.5, 0.75)  # shares of the run
WARMUP_EPOCHS = 5


@dataclass(frozen=True)
class ModelEntry:
    """A model and the paper's settings for it.

    build: called with num_classes, and with weights where `pretrained`. optimizer: "sgd" or
    "adam". epochs: T. modes: M. samples: K. scheduler: one of SCHEDULERS. test_batch_size: None
    unless it is part of the result, as where BatchNorm has no running statistics. There is no
    weight decay.
    """

    build: Callable[..., nn.Module]
    optimizer: str
    lr: float
    epochs: int
    modes: int
    samples: int
    transform: CropFlip | ResizedCrop = CIFAR
    momentum: float = 0.9  # of SGD
    scheduler: str = "none"
    pretrained: bool = False
    test_batch_size: int | None = None

    def load_dataset(self, name: str, data_dir: str, limit: int | None = None) -> Dataset:
        """A data set of utils.data.datasets.DATASETS as the model takes it, on the CPU.

        limit: images of each split, balanced over the classes; None for all.

        Raises UserError if the data is not there or not as it should be.
        """
        dataset = load_dataset(name, data_dir, self.transform.size, self.transform.resizes)
        return dataset if limit is None else dataset.limited(limit)

    def training(
        self, optimizer: str | None, lr: float | None, momentum: float | None
    ) -> tuple[str, float, float | None]:
        """Optimizer, learning rate and momentum (None but for SGD), the entry's own where None.

        Raises UserError if they do not fit together.
        """
        optimizer = optimizer or self.optimizer
        if momentum is not None and optimizer != "sgd":
            raise UserError(f"--momentum {momentum:g} is SGD's: add --optimizer sgd, or leave it")
        if optimizer == "sgd" and momentum is None:
            momentum = self.momentum
        return optimizer, self.lr if lr is None else lr, momentum

    def make_optimizer(
        self,
        model: nn.Module,
        lr: float,
        optimizer: str | None = None,
        momentum: float | None = None,
    ) -> Optimizer:
        """The optimizer for `model`, the entry's own where it is not named. momentum: of SGD."""
        parameters = list(model.parameters())
        fused = parameters[0].device.type in ("cpu", "cuda")
        if (optimizer or self.optimizer) == "adam":
            return torch.optim.Adam(parameters, lr=lr, fused=fused)
        momentum = self.momentum if momentum is None else momentum
        return torch.optim.SGD(parameters, lr=lr, momentum=momentum, fused=fused)

    def make_scheduler(
        self,
        optimizer: Optimizer,
        epochs: int,
        steps_per_epoch: int,
        scheduler: str | None = None,
        warmup_epochs: int = WARMUP_EPOCHS,
    ) -> LRScheduler | None:
        """The learning-rate schedule, to be stepped after every optimizer step.

        warmup_epochs: of linear warm-up, where the schedule has one.
        """
        name, total = scheduler or self.scheduler, epochs * steps_per_epoch
        if name == "none":
            return None
        if name == "step":
            milestones = [round(share * total) for share in STEP_AT]
            return MultiStepLR(optimizer, milestones, gamma=0.1)
        warmup = warmup_epochs * steps_per_epoch if name == WITH_WARMUP else 0

        def factor(step: int) -> float:
            if step < warmup:
                return step / warmup
            return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))

        return LambdaLR(optimizer, factor)


# fmt: off
MODELS: dict[str, ModelEntry] = {
    #                       build       optimizer  lr     T    M   K
    "res18":     ModelEntry(ResNet18,   "sgd",  0.05,  150, 10, 1_000, test_batch_size=128),
    "preres164": ModelEntry(PreResNet,  "sgd",  0.1,   150, 2,  10_000),
    "wideres":   ModelEntry(WideResNet, "sgd",  0.1,   120, 5,  1_000),
    "lenet":     ModelEntry(LeNet5,     "adam", 0.001, 150, 10, 1_000),
    "googlenet": ModelEntry(GoogLeNet,  "adam", 0.001, 120, 7,  5_000),
    "vit":       ModelEntry(vit_b_16,   "sgd",  0.03,  90,  10, 1_000,
                            transform=IMAGENET, scheduler="warmup_cosine", pretrained=True),
}
# fmt: on


def get_model(name: str) -> ModelEntry:
    """The entry of a model: its constructor, transform and the paper's hyperparameters.

    Raises UserError if there is no such model.
    """
    if name not in MODELS:
        raise UserError(f"--model {name}: choose one of {', '.join(MODELS)}")
    return MODELS[name]


def train_epoch(
    model: nn.Module,
    split: Split,
    transform: CropFlip | ResizedCrop,
    optimizer: Optimizer,
    scheduler: LRScheduler | None,
    batch_size: int,
    generator: torch.Generator,
    mirror: bool = True,
    progress: Callable[[Iterable], Iterable] = iter,
    after_step: Sequence[Callable[[nn.Module], None]] = (),
    arithmetic: Arithmetic = PLAIN,
    ranks: Ranks = ALONE,
    parallel: nn.Module | None = None,
) -> tuple[float, float]:
    """One pass over `split` in a random order, the last batch as small as it comes.

    generator: of the order and the augmentation, on the split's device; alike on all ranks.
    progress: wraps the batches, e.g. in a progress bar.
    after_step: each is called with the model after every optimizer step.
    ranks: those that share each batch. parallel: of several, `ranks.parallel(model)`.

    Returns the mean loss and the accuracy (a fraction) over the images as they were met. The
    device is waited for once, at the end.
    """
    model.train()
    device = split.images.device
    order = torch.randperm(len(split), generator=generator, device=device)
    totals = torch.zeros(2, dtype=torch.float64, device=device)  # loss, correct
    with arithmetic.products():
        for batch in progress(order.split(batch_size)):
            share, n_images = ranks.batch_share(len(batch))
            images = transform.train(split.images[batch], generator, mirror, share)
            labels = split.labels[batch[share]]
            logits = arithmetic.logits(parallel or model, images)
            loss = functional.cross_entropy(logits, labels)
            optimizer.zero_grad()
            # gradients are averaged over ranks: by the images in each
            weight = n_images * ranks.size / len(batch)
            (loss if weight == 1 else loss * weight).backward()
            optimizer.step()
            if scheduler is not None:
                scheduler.step()
            for call in after_step:
                call(model)
            totals[0] += loss.detach() * n_images
            totals[1] += count_correct(logits, labels) if n_images else 0
    ranks.align_buffers(model)
    loss, n_correct = ranks.sum(totals).tolist()
    return loss / len(split), n_correct / len(split)


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    split: Split,
    transform: CropFlip | ResizedCrop,
    batch_size: int,
    arithmetic: Arithmetic = PLAIN,
    ranks: Ranks = ALONE,
) -> tuple[float, float]:
    """Mean loss and accuracy (a fraction) of `model` on `split`, in its order.

    The batch size is part of the result for a model whose BatchNorm has no running statistics;
    batches are shared among the ranks whole.
    """
    was_training = model.training
    model.eval()
    totals = torch.zeros(2, dtype=torch.float64, device=split.images.device)  # loss, correct
    batches = zip(split.images.split(batch_size), split.labels.split(batch_size), strict=True)
    with arithmetic.products():
        for images, labels in itertools.islice(batches, ranks.rank, None, ranks.size):
            logits = arithmetic.logits(model, transform.test(images))
            totals[0] += functional.cross_entropy(logits, labels, reduction="sum")
            totals[1] += count_correct(logits, labels)
    model.train(was_training)
    loss, n_correct = ranks.sum(totals).tolist()
    return loss / len(split), n_correct / len(split)


def count_correct(logits: Tensor, labels: Tensor) -> Tensor:
    """How many of the logits [B, classes] are highest at their label, int64 []."""
    return (logits.argmax(1) == labels).sum()
