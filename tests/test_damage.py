"""Damage is noticed: flipped bytes, files cut short, files of other runs, hostile files."""

import json
import random
import shutil
import zipfile

import numpy as np
import pytest
import torch

import train_cmd
from tests.torture import outcome, same
from utils.cmd.files import read_pickled
from utils.cmd.model import CMDModel
from utils.results.stored_run import StoredRun
from utils.storage.metrics import Metrics, Row
from utils.storage.sealed import (
    Sums,
    load_tensors,
    read_sealed_json,
    save_tensors,
    write_sealed_json,
)
from utils.storage.store import Store
from utils.storage.trajectory import Trajectory
from utils.system.errors import UserError

pytestmark = pytest.mark.usefixtures("narrow")

RUN = ["--dataset", "digits", "--model", "lenet", "--limit", "64", "--epochs", "5"]
RUN += ["--warmup_cmd", "1", "--p_bfgs", "1", "--warmup_pbfgs", "2", "--pbfgs_num", "2"]
RUN += ["--cmd_embed", "1", "--embed_window", "1", "--ema", "1", "--swa", "1", "--samples", "200"]
STATE = {"a": torch.arange(6.0), "deep": [{"n": 3}, torch.zeros(2, dtype=torch.int64)], "x": 0.5}
READ_BY_NOBODY = ("summary.json", "all_methods_test_acc.png")  # every command makes them again


def flipped(data, position, draw):
    """The data with another byte in one place."""
    return data[:position] + bytes([data[position] ^ draw.randrange(1, 256)]) + data[position + 1 :]


def test_every_byte_of_a_sealed_file_counts(tmp_path):
    path, draw = tmp_path / "state.pt", random.Random(0)
    save_tensors(STATE, path, "run")
    data = path.read_bytes()
    for position in range(len(data)):
        path.write_bytes(flipped(data, position, draw))
        with pytest.raises(ValueError, match=r"state\.pt"):
            load_tensors(path, "run")
    for length in range(0, len(data), 7):
        path.write_bytes(data[:length])
        with pytest.raises(ValueError, match=r"state\.pt"):
            load_tensors(path)


def test_a_sealed_file_is_what_torch_reads(tmp_path):
    path = tmp_path / "state.pt"
    save_tensors(STATE, path, "run")
    for state in (load_tensors(path, "run"), load_tensors(path), torch.load(path)):
        assert torch.equal(state["a"], STATE["a"]) and state["deep"][0] == {"n": 3}
    with pytest.raises(ValueError, match="another run"):
        load_tensors(path, "other")
    torch.save(STATE, path)
    assert read_pickled(path)["x"] == 0.5
    with pytest.raises(ValueError, match="no file of this suite"):
        load_tensors(path)
    save_tensors({"a": tmp_path}, path)  # sealed, and yet no tensors
    with pytest.raises(ValueError, match=r"state\.pt is not a file of tensors"):
        load_tensors(path)


def test_every_byte_of_a_configuration_counts(tmp_path):
    path, draw = tmp_path / "config.json", random.Random(0)
    content = {"run": "abc", "settings": {"lr": 0.05, "limit": None}, "é": ["\udcff"]}
    write_sealed_json(content, path)
    data = path.read_bytes()
    assert read_sealed_json(path) == content
    for position in range(len(data)):
        path.write_bytes(flipped(data, position, draw))
        try:
            assert read_sealed_json(path) == content  # white space
        except ValueError as error:
            assert "config.json" in str(error)


def test_every_byte_of_metrics_counts(tmp_path):
    path, draw = tmp_path / "metrics.csv", random.Random(0)
    sums = tmp_path / "metrics.sums"
    metrics = Metrics(path, sums=Sums(sums, "run"))
    rows = [Row("sgd", epoch, 1.5, 0.5, 1.25, 0.75, 0.1) for epoch in range(6)]
    for row in rows:
        metrics.add(row)
    files = {path: path.read_bytes(), sums: sums.read_bytes()}
    for file, data in files.items():
        for position in range(len(data)):
            file.write_bytes(flipped(data, position, draw))
            try:
                found = Metrics(path, sums=Sums(sums, "run")).of("sgd")
            except (UserError, ValueError) as error:
                assert file is sums or "metrics.csv" in str(error)
            else:  # the last line's end: cut short, and tested again
                assert found in (rows, rows[:-1]) and (found == rows or position == len(data) - 1)
            for each, before in files.items():
                each.write_bytes(before)


def test_a_snapshot_that_changed_is_not_served(tmp_path):
    path, sums = tmp_path / "t.npy", tmp_path / "t.sums"
    store = Trajectory(path, 20, sums=Sums(sums, "run"))
    rows = np.random.default_rng(0).normal(size=(3, 20)).astype(np.float32)
    for row in rows:
        store.append(torch.from_numpy(row))
    np.testing.assert_array_equal(np.load(path), rows)
    files = {path: path.read_bytes(), sums: sums.read_bytes()}
    draw = random.Random(0)
    for file, data in files.items():
        for position in range(len(data)):
            file.write_bytes(flipped(data, position, draw))
            for read in (
                lambda: Trajectory(path, 20, sums=Sums(sums, "run")).array,
                lambda: torch.stack(list(Trajectory(path, 20, sums=Sums(sums, "run")))).numpy(),
            ):
                try:
                    np.testing.assert_array_equal(read(), rows)
                except (UserError, ValueError) as error:
                    assert "t.npy" in str(error) or "t.sums" in str(error)
                else:
                    pytest.fail(f"byte {position} of {file.name} went unnoticed")
            file.write_bytes(data)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    results = tmp_path_factory.mktemp("finished")
    assert train_cmd.main([*RUN, "--results_dir", str(results)]) == 0
    return results


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A run that was stopped within embedded CMD, whose state it keeps."""
    results, real = tmp_path_factory.mktemp("stopped"), train_cmd.describe

    def until_embedding(done, epochs):
        if any(row.method == "cmd_embed" for row in done.rows):
            raise KeyboardInterrupt
        return real(done, epochs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_cmd, "describe", until_embedding)
        assert train_cmd.main([*RUN, "--results_dir", str(results)]) == 130
    assert (results / "lenet/cmd_embed_state.pt").exists()
    return results


def damage(folder, draw):
    """Change one byte of one file, often near an end of it; returns the file."""
    path = draw.choice(sorted(path for path in folder.iterdir() if path.is_file()))
    data = path.read_bytes()
    near = min(len(data), 400)
    places = draw.randrange(near), len(data) - 1 - draw.randrange(near), draw.randrange(len(data))
    path.write_bytes(flipped(data, draw.choice(places), draw))
    return path


def test_a_flipped_byte_never_gives_a_wrong_number(finished, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(train_cmd, "plot_test_accuracy", lambda *_: None)
    draw, noticed, folder = random.Random(0), 0, tmp_path / "lenet"
    shutil.copytree(finished / "lenet", folder)
    whole = {path: path.read_bytes() for path in folder.iterdir()}
    expected = outcome(finished)
    expected_array = np.load(folder / "trajectory.npy")
    for _ in range(120):
        path = damage(folder, draw)
        code = train_cmd.main([*RUN, "--results_dir", str(tmp_path)])
        error = capsys.readouterr().err
        if code == 0:
            assert same(outcome(tmp_path), expected)
        else:
            noticed += 1
            assert code == 2 and error.count("\n") == 1 and path.name in error, error
            assert path.name not in READ_BY_NOBODY
        try:  # and what pictures are drawn from
            run = StoredRun(folder)
            assert np.array_equal(run.trajectory.array, expected_array)
            assert torch.equal(run.posthoc.a, expected[1]["cmd_posthoc.pt"]["a"])
        except UserError:
            assert path.name not in READ_BY_NOBODY
        for each, data in whole.items():
            if each == path or each.suffix != ".npy":
                each.write_bytes(data)
    assert noticed > 50


def test_a_flipped_byte_in_a_stopped_run(finished, stopped, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(train_cmd, "plot_test_accuracy", lambda *_: None)
    draw, expected = random.Random(1), outcome(finished)
    for number in range(12):
        results = tmp_path / str(number)
        shutil.copytree(stopped, results)
        path = damage(results / "lenet", draw)
        code = train_cmd.main([*RUN, "--results_dir", str(results)])
        error = capsys.readouterr().err
        if code:
            assert code == 2 and error.count("\n") == 1 and path.name in error, error
        else:
            assert same(outcome(results), expected)
        shutil.rmtree(results)


@pytest.mark.parametrize(
    "name", ["cmd_posthoc.pt", "cmd_online.pt", "cmd_embed.pt", "cmd_embed_state.pt"]
)
def test_what_can_be_made_anew_is_offered(finished, stopped, tmp_path, capsys, name):
    from_run = stopped if name.endswith("state.pt") else finished
    shutil.copytree(from_run, tmp_path / "results")
    path = tmp_path / "results/lenet" / name
    path.write_bytes(path.read_bytes()[:-1])
    argv = [*RUN, "--results_dir", str(tmp_path / "results")]
    assert train_cmd.main(argv) == 2
    assert f"{name} is cut short, or no file of this suite: remove it" in capsys.readouterr().err
    path.unlink()
    assert train_cmd.main(argv) == 0
    assert same(outcome(tmp_path / "results"), outcome(finished))


def test_a_row_that_was_removed_is_tested_again(finished, tmp_path, capsys):
    shutil.copytree(finished, tmp_path / "results")
    path = tmp_path / "results/lenet/metrics.csv"
    lines = path.read_text().splitlines(keepends=True)
    argv = [*RUN, "--results_dir", str(tmp_path / "results")]
    for method in ("sgd,1", "cmd_online,3", "cmd_posthoc,0", "pbfgs,3", "cmd_embed,4"):
        path.write_text("".join(line for line in lines if not line.startswith(method)))
        assert train_cmd.main(argv) == 0
        assert same(outcome(tmp_path / "results"), outcome(finished))
    capsys.readouterr()
    path.write_text("".join(line for line in lines if not line.startswith("ema,2")))
    assert train_cmd.main(argv) == 2  # its steps are gone
    assert "--ema True" in capsys.readouterr().err


@pytest.mark.parametrize(
    "name", ["checkpoint.pt", "cmd_posthoc.pt", "trajectory.sums", "metrics.sums", "metrics.csv"]
)
def test_files_of_another_run_are_refused(finished, tmp_path, capsys, name):
    argv = [*RUN, "--results_dir", str(tmp_path), "--seed", "1"]
    assert train_cmd.main(argv) == 0
    shutil.copy(finished / "lenet" / name, tmp_path / "lenet" / name)
    capsys.readouterr()
    assert train_cmd.main(argv) == 2
    error = capsys.readouterr().err
    assert name in error and error.count("\n") == 1


def test_a_run_without_its_checkpoint_is_not_trained_anew(finished, tmp_path, capsys):
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    (tmp_path / "lenet/checkpoint.pt").unlink()
    before = {path.name: path.read_bytes() for path in (tmp_path / "lenet").iterdir()}
    assert train_cmd.main([*RUN, "--results_dir", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "checkpoint.pt is not there" in error and "--overwrite" in error
    assert error.count("\n") == 1
    assert {path.name: path.read_bytes() for path in (tmp_path / "lenet").iterdir()} == before


def test_no_pickled_code_runs_and_no_bomb_unpacks(tmp_path):
    class Hostile:
        def __reduce__(self):
            return (print, ("pickled code runs",))

    torch.save({"a": Hostile()}, tmp_path / "hostile.pt")
    torch.save({"a": torch.zeros(4)}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    torch.save({"a": torch.zeros(1 << 20)}, tmp_path / "plain.pt")
    with (
        zipfile.ZipFile(tmp_path / "plain.pt") as plain,
        zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as bomb,
    ):
        for member in plain.infolist():
            bomb.writestr(member.filename, plain.read(member))
    (tmp_path / "text.pt").write_text("weights")
    for name in ("hostile", "old", "bomb", "text"):
        with pytest.raises(ValueError, match=f"{name}.pt is not a file of tensors"):
            read_pickled(tmp_path / f"{name}.pt")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("mode", torch.full((8,), 2, dtype=torch.int8)),
        ("mode", torch.zeros(8)),
        ("mode", torch.zeros(7, dtype=torch.int8)),
        ("reference", torch.tensor([0, 8])),
        ("reference", torch.tensor([0, -1])),
        ("reference_history", torch.zeros(3, 1)),
        ("a", 1.0),
    ],
)
def test_parameters_that_do_not_fit_are_refused(tmp_path, field, value):
    good = {
        "a": torch.ones(8), "b": torch.zeros(8), "mode": torch.zeros(8, dtype=torch.int8),
        "reference": torch.tensor([0, 1]), "reference_history": torch.zeros(3, 2),
    }  # fmt: skip
    save_tensors(good, tmp_path / "cmd.pt")
    assert CMDModel.load(tmp_path / "cmd.pt").modes == 2
    save_tensors(good | {field: value}, tmp_path / "cmd.pt")
    with pytest.raises(ValueError, match=r"cmd\.pt"):
        CMDModel.load(tmp_path / "cmd.pt")


def test_a_state_that_does_not_fit_gets_one_line(finished, tmp_path, capsys):
    """As from somebody who seals what they send."""
    shutil.copytree(finished, tmp_path / "results")
    store = Store.of(tmp_path / "results/lenet")
    good = store.load("checkpoint.pt")
    for change in (
        {"model": {}}, {"model": 3}, {"optimizer": {"state": {}, "param_groups": []}},
        {"train_history": 5}, {"train_history": [(1.0, 1.0, 1.0)] * 9}, {"averages": 3},
    ):  # fmt: skip
        store.save(good | change, "checkpoint.pt")
        assert train_cmd.main([*RUN, "--results_dir", str(tmp_path / "results")]) in (0, 2)
        error = capsys.readouterr().err
        assert error.count("\n") <= 1 and "Traceback" not in error


def test_a_configuration_without_a_seal_is_refused(finished, tmp_path, capsys):
    shutil.copytree(finished, tmp_path / "results")
    path = tmp_path / "results/lenet/config.json"
    config = json.loads(path.read_text())
    for content in ({**config, "checksum": None}, [1], {}, 3, "x" * 9):
        path.write_text(json.dumps(content))
        assert train_cmd.main([*RUN, "--results_dir", str(tmp_path / "results")]) == 2
        assert "config.json" in capsys.readouterr().err
