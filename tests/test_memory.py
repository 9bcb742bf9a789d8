"""Online CMD with a memory: weighted least squares, as a plain reference has them."""

import io
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests import reference, trajectories
from tests.command_lines import fuzzed
from tests.test_online import N, follow, small_net
from utils.cmd.online import OnlineCMD
from utils.cmd.vector import read_vector, write_vector


def assert_fits(cmd, trajectory, memory):
    """a, b are those of the reference, and so is what they make of every snapshot they count."""
    a, b = reference.weighted_least_squares(
        trajectory, cmd.reference.numpy(), cmd.mode.numpy(), memory
    )
    np.testing.assert_allclose(cmd.a, a, rtol=1e-6, atol=1e-6 * np.abs(a).max())
    np.testing.assert_allclose(cmd.b, b, rtol=1e-6, atol=1e-6 * np.abs(b).max())


@pytest.mark.parametrize("make", [trajectories.drifting, trajectories.offset])
@pytest.mark.parametrize("memory", [1.5, 5, 10, 40, 1000])
@pytest.mark.parametrize("start", [0, 3])
def test_updates_equal_weighted_least_squares_after_every_epoch(make, memory, start):
    trajectory = np.abs(make(30, N))  # a running variance is never negative
    online = OnlineCMD(small_net(), 6, 200, 10, seed=1, start=start, memory=memory)
    plain = OnlineCMD(small_net(), 6, 200, 10, seed=1, start=start)
    for (epoch, net), _ in zip(follow(online, trajectory), follow(plain, trajectory), strict=True):
        if epoch < 10:
            assert online.model is None
            assert torch.equal(read_vector(online.module), read_vector(net))
            continue
        cmd = online.model
        assert torch.equal(cmd.mode, plain.model.mode)
        assert torch.equal(cmd.reference, plain.model.reference)
        assert_fits(cmd, trajectory[start : epoch + 1], memory)
        expected = cmd.reconstruct(torch.from_numpy(trajectory[epoch])[cmd.reference])
        modelled = small_net()
        write_vector(expected, modelled)  # which has no negative variance
        torch.testing.assert_close(
            read_vector(online.module), read_vector(modelled), rtol=1e-6, atol=1e-6
        )


@pytest.mark.parametrize("make", [trajectories.drifting, trajectories.offset])
def test_no_drift_after_a_thousand_updates(make):
    trajectory = np.abs(make(1011, N))
    online = OnlineCMD(small_net(), modes=4, samples=200, warmup=10, memory=20)
    for _ in follow(online, trajectory):
        pass
    assert_fits(online.model, trajectory, 20)


def test_a_real_trajectory(real_run):
    from utils.base_utils import get_model

    trajectory = np.load(real_run / "trajectory.npy")
    online = OnlineCMD(get_model("lenet").build(num_classes=10), 10, 1000, 4, memory=3)
    for epoch, _ in follow(online, trajectory, net=get_model("lenet").build(num_classes=10)):
        if epoch >= 4:
            assert_fits(online.model, trajectory[: epoch + 1], 3)


@pytest.mark.parametrize("memory", [None, math.inf])
def test_without_a_memory_it_is_the_papers_bit_for_bit(memory):
    trajectory = np.abs(trajectories.drifting(30, N))
    online = OnlineCMD(small_net(), 4, 200, 10, memory=memory)
    paper = OnlineCMD(small_net(), 4, 200, 10)
    for _ in zip(follow(online, trajectory), follow(paper, trajectory), strict=True):
        assert torch.equal(read_vector(online.module), read_vector(paper.module))
    for name, value in paper.state_dict()["state"].items():
        assert torch.equal(online.state_dict()["state"][name], value)


def test_a_memory_of_one_is_the_model_itself():
    trajectory = np.abs(trajectories.drifting(20, N))
    online = OnlineCMD(small_net(), 4, 200, 10, memory=1)
    for _, net in follow(online, trajectory):
        assert torch.equal(read_vector(online.module), read_vector(net))


def test_a_reference_that_leaves_its_mode_loses_its_hold():
    """What is left of the other weights is an exponential average of their own."""
    generator = np.random.default_rng(0)
    trajectory = np.abs(trajectories.drifting(300, N, n_modes=1, noise=0.0))
    memory, decay = 10, 0.9
    online = OnlineCMD(small_net(), 1, 200, 10, memory=memory)
    for _ in follow(online, trajectory[:11]):
        pass
    held = online.model.reference.item()
    trajectory[11:] = trajectory[10] + 0.01 * generator.normal(size=(289, N)).cumsum(0)
    trajectory[11:, held] = trajectory[10, held] + generator.normal(size=289)  # alone, and wild
    trajectory = np.abs(trajectory)
    for _ in follow(online, trajectory, 11):
        pass
    ages = np.arange(299, -1, -1)
    average = (decay**ages) @ trajectory / (decay**ages).sum()
    modelled = read_vector(online.module).numpy()
    others = np.arange(N) != held
    off = np.abs(modelled - average)[others].max()
    paper = OnlineCMD(small_net(), 1, 200, 10)
    for _ in follow(paper, trajectory):
        pass
    off_paper = np.abs(read_vector(paper.module).numpy() - trajectory[-1])[others].max()
    assert off < 0.1 < off_paper
    assert np.abs(online.model.a[others].numpy()).max() < 0.1


@pytest.mark.parametrize("memory", [2, 5, 10, 20])
def test_a_reference_that_stops_moving_is_forgotten(memory):
    """As of a frozen layer: what is left of the others is an average of their own."""
    generator = np.random.default_rng(0)
    net = small_net()
    online = OnlineCMD(net, 1, 200, 10, memory=memory)
    start = 1 + generator.random(N)
    moves = np.abs(trajectories.drifting(11, N, n_modes=1, noise=0.0))
    for _ in follow(online, start + 1e-2 * moves):
        pass
    held = online.model.reference.item()
    for _ in range(80 * memory):
        theta = (start + 1e-3 * generator.normal(size=N)).astype(np.float32)
        theta[held] = start[held]
        write_vector(torch.from_numpy(theta), net)
        online.update_parameters(net)
        assert np.abs(read_vector(online.module).numpy() - theta).max() < 0.1
    assert np.abs(read_vector(online.module).numpy() - start).max() < 4e-3
    assert online.model.a.abs().sum() == 1


@fuzzed(20)
@given(
    memory=st.one_of(st.none(), st.floats(1, 1e6)),
    stop=st.integers(0, 14),
    seed=st.integers(0, 9),
)
def test_resumed_anywhere_it_goes_on_with_the_same_numbers(memory, stop, seed):
    trajectory = np.abs(trajectories.drifting(16, N, seed=seed))
    whole, first, second = (OnlineCMD(small_net(), 3, 100, 5, memory=memory) for _ in range(3))
    for _ in follow(whole, trajectory):
        pass
    for _ in follow(first, trajectory[: stop + 1]):
        pass
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second.load_state_dict(torch.load(file, weights_only=True))
    for _ in follow(second, trajectory, stop + 1):
        pass
    assert torch.equal(read_vector(second.module), read_vector(whole.module))
    assert torch.equal(second.model.a, whole.model.a)


def test_a_state_saved_before_there_were_memories():
    state = OnlineCMD(small_net(), 3, 100, 5).state_dict()
    del state["settings"]["memory"]
    OnlineCMD(small_net(), 3, 100, 5).load_state_dict(state)
    with pytest.raises(ValueError, match="saved with"):
        OnlineCMD(small_net(), 3, 100, 5, memory=10).load_state_dict(state)


@pytest.mark.parametrize("with_history", [False, True])
def test_several_memories_share_the_fit_of_the_warmup(monkeypatch, with_history):
    from utils.cmd import online as module

    fits, real = [], module.shared_references
    monkeypatch.setattr(module, "shared_references", lambda *given: fits.append(1) or real(*given))
    trajectory = np.abs(trajectories.drifting(20, N))

    class Kept:
        array = trajectory

    options = {"history": Kept()} if with_history else {}
    first = OnlineCMD(small_net(), 3, 100, 5, **options)
    memories = (None, 4, 10)
    beside = [
        OnlineCMD(small_net(), 3, 100, 5, memory=memory, beside=first, **options)
        for memory in memories
    ]
    alone = [OnlineCMD(small_net(), 3, 100, 5, memory=memory, **options) for memory in memories]
    for steps in zip(*(follow(each, trajectory) for each in (first, *beside, *alone)), strict=True):
        epoch, _ = steps[0]
        assert all(not each.state_dict()["snapshots"] for each in beside)
        for one, other in zip(beside, alone, strict=True):
            torch.testing.assert_close(
                read_vector(one.module), read_vector(other.module), rtol=1e-5, atol=1e-6
            )
        if epoch == 5:
            assert len(fits) == 1 + len(alone)


def test_beside_one_of_other_settings():
    first = OnlineCMD(small_net(), 3, 100, 5)
    for bad in ({"modes": 4}, {"samples": 90}, {"warmup": 6}, {"start": 1}):
        settings = {"modes": 3, "samples": 100, "warmup": 5} | bad
        with pytest.raises(ValueError, match="beside one with"):
            OnlineCMD(small_net(), **settings, beside=first)
    alike = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4))
    first = OnlineCMD(alike, 2, 20, 5, parameters=lambda name: name[0] == "0")
    with pytest.raises(ValueError, match="models other layers"):
        OnlineCMD(alike, 2, 20, 5, parameters=lambda name: name[0] == "1", beside=first)
    late = OnlineCMD(small_net(), 3, 100, 1, beside=OnlineCMD(small_net(), 3, 100, 1))
    late.update_parameters(small_net())
    with pytest.raises(ValueError, match="updated first"):
        late.update_parameters(small_net())


def test_the_warmup_is_kept_for_another_alone():
    trajectory = np.abs(trajectories.drifting(6, N))
    alone, shared = OnlineCMD(small_net(), 3, 100, 5), OnlineCMD(small_net(), 3, 100, 5)
    beside = OnlineCMD(small_net(), 3, 100, 5, memory=4, beside=shared)
    for _ in zip(*(follow(each, trajectory) for each in (alone, shared, beside)), strict=True):
        pass
    assert alone._warmup is None and shared._warmup is not None


@pytest.mark.parametrize("memory", [0, 0.5, -3, math.nan])
def test_refuses_memories(memory):
    with pytest.raises(ValueError, match="memory"):
        OnlineCMD(small_net(), 3, 100, 5, memory=memory)
