import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.storage.trajectory import Trajectory, TrajectoryError


@pytest.fixture
def path(tmp_path):
    return tmp_path / "trajectory.npy"


def test_rows_come_back_and_numpy_reads_the_file(path):
    rows = torch.randn(12, 7)
    store = Trajectory(path, 7)
    for epoch, row in enumerate(rows):
        assert len(store) == epoch
        store.append(row)
        assert torch.equal(store[epoch], row)
        np.testing.assert_array_equal(np.load(path, mmap_mode="r"), rows[: epoch + 1])
    np.testing.assert_array_equal(store.array, rows)
    np.testing.assert_array_equal(Trajectory(path, 7).array, rows)
    with pytest.raises(IndexError, match="snapshot 12 of 12"):
        store[12]


def test_array_cannot_change_the_file(path):
    store = Trajectory(path, 3)
    store.append(torch.ones(3))
    store.array[:] = 5
    assert store[0].tolist() == [1, 1, 1]


@given(cut=st.integers(1, 27))
@settings(max_examples=27, deadline=None)
def test_half_a_row_is_not_served(tmp_path_factory, cut):
    """A kill while the third row was written leaves two."""
    path = tmp_path_factory.mktemp("t") / "trajectory.npy"
    store = Trajectory(path, 7)
    for value in (1.0, 2.0):
        store.append(torch.full((7,), value))
    with path.open("ab") as file:
        file.write(b"x" * cut)
    again = Trajectory(path, 7)
    assert len(again) == 2
    again.append(torch.full((7,), 3.0))
    assert [row[0].item() for row in np.load(path)] == [1, 2, 3]


def test_truncate(path):
    store = Trajectory(path, 2)
    for value in range(5):
        store.append(torch.full((2,), float(value)))
    store.truncate(2)
    assert len(store) == len(Trajectory(path, 2)) == 2
    store.append(torch.full((2,), 9.0))
    assert np.load(path)[:, 0].tolist() == [0, 1, 9]


def test_damaged_and_foreign_files_are_refused(path):
    store = Trajectory(path, 4)
    store.append(torch.zeros(4))
    whole = path.read_bytes()
    with pytest.raises(TrajectoryError, match="4 weights, not 5"):
        Trajectory(path, 5)
    path.write_bytes(whole[:-1])
    with pytest.raises(TrajectoryError, match="cut short"):
        Trajectory(path, 4)
    path.write_bytes(b"not numpy")
    with pytest.raises(TrajectoryError, match="not a trajectory"):
        Trajectory(path, 4)
    np.save(path, np.zeros((2, 4)))
    with pytest.raises(TrajectoryError, match="float32"):
        Trajectory(path, 4)


def test_a_row_of_another_length_is_refused(path):
    with pytest.raises(ValueError, match="4 weights"):
        Trajectory(path, 4).append(torch.zeros(5))
