"""The compared methods, each on a small real run."""

import itertools
import json
import math
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import train_cmd
from tests.conftest import SMALL, exit_code
from utils.cmd.model import CMDModel
from utils.methods import embedded as method_embedded
from utils.storage.metrics import Metrics
from utils.storage.sealed import load_tensors
from utils.storage.store import Store
from utils.training.run import Run

pytestmark = pytest.mark.usefixtures("narrow")

EPOCHS, F, L = 14, 3, 2
SIZES = ["--epochs", str(EPOCHS), "--warmup_cmd", str(F), "--embed_window", str(L)]
SIZES += ["--warmup_pbfgs", "6", "--pbfgs_num", "4", "--pbfgs_batch_size", "100"]
SIZES += ["--swa_start", "9", "--ema_decay", "0.9", "--memory", "3", "--lawa_epochs", "4"]
ALL = ["--p_bfgs", "1", "--pbfgs_equal", "1", "--cmd_embed", "1", "--ema", "1", "--swa", "1"]
ALL += ["--cmd_adaptive", "1", "--lawa", "4"]
OTHERS = ("pbfgs", "pbfgs_equal", "cmd_embed", "ema", "swa", "cmd_adaptive", "lawa")


def accuracies(folder, method):
    rows = Metrics(folder / "metrics.csv").of(method)
    assert [row.epoch for row in rows] == list(range(EPOCHS))
    return [(row.test_loss, row.test_acc) for row in rows]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a run that all methods watched."""
    results = tmp_path_factory.mktemp("all")
    assert train_cmd.main([*SMALL, *SIZES, *ALL, "--results_dir", str(results)]) == 0
    return results / "lenet"


@pytest.fixture
def again(finished, tmp_path):
    """Goes on with a copy of that run, some of it taken away first."""

    def run(forget, *flags):
        shutil.copytree(finished, tmp_path / "lenet")
        forget(tmp_path / "lenet")
        code = train_cmd.main([*SMALL, *SIZES, *flags, "--results_dir", str(tmp_path)])
        return SimpleNamespace(code=code, folder=tmp_path / "lenet")

    return run


def forget_rows(folder, methods, from_epoch=0):
    path = folder / "metrics.csv"
    lines = path.read_text().splitlines(keepends=True)
    kept = [
        line
        for line in lines
        if line.split(",")[0] not in methods or int(line.split(",")[1]) < from_epoch
    ]
    path.write_text("".join(kept))


@pytest.mark.parametrize(
    ("method", "departs"),
    [
        ("pbfgs", 7),
        ("pbfgs_equal", F + 1),
        ("cmd_embed", F + L),
        ("swa", 10),
        ("lawa", 1),
        ("cmd_online", F),
        ("cmd_adaptive", F),
    ],
)
def test_each_is_the_run_until_it_departs(finished, method, departs):
    sgd, own = accuracies(finished, "sgd"), accuracies(finished, method)
    assert own[:departs] == sgd[:departs]
    assert all(mine[0] != run[0] for mine, run in zip(own[departs:], sgd[departs:], strict=True))


def test_nothing_is_tested_twice(finished, tmp_path, monkeypatch, capsys):
    from utils.training import run as run_module

    real, tested = run_module.evaluate, []

    def evaluate(module, *rest):
        tested.append(module)
        return real(module, *rest)

    monkeypatch.setattr(run_module, "evaluate", evaluate)
    assert train_cmd.main([*SMALL, *SIZES, *ALL, "--results_dir", str(tmp_path)]) == 0
    departures = {"sgd": EPOCHS, "cmd_posthoc": 0, "cmd_online": F, "cmd_embed": F + L,
                  "pbfgs": 7, "pbfgs_equal": F + 1, "ema": 0, "swa": 10,
                  "cmd_adaptive": F, "lawa": 1}  # fmt: skip
    expected = EPOCHS + sum(EPOCHS - epoch for epoch in departures.values())
    training = EPOCHS + (EPOCHS - F - L - 1) + (EPOCHS - 7) + (EPOCHS - F - 1)
    assert len(tested) == expected
    assert f"ahead: {training} epochs of training, {expected} tests" in capsys.readouterr().out
    for method in departures:  # and the same numbers as the run before
        assert accuracies(tmp_path / "lenet", method) == accuracies(finished, method)


def test_embedded_weights(finished):
    result = load_tensors(finished / "cmd_embed.pt")
    n_weights = len(result["a"])
    counts = result["embedded_counts"]
    assert counts.shape == (EPOCHS, len(result["layer_sizes"]))
    share = math.ceil(n_weights * 10 / 100)
    expected = [share * (1 + (epoch - F - L) // L) if epoch >= F + L else 0
                for epoch in range(EPOCHS)]  # fmt: skip
    assert counts.sum(1).tolist() == expected
    assert int(result["embedded"].sum()) == expected[-1]
    assert not result["embedded"][result["reference"]].any()
    summary = json.loads((finished / "summary.json").read_text())["methods"]["cmd_embed"]
    assert summary["embedded_mean"] == pytest.approx(np.mean(expected) / n_weights, rel=1e-6)
    trained = n_weights * EPOCHS - sum(expected) + 3 * expected[-1]
    assert summary["parameters"] == trained
    online = CMDModel.load(finished / "cmd_online.pt")
    assert torch.equal(online.mode, result["mode"])


def test_embedded_weights_follow_their_references(again, monkeypatch):
    seen = []
    real = method_embedded.EmbeddedCMD.follow

    def follow(self, epoch, module):
        tested = real(self, epoch, module)
        if epoch >= F + L:
            theta = method_embedded.read_vector(tested)
            cmd, here = self.online.model, self._embedded
            modelled = self._a * theta[cmd.reference][cmd.mode.long()] + self._b
            torch.testing.assert_close(theta[here], modelled[here], rtol=1e-5, atol=1e-6)
            seen.append((self._a[here].clone(), here.clone()))
        return tested

    monkeypatch.setattr(method_embedded.EmbeddedCMD, "follow", follow)
    done = again(lambda folder: forget_rows(folder, {"cmd_embed"}), "--cmd_embed", "1")
    assert done.code == 0 and len(seen) == EPOCHS - F - L
    for (a, before), (later_a, later) in itertools.pairwise(seen):
        assert (later | ~before).all()  # once embedded, always
        kept = torch.zeros(len(later))
        kept[later] = later_a
        assert torch.equal(kept[before], a)  # a frozen


def test_embedding_nothing_is_the_run(again, finished, monkeypatch):
    """It starts where the run stood, the optimizer's moments included."""
    monkeypatch.setattr(method_embedded.EmbeddedCMD, "_embed_more", lambda self: None)
    done = again(lambda folder: forget_rows(folder, {"cmd_embed"}), "--cmd_embed", "1")
    assert done.code == 0
    assert accuracies(done.folder, "cmd_embed") == accuracies(finished, "sgd")


def test_percentage_of_what_is_left(again):
    done = again(
        lambda folder: forget_rows(folder, {"cmd_embed"}),
        "--cmd_embed", "1", "--perc_rel", "1", "--embed_perc", "50",
    )  # fmt: skip
    assert done.code == 0
    counts = load_tensors(done.folder / "cmd_embed.pt")["embedded_counts"].sum(1).tolist()
    embedded = 0
    result = load_tensors(done.folder / "cmd_embed.pt")
    n_weights = len(result["a"])
    for epoch in range(F + L, EPOCHS):
        if (epoch - F - L) % L == 0:
            embedded += math.ceil((n_weights - embedded) / 2)
        assert counts[epoch] == embedded


def test_swa_is_the_mean_of_the_last_snapshots(finished, again):
    """Its last test equals that of the mean, as LeNet has no statistics to count again."""
    from utils.base_utils import get_model
    from utils.cmd.vector import write_vector
    from utils.data.datasets import load_dataset
    from utils.training.epochs import evaluate

    trajectory = np.load(finished / "trajectory.npy", mmap_mode="r")
    dataset = load_dataset("digits", "", 32, False).limited(256)
    model = get_model("lenet").build(num_classes=10)
    write_vector(torch.from_numpy(trajectory[9:].mean(0)), model)
    loss, accuracy = evaluate(model, dataset.test, get_model("lenet").transform, 128)
    found = accuracies(finished, "swa")[-1]
    assert found[0] == pytest.approx(loss, rel=1e-4) and found[1] == pytest.approx(accuracy)


def test_lawa_is_the_mean_of_the_latest_snapshots(finished):
    """Of four, as its last test, and of as many as there are, as its second."""
    from utils.base_utils import get_model
    from utils.cmd.vector import write_vector
    from utils.data.datasets import load_dataset
    from utils.training.epochs import evaluate

    trajectory = np.load(finished / "trajectory.npy", mmap_mode="r")
    dataset = load_dataset("digits", "", 32, False).limited(256)
    model = get_model("lenet").build(num_classes=10)
    for epoch, rows in ((EPOCHS - 1, trajectory[-4:]), (1, trajectory[:2]), (7, trajectory[4:8])):
        write_vector(torch.from_numpy(rows.mean(0, dtype=np.float64)).float(), model)
        loss, accuracy = evaluate(model, dataset.test, get_model("lenet").transform, 128)
        found = accuracies(finished, "lawa")[epoch]
        assert found == (pytest.approx(loss, rel=1e-5), pytest.approx(accuracy))


def test_adaptive_cmd_forgets(finished):
    """With the same modes as online CMD, and other coefficients."""
    online, adaptive = (
        CMDModel.load(finished / f"cmd_{name}.pt") for name in ("online", "adaptive")
    )
    assert torch.equal(online.mode, adaptive.mode)
    assert torch.equal(online.reference, adaptive.reference)
    assert not torch.equal(online.a, adaptive.a)


def test_a_weight_is_embedded_where_it_stands(again, monkeypatch):
    jumps = []
    real = method_embedded.EmbeddedCMD._embed_more

    def embed_more(self):
        before, already = method_embedded.read_vector(self.module), self._embedded.clone()
        real(self)
        after = method_embedded.read_vector(self.module)
        jumps.append(float((after - before)[self._embedded & ~already].abs().max()))

    monkeypatch.setattr(method_embedded.EmbeddedCMD, "_embed_more", embed_more)

    def forget(folder):
        forget_rows(folder, {"cmd_embed"})

    flags = ["--cmd_embed", "1", "--embed_in_place", "1", "--embed_memory", "4"]
    assert again(forget, *flags).code == 0
    assert jumps and max(jumps) < 1e-6


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--lawa", "5"], (5, 5)), (["--lawa", "True"], (True, 10)), (["--lawa", "1"], (True, 10)),
        (["--lawa", ""], (False, 10)), (["--lawa", "yes", "--lawa_epochs", "3"], (True, 3)),
        (["--lawa", "3", "--lawa_epochs", "3"], (3, 3)),
        (["--lawa", "3", "--lawa_epochs", "4"], None),
        (["--lawa", "-2"], None), (["--lawa", "x"], None), (["--lawa_epochs", "1"], None),
        (["--memory", "0.5"], None), (["--embed_memory", "0"], None), (["--memory", "nan"], None),
        (["--embed_memory", "none"], (False, 10)), (["--embed_memory", ""], (False, 10)),
    ],
)  # fmt: skip
def test_flags_of_averages_and_memories(tmp_path, capsys, flags, expected):
    if expected is None:
        code = exit_code(lambda: train_cmd.main([*SMALL, *flags, "--results_dir", str(tmp_path)]))
        error = capsys.readouterr().err
        assert code == 2 and error.count("\n") == 1 and flags[0] in error
    else:
        args = train_cmd.build_parser().parse_args(flags)
        settings = train_cmd.make_settings(args, [train_cmd.METHODS[0]])
        assert (args.lawa, settings.lawa_epochs) == expected


def test_no_training_before_it_is_said_that_embedding_has_no_start(tmp_path, monkeypatch, capsys):
    argv = [*SMALL, *SIZES, "--cmd_embed", "1", "--results_dir", str(tmp_path)]
    real = Run.train

    def train(self, epoch, *given):
        if epoch == F + L + 4:
            raise KeyboardInterrupt
        return real(self, epoch, *given)

    monkeypatch.setattr(Run, "train", train)
    plain = [*argv[:-4], *argv[-2:]]
    assert train_cmd.main(plain) == 130
    monkeypatch.setattr(Run, "train", None)
    assert train_cmd.main([*argv, "--embed_window", str(L + 1)]) == 2
    error = capsys.readouterr().err
    assert f"kept no optimizer of epoch {F + L + 1}" in error and "Traceback" not in error


def test_added_later(again, finished):
    """What can watch a finished run gives the same numbers as alongside."""

    def forget(folder):
        forget_rows(folder, set(OTHERS))
        (folder / "cmd_embed.pt").unlink()

    flags = ["--p_bfgs", "1", "--pbfgs_equal", "1", "--cmd_embed", "1", "--swa", "1"]
    flags += ["--cmd_adaptive", "1", "--lawa", "1"]
    done = again(forget, *flags)
    assert done.code == 0
    for method in set(OTHERS) - {"ema"}:
        assert accuracies(done.folder, method) == accuracies(finished, method)


def test_settings_of_a_method_count_once_it_has_run(again, capsys):
    def forget(folder):  # of both that depend on it
        forget_rows(folder, {"pbfgs", "pbfgs_equal"})

    done = again(forget, "--p_bfgs", "1", "--pbfgs_num", "3")
    assert done.code == 0  # nothing was stored with 4
    results = str(done.folder.parent)
    code = train_cmd.main([*SMALL, *SIZES, "--p_bfgs", "1", "--results_dir", results])
    assert code == 2 and "--pbfgs_num is 4 here and 3 there" in capsys.readouterr().err


def test_ema_cannot_be_added_later(again, capsys):
    def forget(folder):
        forget_rows(folder, {"ema"})
        store = Store.of(folder)
        store.save(store.load("checkpoint.pt") | {"averages": {}}, "checkpoint.pt")

    done = again(forget, "--ema", "1")
    error = capsys.readouterr().err
    assert done.code == 2 and "--ema True" in error and error.count("\n") == 1


def test_embedding_needs_the_optimizer(again, capsys):
    def forget(folder):
        forget_rows(folder, {"cmd_embed"})
        (folder / "optimizer.pt").unlink()

    done = again(forget, "--cmd_embed", "1")
    error = capsys.readouterr().err
    assert done.code == 2 and "--cmd_embed True" in error and error.count("\n") == 1


def test_a_single_step_an_epoch(again, finished, capsys):
    done = again(
        lambda folder: forget_rows(folder, {"pbfgs", "pbfgs_equal"}),
        "--p_bfgs", "1", "--pbfgs_updates", "single", "--accumulate", "2",
    )  # fmt: skip
    assert done.code == 0
    assert accuracies(done.folder, "pbfgs")[7:] != accuracies(finished, "pbfgs")[7:]


def test_in_pieces_it_makes_the_same_steps(again, finished):
    done = again(
        lambda folder: forget_rows(folder, {"pbfgs", "pbfgs_equal"}),
        "--p_bfgs", "1", "--pbfgs_pieces", "30",
    )  # fmt: skip
    assert done.code == 0
    found, whole = (accuracies(folder, "pbfgs")[7:] for folder in (done.folder, finished))
    assert [loss for loss, _ in found] == pytest.approx([loss for loss, _ in whole], rel=0.02)
    assert found[0] == pytest.approx(whole[0], rel=1e-4)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--p_bfgs", "1", "--pbfgs_num", "7"], ["--pbfgs_num 7", "1 … 6"]),
        (["--p_bfgs", "1", "--warmup_pbfgs", "13"], ["--warmup_pbfgs 13", "1 … 12"]),
        (["--p_bfgs", "1", "--warmup_pbfgs", "0"], ["--warmup_pbfgs 0"]),
        (["--cmd_embed", "1", "--embed_window", "10"], ["--embed_window 10", "epoch 13"]),
        (["--cmd_embed", "1", "--embed_perc", "101"], ["--embed_perc 101"]),
        (["--swa", "1", "--swa_start", "14"], ["--swa_start 14", "0 … 13"]),
        (["--ema", "1", "--ema_decay", "1"], ["--ema_decay 1"]),
        (["--momentum", "0.5"], ["--momentum 0.5", "--optimizer sgd"]),
        (["--optimizer", "sgd"], ["--optimizer sgd", "0.001, is of adam", "--lr"]),
    ],
)
def test_bad_input(tmp_path, capsys, flags, words):
    code = train_cmd.main([*SMALL, *SIZES, *flags, "--results_dir", str(tmp_path)])
    error = capsys.readouterr().err
    assert code == 2 and error.count("\n") == 1 and all(word in error for word in words)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    "flags",
    [
        ["--optimizer", "sgd", "--momentum", "0", "--lr", "0.1"],
        ["--optimizer", "sgd", "--lr", "0.01", "--scheduler", "cosine"],
        ["--scheduler", "step"],
    ],
)
def test_the_optimizer_by_flags(tmp_path, flags):
    argv = [*SMALL, "--epochs", "3", "--warmup_cmd", "1", *flags, "--results_dir", str(tmp_path)]
    assert train_cmd.main(argv) == 0
    state = load_tensors(tmp_path / "lenet" / "checkpoint.pt")
    group = state["optimizer"]["param_groups"][0]
    if "sgd" in flags:
        assert group["momentum"] == (0 if "0" in flags else 0.9)
    if "cosine" in flags:
        assert group["lr"] == pytest.approx(0, abs=1e-9)
    if "step" in flags:
        assert group["lr"] == pytest.approx(0.001 * 0.01)
