"""--tensorboard True: the rows of metrics.csv as curves, each written once."""

import csv
import sys
from collections import defaultdict

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import federated_cmd
import train_cmd
from tests.conftest import exit_code
from utils.federated.methods import METHODS

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
RUN = ["--dataset", "digits", "--model", "lenet", "--limit", "60", "--epochs", "3", "--modes", "2",
       "--samples", "40", "--warmup_cmd", "1", "--tensorboard", "True"]  # fmt: skip


def curves(folder):
    """{method: {column: [(step, value)]}} of all event files."""
    found = defaultdict(dict)
    for path in sorted((folder / "tensorboard").iterdir()):
        events = EventAccumulator(str(path)).Reload()
        for name in events.Tags()["scalars"]:
            found[path.name][name] = [(e.step, e.value) for e in events.Scalars(name)]
    return found


def rows(path, labels, step):
    found = {}
    for row in csv.DictReader(path.read_text().splitlines()):
        columns = found.setdefault(labels[row.pop("method")], defaultdict(list))
        number = int(row.pop(step))
        for name, value in row.items():
            if value and name != "lost":
                columns[name].append((number, pytest.approx(float(value), rel=1e-6)))
    return found


def test_curves_are_the_rows_also_after_going_on(tmp_path):
    folder = tmp_path / "lenet"
    labels = {method.name: method.label for method in train_cmd.METHODS}
    argv = [*RUN, "--results_dir", str(tmp_path)]
    assert train_cmd.main([*argv, "--cmd_PostHoc", ""]) == 0
    two = curves(folder)
    assert set(two) == {"SGD", "Online CMD"} and len(two["SGD"]["test_acc"]) == 3
    assert train_cmd.main(argv) == 0
    assert curves(folder) == rows(folder / "metrics.csv", labels, "epoch")
    assert train_cmd.main([*argv, "--overwrite", "--tensorboard", ""]) == 0
    assert not list((folder / "tensorboard").rglob("events*"))


def test_federated_curves_are_the_rounds(tmp_path):
    argv = ["--model", "lenet", "--dataset", "digits", "--limit", "60", "--clients", "2",
            "--methods", "fedavg", "apf", "--apf_every", "1", "--tensorboard", "True",
            "--results_dir", str(tmp_path)]  # fmt: skip
    folder = tmp_path / "federated/lenet_iid"
    labels = {name: method.label for name, method in METHODS.items()}
    assert federated_cmd.main([*argv, "--rounds", "1"]) == 0
    assert federated_cmd.main([*argv, "--rounds", "2", "--overwrite"]) == 0
    assert federated_cmd.main([*argv, "--rounds", "2"]) == 0
    assert curves(folder) == rows(folder / "rounds.csv", labels, "round")


@pytest.mark.parametrize("main", [train_cmd.main, federated_cmd.main])
def test_without_tensorboard_one_line_says_how_to_get_it(main, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    for name in [name for name in sys.modules if name.startswith("torch.utils.tensorboard")]:
        monkeypatch.delitem(sys.modules, name)
    argv = ["--dataset", "digits", "--model", "lenet", "--tensorboard", "True", "--results_dir",
            str(tmp_path)]  # fmt: skip
    assert exit_code(lambda: main(argv)) == 2
    error = capsys.readouterr().err
    assert "--tensorboard True" in error and "pip install tensorboard" in error
    assert error.count("\n") == 1 and not list(tmp_path.iterdir())
