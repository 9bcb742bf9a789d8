"""Online CMD with several samples of the weights on one run."""

import json
import shutil
from statistics import fmean, stdev

import numpy as np
import pytest
import torch

import train_cmd
from tests.conftest import SMALL
from utils.base_utils import get_model
from utils.cmd.online import OnlineCMD
from utils.cmd.vector import read_vector, write_vector
from utils.methods.cmd import AdaptiveCMD, OnlineCMDMethod
from utils.methods.draws import draw_of, stored_draws, with_draws
from utils.methods.registry import METHODS
from utils.results.summary import over_seeds, table
from utils.storage.metrics import Metrics
from utils.training import run as run_module
from utils.training.seeding import stream_seed

DRAWS, EPOCHS, F = 3, 12, 4


@pytest.fixture(scope="module")
def followed(real_run, tmp_path_factory):
    """(folder, models tested): a finished run that further draws follow without its training."""
    results, tested = tmp_path_factory.mktemp("draws"), []
    shutil.copytree(real_run, results / "lenet")
    real = run_module.evaluate

    def evaluate(module, *rest):
        tested.append(read_vector(module))
        return real(module, *rest)

    argv = [*SMALL, "--epochs", str(EPOCHS), "--warmup_cmd", str(F), "--results_dir", str(results)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_module, "train_epoch", None)
        patch.setattr(run_module, "evaluate", evaluate)
        assert train_cmd.main([*argv, "--cmd_draws", str(DRAWS)]) == 0
    return results / "lenet", tested


def test_a_run_that_was_there_is_followed_at_the_cost_of_tests(followed, real_run):
    folder, tested = followed
    assert len(tested) == (DRAWS - 1) * (EPOCHS - F)
    before, after = Metrics.stored(real_run / "metrics.csv"), Metrics.stored(folder / "metrics.csv")
    for name in ("sgd", "cmd_online", "cmd_posthoc"):
        assert before.of(name) == after.of(name)
    draws = stored_draws(OnlineCMDMethod, after, EPOCHS)
    assert draws == [OnlineCMDMethod, *(draw_of(OnlineCMDMethod, n) for n in (1, 2))]
    losses = [tuple(row.test_loss for row in after.of(draw.name)) for draw in draws]
    assert len({each[:F] for each in losses}) == 1  # the run's own
    assert len({each[F:] for each in losses}) == DRAWS
    assert {path.name for path in folder.iterdir()} == {path.name for path in real_run.iterdir()}


def test_each_is_online_cmd_with_a_sample_of_its_own(followed):
    folder, tested = followed
    trajectory = torch.from_numpy(np.load(folder / "trajectory.npy"))
    model = get_model("lenet").build(num_classes=10)
    for number in range(1, DRAWS):
        online = OnlineCMD(model, 10, 200, F, seed=stream_seed(0, number))
        for theta in trajectory:
            write_vector(theta, model)
            online.update_parameters(model)
        # the draws are tested side by side, epoch by epoch
        assert torch.equal(tested[2 * (EPOCHS - F) - DRAWS + number], read_vector(online.module))


def test_their_spread_is_told(followed):
    folder, _ = followed
    summary = json.loads((folder / "summary.json").read_text())
    own = summary["methods"]["cmd_online"]
    metrics = Metrics.stored(folder / "metrics.csv")
    for number, draw in enumerate(stored_draws(OnlineCMDMethod, metrics, EPOCHS)):
        accuracies = [row.test_acc for row in metrics.of(draw.name)]
        assert own["draws"]["last"][0][number] == accuracies[-1]
        assert own["draws"]["mean_last_10"][0][number] == pytest.approx(fmean(accuracies[-10:]))
    assert own["last"] == own["draws"]["last"][0][0]
    assert list(summary["methods"]) == ["sgd", "cmd_posthoc", "cmd_online"]
    lines = table(summary).splitlines()
    assert lines[-1].startswith("Online CMD, 3 ") and lines[-1].count("±") == 2
    fewer = json.loads(json.dumps(summary))
    for runs in fewer["methods"]["cmd_online"]["draws"].values():
        del runs[0][2:]
    both = over_seeds([0, 1], [summary, fewer])
    first = own["draws"]["last"][0][:2]  # as many of each seed
    assert both["methods"]["cmd_online"]["draws"]["last"] == [first, first]
    line = table(both).splitlines()[-1]
    assert line.startswith("Online CMD, 2 of 2 seeds each")
    assert f"± {100 * stdev(first):.2f} % ({100 * min(first):.2f} … {100 * max(first):.2f})" in line


def test_draws_of_nothing_are_refused(tmp_path, capsys):
    argv = [*SMALL, "--cmd_online", "", "--cmd_draws", "3", "--results_dir", str(tmp_path)]
    assert train_cmd.main(argv) == 2
    error = capsys.readouterr().err
    assert "--cmd_draws 3" in error and "--cmd_online True" in error and error.count("\n") == 1
    assert not any(tmp_path.iterdir())


def test_methods_without_a_sample_have_no_draws():
    assert with_draws(METHODS, 1) == list(METHODS)
    more = with_draws(METHODS, 3)[len(METHODS) :]
    assert [(method.__base__, method.draw) for method in more] == [
        (OnlineCMDMethod, 1), (OnlineCMDMethod, 2), (AdaptiveCMD, 1), (AdaptiveCMD, 2),
    ]  # fmt: skip
    assert len({method.name for method in (*METHODS, *more)}) == len(METHODS) + 4
