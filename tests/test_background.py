"""Writing in the background."""

import threading

import pytest
import torch

from utils.storage.background import Background
from utils.storage.trajectory import Trajectory

CPU = torch.device("cpu")


def test_calls_are_made_in_order_and_waited_for():
    background, made, may_go = Background(CPU), [], threading.Event()
    background.submit(lambda: (may_go.wait(10), made.append(0)))
    for number in range(1, 20):
        background.submit(made.append, number)
    assert made == []  # the caller goes on
    may_go.set()
    background.wait()
    assert made == list(range(20))


def test_an_error_is_raised_to_who_waits_and_ends_it():
    background, made = Background(CPU), []

    def full():
        raise OSError(28, "No space left on device")

    background.submit(made.append, 1)
    background.submit(full)
    background.submit(made.append, 2)
    for _ in range(2):
        with pytest.raises(OSError, match="No space left"):
            background.wait()
    background.close()
    assert made == [1]


def test_a_trajectory_is_read_once_it_is_written(tmp_path):
    background, may_go = Background(CPU), threading.Event()
    trajectory = Trajectory(tmp_path / "trajectory.npy", 4, background.wait)
    background.submit(may_go.wait, 10)
    for epoch in range(3):
        background.submit(trajectory.append, torch.full((4,), float(epoch)))
    threading.Timer(0.2, may_go.set).start()
    assert trajectory.array[:, 0].tolist() == [0, 1, 2]
    assert trajectory[2].tolist() == [2] * 4


def test_parts_of_a_snapshot_are_written_by_several(tmp_path):
    mine, other = (Trajectory(tmp_path / "trajectory.npy", 5) for _ in range(2))
    other.write(torch.tensor([4.0, 5.0]), first=3)
    mine.write(torch.tensor([1.0, 2.0, 3.0]))
    assert len(Trajectory(tmp_path / "trajectory.npy", 5)) == 0  # not counted yet
    mine.count()
    other.count(in_file=False)
    for trajectory in (mine, other, Trajectory(tmp_path / "trajectory.npy", 5)):
        assert trajectory.array.tolist() == [[1, 2, 3, 4, 5]]
