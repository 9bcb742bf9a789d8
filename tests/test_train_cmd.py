import csv
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import train_cmd
from tests.conftest import ROOT, SMALL, exit_code, interrupted
from tests.test_data import make_folder
from utils.base_utils import MODELS
from utils.cmd.fitting import fit_cmd
from utils.cmd.model import CMDModel
from utils.methods.registry import METHODS
from utils.training import run as run_module

SHORT = ["--dataset", "digits", "--model", "lenet", "--limit", "64", "--epochs", "3"]
SHORT += ["--warmup_cmd", "1", "--samples", "200"]


def rows(folder):
    """metrics.csv, its seconds aside."""
    with (Path(folder) / "metrics.csv").open() as file:
        return [row[:-1] for row in csv.reader(file)]


def contents(folder):
    return {path: path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


@pytest.fixture
def results(tmp_path):
    return tmp_path / "results"


@pytest.fixture
def main(results):
    def run(*arguments):
        return train_cmd.main([*map(str, arguments), "--results_dir", str(results)])

    return run


def assert_one_line_error(capsys, code, words):
    error = capsys.readouterr().err
    assert code == 2
    assert error.count("\n") == 1 and "Traceback" not in error, error
    for word in words:
        assert word in error, error


def test_a_run_leaves_everything(real_run):
    names = {path.name for path in real_run.iterdir()}
    assert names == {
        "all_methods_test_acc.png", "checkpoint.pt", "cmd_online.pt", "cmd_posthoc.pt",
        "config.json", "metrics.csv", "metrics.sums", "summary.json", "trajectory.npy",
        "trajectory.sums",
    }  # fmt: skip
    config = json.loads((real_run / "config.json").read_text())
    assert config["settings"]["seed"] == 0 and config["settings"]["lr"] == 0.001
    assert config["environment"]["versions"]["torch"] == torch.__version__
    table = rows(real_run)
    assert table[0] == ["method", "epoch", "train_loss", "train_acc", "test_loss", "test_acc"]
    for method in ("sgd", "cmd_online", "cmd_posthoc"):
        epochs = [int(row[1]) for row in table if row[0] == method]
        assert epochs == list(range(12))
    assert all(0 <= float(row[5]) <= 1 for row in table[1:])
    assert float(table[-1][5]) > 0.3  # it learnt something


def test_cmds_parameters_are_the_fit_of_the_trajectory(real_run):
    trajectory = np.load(real_run / "trajectory.npy", mmap_mode="r")
    assert trajectory.shape == (12, 548_878) and trajectory.dtype == np.float32
    posthoc = CMDModel.load(real_run / "cmd_posthoc.pt")
    online = CMDModel.load(real_run / "cmd_online.pt")
    assert posthoc.reference_history.shape == online.reference_history.shape == (12, 10)
    from utils.cmd.clustering import sample_weights
    from utils.cmd.vector import layer_sizes

    sizes = layer_sizes(MODELS["lenet"].build(10))
    sample = sample_weights(sizes, 200, torch.Generator().manual_seed(0))
    fitted = fit_cmd(trajectory, sample, 10)
    assert torch.equal(fitted.a, posthoc.a) and torch.equal(fitted.mode, posthoc.mode)
    warm = fit_cmd(trajectory, sample, 10, end=5)
    assert torch.equal(warm.reference, online.reference) and torch.equal(warm.mode, online.mode)


def test_the_papers_four_commands(main, results, capsys):
    assert main(*SHORT) == 0
    first = rows(results / "lenet")
    capsys.readouterr()
    assert main(*SHORT, "--cmd_PostHoc", "") == 0
    out = capsys.readouterr().out
    assert "Online CMD" in out and "Post-hoc" not in out
    # its 80 epochs of warm-up do not fit into 3
    for flag in ("--p_bfgs", "--pbfgs"):
        assert_one_line_error(capsys, main(*SHORT, flag, "True"), ["--warmup_pbfgs 80", "1 … 1"])
    assert rows(results / "lenet") == first
    fitting = ["--warmup_pbfgs", "1", "--pbfgs_num", "1"]
    assert main(*SHORT, *fitting, "--p_bfgs", "True") == 0
    out = capsys.readouterr().out.split("\n\n")[1]
    assert all(label in out for label in ("SGD", "Post-hoc CMD", "Online CMD", "P-BFGS"))
    four = ["--p_bfgs", "True", "--sgd", "", "--cmd_PostHoc", ""]
    assert main(*SHORT, *fitting, *four) == 0
    out = capsys.readouterr().out.split("\n\n")[1]
    assert "P-BFGS" in out and "SGD" not in out and "Post-hoc" not in out


def test_run_again_when_finished_recomputes_nothing(main, results, monkeypatch, capsys):
    assert main(*SHORT) == 0
    first = capsys.readouterr().out.split("\n\n")[1]
    before = contents(results)
    for name in ("train_epoch", "evaluate"):
        monkeypatch.setattr(f"utils.training.run.{name}", None)
    monkeypatch.setattr("utils.methods.cmd.fit_cmd", None)
    assert main(*SHORT) == 0
    assert capsys.readouterr().out.split("\n\n")[1] == first
    after = contents(results)
    assert {p: b for p, b in before.items() if p.suffix != ".png"} == {
        p: b for p, b in after.items() if p.suffix != ".png"
    }


def test_a_method_added_later_watches_the_stored_run(main, results, tmp_path, monkeypatch):
    alone = [*SMALL, "--epochs", "4", "--warmup_cmd", "2"]
    assert main(*alone, "--cmd_online", "", "--cmd_PostHoc", "", "--sgd", "yes") == 0
    with monkeypatch.context() as patch:
        patch.setattr("utils.training.run.train_epoch", None)
        assert main(*alone, "--sgd", "0") == 0
    assert train_cmd.main([*alone, "--results_dir", str(tmp_path / "together")]) == 0
    assert sorted(rows(results / "lenet")) == sorted(rows(tmp_path / "together" / "lenet"))


def test_no_method_watches_but_the_run_is_trained(main, results, capsys):
    assert main(*SHORT, "--sgd", "no", "--cmd_online", "FALSE") == 0
    out = capsys.readouterr().out
    assert out.count("train: loss") == 3 and out.count("test: Post-hoc") == 3
    assert {row[0] for row in rows(results / "lenet")[1:]} == {"cmd_posthoc"}


def test_changed_settings_are_refused_and_overwritten_on_demand(main, results, capsys):
    assert main(*SHORT) == 0
    before = contents(results)
    capsys.readouterr()
    for flag, value, there in [
        ("--lr", "0.01", "0.001"), ("--seed", "1", "0"), ("--modes", "3", "10"),
        ("--batch_size", "64", "128"), ("--limit", "100", "64"), ("--epochs", "4", "3"),
    ]:  # fmt: skip
        code = main(*SHORT, flag, value)
        assert_one_line_error(capsys, code, [f"{flag} is {value} here and {there} there"])
        assert contents(results) == before
    assert main(*SHORT, "--seed", "1", "--overwrite") == 0
    assert rows(results / "lenet")[1:] != []
    assert json.loads((results / "lenet/config.json").read_text())["settings"]["seed"] == 1


def test_what_overwriting_began_is_gone_on_with(main, results, monkeypatch, capsys):
    assert main(*SHORT) == 0
    with monkeypatch.context() as patch:
        patch.setattr(run_module, "train_epoch", interrupted(run_module.train_epoch, 2))
        assert main(*SHORT, "--lr", "0.002", "--overwrite") == 130
    assert "the same command without --overwrite goes on with it" in capsys.readouterr().err
    commands = json.loads((results / "lenet/config.json").read_text())["commands"]
    assert len(commands) == 1 and "--overwrite" not in commands[0]
    assert main(*SHORT, "--lr", "0.002") == 0


@pytest.mark.parametrize("flag", ["--seed", "--batch_size", "--test_batch_size", "--accumulate"])
def test_numbers_that_torch_cannot_take(main, results, capsys, flag):
    code = exit_code(lambda: main(*SHORT, flag, 2**63))
    assert_one_line_error(capsys, code, [flag, "is too large"])
    assert not results.exists()


def test_what_no_method_depends_on_is_said(main, capsys):
    assert main(*SHORT, "--memory", "5", "--ema_decay", "0.9", "--ema", "True") == 0
    notes = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note: no")]
    assert notes == ["note: no method that is on depends on --memory"]


def test_one_seed_or_several(results, capsys):
    for seed in ("0", "1"):
        code = exit_code(lambda: train_cmd.main(["--seed", seed, "--seeds", "2"]))  # noqa: B023
        assert_one_line_error(capsys, code, ["--seeds", "not allowed with argument --seed"])
    assert train_cmd.build_parser().parse_args([]).seed == 0


def test_changed_images_are_refused(tmp_path, capsys):
    root = make_folder(tmp_path / "pets")
    flags = ["--dataset", "folder", "--data_dir", str(root), "--model", "lenet", "--epochs", "2",
             "--warmup_cmd", "1", "--results_dir", str(tmp_path / "results")]  # fmt: skip
    assert train_cmd.main(flags) == 0
    (root / "train" / "cat" / "0.png").unlink()
    capsys.readouterr()
    assert_one_line_error(capsys, train_cmd.main(flags), ["--data_dir", "not the same"])


def test_a_folder_that_is_not_a_run_is_left_alone(main, results, capsys):
    (results / "lenet").mkdir(parents=True)
    (results / "lenet" / "checkpoint.pt").write_text("mine")
    assert_one_line_error(capsys, main(*SHORT), ["checkpoint.pt", "--overwrite"])
    assert (results / "lenet" / "checkpoint.pt").read_text() == "mine"
    (results / "lenet" / "notes.txt").write_text("also mine")
    assert main(*SHORT, "--overwrite") == 0
    assert (results / "lenet" / "notes.txt").read_text() == "also mine"


@pytest.mark.parametrize("name", ["checkpoint.pt", "trajectory.npy", "metrics.csv", "config.json"])
def test_damaged_files_are_named(main, results, capsys, name):
    assert main(*SHORT) == 0
    path = results / "lenet" / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2].replace(b"method", b"m"))
    capsys.readouterr()
    assert_one_line_error(capsys, main(*SHORT), [name, "--overwrite"])


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--warmup_cmd", "0"], ["--warmup_cmd 0", "1 … 2"]),
        (["--warmup_cmd", "3"], ["--warmup_cmd 3", "1 … 2"]),
        (["--warmup_cmd", "-1"], ["--warmup_cmd -1"]),
        (["--epochs", "1"], ["--warmup_cmd", "--epochs 2"]),
        (["--start", "1"], ["--start 1", "--warmup_cmd 1"]),
        (["--start", "3", "--cmd_online", ""], ["--start 3", "--epochs 3"]),
        (["--samples", "5"], ["--samples 5", "--modes 10"]),
        (["--modes", "0"], ["--modes 0"]),
        (["--modes", "600000", "--samples", "600000"], ["--modes 600000", "548,878 weights"]),
        (["--weights", "none"], ["--weights none", "--model lenet"]),
        (["--sgd", "", "--cmd_PostHoc", "", "--cmd_online", ""], ["no method", "--sgd"]),
        (["--device", "tpu9"], ["--device tpu9"]),
        (["--device", "cuda:77"], ["--device cuda:77"]),
        (["--dataset", "folder", "--data_dir", "/nonexistent"], ["--data_dir /nonexistent"]),
        (["--model", "vit", "--weights", "/nonexistent.pt"], ["--weights /nonexistent.pt"]),
        (["--lr", "1e30", "--model", "res18", "--limit", "20"], ["--lr 1e+30", "NaN", "kept"]),
    ],
)
def test_bad_input(main, results, capsys, flags, words):
    assert_one_line_error(capsys, main(*SHORT, *flags), words)
    assert not list(results.rglob("metrics.csv")) or "--lr" in flags


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--sgd", "maybe"], ["--sgd", "maybe"]),
        (["--cmd_online", "2"], ["--cmd_online", "'2'"]),
        (["--p_bfgs"], ["--p_bfgs"]),
        (["--model", "resnet"], ["--model", "resnet", "lenet"]),
        (["--dataset", "imagenet"], ["--dataset", "imagenet", "digits"]),
        (["--epochs", "0"], ["--epochs", "0"]),
        (["--epochs", "many"], ["--epochs", "many"]),
        (["--batch_size", "0"], ["--batch_size"]),
        (["--limit", "-5"], ["--limit"]),
        (["--lr", "-1"], ["--lr"]),
        (["--lr", "nan"], ["--lr", "nan"]),
        (["--modes", "ten"], ["--modes", "ten"]),
        (["--see", "1"], ["--see"]),
        (["extra"], ["extra"]),
    ],
)
def test_bad_values(main, results, capsys, flags, words):
    with pytest.raises(SystemExit) as stopped:
        main(*SHORT, *flags)
    assert_one_line_error(capsys, stopped.value.code, words)
    assert not results.exists()


@pytest.mark.parametrize("text", ["", "False", "FALSE", "0", "no", "No", " false "])
def test_falsehoods(text):
    assert train_cmd.build_parser().parse_args(["--sgd", text]).sgd is False


@pytest.mark.parametrize("text", ["True", "true", "1", "yes", "YES"])
def test_truths(text):
    args = train_cmd.build_parser().parse_args(["--p_bfgs", text, "--cmd_PostHoc", text])
    assert args.pbfgs is True and args.cmd_posthoc is True


def test_help_tells_the_true_defaults(capsys):
    with pytest.raises(SystemExit):
        train_cmd.main(["--help"])
    text = capsys.readouterr().out
    for name, entry in MODELS.items():
        line = next(line for line in text.splitlines() if line.strip().startswith(name + " "))
        fields = [entry.optimizer, f"{entry.lr:g}", entry.epochs, entry.modes, entry.samples]
        assert line.split()[1:] == list(map(str, fields))
    defaults = train_cmd.build_parser().parse_args([])
    assert (defaults.sgd, defaults.cmd_posthoc, defaults.cmd_online, defaults.pbfgs) == (
        True, True, True, False,
    )  # fmt: skip
    assert (defaults.model, defaults.dataset, defaults.warmup_cmd) == ("res18", "cifar10", 20)
    assert (defaults.batch_size, defaults.results_dir, defaults.start) == (128, "results", 0)
    args = train_cmd.build_parser().parse_args(["--model", "lenet"])
    assert train_cmd.make_settings(args, METHODS[:1]).samples == MODELS["lenet"].samples


def test_no_room_for_the_trajectory_is_said_before_training(main, results, monkeypatch, capsys):
    class Usage:
        free = 10_000_000

    monkeypatch.setattr("utils.storage.files.shutil.disk_usage", lambda path: Usage)
    monkeypatch.setattr("utils.training.run.train_epoch", None)
    code = main(*SHORT)
    assert_one_line_error(capsys, code, ["--results_dir", "bytes", "10,000,000 are free"])
    assert not (results / "lenet").exists()


def test_nan_keeps_what_was_finished(main, results, monkeypatch, capsys):
    real = run_module.train_epoch
    calls = []

    def fails_in_epoch_2(*arguments):
        calls.append(1)
        loss, accuracy = real(*arguments)
        return (float("nan") if len(calls) == 3 else loss), accuracy

    monkeypatch.setattr(run_module, "train_epoch", fails_in_epoch_2)
    flags = [*SMALL, "--epochs", "4", "--warmup_cmd", "1"]
    code = main(*flags)
    assert_one_line_error(capsys, code, ["NaN", "epoch 2", "before it are kept", "--lr"])
    assert len(np.load(results / "lenet" / "trajectory.npy")) == 2
    assert main(*flags) == 0
    assert len(np.load(results / "lenet" / "trajectory.npy")) == 4


@pytest.mark.parametrize("model", ["res18", "googlenet"])
def test_other_models_run(model, tmp_path):
    flags = ["--dataset", "digits", "--model", model, "--limit", "8", "--epochs", "2",
             "--warmup_cmd", "1", "--batch_size", "4", "--samples", "1000",
             "--results_dir", str(tmp_path)]  # fmt: skip
    assert train_cmd.main(flags) == 0
    assert len(rows(tmp_path / model)) == 1 + 3 * 2


def start(results, *flags):
    return subprocess.Popen(
        [sys.executable, ROOT / "train_cmd.py", *flags, "--results_dir", str(results)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
    )  # fmt: skip


def wait_for(process, words):
    for line in process.stdout:
        if words in line:
            return
    raise AssertionError(f"{words!r} was never printed: {process.stderr.read()}")


KILLED = [*SMALL, "--epochs", "8", "--warmup_cmd", "3", "--samples", "1000"]  # it takes its time


@pytest.mark.parametrize("words", ["epoch 1 of", "epoch 5 of", "test: Post-hoc"])
def test_killed_and_started_again_gives_the_same_numbers(tmp_path, words, uninterrupted):
    with start(tmp_path, *KILLED) as process:
        wait_for(process, words)
        time.sleep(0.05)  # somewhere within the next epoch
        process.kill()
    assert len(rows(tmp_path / "lenet")) < 1 + 3 * 8
    assert train_cmd.main([*KILLED, "--results_dir", str(tmp_path)]) == 0
    assert rows(tmp_path / "lenet") == rows(uninterrupted)
    for name in ("cmd_online.pt", "cmd_posthoc.pt"):
        ours, theirs = (
            CMDModel.load(folder / name) for folder in (tmp_path / "lenet", uninterrupted)
        )
        for field, value in vars(theirs).items():
            assert torch.equal(getattr(ours, field), value)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    results = tmp_path_factory.mktemp("uninterrupted")
    assert train_cmd.main([*KILLED, "--results_dir", str(results)]) == 0
    return results / "lenet"


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted_ends_with_one_line(tmp_path, sent, code):
    with start(tmp_path, *KILLED) as process:
        wait_for(process, "epoch 0 of")
        process.send_signal(sent)
        _, error = process.communicate(timeout=60)
    assert process.returncode == code
    assert "same command goes on" in error and "Traceback" not in error
    assert len(error.strip().splitlines()) == 1


def test_two_at_once(tmp_path, capsys):
    flags = [*KILLED, "--results_dir", str(tmp_path)]
    with start(tmp_path, *KILLED) as process:
        wait_for(process, "epoch 0 of")
        assert_one_line_error(
            capsys, train_cmd.main([*flags, "--overwrite"]),
            ["lenet is in use by process", str(process.pid), "--results_dir"],
        )  # fmt: skip
        process.kill()  # the lock goes with it
    assert train_cmd.main(flags) == 0
    assert not (tmp_path / "lenet" / ".running").exists()


def test_as_a_process_of_its_own(command, tmp_path):
    done = command(*SHORT, "--results_dir", tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "Post-hoc CMD" in done.stdout and (tmp_path / "lenet" / "metrics.csv").exists()
    bad = command(*SHORT, "--results_dir", tmp_path, "--lr", "2")
    assert bad.returncode == 2 and bad.stderr.startswith("train_cmd.py: error: ")


def test_importing_does_nothing(tmp_path):
    code = "import sys; sys.path.insert(0, sys.argv[1]); import train_cmd, utils.cmd_utils\n"
    code += "assert 'torchvision' not in sys.modules"  # which takes seconds, and most runs need not
    done = subprocess.run(
        [sys.executable, "-c", code, ROOT], cwd=tmp_path, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert list(tmp_path.iterdir()) == []
