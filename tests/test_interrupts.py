"""Signals that come where their exception would be lost."""

import signal
import subprocess
import sys
import time

import pytest
import torch

from tests.conftest import ROOT
from tests.torture import handles_sigterm
from utils.storage.sealed import load_tensors, save_tensors
from utils.system.command import run_command
from utils.system.errors import NoRoomError, UserError
from utils.system.interrupts import held_back


@pytest.fixture
def asked_to_end():
    """SIGTERM raises SystemExit."""

    def end(number, frame):
        raise SystemExit(143)

    before = signal.signal(signal.SIGTERM, end)
    yield end
    signal.signal(signal.SIGTERM, before)


def test_they_come_when_the_block_ends(asked_to_end):
    done = []
    with pytest.raises(SystemExit), held_back():
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)  # the first one counts
        done.append(True)
    assert done and signal.getsignal(signal.SIGTERM) is asked_to_end
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_error_in_the_block_is_not_hidden_without_them():
    with pytest.raises(ValueError, match="wrong"), held_back():
        raise ValueError("wrong")


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_a_file_being_saved_is_finished(sent, asked_to_end, tmp_path, monkeypatch):
    real = torch.save

    def save(state, file):
        class Stream:
            def write(self, data):
                signal.raise_signal(sent)
                return file.write(data)

            def __getattr__(self, name):
                return getattr(file, name)

        real(state, Stream())

    monkeypatch.setattr(torch, "save", save)
    path = tmp_path / "some.pt"
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        save_tensors({"a": torch.arange(100)}, path)
    assert torch.equal(load_tensors(path)["a"], torch.arange(100))
    assert [file.name for file in tmp_path.iterdir()] == ["some.pt"]


@pytest.mark.parametrize("command", ["train_cmd.py", "reproduce.py", "visualize.py"])
@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_while_imports_go_on(command, sent, code):
    argv = [sys.executable, ROOT / command, "--help"]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not handles_sigterm(process.pid):
        time.sleep(0.001)
    process.send_signal(sent)
    out, error = process.communicate(timeout=60)
    assert (process.returncode, out, error) == (code, "", f"{command}: interrupted\n")


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError("no disk"), "prog, rank 1: error: no disk; is there room in there"),
        (MemoryError("1 GB"), "prog, rank 1: error: out of memory (1 GB)"),
        (NoRoomError("full"), "prog, rank 1: error: full"),
        (UserError("--lr 0"), ""),  # which the first one says
        (RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer"), ""),
    ],
)
def test_what_another_process_alone_has_met_is_said(monkeypatch, capsys, error, words):
    def work():
        raise error

    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert run_command("prog", "there", work) == 2
    said = capsys.readouterr().err
    assert said.startswith(words) and said.count("\n") == (1 if words else 0)
    monkeypatch.setenv("RANK", "0")
    assert run_command("prog", "there", work) == 2
    assert capsys.readouterr().err.startswith("prog: error: ")
