"""Whether modes last, against plain correlations and errors."""

import numpy as np
import pytest
import torch

from tests import trajectories
from utils.cmd.clustering import sample_weights
from utils.cmd.fitting import fit_cmd
from utils.cmd.online import OnlineCMD
from utils.cmd.snapshots import Snapshots
from utils.results.pictures import stability
from utils.results.pictures.stability import draw_stability, errors_of, of_members
from utils.results.stored_run import StoredRun
from utils.system.errors import UserError


def plain(trajectory, cmd, window):
    """The same by np.corrcoef, one weight and one window after the other."""
    trajectory = trajectory.astype(np.float64)
    found = np.zeros((len(trajectory), cmd.modes))
    for mode, reference in enumerate(cmd.reference.tolist()):
        members = [
            weight
            for weight in np.flatnonzero(cmd.mode.numpy() == mode)
            if np.ptp(trajectory[:, weight]) > 0
        ]
        for epoch in range(len(trajectory)):
            here = slice(max(0, epoch + 1 - window), epoch + 1)
            rows = trajectory[here]
            values = []
            for weight in members:
                moves = min(np.ptp(rows[:, weight]), np.ptp(rows[:, reference])) > 0
                pair = np.corrcoef(rows[:, weight], rows[:, reference]) if moves else None
                values.append(abs(pair[0, 1]) if moves else 0)
            found[epoch, mode] = np.mean(values) if values else 0
    return found


@pytest.mark.parametrize("make", [trajectories.drifting, trajectories.offset])
@pytest.mark.parametrize("window", [4, 20, 99])
def test_members_correlation_over_a_window(make, window, monkeypatch):
    trajectory = make(30, 300)
    trajectory[15:, :40] = trajectory[15, :40]  # what stops moving has no correlation then
    cmd = fit_cmd(trajectory, sample_weights([300], 100), 4, end=12)
    monkeypatch.setattr(stability, "AT_ONCE", 70)
    found = of_members(Snapshots(torch.from_numpy(trajectory)), cmd, window)
    np.testing.assert_allclose(found, plain(trajectory, cmd, window), atol=1e-6)


def test_errors_are_of_the_movement(real_run):
    run = StoredRun(real_run)
    found = {name: errors for name, _, _, errors in errors_of(run)}
    assert next(iter(found)) == "Online CMD" and "Adaptive CMD, H = 10" in found
    settings, theta = run.settings, np.load(real_run / "trajectory.npy")
    online = OnlineCMD(
        run.model, settings.modes, settings.samples, settings.warmup_cmd, history=run.trajectory
    )
    for epoch, row in enumerate(theta):
        stability.write_vector(torch.from_numpy(row), run.model)
        online.update_parameters(run.model)
        if epoch < settings.warmup_cmd:
            assert all(np.isnan(errors[epoch]) for errors in found.values())
            continue
        modelled = stability.read_vector(online.module).numpy().astype(np.float64)
        error = np.linalg.norm(modelled - row) / np.linalg.norm(row - theta[0].astype(np.float64))
        assert found["Online CMD"][epoch] == pytest.approx(error, rel=1e-6)


def test_modes_found_again_are_those_of_a_warmup_as_long(real_run, monkeypatch):
    monkeypatch.setattr(stability, "RENEWED", 3)
    run = StoredRun(real_run)
    *_, (name, _, _, errors) = errors_of(run)
    assert "every 3 epochs" in name
    theta = torch.from_numpy(np.load(real_run / "trajectory.npy")).double()
    for warmup in (4, 7, 10):
        cmd = fit_cmd(run.trajectory.array, run.sample, run.settings.modes, end=warmup + 1)
        modelled = cmd.reconstruct(theta[warmup].float()[cmd.reference]).double()
        error = (modelled - theta[warmup]).norm() / (theta[warmup] - theta[0]).norm()
        assert errors[warmup] == pytest.approx(float(error), rel=1e-4)


def test_it_is_drawn(real_run, tmp_path):
    files = draw_stability(StoredRun(real_run), tmp_path / "stability", ("png", "pdf"))
    assert [file.suffix for file in files] == [".png", ".pdf"]
    assert all(file.stat().st_size > 10_000 for file in files)


def test_a_run_without_a_warmup_has_none(real_run, tmp_path):
    run = StoredRun(real_run)
    object.__setattr__(run.settings, "warmup_cmd", 12)
    with pytest.raises(UserError, match="--warmup_cmd 12"):
        draw_stability(run, tmp_path / "stability", ("png",))
