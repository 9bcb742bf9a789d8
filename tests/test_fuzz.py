"""Command lines made at random: each ends in a run, or in one line and exit code 2.

pytest tests/test_fuzz.py --hypothesis-profile thorough      # ten times as many
"""

import argparse
import contextlib
import functools
import io
import math
import shlex
import shutil
import string

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

import reproduce
import train_cmd
import visualize
from tests.conftest import exit_code
from utils import cmd_checkpoints
from utils.arguments import truth
from utils.base_utils import ModelEntry

QUICK = ["--dataset", "digits", "--model", "lenet", "--limit", "8", "--epochs", "3"]
QUICK += ["--warmup_cmd", "1"]
# fixed by the tests: what would download, take hours, or write elsewhere
KEPT = {"help", "results_dir", "output", "keep", "version"}
INSTEAD = {"dataset": ["digits", "folder"], "model": ["lenet"], "models": ["lenet"]}

numbers = st.one_of(
    st.sampled_from(["0", "1", "2", "3", "-1", "7", "1e-3", "0.5", "0.999", "1", "64", "100"]),
    st.integers(-(10**20), 10**20).map(str),
    st.floats(allow_nan=True, allow_infinity=True).map(repr),
)
words = st.one_of(
    st.sampled_from(["", " ", "True", "false", "no", "-", "--", "none", "nan", "1_0", "٣", "cpu"]),
    st.text(string.ascii_letters + string.digits + "-_=/.,: '\"\\\n\t", max_size=12),
    st.text(st.characters(exclude_characters="\0"), max_size=6),
)


def values(action: argparse.Action) -> st.SearchStrategy[str]:
    """What may follow a flag."""
    choices = INSTEAD.get(action.dest, action.choices)
    if action.type is truth:
        choices = ["", "no", "1", "True"]
    likely = st.sampled_from(sorted(map(str, choices or ["1", "2", "3"])))
    return st.one_of(*[likely] * 8, numbers, words)


def command_lines(parser: argparse.ArgumentParser) -> st.SearchStrategy[list[str]]:
    """Some of a parser's flags in any order, now and then without their value, and other words."""
    options = []
    for action in parser._actions:
        if action.dest in KEPT or not action.option_strings:
            continue
        name = st.sampled_from(action.option_strings)
        if action.nargs == 0:
            options.append(st.tuples(name))
        elif action.nargs is None:
            options.append(st.tuples(name, values(action)))
            options.append(st.tuples(name, values(action)))
            options.append(st.builds(lambda flag, text: (f"{flag}={text}",), name, values(action)))
        else:
            several = st.lists(values(action), max_size=3)
            options.append(st.builds(lambda flag, texts: (flag, *texts), name, several))
    stray = st.one_of(words, st.sampled_from(["--unknown", "--lr", "--see"])).map(lambda w: (w,))
    some = st.lists(st.one_of(*[st.one_of(options)] * 30, stray), min_size=1, max_size=4)
    return some.map(lambda parts: [word for part in parts for word in part])


def outcome(main, argv):
    """Exit code, and what was written to stderr."""
    error = io.StringIO()
    with contextlib.redirect_stderr(error), contextlib.redirect_stdout(io.StringIO()):
        code = exit_code(lambda: main(argv))
    return code, error.getvalue()


def check(main, argv, *folders):
    """The promise; an error leaves the folders as they were."""
    before = contents(*folders)
    code, error = outcome(main, argv)
    event(f"exit code {code}")
    lines = [line for line in error.splitlines() if not line.startswith("note: ")]
    if code == 2:
        assert len(lines) == 1 and ": error: " in lines[0], (argv, error)
        assert contents(*folders) == before, argv
    else:
        assert code == 0 and not lines, (argv, code, error)
    return code


def contents(*folders):
    return {
        path: path.read_bytes() if path.is_file() else None
        for folder in folders
        for path in folder.rglob("*")
        if path.suffix != ".npy"
    }


def fuzzed(examples):
    """A test of so many command lines."""
    return settings(
        max_examples=examples * (10 if settings.get_current_profile_name() == "thorough" else 1),
        deadline=None,
        derandomize=settings.get_current_profile_name() != "thorough",
        suppress_health_check=list(HealthCheck),
    )


@pytest.fixture
def stubbed(monkeypatch):
    """No images are decoded twice, nothing is trained, and no picture drawn."""
    monkeypatch.setattr(ModelEntry, "load_dataset", functools.cache(ModelEntry.load_dataset))
    monkeypatch.setattr(train_cmd, "plot_test_accuracy", lambda *_: None)
    monkeypatch.setattr(train_cmd, "complete", lambda run, selected: {})
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
        code, error = outcome(train_cmd.main, argv)
    event(f"exit code {code}")
    lines = [line for line in error.splitlines() if not line.startswith("note: ")]
    assert (code == 0 and not lines) or (code == 2 and len(lines) == 1), (argv, code, error)
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
    argv=command_lines(cmd_checkpoints.build_parser()),
    paths=st.lists(st.one_of(words, st.sampled_from([".", "/dev/null"])), max_size=3),
)
def test_cmd_utils(tmp_path_factory, argv, paths):
    place = tmp_path_factory.mktemp("checkpoints")
    check(cmd_checkpoints.main, [*paths, *argv, "--output", str(place)], place)


@pytest.mark.parametrize(
    "place", ["file", "file/below", "a" * 300, "\udcff", "é" * 20, " ", "new/\n", ""]
)
def test_results_dir_of_any_name(stubbed, tmp_path, monkeypatch, place):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("mine")
    code, error = outcome(train_cmd.main, [*QUICK, "--results_dir", place])
    assert code in (0, 2) and error.count("\n") == math.ceil(code / 2), error
    assert (tmp_path / "file").read_text() == "mine"
