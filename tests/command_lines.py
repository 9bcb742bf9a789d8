"""Command lines made at random, and what is promised of each."""

import argparse
import contextlib
import io
import string

from hypothesis import HealthCheck, event, settings
from hypothesis import strategies as st

from tests.conftest import exit_code
from utils.system.arguments import truth

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
    code = one_line_or_run(main, argv)
    if code == 2:
        assert contents(*folders) == before, argv
    return code


def one_line_or_run(main, argv):
    """A run, or one line and exit code 2; returns the exit code."""
    code, error = outcome(main, argv)
    event(f"exit code {code}")
    lines = [line for line in error.splitlines() if not line.startswith("note: ")]
    if code == 2:
        assert len(lines) == 1 and ": error: " in lines[0], (argv, error)
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
