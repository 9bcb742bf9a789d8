"""Command lines made at random: each ends in a run, or in one line and exit code 2.

pytest tests/test_fuzz.py --hypothesis-profile thorough      # ten times as many
"""

import functools
import math
import shlex
import shutil

import pytest
from hypothesis import given
from hypothesis import strategies as st

import reproduce
import train_cmd
import visualize
from tests.command_lines import check, command_lines, fuzzed, one_line_or_run, outcome, words
from utils import cmd_utils
from utils.base_utils import ModelEntry

pytestmark = pytest.mark.usefixtures("narrow")

QUICK = ["--dataset", "digits", "--model", "lenet", "--limit", "8", "--epochs", "3"]
QUICK += ["--warmup_cmd", "1", "--samples", "100"]


@pytest.fixture
def stubbed(monkeypatch):
    """No images are decoded twice, nothing is trained, and no picture drawn."""
    monkeypatch.setattr(ModelEntry, "load_dataset", functools.cache(ModelEntry.load_dataset))
    monkeypatch.setattr(train_cmd, "plot_test_accuracy", lambda *_: None)
    monkeypatch.setattr(train_cmd.Comparison, "complete", lambda self: iter(()))
    monkeypatch.setattr(train_cmd, "summarise", lambda *_: {})
    monkeypatch.setattr(train_cmd, "over_seeds", lambda seeds, summaries: {})
    monkeypatch.setattr(train_cmd, "table", lambda summary: "")
    return monkeypatch


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """A folder in which a run of QUICK is finished."""
    folder = tmp_path_factory.mktemp("fuzz")
    assert train_cmd.main([*QUICK, "--results_dir", str(folder)]) == 0
    return folder


@fuzzed(700)
@given(argv=command_lines(train_cmd.build_parser()), known=st.booleans())
def test_train_cmd(results, stubbed, tmp_path_factory, argv, known):
    place = tmp_path_factory.mktemp("any") / "results"
    if known:  # links would do for what is only replaced, but a run also appends
        shutil.copytree(results, place)
    else:
        place.mkdir()
    check(train_cmd.main, [*QUICK, *argv, "--results_dir", str(place)], place)
    shutil.rmtree(place)


@fuzzed(25)
@given(argv=command_lines(train_cmd.build_parser()))
def test_train_cmd_trains(tmp_path_factory, argv):
    """The same with real runs; one that stops may have finished epochs."""
    place = tmp_path_factory.mktemp("real")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_cmd, "plot_test_accuracy", lambda *_: None)
        patch.setattr(ModelEntry, "load_dataset", functools.cache(ModelEntry.load_dataset))
        argv = [*QUICK, *argv, *small(), "--results_dir", str(place)]
        one_line_or_run(train_cmd.main, argv)
    shutil.rmtree(place)


def small():
    """Flags that keep a real run short."""
    return shlex.split("--limit 8 --epochs 6 --warmup_cmd 1 --warmup_pbfgs 3 --compile no")


@fuzzed(150)
@given(
    argv=command_lines(reproduce.build_parser()), table=st.sampled_from([*reproduce.TABLES, "x"])
)
def test_reproduce(stubbed, tmp_path_factory, argv, table):
    stubbed.setattr(train_cmd, "main", lambda argv: 0)
    place = tmp_path_factory.mktemp("reproduce")
    check(reproduce.main, [table, *QUICK[:2], *argv, "--results_dir", str(place)], place)


@fuzzed(150)
@given(
    argv=command_lines(visualize.build_parser()),
    picture=st.sampled_from(["correlation", "modes", "landscape", "accuracy", "all", "x"]),
)
def test_visualize(stubbed, results, tmp_path_factory, argv, picture):
    place = tmp_path_factory.mktemp("pictures")
    for name in visualize.PICTURES:
        stubbed.setitem(visualize.PICTURES, name, lambda args: [visualize.open_run(args).folder])
    flags = ["--results_dir", str(results), "--output", str(place)]
    check(visualize.main, [picture, "--model", "lenet", *argv, *flags], place)


@fuzzed(150)
@given(
    argv=command_lines(cmd_utils.build_parser()),
    paths=st.lists(st.one_of(words, st.sampled_from([".", "/dev/null"])), max_size=3),
)
def test_cmd_utils(tmp_path_factory, argv, paths):
    place = tmp_path_factory.mktemp("checkpoints")
    check(cmd_utils.main, [*paths, *argv, "--output", str(place)], place)


@pytest.mark.parametrize("flag", ["--device", "--samples", "--data_dir", "--sgd"])
def test_two_dashes_are_no_value(tmp_path, flag):
    code, error = outcome(train_cmd.main, [f"{flag}=--", "--results_dir", str(tmp_path)])
    assert (code, error) == (2, f"train_cmd.py: error: argument {flag}: -- is no value\n")


@pytest.mark.parametrize(
    "place", ["file", "file/below", "a" * 300, "\udcff", "é" * 20, " ", "new/\n", ""]
)
def test_results_dir_of_any_name(stubbed, tmp_path, monkeypatch, place):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("mine")
    code, error = outcome(train_cmd.main, [*QUICK, "--results_dir", place])
    assert code in (0, 2) and error.count("\n") == math.ceil(code / 2), error
    assert (tmp_path / "file").read_text() == "mine"
