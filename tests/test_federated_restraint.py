"""What a method does to a client's model after each local step, and the model that is lent."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from utils.cmd.vector import layer_sizes, read_vector, write_vector
from utils.federated import projection
from utils.federated.coefficients import Coefficients
from utils.federated.embedding import CMDClient
from utils.federated.fedavg import FedAvgClient
from utils.federated.freezing import FreezingClient, FreezingSettings
from utils.federated.lent import lent_model
from utils.federated.projection import trained_weights

MODES = 3


def network(num_classes=3):
    """Layers in both layouts, some of them not trained."""
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, (1, 3)), nn.Flatten(),
        nn.Linear(8, num_classes),
    ).to(memory_format=torch.channels_last)  # fmt: skip
    model[2].weight.requires_grad_(False)
    return model


N = sum(layer_sizes(network()))
TRAINED = trained_weights(network())


def held(theta):
    """θ as a model has it, whose running variances are not negative."""
    model = network()
    write_vector(torch.from_numpy(theta), model)
    return read_vector(model).numpy()


def drawn(seed, share=0.6):
    """A θ, and coefficients of a share of its weights; the last reference is not trained."""
    draw = np.random.default_rng(seed)
    trained = draw.choice(np.flatnonzero(TRAINED), MODES - 1, replace=False)
    reference = np.append(trained, draw.choice(np.flatnonzero(~TRAINED)))
    mode = draw.integers(0, MODES, N).astype(np.int8)
    embedded = draw.random(N) < share
    embedded[reference] = False
    a, b = (draw.normal(size=N).astype(np.float32) for _ in range(2))
    theta = (draw.normal(size=N) * 10.0 ** draw.integers(-3, 3, N)).astype(np.float32)
    return held(theta), Coefficients(a, b, mode, reference, embedded)


def cmd_client(known):
    client = CMDClient(N)
    client.coefficients, client.live = known, ~known.embedded
    return client


def apf_client(theta, frozen):
    client = FreezingClient(N, FreezingSettings())
    client.theta, client.live = theta, ~frozen
    return client


def restrained(client, theta):
    """What the client makes of θ after a step."""
    model = network()
    restraint = client.restraint(model)
    write_vector(torch.from_numpy(theta), model)  # as a step does, after it was made
    if restraint is not None:
        restraint(model)
    return read_vector(model).numpy()


def projected(theta, known):
    """In NumPy, one weight after the other: sums in float64, each product in float32."""
    theta, (a, b) = theta.copy(), (known.a, known.b)
    for number, reference in enumerate(known.reference):
        members = np.flatnonzero(known.embedded & (known.mode == number))
        moved = squares = np.float64(0)
        for weight in members[TRAINED[members]]:
            moved += np.float64(a[weight] * (theta[weight] - b[weight]))
            squares += np.float64(a[weight] * a[weight])
        if TRAINED[reference]:
            theta[reference] = (theta[reference] + moved) / (1 + squares)
        theta[members] = a[members] * theta[reference] + b[members]
    return theta


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), share=st.floats(0, 1))
def test_embedded_weights_are_restrained_bit_for_bit_as_written_plainly(seed, share):
    theta, known = drawn(seed, share)
    found = restrained(cmd_client(known), theta)
    assert found.tobytes() == held(projected(theta, known)).tobytes()


def test_sums_side_by_side_are_the_same_but_for_rounding(monkeypatch):
    monkeypatch.setitem(projection.SUMS, "cpu", 7)
    theta, known = drawn(0)
    found = restrained(cmd_client(known), theta)
    np.testing.assert_allclose(found, held(projected(theta, known)), rtol=1e-5, atol=1e-6)
    assert found.tobytes() == held(known.apply(found)).tobytes()  # as the server will have it


def test_a_step_is_projected_onto_what_the_modes_allow():
    """Against numpy's least squares, in the values of the references."""
    theta, known = drawn(0)
    client = cmd_client(known)
    found = restrained(client, theta)
    free = ~known.embedded
    free[known.reference] = False
    assert np.array_equal(found[free], theta[free])
    assert found[known.reference[-1]] == theta[known.reference[-1]]
    for number, reference in enumerate(known.reference[:-1]):
        pulls = np.flatnonzero(known.embedded & TRAINED & (known.mode == number))
        assert len(pulls) > 1
        slope = np.append(known.a[pulls], 1)[:, None]
        moved = np.append(theta[pulls] - known.b[pulls], theta[reference])
        (nearest,), *_ = np.linalg.lstsq(slope, moved, rcond=None)
        assert found[reference] == pytest.approx(nearest, rel=1e-4)
    again = restrained(client, found)
    np.testing.assert_allclose(again, found, rtol=1e-5, atol=1e-6)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), share=st.floats(0, 1))
def test_frozen_weights_are_put_back_and_no_others(seed, share):
    theta, _ = drawn(seed)
    step, frozen = np.abs(theta) + 1, np.random.default_rng(seed).random(N) < share
    found = restrained(apf_client(theta, frozen), step)
    assert found.tobytes() == np.where(frozen, theta, step).tobytes()


def test_nothing_is_done_where_everything_is_live():
    theta, known = drawn(0, share=0)
    for client in (FedAvgClient(N), cmd_client(known), apf_client(theta, known.embedded)):
        assert client.restraint(network()) is None


class Waits(TorchDispatchMode):
    """Finds what makes a host wait for a GPU."""

    def __init__(self):
        super().__init__()
        self.called = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.called.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


WAITING = {"_local_scalar_dense", "nonzero", "masked_select", "index", "index_put_", "equal"}


def test_the_host_waits_for_nothing_in_a_step():
    theta, known = drawn(0)
    for client in (cmd_client(known), apf_client(theta, known.embedded)):
        model = network()
        with Waits() as making:
            restraint = client.restraint(model)
        with Waits() as step:
            restraint(model)
        assert "nonzero" in making.called and "scatter_" in step.called
        assert not step.called & WAITING


CPU = torch.device("cpu")
SETTINGS = SimpleNamespace(entry="an entry", build=network)


def test_a_model_is_lent_again_as_new():
    theta, _ = drawn(0)
    with lent_model(SETTINGS, 3, CPU) as model:
        count = model[1].num_batches_tracked
        model(torch.randn(2, 3, 4, 6)).sum().backward()
        assert count == 1
    with lent_model(SETTINGS, 3, CPU) as again:
        assert again is model and again[1].num_batches_tracked == 0
        assert all(parameter.grad is None for parameter in again.parameters())
        write_vector(torch.from_numpy(theta), again)
        assert read_vector(again).numpy().tobytes() == theta.tobytes()
        with lent_model(SETTINGS, 3, CPU) as another:  # a client that was given up on has its own
            assert another is not again
    with lent_model(SETTINGS, 4, CPU) as other:
        assert other[-1].out_features == 4


def test_a_model_of_a_client_that_failed_is_not_lent_again():
    with pytest.raises(RuntimeError), lent_model(SETTINGS, 3, CPU) as failed:
        raise RuntimeError("out of memory")
    with lent_model(SETTINGS, 3, CPU) as model:
        assert model is not failed
