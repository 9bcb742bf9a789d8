import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from tests import trajectories
from tests.conftest import ROOT, exit_code
from utils import cmd_utils
from utils.cmd.checkpoints import Opened
from utils.cmd.clustering import sample_weights
from utils.cmd.fitting import fit_cmd
from utils.cmd.model import CMDModel
from utils.cmd.quality import Descriptions
from utils.cmd.vector import layer_sizes, read_vector, write_vector

EPOCHS = 12


def net():
    return nn.Sequential(nn.Linear(30, 20), nn.BatchNorm1d(20), nn.Linear(20, 5))


N = sum(layer_sizes(net()))


def states():
    """The same small network at each of its epochs."""
    trajectory = np.abs(trajectories.drifting(EPOCHS, N))
    for epoch, theta in enumerate(torch.from_numpy(trajectory)):
        model = net()
        write_vector(theta, model)
        model[1].num_batches_tracked.fill_(epoch)
        yield model.state_dict()


@pytest.fixture
def pickled(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    for epoch, state in enumerate(states()):
        state["1.weight"] = state["1.weight"].double()
        content = {"epoch": epoch, "model": state, "optimizer": {"state": {}, "lr": 0.1}}
        torch.save(content, folder / f"epoch_{epoch}.pt")  # 2 comes before 10
    return folder


@pytest.fixture
def safe(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    for epoch, state in enumerate(states()):
        half = {name: value.half() if value.is_floating_point() else value
                for name, value in state.items()}  # fmt: skip
        save_file(half, folder / f"{epoch}.safetensors", {"format": "pt", "by": "me"})
    return folder


def run(*arguments):
    return cmd_utils.main([*map(str, arguments)])


def test_folder_of_nested_states(pickled, tmp_path, capsys):
    out = tmp_path / "out"
    assert run(pickled, "--modes", 4, "--samples", 200, "--seed", 3, "--output", out) == 0
    files = ["cmd.safetensors", "reconstructed.pt", "sampled.safetensors"]
    assert sorted(p.name for p in out.iterdir()) == files

    trajectory = torch.stack([read_vector(state) for state in states()])
    sample = sample_weights(layer_sizes(net()), 200, torch.Generator().manual_seed(3))
    expected = fit_cmd(trajectory, sample, 4)
    cmd = CMDModel.load(out / "cmd.safetensors")
    for name in ("a", "b", "mode", "reference", "reference_history"):
        assert torch.equal(getattr(cmd, name), getattr(expected, name))

    written = torch.load(out / "reconstructed.pt", weights_only=True)
    last = torch.load(pickled / f"epoch_{EPOCHS - 1}.pt", weights_only=True)
    assert list(written) == list(last) and written["epoch"] == EPOCHS - 1
    assert list(written["model"]) == list(last["model"])
    for name, tensor in last["model"].items():
        assert written["model"][name].dtype == tensor.dtype
    assert written["model"]["1.num_batches_tracked"] == EPOCHS - 1
    reconstructed = net()
    reconstructed.load_state_dict(written["model"])
    write_vector(expected.reconstruct(trajectory[-1][expected.reference]), model := net())
    assert torch.equal(read_vector(reconstructed), read_vector(model))

    table = capsys.readouterr().out
    for name in last["model"]:
        assert (name in table) == (name != "1.num_batches_tracked")


def test_safetensors_in_the_order_given(safe, tmp_path):
    out = tmp_path / "out"
    files = [safe / f"{epoch}.safetensors" for epoch in range(EPOCHS)]
    assert run(*files, "--modes", 3, "--samples", 100, "--output", out) == 0
    written, last = load_file(out / "reconstructed.safetensors"), load_file(files[-1])
    assert written.keys() == last.keys()
    for name, tensor in last.items():
        assert written[name].dtype == tensor.dtype and written[name].shape == tensor.shape
    assert written["1.num_batches_tracked"] == EPOCHS - 1
    from safetensors import safe_open

    with safe_open(out / "reconstructed.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt", "by": "me"}


def test_description_equals_its_definition():
    trajectory = trajectories.drifting(20, 600)
    trajectory[:, 100:110] = trajectory[0, 100:110]  # a layer that never moves
    sizes = [100, 10, 1, 489]
    descriptions = Descriptions(sizes)
    cmd = fit_cmd(trajectory, torch.arange(0, 600, 2), 4, watch=descriptions.add)
    modelled = torch.stack([cmd.reconstruct(values) for values in cmd.reference_history]).numpy()
    start = 0
    for size, found in zip(sizes, descriptions.layers, strict=True):
        here = slice(start, start + size)
        weights = trajectory[:, here].astype(np.float64)
        error = np.linalg.norm(modelled[:, here] - weights) / np.linalg.norm(weights)
        assert found.relative_error == pytest.approx(error, rel=1e-3, abs=1e-6)
        correlations = [
            abs(np.corrcoef(weights[:, i], trajectory[:, cmd.reference[cmd.mode[start + i]]])[0, 1])
            for i in range(size)
            if np.ptp(weights[:, i])
        ]
        assert found.moving == len(correlations)
        if correlations:
            assert found.mean_correlation == pytest.approx(np.mean(correlations), rel=1e-5)
        else:
            assert found.mean_correlation is None
        start += size


def rename(state):
    state["other.weight"] = state.pop("0.weight")


def reshape(state):
    state["0.weight"] = state["0.weight"].T.contiguous()


def extend(state):
    state["extra"] = torch.ones(2)


def spoil(state):
    state["0.weight"][0, 0] = torch.nan


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (rename, "'0.weight'"),
        (reshape, "'0.weight' is [30, 20]"),
        (extend, "'extra'"),
        (spoil, "'0.weight' is not finite"),
    ],
)
def test_files_that_do_not_agree(pickled, tmp_path, capsys, change, words):
    content = torch.load(pickled / "epoch_7.pt", weights_only=True)
    change(content["model"])
    torch.save(content, pickled / "epoch_7.pt")
    out = tmp_path / "out"
    code = exit_code(lambda: run(pickled, "--output", out))
    error = capsys.readouterr().err
    assert code == 2 and error.count("\n") == 1
    assert words in error and "epoch_7.pt" in error
    assert not out.exists()


class Code:
    def __reduce__(self):
        return print, ("pickled code runs",)


def test_no_pickled_code_runs(pickled, tmp_path, capsys):
    torch.save({"model": {"0.weight": torch.ones(2)}, "code": Code()}, pickled / "epoch_0.pt")
    code = exit_code(lambda: run(pickled, "--output", tmp_path / "out"))
    assert code == 2
    captured = capsys.readouterr()
    assert "pickled code runs" not in captured.out and "epoch_0.pt" in captured.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere"], "nowhere is not there"),
        (["{in}/epoch_0.pt"], "two are the least"),
        (["{in}", "--modes", "0"], "--modes"),
        (["{in}", "--modes", "9", "--samples", "8"], "--samples 8"),
        (["{in}", "--key", "ema"], "--key ema"),
        (["{in}", "--device", "cuda:77"], "--device"),
        (["{in}", "--output", "{in}/epoch_0.pt"], "--output"),
        (["{in}/epoch_0.pt", "{in}/notes.txt"], "notes.txt holds no weights"),
    ],
)
def test_bad_input(pickled, tmp_path, capsys, arguments, words):
    (pickled / "notes.txt").write_text("hello")
    arguments = [word.replace("{in}", str(pickled)) for word in arguments]
    if "--output" not in arguments:
        arguments += ["--output", str(tmp_path / "out")]
    code = exit_code(lambda: run(*arguments))
    error = capsys.readouterr().err
    assert code == 2 and error.count("\n") == 1 and words in error


def test_results_are_not_overwritten_unasked(pickled, tmp_path, capsys):
    out = tmp_path / "out"
    arguments = [pickled, "--modes", 2, "--samples", 50, "--output", out]
    assert run(*arguments) == 0
    parameters = out / "cmd.safetensors"
    before = parameters.read_bytes()
    code = exit_code(lambda: run(*arguments, "--seed", 1))
    assert code == 2
    assert "--overwrite" in capsys.readouterr().err and parameters.read_bytes() == before
    assert run(*arguments, "--seed", 1, "--overwrite") == 0
    assert parameters.read_bytes() != before


def test_as_a_command(pickled, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "utils.cmd_utils", pickled, "--modes", "3", "--samples", "60",
         "--output", tmp_path / "out"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "100 % of" in done.stdout and "mean |correlation|" in done.stdout


def test_interrupted_before_all_is_written(pickled, tmp_path, monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    out = tmp_path / "out"
    arguments = [pickled, "--modes", 2, "--samples", 50, "--output", out]
    assert run(*arguments) == 0
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    monkeypatch.setattr(Opened, "save", interrupted)
    assert run(*arguments, "--seed", 1, "--overwrite") == 130
    assert "nothing was written" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
