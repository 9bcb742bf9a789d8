"""The average over steps is torch's AveragedModel, to the bit, by fewer calls."""

import copy

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils._python_dispatch import TorchDispatchMode

from utils.training.exponential import ExponentialAverage


def make_model():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Flatten(), nn.Linear(6 * 36, 4)
    ).to(memory_format=torch.channels_last)


def train_step(model):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    images = torch.randn(5, 3, 8, 8).to(model[0].weight.device)
    model(images).square().mean().backward()
    optimizer.step()
    model.zero_grad()


def both(model, decay):
    torch_average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)
    return torch_average, ExponentialAverage(model, decay)


def follow(model, averages, steps):
    """Train some steps, which the averages take in."""
    for _ in range(steps):
        train_step(model)
        for average in averages:
            average.update_parameters(model)


def assert_equal(ours, theirs, model):
    found, expected = ours.state_dict(), theirs.state_dict()
    assert list(found) == list(expected)
    for name, value in expected.items():
        if value.is_floating_point() or name == "n_averaged":
            assert torch.equal(found[name], value.to(found[name].device)), name
        else:
            assert torch.equal(found[name], model.state_dict()[name.removeprefix("module.")])


@pytest.mark.parametrize("decay", [0.9, 0.999, 0.12345])
def test_it_is_torch_s_average_to_the_bit(decay, device):
    model = make_model().to(device)
    theirs, ours = both(model, decay)
    follow(model, (theirs, ours), 7)
    ours.copy_counts(model)
    assert_equal(ours, theirs, model)


def test_it_goes_on_from_the_state_of_torch_s():
    model = make_model()
    theirs, _ = both(model, 0.9)
    follow(model, (theirs,), 3)
    ours = ExponentialAverage(make_model(), 0.9)
    ours.load_state_dict(copy.deepcopy(theirs.state_dict()))
    follow(model, (theirs, ours), 3)
    ours.copy_counts(model)
    assert_equal(ours, theirs, model)
    with pytest.raises(RuntimeError):
        ours.load_state_dict({"n_averaged": torch.tensor(2), "module.0.weight": torch.zeros(3)})


class Calls(TorchDispatchMode):
    """Lists the operations that torch is asked for."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(function.__name__)
        return function(*args, **(kwargs or {}))


def test_a_step_is_one_call_and_copies_nothing_to_the_host():
    model = make_model()
    average = ExponentialAverage(model, 0.9)
    for _ in range(2):
        average.update_parameters(model)
    with Calls() as calls:
        average.update_parameters(model)
    assert calls.names == ["_foreach_lerp_.Scalar"]
