"""One epoch of training, and one test."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from utils.data.datasets import Dataset, Split
from utils.data.transforms import CropFlip, Drawn, ResizedCrop
from utils.system.ranks import ALONE, Ranks
from utils.training.compute import SIMPLE, Compute

Transform = CropFlip | ResizedCrop
AHEAD = {"cpu": 1 << 23, "cuda": 1 << 28}  # bytes of images augmented at once, or one batch


class Batch(NamedTuple):
    """This rank's images of a training batch.

    Attributes:
        images: as the model takes them, float32 [n, 3, H, W].
        labels: int64 [n].
        n_images: how many of the n count; 0 where a small batch leaves this rank none of its own.
        total: the images of all ranks.
    """

    images: Tensor
    labels: Tensor
    n_images: int
    total: int


def in_pieces(batch: Batch, size: int) -> Iterator[Batch]:
    """A batch's images, at most `size` at a time, with the batch's total."""
    if not batch.n_images:
        yield batch
        return
    for images, labels in zip(batch.images.split(size), batch.labels.split(size), strict=True):
        yield Batch(images, labels, len(labels), batch.total)


class TrainingBatches:
    """The batches of an epoch: every image once, in a random order, augmented; to be iterated over
    once. The last batch is as small as it comes.

    Many batches are augmented at once, which costs a GPU little more than one. What is drawn is the
    same: for one batch after another.
    """

    def __init__(
        self,
        dataset: Dataset,
        transform: Transform,
        batch_size: int,
        generator: torch.Generator,
        ranks: Ranks = ALONE,
    ) -> None:
        """Draw the order.

        Args:
            generator: of the order and the augmentation, on the images' device; alike on all ranks.
            ranks: share each batch.
        """
        self._split, self._mirror = dataset.train, dataset.mirror
        self._transform, self._generator, self._ranks = transform, generator, ranks
        device = self._split.images.device
        order = torch.randperm(len(self._split), generator=generator, device=device)
        self._batches = order.split(batch_size)

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[Batch]:
        split, transform = self._split, self._transform
        room = AHEAD.get(split.images.device.type, 0)
        at_once = max(1, room // (transform.cut_bytes * len(self._batches[0])))
        for first in range(0, len(self), at_once):
            batches = self._batches[first : first + at_once]
            shares = [self._ranks.batch_share(len(batch)) for batch in batches]
            own = torch.cat([batch[part] for batch, (part, _) in zip(batches, shares, strict=True)])
            cut = transform.cut(
                split.images[own], self._draw(batches, [part for part, _ in shares])
            )
            sizes = [part.stop - part.start for part, _ in shares]
            labels = split.labels[own]
            for batch, (_, n_images), images, of_them in zip(
                batches, shares, cut.split(sizes), labels.split(sizes), strict=True
            ):
                yield Batch(transform.finish(images), of_them, n_images, len(batch))

    def _draw(self, batches: Sequence[Tensor], parts: Sequence[slice]) -> Drawn:
        """The augmentation of a part of each batch."""
        shape = tuple(self._split.images.shape[1:3])
        drawn = []
        for batch, part in zip(batches, parts, strict=True):
            of_all = self._transform.draw(len(batch), shape, self._generator, self._mirror)
            drawn.append([each[part] for each in of_all])
        return tuple(map(torch.cat, zip(*drawn, strict=True)))


def train_epoch(
    model: nn.Module,
    batches: Iterable[Batch],
    optimizer: Optimizer,
    scheduler: LRScheduler | None = None,
    compute: Compute = SIMPLE,
    after_step: Sequence[Callable[[nn.Module], None]] = (),
    parallel: nn.Module | None = None,
) -> tuple[float, float]:
    """Train on some batches, a step each.

    Args:
        scheduler: is stepped after every optimizer step.
        after_step: each is called with the model after every optimizer step.
        parallel: `ranks.parallel(model)`, where there are several ranks.

    Returns:
        The mean loss and the accuracy (a fraction) over the images as the model met them. The host
        waits for the device once, at the end.
    """
    model.train()
    arithmetic, ranks, n_images = compute.arithmetic, compute.ranks, 0
    # loss, correct
    totals = torch.zeros(2, dtype=torch.float64, device=next(model.parameters()).device)
    with arithmetic.products():
        for batch in batches:
            logits = arithmetic.logits(parallel or model, batch.images)
            loss = functional.cross_entropy(logits, batch.labels)
            optimizer.zero_grad()
            # gradients are averaged over ranks: by the images in each
            weight = batch.n_images * ranks.size / batch.total
            (loss if weight == 1 else loss * weight).backward()
            optimizer.step()
            if scheduler is not None:
                scheduler.step()
            for call in after_step:
                call(model)
            totals[0] += loss.detach() * batch.n_images
            totals[1] += count_correct(logits, batch.labels) if batch.n_images else 0
            n_images += batch.total
    ranks.align_buffers(model)
    loss, n_correct = ranks.sum(totals).tolist()
    return loss / n_images, n_correct / n_images


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    split: Split,
    transform: Transform,
    batch_size: int,
    compute: Compute = SIMPLE,
) -> tuple[float, float]:
    """Mean loss and accuracy (a fraction) of `model` on `split`, in its order.

    The batch size is part of the result for a model whose BatchNorm has no running statistics;
    batches are shared among the ranks whole.
    """
    totals = torch.zeros(2, dtype=torch.float64, device=split.images.device)  # loss, correct
    for logits, labels in tested(model, split, transform, batch_size, compute):
        totals[0] += functional.cross_entropy(logits, labels, reduction="sum")
        totals[1] += count_correct(logits, labels)
    loss, n_correct = compute.ranks.sum(totals).tolist()
    return loss / len(split), n_correct / len(split)


@torch.inference_mode()
def tested(
    model: nn.Module,
    split: Split,
    transform: Transform,
    batch_size: int,
    compute: Compute = SIMPLE,
) -> Iterator[tuple[Tensor, Tensor]]:
    """What a model makes of a split, a batch at a time: logits float32 [B, classes] and labels
    int64 [B], of this rank's batches."""
    was_training, ranks = model.training, compute.ranks
    model.eval()
    batches = zip(split.images.split(batch_size), split.labels.split(batch_size), strict=True)
    with compute.arithmetic.products():
        for images, labels in itertools.islice(batches, ranks.rank, None, ranks.size):
            yield compute.arithmetic.logits(model, transform.test(images)), labels
    model.train(was_training)


def count_correct(logits: Tensor, labels: Tensor) -> Tensor:
    """How many of the logits [B, classes] are highest at their label, int64 []."""
    return (logits.argmax(1) == labels).sum()
