import pytest
import torch
from torch import nn

from utils.cmd.vector import (
    layer_names,
    layer_sizes,
    not_in_vector,
    read_vector,
    restore,
    write_vector,
)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(4, 3)
        self.head = nn.Linear(3, 4)
        self.head.weight = self.embed.weight
        self.norm = nn.BatchNorm1d(4)
        self.register_buffer("scale", torch.tensor(2.0))
        self.register_buffer("scratch", torch.zeros(9), persistent=False)


def test_layers_are_the_floating_state_in_order_and_tied_ones_once():
    net = Tied()
    names = ["scale", "embed.weight", "head.bias", "norm.weight", "norm.bias",
             "norm.running_mean", "norm.running_var"]  # fmt: skip
    assert list(layer_names(net)) == names
    assert layer_sizes(net) == [1, 12, 4, 4, 4, 4, 4]
    state = net.state_dict()
    assert torch.equal(read_vector(net), torch.cat([state[name].flatten() for name in names]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_what_is_written_is_read_back(dtype):
    net = Tied().to(dtype)
    theta = torch.rand(33).to(dtype).float()
    write_vector(theta, net)
    assert torch.equal(read_vector(net), theta)
    assert net.head.weight is net.embed.weight
    out = torch.empty(33)
    assert read_vector(net, out=out) is out and torch.equal(out, theta)


def test_order_does_not_depend_on_the_memory_format():
    net = nn.Conv2d(3, 4, 3)
    plain = read_vector(net)
    last = net.to(memory_format=torch.channels_last)
    assert torch.equal(read_vector(last), plain)
    write_vector(plain * 2, last)
    assert torch.equal(last.weight.flatten(), plain[:108] * 2)
    assert last.weight.is_contiguous(memory_format=torch.channels_last)


def test_running_variance_is_clamped_at_zero():
    net = Tied()
    write_vector(torch.full((33,), -1.0), net)
    assert (net.norm.running_var == 0).all()
    assert (net.norm.running_mean == -1).all()
    assert net.eval().norm(torch.zeros(2, 4)).isfinite().all()


def test_refuses():
    net = Tied()
    for length in (32, 34):
        with pytest.raises(ValueError, match="33 weights"):
            write_vector(torch.zeros(length), net)
        with pytest.raises(ValueError, match="33 weights"):
            read_vector(net, out=torch.zeros(length))
    with pytest.raises(ValueError, match="no floating-point"):
        read_vector(nn.ReLU())


def test_a_model_is_restored_to_the_last_bit():
    def net():
        made = Tied()
        made.norm.double()  # beyond what θ holds
        return made

    trained = net()
    with torch.no_grad():
        for value in trained.state_dict().values():
            value.copy_(torch.randn(value.shape) * 9)  # a variance below 0, too
    state = trained.state_dict()
    others = not_in_vector(state)
    assert list(others) == [name for name in state if name.startswith("norm.")]
    theta = read_vector(trained)
    for beside in (others, state):
        again = net()
        restore(again, theta, beside)
        assert all(torch.equal(value, state[name]) for name, value in again.state_dict().items())
        assert again.head.weight is again.embed.weight
    with pytest.raises(RuntimeError, match=r"norm\.bias"):
        restore(again, theta, {name: others[name] for name in others if name != "norm.bias"})
    with pytest.raises(RuntimeError, match="32"):
        restore(again, theta[1:], others)
