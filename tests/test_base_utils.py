import pytest
import torch
from torch import nn

from utils.base_utils import CIFAR
from utils.cmd.vector import read_vector
from utils.data.datasets import load_dataset
from utils.training.epochs import TrainingBatches, evaluate, train_epoch
from utils.training.optimizers import make_optimizer
from utils.training.seeding import epoch_generator, stream_seed

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def digits():
    return load_dataset("digits", "", 32, False).limited(200)


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(3 * 32 * 32, 10))


def train(model, dataset, batch_size=64, epoch=0, scheduler=None, lr=0.0003):
    optimizer = make_optimizer("sgd", model, lr, 0.9)
    scheduler = scheduler(optimizer) if scheduler else None
    batches = TrainingBatches(dataset, CIFAR, batch_size, epoch_generator(0, epoch, CPU))
    return train_epoch(model, batches, optimizer, scheduler)


def test_an_epoch_visits_every_image_once(digits):
    seen = []

    class Recorder(nn.Linear):
        def forward(self, images):
            seen.append(len(images))
            return super().forward(images.flatten(1))

    train(Recorder(3 * 32 * 32, 10), digits)
    assert seen == [64, 64, 64, 8]


def test_training_learns_and_testing_equals_a_plain_loop(digits):
    model = net()
    losses = [train(model, digits, epoch=epoch)[0] for epoch in range(4)]
    assert losses[-1] < losses[0]
    loss, accuracy = evaluate(model, digits.test, CIFAR, 64)
    model.eval()
    logits = model(CIFAR.test(digits.test.images))
    expected = nn.functional.cross_entropy(logits, digits.test.labels).item()
    assert loss == pytest.approx(expected, rel=1e-5)
    assert accuracy == (logits.argmax(1) == digits.test.labels).double().mean().item()


def test_an_epoch_depends_on_seed_number_and_weights_alone(digits):
    first, second = net(), net()
    train(first, digits)
    torch.rand(17)  # what else drew in between does not matter
    train(second, digits)
    assert torch.equal(read_vector(first), read_vector(second))
    third = net()
    train(third, digits, epoch=1)
    assert not torch.equal(read_vector(first), read_vector(third))


def test_schedule_is_stepped_once_a_batch(digits):
    steps = []

    class Counter(torch.optim.lr_scheduler.LambdaLR):
        def step(self, *arguments):
            steps.append(1)
            super().step(*arguments)

    train(net(), digits, scheduler=lambda optimizer: Counter(optimizer, lambda _: 1.0))
    assert len(steps) == 1 + 4  # LambdaLR takes one itself at the start


def test_testing_leaves_the_model_as_it_was(digits):
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(3 * 32 * 32, 10)).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    evaluate(model, digits.test, CIFAR, 64)
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_streams_are_distinct():
    seeds = {stream_seed(seed, stream) for seed in range(20) for stream in range(20)}
    assert len(seeds) == 400 and all(0 <= seed < 2**63 for seed in seeds)
