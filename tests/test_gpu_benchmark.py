import json
import os
import sys
import time

import pytest

from benchmarks import algorithms, compared, device_tests, epochs, gpu, rates
from benchmarks.deadline import Outcome, command_within, within
from benchmarks.report import NUMBERS
from tests.conftest import exit_code
from utils.storage.metrics import Metrics, Row

PARTS = ["Tests of", "The device's own", "Seconds an epoch", "CMD in", "The default comparison"]


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """Run the benchmark within this process, at tiny sizes."""
    for module, sizes in (
        (rates, {"MATRIX": {"cpu": 32}, "COPIED": {"cpu": 4096}, "TIMES": 1}),
        (epochs, {"COUNTED": 1, "N_TRAIN": 20, "N_TEST": 10}),
        (algorithms, {"N_WEIGHTS": {"cpu": 5000}, "EPOCHS": 6, "WARMUP": 4, "SAMPLES": 200,
                      "UPDATES": 1, "TIMES": 1}),
    ):  # fmt: skip
        for name, value in sizes.items():
            monkeypatch.setattr(module, name, value)
    monkeypatch.setattr(gpu, "within", lambda _, work, *given: Outcome([*work(*given)]))

    def run(*arguments):
        words = ["--device", "cpu", "--output", tmp_path / "out", "--results_dir", tmp_path / "run"]
        code = exit_code(lambda: gpu.main([*map(str, [*words, *arguments])]))
        return code, *capsys.readouterr()

    return run


def says(words, problem):
    """A stand-in for a command that prints these words."""

    def run(seconds, given, log):
        log.write_text(words)
        return problem

    return run


def test_tables_come_last_and_are_written(tmp_path, command, monkeypatch):
    (tmp_path / "run" / "res18").mkdir(parents=True)
    metrics = Metrics(tmp_path / "run" / "res18" / "metrics.csv")
    for epoch in range(40):
        metrics.add(Row("sgd", epoch, 1.0, 0.5, 1.0, epoch / 100, 2.0))
    metrics.add(Row("cmd_online", 39, None, None, 1.0, 0.987, 2.0))
    monkeypatch.setattr(compared, "command_within", says("", "cut at 9 s"))
    monkeypatch.setattr(device_tests, "command_within", says("", "exit code 5: none"))
    code, out, error = command("--models", "lenet", "--data_dir", tmp_path)
    assert code == 0, error
    assert error.count("…") == len(PARTS) and "…" not in out
    assert [out.count(title) for title in PARTS] == [1] * len(PARTS)
    assert sorted(PARTS, key=out.index) == PARTS
    for words in ("no test is marked device", "product of matrices, fp32", "an epoch of",
                  "not on this device", "× copy", "98.70", "cut at 9 s; the same"):  # fmt: skip
        assert words in out
    assert len([line for line in out.splitlines() if line.endswith("98.70")]) == 1
    shown = [line for line in out.splitlines() if line.split()[:1] and line.split()[0].isdigit()]
    assert 10 < len(shown) < 25
    numbers = json.loads((tmp_path / "out" / NUMBERS).read_text())
    assert "torch" in numbers["environment"] and "--models lenet" in numbers["command"]
    assert [*numbers["tables"]] == ["tests", "rates", "epochs", "algorithms", "comparison"]
    lenet = numbers["tables"]["epochs"]["rows"][0]
    assert lenet["model"] == "lenet" and lenet["training"] > 0 and lenet["writer"] > 0
    for name in numbers["tables"]:
        assert numbers["tables"][name]["title"] in (tmp_path / "out" / f"{name}.md").read_text()
    assert len((tmp_path / "out" / "metrics.csv").read_text().splitlines()) == 42


def test_a_part_that_fails_is_a_line(command, monkeypatch):
    def broken(*_):
        raise OSError(28, "No space left on device")

    def killed(_, work, *given):
        return Outcome([], "crashed: killed by SIGKILL, is there enough memory?")

    monkeypatch.setattr(gpu, "device_tests", broken)
    monkeypatch.setattr(gpu, "within", killed)
    code, out, error = command("--models", "lenet", "vit")
    assert code == 0, error
    assert "failed: OSError: [Errno 28] No space left on device" in out
    assert "vit: crashed: killed by SIGKILL, is there enough memory?" in out
    assert out.count("crashed: killed by SIGKILL") == 4


def test_without_time_nothing_is_reached(command):
    code, out, error = command("--minutes", 0.01)
    assert code == 0, error
    assert out.count("not reached") == len(PARTS) - 1


def test_tests_that_failed_are_named(tmp_path, monkeypatch):
    words = """
tests/test_a.py::test_one[a b] PASSED                                   [ 20%]
tests/test_a.py::test_two FAILED                                        [ 40%]
tests/test_b.py::test_three SKIPPED (no CUDA)                           [ 60%]
tests/test_b.py::test_four """
    monkeypatch.setattr(device_tests, "command_within", says(words, "cut at 40 s"))
    table = device_tests.device_tests(40, tmp_path / "log")
    rows = [["failed", "1"], ["passed", "1"], ["skipped", "1"]]
    assert table.rows == [*rows, ["tests/test_a.py::test_two failed", ""]]
    assert table.notes == ["cut at 40 s"]
    words += "\n=== short test summary info ===\nERROR tests/test_c.py\n"
    monkeypatch.setattr(device_tests, "command_within", says(words, "exit code 1: 1 error"))
    table = device_tests.device_tests(40, tmp_path / "log")
    assert ["tests/test_c.py could not be imported", ""] in table.rows and not table.notes


def test_work_that_is_ended_keeps_what_it_found():
    assert within(0, map, time.sleep, (60,)) == Outcome([], "cut at 0 s")
    failed = within(60, map, int, ("1", "x"))
    assert failed.found == [1] and failed.problem.startswith("failed: ValueError: invalid")
    assert within(60, map, os._exit, (3,)) == Outcome([], "crashed: exit code 3")
    assert within(60, map, abs, (-1, 2)) == Outcome([1, 2])


def test_a_command_is_ended(tmp_path):
    def run(seconds, code):
        return command_within(seconds, [sys.executable, "-c", code], tmp_path / "log")

    assert run(0, "import time; time.sleep(60)") == "cut at 0 s"
    assert run(60, "raise SystemExit('no such thing')") == "exit code 1: no such thing"
    assert run(60, "print('well')") == "" and (tmp_path / "log").read_text() == "well\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--data_dir", "/nowhere"], "--data_dir /nowhere"),
        (["--device", "cuda:77"], "--device cuda:77"),
        (["--minutes", "0"], "--minutes"),
        (["--models", "res19"], "--models"),
    ],
)
def test_bad_input(arguments, words, command):
    code, _, error = command(*arguments)
    assert code == 2 and words in error and error.count("\n") == 1
