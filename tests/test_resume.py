"""What goes on after a stop is what would have been: rows removed, writes that were the last."""

import itertools
import shutil
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import train_cmd
from tests.command_lines import fuzzed
from tests.conftest import SMALL
from tests.torture import outcome, same
from utils.base_utils import get_model
from utils.cmd.vector import write_vector
from utils.methods.registry import METHODS
from utils.results.stored_run import StoredRun
from utils.storage import files, trajectory
from utils.storage.metrics import Metrics, Row
from utils.storage.store import Store
from utils.training.run import Run
from utils.training.seeding import epoch_generator

pytestmark = pytest.mark.usefixtures("narrow")
EPOCHS = 7
RUN = ["--dataset", "digits", "--model", "lenet", "--limit", "40", "--epochs", str(EPOCHS)]
RUN += ["--warmup_cmd", "2", "--embed_window", "1", "--warmup_pbfgs", "3", "--pbfgs_num", "2"]
RUN += ["--pbfgs_batch_size", "20", "--modes", "3", "--samples", "50", "--swa_start", "3"]
RUN += [word for method in METHODS for word in (method.flags[0], "True")]
OF_STEPS = {method.name for method in METHODS if method.watches_steps}
TRAINING = [method for method in METHODS if method.scratch_files()]


class Stopped(BaseException):
    """Stands in for a kill: nothing is written from here on."""


@pytest.fixture(scope="module", autouse=True)
def _no_plots():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_cmd, "plot_test_accuracy", lambda *_: None)
        yield


def go(results):
    return train_cmd.main([*RUN, "--results_dir", str(results)])


class Writes:
    """Counts what is written in any way, and lets no more through than `allowed`."""

    def __init__(self):
        self.done, self.allowed = 0, None
        self._room_for = files.room_for

    @contextmanager
    def __call__(self, path, needed):
        if self.allowed is not None and self.done >= self.allowed:
            raise Stopped
        with self._room_for(path, needed):
            yield
        self.done += 1


@pytest.fixture(scope="module")
def writes():
    counted = Writes()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "room_for", counted)
        patch.setattr(trajectory, "room_for", counted)
        yield counted


@pytest.fixture(scope="module")
def alone(tmp_path_factory, writes):
    """(results of a run left alone, its outcome, how many writes it made)."""
    results = tmp_path_factory.mktemp("alone")
    writes.done, writes.allowed = 0, None
    assert go(results) == 0
    return results, outcome(results), writes.done


@pytest.fixture(scope="module")
def stopped(tmp_path_factory, writes):
    """For each method that trains, the results of a run stopped when its training was at the last
    epoch but one, its state kept."""
    found = {}
    for method in TRAINING:
        found[method.name] = results = tmp_path_factory.mktemp(method.name)
        with pytest.MonkeyPatch.context() as patch:
            real = method.follow

            def follow(self, epoch, module, real=real, method=method):
                if type(self) is method and epoch == EPOCHS - 1:
                    raise KeyboardInterrupt
                return real(self, epoch, module)

            patch.setattr(method, "follow", follow)
            assert go(results) == 130
        assert (results / "lenet" / method.scratch_files()[0]).exists()
    return found


def without(folder, *removed):
    """Remove rows, (method, epoch) each."""
    path = folder / "metrics.csv"
    lines = path.read_text().splitlines(keepends=True)
    starts = tuple(f"{method},{epoch}," for method, epoch in removed)
    kept = [line for line in lines if not line.startswith(starts)]
    assert len(kept) == len(lines) - len(removed)
    path.write_text("".join(kept))


def test_any_row_that_is_removed_from_a_finished_run_comes_back(alone, tmp_path):
    """One of each method at a time; of averages over steps the last alone, whose state is kept."""
    results, expected, _ = alone
    for epoch in range(EPOCHS):
        shutil.copytree(results, tmp_path / "copy")
        last = epoch == EPOCHS - 1
        without(
            tmp_path / "copy/lenet",
            *((method.name, epoch) for method in METHODS if last or method.name not in OF_STEPS),
        )
        assert go(tmp_path / "copy") == 0
        assert same(outcome(tmp_path / "copy"), expected), epoch
        shutil.rmtree(tmp_path / "copy")


@fuzzed(6)
@given(draw=st.data())
def test_any_row_that_is_removed_while_a_method_is_under_way(
    alone, stopped, tmp_path_factory, draw
):
    _, expected, _ = alone
    method = draw.draw(st.sampled_from(TRAINING))
    results = tmp_path_factory.mktemp("row") / "results"
    shutil.copytree(stopped[method.name], results)
    known = [row.epoch for row in Metrics(results / "lenet/metrics.csv").of(method.name)]
    epochs = draw.draw(st.sets(st.sampled_from(known), min_size=1, max_size=2))
    without(results / "lenet", *((method.name, epoch) for epoch in epochs))
    assert go(results) == 0
    assert same(outcome(results), expected), (method.name, epochs)
    shutil.rmtree(results)


def test_what_is_trained_again_is_said(stopped, tmp_path, capsys):
    for name, results in stopped.items():
        shutil.copytree(results, tmp_path / name)
        without(tmp_path / name / "lenet", (name, EPOCHS - 3))
        capsys.readouterr()
        assert go(tmp_path / name) == 0
        out = capsys.readouterr().out
        settings = StoredRun(tmp_path / name / "lenet").settings
        left = itertools.dropwhile(lambda method, name=name: method.name != name, TRAINING)
        trained = sum(len(method.training_epochs(settings)) for method in left)
        assert f"ahead: {trained} epochs of training" in out
        assert f"a row before epoch {EPOCHS - 2}, where it stands, is missing" in out


@fuzzed(8)
@given(draw=st.data())
def test_any_write_may_be_the_last(alone, writes, tmp_path_factory, draw):
    _, expected, total = alone
    results = tmp_path_factory.mktemp("stop") / "results"
    done = 0
    for _ in range(draw.draw(st.integers(1, 2))):  # stopped once or twice
        writes.done, writes.allowed = 0, draw.draw(st.integers(0, total - 1 - done))
        done += writes.allowed
        with pytest.raises(Stopped):
            go(results)
    writes.allowed = None
    assert go(results) == 0
    assert same(outcome(results), expected)
    assert not list((results / "lenet").glob("*_state.pt"))
    shutil.rmtree(results)


def test_a_reader_beside_a_run_finds_every_row_good(tmp_path, monkeypatch):
    """A row and its checksum are added between the reader's looks at the two files."""
    store = Store.new(tmp_path)
    metrics = Metrics(tmp_path / "metrics.csv", sums=store.sums("metrics.sums"))
    rows = [Row("sgd", epoch, 1.5, 0.5, 1.25, 0.75, 0.1) for epoch in range(9)]
    metrics.add(rows[0])
    real, left = files.Path.read_text, rows[1:]

    def read_text(path, **options):
        text = real(path, **options)
        if left:
            metrics.add(left.pop(0))
        return text

    monkeypatch.setattr(files.Path, "read_text", read_text)
    while left:
        sums = store.sums("metrics.sums", writable=False)
        found = Metrics.stored(tmp_path / "metrics.csv", sums).of("sgd")
        assert found == rows[: len(found)] and found


def test_a_reader_beside_a_run_finds_every_snapshot_good(tmp_path):
    store = Store.new(tmp_path)
    written = trajectory.Trajectory(tmp_path / "t.npy", 5, sums=store.sums("t.sums"))
    written.append(torch.ones(5))
    sums = store.sums("t.sums", writable=False)  # the reader's, before one more is added
    written.append(torch.full((5,), 2.0))
    read = trajectory.Trajectory(tmp_path / "t.npy", 5, sums=sums)
    assert read.array[:, 0].tolist() == [1, 2]


def test_the_checkpoint_is_of_the_last_snapshot(tmp_path, monkeypatch, capsys):
    """As are those that held the whole model, too."""
    argv = [*SMALL, "--epochs", "3", "--warmup_cmd", "1", "--results_dir"]
    assert train_cmd.main([*argv, str(tmp_path / "alone")]) == 0
    with monkeypatch.context() as patch:
        real = Run.train

        def train(self, epoch, *given):
            if epoch == 2:
                raise KeyboardInterrupt
            return real(self, epoch, *given)

        patch.setattr(Run, "train", train)
        assert train_cmd.main([*argv, str(tmp_path / "stopped")]) == 130
    folder = tmp_path / "stopped/lenet"
    store = Store.of(folder)
    state = store.load("checkpoint.pt")
    assert state["model"] == {} and len(state["train_history"]) == 2
    shutil.copytree(tmp_path / "stopped", tmp_path / "damaged")
    with (tmp_path / "damaged/lenet/trajectory.npy").open("r+b") as file:
        last = file.seek(-1, 2)
        changed = file.read(1)[0] ^ 1
        file.seek(last)
        file.write(bytes([changed]))
    capsys.readouterr()
    assert train_cmd.main([*argv, str(tmp_path / "damaged")]) == 2
    error = capsys.readouterr().err
    assert "snapshot 1 does not have the checksum" in error and error.count("\n") == 1
    whole = get_model("lenet").build(10)
    write_vector(torch.from_numpy(np.load(folder / "trajectory.npy")[1]), whole)
    shutil.copytree(tmp_path / "stopped", tmp_path / "older")
    store.save(state | {"model": whole.state_dict()}, "../../older/lenet/checkpoint.pt")
    for name in ("stopped", "older"):
        assert train_cmd.main([*argv, str(tmp_path / name)]) == 0
        assert same(outcome(tmp_path / name), outcome(tmp_path / "alone"))
        assert np.array_equal(
            *(np.load(tmp_path / at / "lenet/trajectory.npy") for at in (name, "alone"))
        )


def test_dropout_is_drawn_for_each_rank():
    cpu = torch.device("cpu")
    draws = []
    for rank in range(4):
        own = epoch_generator(3, 5, cpu, rank)
        draws.append((torch.rand(50, generator=own), torch.rand(50)))
    orders, masks = zip(*draws, strict=True)
    assert all(torch.equal(order, orders[0]) for order in orders)  # one order, shared out
    for rank, mask in enumerate(masks):
        assert all(not torch.equal(mask, other) for other in masks[:rank])
    epoch_generator(3, 5, cpu)
    assert torch.equal(torch.rand(50), masks[0])  # one process: as before there were ranks
