import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import reference, trajectories
from utils.cmd import fitting, snapshots
from utils.cmd.clustering import sample_weights
from utils.cmd.fitting import fit_cmd, mode_dtype
from utils.cmd.model import CMDModel


def draw(n_weights, k, seed=0):
    return sample_weights([n_weights], k, torch.Generator().manual_seed(seed))


def assert_equals_reference(cmd, trajectory, sample, modes):
    expected_reference, expected_mode, a, b, correlations = reference.fit(
        trajectory, sample.numpy(), modes
    )
    assert cmd.reference.tolist() == expected_reference.tolist()
    assert cmd.reference.dtype == torch.int64
    mode = cmd.mode.numpy()
    differ = np.flatnonzero(mode != expected_mode)
    # only where two references are equally good to the last digits
    gap = correlations[differ, expected_mode[differ]] - correlations[differ, mode[differ]]
    assert (np.abs(gap) < 1e-12).all()
    same = mode == expected_mode
    np.testing.assert_allclose(cmd.a[same], a[same], rtol=1e-4, atol=1e-6 * np.abs(a).max())
    np.testing.assert_allclose(cmd.b[same], b[same], rtol=1e-4, atol=1e-6 * np.abs(b).max())
    np.testing.assert_array_equal(cmd.reference_history, trajectory[:, expected_reference])


@pytest.mark.parametrize("make", [trajectories.drifting, trajectories.offset])
@pytest.mark.parametrize(
    ("n_epochs", "n_weights", "k", "modes"),
    [(30, 2003, 300, 10), (21, 997, 997, 4), (12, 501, 40, 1), (150, 301, 200, 7)],
)
def test_fit_equals_reference(make, n_epochs, n_weights, k, modes, device):
    trajectory = make(n_epochs, n_weights)
    sample = draw(n_weights, k)
    cmd = fit_cmd(trajectory, sample, modes, device=device)
    assert cmd.a.device.type == device.type
    there = fit_cmd(torch.from_numpy(trajectory).to(device), sample, modes)
    assert torch.equal(cmd.a, there.a) and torch.equal(cmd.mode, there.mode)
    cmd = cmd.to("cpu")
    assert_equals_reference(cmd, trajectory, sample, modes)
    constant = np.arange(0, n_weights, 50)
    moving = np.isin(constant, cmd.reference.numpy(), invert=True)
    assert (cmd.a[constant[moving]] == 0).all()
    np.testing.assert_array_equal(cmd.b[constant[moving]], trajectory[0, constant[moving]])


def test_fit_of_a_real_run_equals_reference(real_run):
    trajectory = np.load(real_run / "trajectory.npy", mmap_mode="r")
    sample = draw(trajectory.shape[1], 500)
    assert_equals_reference(fit_cmd(trajectory, sample, 10), np.array(trajectory), sample, 10)


@given(
    n_epochs=st.integers(4, 40),
    n_weights=st.integers(20, 300),
    modes=st.integers(1, 6),
    seed=st.integers(0, 1000),
)
@settings(deadline=None, max_examples=40)
def test_fit_equals_reference_on_any_shape(n_epochs, n_weights, modes, seed):
    trajectory = trajectories.drifting(n_epochs, n_weights, seed=seed)
    sample = draw(n_weights, max(modes, n_weights // 2), seed)
    assert_equals_reference(fit_cmd(trajectory, sample, modes), trajectory, sample, modes)


def test_chunk_size_does_not_matter(monkeypatch):
    trajectory, sample = trajectories.offset(17, 1009), draw(1009, 200)
    whole = fit_cmd(trajectory, sample, 5)
    for elements in (1, 17 * 100, 17 * 1008):
        monkeypatch.setattr(fitting, "FIT_ELEMENTS", elements)
        monkeypatch.setattr(snapshots, "PART_WEIGHTS", elements)
        chunked = fit_cmd(trajectory, sample, 5)
        assert torch.equal(whole.mode, chunked.mode)
        torch.testing.assert_close(whole.a, chunked.a, rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(whole.b, chunked.b, rtol=1e-6, atol=1e-7)
        values = torch.randn(chunked.modes)
        torch.testing.assert_close(
            chunked.reconstruct(values), chunked.a * values[chunked.mode.long()] + chunked.b
        )


def test_tensor_array_and_memory_map_agree(tmp_path):
    trajectory, sample = trajectories.drifting(10, 300), draw(300, 100)
    np.save(tmp_path / "t.npy", trajectory)
    mapped = np.load(tmp_path / "t.npy", mmap_mode="r")
    fits = [fit_cmd(t, sample, 4) for t in (trajectory, torch.from_numpy(trajectory), mapped)]
    for other in fits[1:]:
        assert torch.equal(fits[0].a, other.a) and torch.equal(fits[0].mode, other.mode)


def test_start_and_end_select_snapshots():
    trajectory, sample = trajectories.drifting(20, 300), draw(300, 100)
    part, alone = fit_cmd(trajectory, sample, 4, 3, 15), fit_cmd(trajectory[3:15], sample, 4)
    assert torch.equal(part.a, alone.a) and part.reference_history.shape == (12, 4)


def test_reconstruction_follows_the_references():
    trajectory, sample = trajectories.drifting(20, 300, noise=0), draw(300, 100)
    cmd = fit_cmd(trajectory, sample, 5)
    for epoch in (0, 19):
        theta = cmd.reconstruct(cmd.reference_history[epoch])
        np.testing.assert_allclose(theta, trajectory[epoch], atol=1e-4)
        np.testing.assert_array_equal(theta[cmd.reference], trajectory[epoch, cmd.reference])
    out = torch.empty(300)
    assert cmd.reconstruct(cmd.reference_history[0], out=out) is out
    with pytest.raises(ValueError, match="5 reference weights"):
        cmd.reconstruct(torch.zeros(3))


def test_all_constant_weights():
    trajectory = np.tile(np.arange(30, dtype=np.float32) * 0.1, (5, 1))
    cmd = fit_cmd(trajectory, draw(30, 30), 3)
    assert cmd.modes == 1
    torch.testing.assert_close(
        cmd.reconstruct(cmd.reference_history[-1]), torch.from_numpy(trajectory[0])
    )


def test_single_snapshot_and_two_snapshots():
    trajectory = trajectories.drifting(2, 200)
    for n_epochs in (1, 2):
        cmd = fit_cmd(trajectory[:n_epochs], draw(200, 100), 5)
        for epoch in range(n_epochs):
            theta = cmd.reconstruct(cmd.reference_history[epoch])
            np.testing.assert_allclose(theta, trajectory[epoch], atol=1e-3)


@pytest.mark.parametrize(
    ("modes", "dtype"),
    [(1, torch.int8), (128, torch.int8), (129, torch.int16), (40_000, torch.int32)],
)
def test_mode_numbers_are_small(modes, dtype):
    assert mode_dtype(modes) == dtype


def test_more_than_128_modes():
    trajectory = np.random.default_rng(0).normal(size=(40, 600)).astype(np.float32)
    cmd = fit_cmd(trajectory, draw(600, 400), 300)
    assert cmd.modes == 300 and cmd.mode.dtype == torch.int16 and cmd.mode.max() == 299
    assert_equals_reference(cmd, trajectory, draw(600, 400), 300)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"modes": 0}, "modes must be at least 1"),
        ({"modes": 101}, "at least as many samples"),
        ({"start": 10}, "snapshots 10"),
        ({"end": 11}, "11"),
        ({"sample": torch.tensor([1, 300, 2, 3])}, "not of the 300 weights"),
        ({"sample": torch.tensor([1, 1, 2, 3])}, "twice"),
        ({"trajectory": np.zeros(5, np.float32)}, "float32"),
        ({"trajectory": np.zeros((5, 4), np.int32)}, "float32"),
    ],
)
def test_fit_refuses(change, words):
    arguments = {"trajectory": trajectories.drifting(10, 300), "sample": draw(300, 100), "modes": 4}
    with pytest.raises(ValueError, match=words):
        fit_cmd(**(arguments | change))


@pytest.mark.parametrize("weight", [3, 299])
def test_weights_that_are_not_finite_are_refused(weight):
    trajectory = trajectories.drifting(10, 300)
    trajectory[4, weight] = np.inf
    with pytest.raises(ValueError, match="not finite"):
        fit_cmd(trajectory, torch.arange(3, 103), 4)


def test_save_and_load(tmp_path):
    cmd = fit_cmd(trajectories.drifting(10, 300), draw(300, 100), 4)
    cmd.save(tmp_path / "cmd.pt")
    loaded = CMDModel.load(tmp_path / "cmd.pt")
    for name, value in vars(cmd).items():
        assert torch.equal(getattr(loaded, name), value)
        assert getattr(loaded, name).dtype == value.dtype
    (tmp_path / "bad.pt").write_bytes(b"nonsense")
    torch.save({"a": torch.zeros(3)}, tmp_path / "other.pt")
    for name in ("bad.pt", "other.pt"):
        with pytest.raises(ValueError, match=name):
            CMDModel.load(tmp_path / name)
    with pytest.raises(OSError, match="missing"):
        CMDModel.load(tmp_path / "missing.pt")
