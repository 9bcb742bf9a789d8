"""Command lines of federated_cmd.py made at random: each ends in a run, or in one line."""

import shutil

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("flwr")

import federated_cmd
from tests.command_lines import check, command_lines, fuzzed, one_line_or_run

pytestmark = pytest.mark.usefixtures("narrow")

FEW = ["--model", "lenet", "--dataset", "digits", "--limit", "24", "--clients", "2"]
FEW += ["--rounds", "4", "--warmup_cmd", "1", "--embed_window", "1"]


@pytest.fixture
def stubbed(monkeypatch):
    """Nothing is trained, and no picture drawn; Ray is not started."""
    monkeypatch.setattr(federated_cmd, "run_rounds", lambda *_: [])
    for name in ("summarise", "write_rounds", "plot", "over_seeds", "tables"):
        monkeypatch.setattr(federated_cmd, name, lambda *_: {})
    monkeypatch.setitem(federated_cmd.RUNNERS, "ray", federated_cmd.RUNNERS["inproc"])
    return monkeypatch


@fuzzed(250)
@given(argv=command_lines(federated_cmd.build_parser()), known=st.booleans())
def test_federated_cmd(stubbed, tmp_path_factory, argv, known):
    place = tmp_path_factory.mktemp("federated")
    if known:
        assert federated_cmd.main([*FEW, "--results_dir", str(place)]) == 0
    check(federated_cmd.main, [*FEW, *argv, "--results_dir", str(place)], place)
    shutil.rmtree(place)


@fuzzed(15)
@given(argv=command_lines(federated_cmd.build_parser()))
def test_federated_cmd_trains(tmp_path_factory, argv):
    """The same with real rounds; one that stops may have finished some."""
    place = tmp_path_factory.mktemp("federated")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(federated_cmd.RUNNERS, "ray", federated_cmd.RUNNERS["inproc"])
        patch.setattr(federated_cmd, "plot", lambda *_: None)
        argv = [*FEW, *argv, *FEW[:8], "--local_epochs", "1", "--results_dir", str(place)]
        one_line_or_run(federated_cmd.main, argv)
    shutil.rmtree(place)
