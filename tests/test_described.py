"""Pictures of described checkpoints."""

import pytest
import torch

import visualize
from tests.conftest import exit_code
from tests.test_fit_files import described, expected, states
from utils.results.stored_series import StoredSeries


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("series")
    for epoch, state in enumerate(states()):
        torch.save(state, place / f"epoch_{epoch}.pt")
    described(place, out=place / "described")
    return place / "described"


def test_the_sample_stands_for_the_run(folder):
    series, whole = StoredSeries(folder), expected(list(states()))
    index = torch.searchsorted(torch.arange(whole.n_weights), whole.reference)
    assert torch.equal(series.posthoc.reference_history, whole.reference_history)
    rows = torch.from_numpy(series.trajectory.array)
    assert torch.equal(rows[:, series.posthoc.reference], whole.reference_history)
    assert torch.equal(series.all_modes, whole.mode) and len(index) == 3
    assert sum(size for _, size in series.layers) == whole.n_weights


@pytest.mark.parametrize("picture", ["correlation", "modes", "stability"])
def test_pictures(folder, picture, tmp_path, capsys):
    argv = [picture, "--described", str(folder), "--output", str(tmp_path)]
    assert visualize.main(argv) == 0
    assert (tmp_path / f"{picture}.png").stat().st_size > 10_000


def test_all_leaves_out_what_needs_a_run(folder, tmp_path, capsys):
    assert visualize.main(["all", "--described", str(folder), "--output", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    for picture in ("dynamics", "accuracy", "landscape", "embedding"):
        assert f"{picture} is left out: --described {folder}" in said
    assert len(list(tmp_path.glob("*.png"))) == 3


def test_what_is_not_there(folder, tmp_path, capsys):
    code = exit_code(lambda: visualize.main(["modes", "--described", str(tmp_path)]))
    error = capsys.readouterr().err
    assert code == 2 and "cmd.safetensors is not there" in error and "utils.cmd_utils" in error
    for name in ("cmd.safetensors", "sampled.safetensors"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    (tmp_path / "sampled.safetensors").write_bytes(b"nothing")
    code = exit_code(lambda: visualize.main(["modes", "--described", str(tmp_path)]))
    error = capsys.readouterr().err
    assert code == 2 and "sampled.safetensors cannot be used" in error and error.count("\n") == 1
    code = exit_code(lambda: visualize.main(["dynamics", "--described", str(folder)]))
    assert code == 2 and "needs a run of train_cmd.py" in capsys.readouterr().err
