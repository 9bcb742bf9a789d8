"""A disk that is full at any write: one line, and the run goes on once there is room."""

import errno
import os
import random
import re
import resource

import pytest
import torch

import train_cmd
from tests.test_damage import RUN
from tests.torture import outcome, same
from utils.storage.files import atomic_write
from utils.storage.sealed import save_tensors
from utils.storage.trajectory import Trajectory
from utils.system.errors import UserError

pytestmark = pytest.mark.usefixtures("narrow")

LINE = re.compile(
    r"^train_cmd\.py: error: \S+ cannot be written \(.*\): it needs [\d,]+ bytes, [\d,]+ are free "
    r"there: make room, and the same command \(without --overwrite\) "
    r"goes on with what was finished\n$"
)


class Disk:
    """Stands in for os.fsync: of the writes that it sees, one or all have no room for their end."""

    def __init__(self):
        self.real, self.seen, self.full_at, self.full = os.fsync, 0, None, False
        self.draw = random.Random(0)

    def __call__(self, file):
        self.seen += 1
        if self.full or self.seen == self.full_at:
            size = os.fstat(file).st_size
            os.ftruncate(file, size - self.draw.randrange(1, min(size, 20) + 1))
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.real(file)


@pytest.fixture
def disk(monkeypatch):
    disk = Disk()
    monkeypatch.setattr(os, "fsync", disk)
    monkeypatch.setattr(train_cmd, "plot_test_accuracy", lambda *_: None)
    return disk


def test_full_at_any_write(disk, tmp_path, capsys):
    def run(name):
        capsys.readouterr()
        return train_cmd.main([*RUN, "--results_dir", str(tmp_path / name)])

    assert run("whole") == 0
    expected, n_writes = outcome(tmp_path / "whole"), disk.seen
    assert n_writes > 100
    chosen = [1, 2, 4, n_writes, *random.Random(0).sample(range(5, n_writes), 6)]
    for number in chosen:
        disk.seen, disk.full_at = 0, number
        assert run(str(number)) == 2, number
        assert LINE.match(error := capsys.readouterr().err), error
        disk.full = number % 3 == 0
        if disk.full:  # still
            assert run(str(number)) == 2
            assert LINE.match(error := capsys.readouterr().err), error
        disk.full, disk.full_at = False, None
        assert run(str(number)) == 0, capsys.readouterr().err
        assert same(outcome(tmp_path / str(number)), expected), number
        left = {path.name for path in (tmp_path / str(number) / "lenet").iterdir()}
        assert left == {path.name for path in (tmp_path / "whole/lenet").iterdir()}


def test_files_that_may_not_grow(tmp_path, capsys):
    """The system's own limit, met within a checkpoint."""
    argv = [*RUN, "--results_dir", str(tmp_path)]
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (600_000, before[1]))
    try:
        code = train_cmd.main(argv)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    error = capsys.readouterr().err
    assert code == 2 and LINE.match(error) and "checkpoint.pt" in error, error
    assert train_cmd.main(argv) == 0


def test_drafts_of_killed_processes_are_removed(tmp_path):
    argv = [*RUN, "--results_dir", str(tmp_path)]
    assert train_cmd.main(argv) == 0
    (tmp_path / "lenet/.checkpoint.pt.4711").write_bytes(b"half")
    (tmp_path / "lenet/.mine.4711").write_bytes(b"not of the suite")
    assert train_cmd.main(argv) == 0
    hidden = {path.name for path in (tmp_path / "lenet").iterdir() if path.name.startswith(".")}
    assert hidden == {".mine.4711"}


def test_other_errors_are_not_taken_for_a_full_disk(tmp_path):
    with pytest.raises(FileNotFoundError), atomic_write(tmp_path / "no/file"):
        pass
    with pytest.raises(RuntimeError, match="mine"), atomic_write(tmp_path / "file"):
        raise RuntimeError("mine")
    assert list(tmp_path.iterdir()) == []


def test_what_was_there_before_stays(disk, tmp_path):

    save_tensors({"a": torch.zeros(3)}, tmp_path / "state.pt")
    store = Trajectory(tmp_path / "t.npy", 4)
    store.append(torch.ones(4))
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    disk.full = True
    with pytest.raises(UserError, match=r"state\.pt cannot be written.*needs 40 bytes"):
        save_tensors({"a": torch.zeros(10)}, tmp_path / "state.pt")
    with pytest.raises(UserError, match=r"t\.npy cannot be written.*needs 16 bytes"):
        store.append(torch.zeros(4))
    assert (tmp_path / "state.pt").read_bytes() == before[tmp_path / "state.pt"]
    assert Trajectory(tmp_path / "t.npy", 4).array.tolist() == [[1, 1, 1, 1]]
    disk.full = False
    store.append(torch.full((4,), 2.0))
    assert Trajectory(tmp_path / "t.npy", 4).array.tolist() == [[1] * 4, [2] * 4]
