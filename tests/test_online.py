import copy
import io

import numpy as np
import pytest
import torch
from torch import nn

from tests import reference, trajectories
from utils.cmd.clustering import sample_weights
from utils.cmd.fitting import fit_cmd
from utils.cmd.online import OnlineCMD
from utils.cmd.vector import layer_sizes, read_vector, write_vector
from utils.storage.trajectory import Trajectory


def small_net():
    return nn.Sequential(nn.Linear(30, 20), nn.BatchNorm1d(20), nn.Linear(20, 5))


N = sum(layer_sizes(small_net()))


def follow(online, trajectory, start=0, net=None):
    net = net or small_net()
    for epoch in range(start, len(trajectory)):
        write_vector(torch.from_numpy(trajectory[epoch]), net)
        online.update_parameters(net)
        yield epoch, net


@pytest.mark.parametrize("make", [trajectories.drifting, trajectories.offset])
@pytest.mark.parametrize("start", [0, 3])
def test_updates_equal_the_full_fit_after_every_epoch(make, start, device):
    trajectory = np.abs(make(40, N))  # a running variance is never negative
    online = OnlineCMD(small_net().to(device), 6, samples=200, warmup=10, seed=1, start=start)
    sample = sample_weights(layer_sizes(small_net()), 200, torch.Generator().manual_seed(1))
    fitted = fit_cmd(trajectory, sample, 6, start, 11, device="cpu")
    for epoch, net in follow(online, trajectory, net=small_net().to(device)):
        if epoch < 10:
            assert online.model is None
            assert torch.equal(read_vector(online.module), read_vector(net))
            continue
        cmd = online.model.to("cpu")
        assert torch.equal(cmd.reference, fitted.reference)
        assert torch.equal(cmd.mode, fitted.mode)
        assert cmd.reference_history.shape == (epoch + 1 - start, 6)
        a, b = reference.least_squares(
            trajectory[start : epoch + 1], cmd.reference.numpy(), cmd.mode.numpy()
        )
        np.testing.assert_allclose(cmd.a, a, rtol=1e-4, atol=1e-6 * np.abs(a).max())
        np.testing.assert_allclose(cmd.b, b, rtol=1e-4, atol=1e-6 * np.abs(b).max())
        assert (cmd.a[cmd.reference] == 1).all() and (cmd.b[cmd.reference] == 0).all()
        there = online.model
        expected = there.reconstruct(torch.from_numpy(trajectory[epoch])[cmd.reference])
        ours = copy.deepcopy(net)
        write_vector(expected, ours)
        assert torch.equal(read_vector(online.module), read_vector(ours))


def test_no_drift_after_a_thousand_epochs():
    trajectory = trajectories.offset(1001, N)
    online = OnlineCMD(small_net(), modes=4, samples=200, warmup=10)
    for _ in follow(online, trajectory):
        pass
    cmd = online.model
    a, b = reference.least_squares(trajectory, cmd.reference.numpy(), cmd.mode.numpy())
    np.testing.assert_allclose(cmd.a, a, rtol=1e-4, atol=1e-6 * np.abs(a).max())
    np.testing.assert_allclose(cmd.b, b, rtol=1e-4, atol=1e-6 * np.abs(b).max())


def test_a_reference_that_stops_or_starts_moving():
    trajectory = np.abs(trajectories.drifting(30, N, n_modes=2))
    trajectory[:11, : N // 2] = trajectory[0, : N // 2]  # half of all starts after the warm-up
    online = OnlineCMD(small_net(), modes=4, samples=N, warmup=10)
    for _, net in follow(online, trajectory):
        assert read_vector(online.module).isfinite().all()
        cmd = online.model
        if cmd is not None:
            theta = read_vector(net)
            assert torch.equal(read_vector(online.module)[cmd.reference], theta[cmd.reference])


def test_history_is_kept_until_the_warmup_ends_and_no_longer():
    online = OnlineCMD(small_net(), modes=3, samples=100, warmup=5)
    for epoch, _ in follow(online, np.abs(trajectories.drifting(8, N))):
        held = sum(t.numel() for t in online.state_dict()["snapshots"])
        assert held == ((epoch + 1) * N if epoch < 5 else 0)


def test_history_can_be_the_callers(tmp_path):
    trajectory = np.abs(trajectories.drifting(12, N))
    store = Trajectory(tmp_path / "t.npy", N)
    with_store = OnlineCMD(small_net(), 3, 100, 5, history=store)
    alone = OnlineCMD(small_net(), 3, 100, 5)
    net = small_net()
    for row in torch.from_numpy(trajectory):
        write_vector(row, net)
        store.append(row)
        with_store.update_parameters(net)
        alone.update_parameters(net)
        assert with_store.state_dict()["snapshots"] == []
        assert torch.equal(read_vector(with_store.module), read_vector(alone.module))


@pytest.mark.parametrize("stop", [0, 3, 5, 6, 9])
def test_resumes_in_the_middle_with_the_same_numbers(stop):
    trajectory = np.abs(trajectories.drifting(12, N))
    whole = OnlineCMD(small_net(), 3, 100, 5)
    for _ in follow(whole, trajectory):
        pass
    first = OnlineCMD(small_net(), 3, 100, 5)
    for _ in follow(first, trajectory[: stop + 1]):
        pass
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second = OnlineCMD(small_net(), 3, 100, 5)
    second.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(read_vector(second.module), read_vector(first.module))
    for _ in follow(second, trajectory, stop + 1):
        pass
    assert torch.equal(read_vector(second.module), read_vector(whole.module))
    assert torch.equal(second.model.a, whole.model.a)
    assert torch.equal(second.model.reference_history, whole.model.reference_history)


def test_other_settings_are_not_loaded():
    state = OnlineCMD(small_net(), 3, 100, 5).state_dict()
    with pytest.raises(ValueError, match="saved with"):
        OnlineCMD(small_net(), 4, 100, 5).load_state_dict(state)


def test_followed_model_is_left_alone_and_integers_are_copied():
    net = small_net()
    net(torch.randn(8, 30))  # one batch counted
    before = copy.deepcopy(net.state_dict())
    online = OnlineCMD(net, 2, 50, 1)
    for _ in range(3):
        online.update_parameters(net)
    for name, tensor in net.state_dict().items():
        assert torch.equal(tensor, before[name])
    assert online.module[1].num_batches_tracked == 1
    assert all(not p.requires_grad for p in online.module.parameters())


@pytest.mark.parametrize(
    "bad", [{"modes": 0}, {"samples": 3}, {"warmup": 0}, {"start": 5}, {"start": -1}]
)
def test_refuses(bad):
    with pytest.raises(ValueError, match=r"modes|samples|warm-up"):
        OnlineCMD(small_net(), **({"modes": 4, "samples": 100, "warmup": 5} | bad))
