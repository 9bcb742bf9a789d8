"""The batches of an epoch, however many are augmented at once and whoever shares them."""

import pytest
import torch

from utils.base_utils import CIFAR, IMAGENET
from utils.data.datasets import Dataset, Split
from utils.data.transforms import CropFlip
from utils.system.ranks import Ranks
from utils.training import epochs
from utils.training.epochs import TrainingBatches

N, SIZE = 70, 16


def dataset(side=32):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (N, side, side, 3), dtype=torch.uint8, generator=generator)
    split = Split(images, torch.arange(N))
    return Dataset(split, split, ["one"])


def batches(transform, ranks=None, side=32):
    generator = torch.Generator().manual_seed(1)
    return list(TrainingBatches(dataset(side), transform, SIZE, generator, ranks or Ranks()))


def one_by_one(transform, side=32):
    """The same, in the plainest way."""
    generator, images = torch.Generator().manual_seed(1), dataset(side).train.images
    for index in torch.randperm(N, generator=generator).split(SIZE):
        drawn = transform.draw(len(index), (side, side), generator, True)
        yield index, transform.finish(transform.cut(images[index], drawn))


SMALL_VIT = IMAGENET.__class__(24, IMAGENET.scale, IMAGENET.mean, IMAGENET.std)


@pytest.mark.parametrize("transform", [CIFAR, SMALL_VIT])
@pytest.mark.parametrize("at_once", [0, 1, 2, 3, 100])
def test_ahead_of_time_they_are_the_same(monkeypatch, transform, at_once):
    monkeypatch.setitem(epochs.AHEAD, "cpu", at_once * SIZE * transform.cut_bytes)
    found = batches(transform)
    for batch, (index, images) in zip(found, one_by_one(transform), strict=True):
        assert torch.equal(batch.images, images) and torch.equal(batch.labels, index)
        assert batch.images.is_contiguous(memory_format=torch.channels_last)
        assert batch.n_images == batch.total == len(index)


@pytest.mark.parametrize("at_once", [0, 100])
def test_ranks_share_the_batches_that_one_process_has(monkeypatch, at_once):
    monkeypatch.setitem(epochs.AHEAD, "cpu", at_once * SIZE * CIFAR.cut_bytes)
    whole, size = batches(CIFAR), 9  # a rank more than the last batch has images for
    shares = [batches(CIFAR, alone(rank, size)) for rank in range(size)]
    for number, batch in enumerate(whole):
        own = [share[number] for share in shares]
        counted = [part for part in own if part.n_images]
        assert torch.equal(torch.cat([part.images for part in counted]), batch.images)
        assert torch.equal(torch.cat([part.labels for part in counted]), batch.labels)
        assert {part.total for part in own} == {batch.total}
        assert all(len(part.images) == 1 for part in own if not part.n_images)
    assert not all(share[-1].n_images for share in shares)


def alone(rank, size):
    """A rank among several, without the others."""
    ranks = Ranks()
    ranks.rank, ranks.size = rank, size
    return ranks


def test_a_batch_larger_than_what_is_augmented_at_once_comes_whole(monkeypatch):
    monkeypatch.setitem(epochs.AHEAD, "cpu", 1)
    assert [len(batch.labels) for batch in batches(CropFlip(32, 2, CIFAR.mean, CIFAR.std))] == [
        16, 16, 16, 16, 6
    ]  # fmt: skip
