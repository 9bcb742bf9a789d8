"""Several seeds: a run for each, and the figures over all of them."""

import json
import statistics

import numpy as np
import pytest

import train_cmd
from tests.conftest import SMALL
from utils.results.summary import over_seeds, percent, table
from utils.storage.metrics import Metrics

pytestmark = pytest.mark.usefixtures("narrow")

SHORT = [*SMALL, "--epochs", "3", "--warmup_cmd", "1"]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    results = tmp_path_factory.mktemp("seeds")
    assert train_cmd.main([*SHORT, "--seeds", "4", "7", "--results_dir", str(results)]) == 0
    return results


def test_each_is_the_run_of_its_seed(results, tmp_path):
    for seed in (4, 7):
        alone = tmp_path / str(seed)
        assert train_cmd.main([*SHORT, "--seed", str(seed), "--results_dir", str(alone)]) == 0
        for method in ("sgd", "cmd_online", "cmd_posthoc"):
            ours = Metrics.stored(results / f"lenet_seeds/seed_{seed}/metrics.csv").of(method)
            theirs = Metrics.stored(alone / "lenet/metrics.csv").of(method)
            assert [row.test_acc for row in ours] == [row.test_acc for row in theirs]


def test_mean_and_sample_standard_deviation(results):
    summary = json.loads((results / "lenet_seeds/summary.json").read_text())
    assert summary["settings"]["seeds"] == [4, 7] and "seed" not in summary["settings"]
    each = [
        json.loads((results / f"lenet_seeds/seed_{seed}/summary.json").read_text())
        for seed in (4, 7)
    ]
    for method, figures in summary["methods"].items():
        for key in ("last", "mean_last_10", "best"):
            values = [run["methods"][method][key] for run in each]
            assert figures[f"{key}_values"] == values
            assert figures[key] == pytest.approx(statistics.fmean(values))
            assert figures[f"{key}_std"] == pytest.approx(np.std(values, ddof=1))
    mean, std = (summary["methods"]["sgd"][key] for key in ("last", "last_std"))
    assert f"{100 * mean:.2f} ± {100 * std:.2f} %" in table(summary)


def test_one_seed_has_no_deviation(results):
    each = json.loads((results / "lenet_seeds/seed_4/summary.json").read_text())
    summary = over_seeds([4], [each])
    assert summary["methods"]["sgd"]["last_std"] is None
    assert "±" not in table(summary)
    assert percent(0.12345) == "12.35" and percent(0.5, 0.01) == "50.00 ± 1.00"


def test_finished_seeds_are_not_run_again(results, monkeypatch, capsys):
    plot = results / "lenet_seeds/all_methods_test_acc.png"
    plot.unlink()
    monkeypatch.setattr("utils.training.run.train_epoch", None)
    monkeypatch.setattr("utils.training.run.evaluate", None)
    assert train_cmd.main([*SHORT, "--seeds", "4", "7", "--results_dir", str(results)]) == 0
    out = capsys.readouterr().out
    assert "seed 4 (1 of 2)" in out and "seed 7 (2 of 2)" in out and "±" in out
    assert plot.exists()


def test_commands_are_kept_with_a_run(results):
    config = json.loads((results / "lenet_seeds/seed_4/config.json").read_text())
    assert all(command.startswith("python train_cmd.py ") for command in config["commands"])
    assert any("--seeds 4 7" in command for command in config["commands"])


def test_what_was_said_of_overwritten_runs_goes(tmp_path, monkeypatch):
    argv = [*SHORT, "--seeds", "0", "1", "--results_dir", str(tmp_path)]
    assert train_cmd.main(argv) == 0
    monkeypatch.setattr("utils.training.run.train_epoch", interrupted)
    assert train_cmd.main([*argv, "--overwrite"]) == 130
    left = {path.name for path in (tmp_path / "lenet_seeds").iterdir()}
    assert left == {"seed_0", "seed_1"}


def interrupted(*_):
    raise KeyboardInterrupt


def test_a_seed_twice(tmp_path, capsys):
    code = train_cmd.main([*SHORT, "--seeds", "1", "1", "--results_dir", str(tmp_path)])
    error = capsys.readouterr().err
    assert code == 2 and "--seeds 1 1" in error and error.count("\n") == 1
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("flags", [["--seed", "1", "--seeds", "2"], ["--seeds", "-1"], ["--seeds"]])
def test_bad_seeds(tmp_path, capsys, flags):
    with pytest.raises(SystemExit) as stopped:
        train_cmd.main([*SHORT, *flags, "--results_dir", str(tmp_path)])
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and "--seeds" in error and error.count("\n") == 1
