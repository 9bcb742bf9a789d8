"""Writing in the background."""

import copy
import threading

import pytest
import torch

from utils.storage.background import Background
from utils.storage.host import StateCopy
from utils.storage.sealed import load_tensors, save_tensors
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


def test_a_state_is_copied_with_all_that_is_in_it(tmp_path):
    copied = StateCopy(CPU)
    state = {
        "last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "counts": [torch.tensor(7), (torch.tensor([True, False, True]), torch.empty(0))],
        "half": torch.randn(5, 3).bfloat16().T,
        "part": torch.arange(20.0).view(4, 5)[:, ::2],  # not dense
        "lr": {"now": 0.5, "then": [1, 2]},
    }
    for _ in range(2):  # into the same memory
        copied.take(state)
        expected = copy.deepcopy(state)
        state["last"] += 1
        state["half"].zero_()
        state["lr"]["then"].append(3)
        save_tensors(copied.on_host(), tmp_path / "state.pt")
        found = load_tensors(tmp_path / "state.pt")
        assert torch.equal(found["last"], expected["last"])
        assert found["last"].stride() == expected["last"].stride()
        assert torch.equal(found["half"], expected["half"])
        assert torch.equal(found["part"], expected["part"])
        assert found["counts"][0] == 7 and found["counts"][1][0].tolist() == [True, False, True]
        assert found["counts"][1][1].shape == (0,) and found["lr"] == expected["lr"]
        storages = {each.untyped_storage().nbytes() for each in (found["last"], found["half"])}
        assert storages == {480, 30}  # each by itself
    copied.take({"other": torch.ones(3)})
    assert copied.on_host()["other"].tolist() == [1, 1, 1]
