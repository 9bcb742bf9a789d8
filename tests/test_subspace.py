import numpy as np
import pytest
import torch
from scipy.linalg import subspace_angles
from sklearn.decomposition import PCA

from tests import trajectories
from utils.cmd import snapshots
from utils.cmd.snapshots import Snapshots
from utils.pbfgs_utils import principal_directions


@pytest.mark.parametrize("make", [trajectories.drifting, trajectories.offset])
@pytest.mark.parametrize(("n_epochs", "n_weights", "d"), [(30, 700, 8), (81, 1003, 40), (5, 50, 4)])
def test_equals_exact_pca(make, n_epochs, n_weights, d):
    trajectory = make(n_epochs, n_weights)
    directions = principal_directions(Snapshots(trajectory), d)
    assert directions.shape == (d, n_weights) and directions.dtype == torch.float32
    torch.testing.assert_close(directions @ directions.T, torch.eye(d), rtol=0, atol=1e-5)
    exact = PCA(d, svd_solver="full").fit(trajectory.astype(np.float64)).components_
    assert subspace_angles(directions.numpy().T.astype(np.float64), exact.T).max() < 1e-3
    alike = np.abs((directions.numpy() * exact).sum(1))
    assert (alike[:3] > 1 - 1e-5).all()  # in the same order


def test_parts_of_theta_and_chunks(monkeypatch):
    trajectory = trajectories.drifting(12, 500)
    ranges = [slice(3, 40), slice(60, 61), slice(100, 470)]
    kept = np.concatenate([trajectory[:, part] for part in ranges], axis=1)
    expected = principal_directions(Snapshots(kept), 5)
    monkeypatch.setattr(snapshots, "PART_WEIGHTS", 37)
    found = principal_directions(Snapshots(trajectory), 5, ranges)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("d", [0, 6, 20])
def test_more_directions_than_there_are(d):
    with pytest.raises(ValueError, match="span 5"):
        principal_directions(Snapshots(trajectories.drifting(6, 100)), d)


def test_a_run_that_stands_still():
    with pytest.raises(ValueError, match="span 0"):
        principal_directions(Snapshots(np.ones((6, 100), dtype=np.float32)), 1)
