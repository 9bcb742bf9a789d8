"""The paper's tables, from runs on the digits."""

import json
import shlex
import shutil

import pytest

import reproduce
import train_cmd
from reproduce import of_shorter_runs
from tests.conftest import exit_code, interrupted
from utils.results.paper import TABLE1, TABLE2, TABLES, methods_of
from utils.results.stored_run import StoredRun, require_alike
from utils.storage.store import Store, read_config
from utils.system.errors import UserError

pytestmark = pytest.mark.usefixtures("narrow")

DIGITS = ["--dataset", "digits", "--limit", "128", "--epochs", "6", "--seeds", "0", "1"]
LENET = ["table1", "--models", "lenet", *DIGITS]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """(results, what was kept of them) of the LeNet row."""
    results, kept = tmp_path_factory.mktemp("results"), tmp_path_factory.mktemp("kept")
    argv = [*LENET, "--results_dir", str(results), "--keep", str(kept)]
    assert reproduce.main(argv) == 0
    return results, kept


def cells(out):
    line = next(line for line in out.splitlines() if line.startswith("| LeNet-5"))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_cells_are_ours_beside_the_papers(finished, capsys):
    results, _ = finished
    assert reproduce.main([*LENET, "--results_dir", str(results), "--stored"]) == 0
    out = capsys.readouterr().out
    _, sgd, online, equal, long = cells(out)
    summary = json.loads((results / "default/lenet_seeds/summary.json").read_text())["methods"]
    for cell, name, paper in [
        (sgd, "sgd", "75.36 ± 0.57"), (online, "cmd_online", "76.77 ± 0.60"),
        (equal, "pbfgs_equal", "74.67 ± 0.35"), (long, "pbfgs", "76.44 ± 0.37"),
    ]:  # fmt: skip
        last, mean = (
            f"{100 * summary[name][key]:.2f} ± {100 * summary[name][f'{key}_std']:.2f}"
            for key in ("last", "mean_last_10")
        )
        assert cell == f"{last} / {mean} ({paper})"
    assert "6 epochs on digits, --limit 128" in out and "`python train_cmd.py --model lenet" in out


def test_again_from_what_it_left_behind(finished, monkeypatch, capsys):
    results, kept = finished
    monkeypatch.setattr("utils.training.run.train_epoch", None)
    monkeypatch.setattr("utils.training.run.evaluate", None)
    assert reproduce.main([*LENET, "--results_dir", str(results)]) == 0
    first = cells(capsys.readouterr().out)
    assert {path.suffix for path in kept.rglob("*.*")} == {".json", ".csv", ".sums"}
    stored = ["table1", "--models", "lenet", "--seeds", "0", "1", "--stored"]
    assert reproduce.main([*stored, "--results_dir", str(kept)]) == 0
    assert cells(capsys.readouterr().out) == first


def test_the_printed_command_is_what_was_run(finished):
    results, _ = finished
    record = StoredRun(results / "default/lenet_seeds/seed_0")
    argv = shlex.split(record.commands[0])[2:]
    args = train_cmd.build_parser().parse_args(argv)
    assert (args.model, args.seeds, args.epochs) == ("lenet", [0, 1], 6)
    assert args.pbfgs and args.pbfgs_equal and args.cmd_online and not args.cmd_posthoc


def test_a_row_that_is_not_finished(finished, tmp_path, capsys):
    _, kept = finished
    shutil.copytree(kept, tmp_path / "runs")
    metrics = tmp_path / "runs/default/lenet_seeds/seed_1/metrics.csv"
    lines = metrics.read_text().splitlines(keepends=True)
    metrics.write_text("".join(line for line in lines if not line.startswith("pbfgs,5,")))
    argv = ["table1", "--models", "lenet", "--stored", "--results_dir", str(tmp_path / "runs")]
    assert reproduce.main(argv) == 0
    out = capsys.readouterr().out
    _, sgd, _, _, long = cells(out)
    assert "2 of 3 seeds" in sgd and "1 of 3 seeds" in long and "±" not in long.split("(")[0]
    assert "unfinished: pbfgs at epoch 5 of 6" in out and "seed 2: not run" in out


def test_interrupted_before_there_is_a_run(tmp_path, monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("utils.base_utils.load_dataset", interrupted)
    argv = ["table1", "--models", "lenet", *DIGITS, "--results_dir", str(tmp_path)]
    assert reproduce.main(argv) == 130
    assert capsys.readouterr().err.count("\n") == 1


def test_interrupted_it_says_so_and_goes_on(finished, tmp_path, monkeypatch, capsys):
    from utils.training import run as run_module

    results, _ = finished
    real = run_module.train_epoch
    monkeypatch.setattr(run_module, "train_epoch", interrupted(real, 3))
    argv = ["table1", "--models", "lenet", *DIGITS[:-1], "--results_dir", str(tmp_path)]
    assert reproduce.main(argv) == 130
    captured = capsys.readouterr()
    assert "sgd at epoch 2 of 6" in captured.out and "Traceback" not in captured.err
    monkeypatch.setattr(run_module, "train_epoch", real)
    assert reproduce.main(argv) == 0
    ours, theirs = (
        StoredRun(folder / "default/lenet_seeds/seed_0") for folder in (tmp_path, results)
    )
    for name in ("sgd", "cmd_online", "pbfgs", "pbfgs_equal"):
        assert ours.last(name) == theirs.last(name)


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["table1", "--models", "lenet", "--epochs", "3"], "--epochs 3"),
        (["table2", "--models", "lenet"], "--models lenet"),
        (["table1", "--models", "lenet", "--seeds", "1", "1"], "--seeds 1 1"),
        (["table1", "--stored"], "--stored"),
        (["table3"], "table3"),
    ],
)
def test_bad_input(tmp_path, capsys, argv, words):
    code = exit_code(lambda: reproduce.main([*argv, "--results_dir", str(tmp_path)]))
    error = capsys.readouterr().err
    assert code == 2 and words in error and error.count("\n") == 1
    assert not any(tmp_path.iterdir())


def test_a_run_of_something_else_is_not_counted(finished, tmp_path, capsys):
    _, kept = finished
    shutil.copytree(kept, tmp_path / "runs")
    folder = tmp_path / "runs/default/lenet_seeds/seed_0"
    record_otherwise(folder, lr=0.5)
    code = exit_code(
        lambda: reproduce.main(
            ["table1", "--models", "lenet", "--stored", "--results_dir", str(tmp_path / "runs")]
        )
    )
    assert code == 2
    assert "--lr is 0.001 here and 0.5 there" in capsys.readouterr().err


def record_otherwise(folder, **settings):
    """Have a run's configuration say other settings than it was made with."""
    config = read_config(folder)
    config["settings"] |= settings
    Store.of(folder).write_config(config)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("epochs", 12), ("data", "other"), ("limit", 64), ("batch_size", 64), ("precision", "bf16"),
        ("warmup_cmd", 3), ("modes", 2), ("warmup_pbfgs", 4), ("pbfgs_num", 1), ("scheduler", "x"),
        ("ema_decay", 0.5), ("swa_start", 2), ("embed_window", 3), ("seed", 5),
    ],
)  # fmt: skip
def test_runs_unlike_each_other_are_not_averaged(finished, tmp_path, capsys, name, value):
    """Unlike in what their rows depend on: none here has rows of SWA or embedded CMD."""
    _, kept = finished
    shutil.copytree(kept, tmp_path / "runs")
    record_otherwise(tmp_path / "runs/default/lenet_seeds/seed_1", **{name: value})
    argv = ["--stored", "--models", "lenet", "--seeds", "0", "1"]
    code = reproduce.main(["table1", *argv, "--results_dir", str(tmp_path / "runs")])
    error = capsys.readouterr().err
    if name in ("swa_start", "embed_window"):
        assert code == 0 and not error
    else:
        words = "--data_dir" if name == "data" else f"--{name}"
        assert code == 2 and error.count("\n") == 1 and words in error and "seed_1" in error


@pytest.mark.parametrize(
    ("name", "value"), [("modes", 2), ("samples", 50), ("warmup_cmd", 3), ("batch_size", 64)]
)
def test_runs_alike_that_are_not_the_tables_are_refused(finished, tmp_path, capsys, name, value):
    _, kept = finished
    shutil.copytree(kept, tmp_path / "runs")
    for seed in (0, 1):
        folder = tmp_path / f"runs/default/lenet_seeds/seed_{seed}"
        record_otherwise(folder, **{name: value})
    argv = ["--stored", "--models", "lenet", "--seeds", "0", "1"]
    assert reproduce.main(["table1", *argv, "--results_dir", str(tmp_path / "runs")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and f"--{name} is " in error and f"{value} there" in error


def test_runs_are_alike_also_where_the_first_lacks_a_method(finished, tmp_path):
    _, kept = finished
    for seed in (0, 1, 2):
        folder = tmp_path / f"seed_{seed}"
        shutil.copytree(kept / "default/lenet_seeds/seed_0", folder)
        record_otherwise(folder, seed=seed)
    rows = (tmp_path / "seed_0/metrics.csv").read_text().splitlines(keepends=True)
    rows = [row for row in rows if not row.startswith("pbfgs")]
    (tmp_path / "seed_0/metrics.csv").write_text("".join(rows))
    runs = [StoredRun(tmp_path / f"seed_{seed}") for seed in (0, 1, 2)]
    require_alike(runs)
    record_otherwise(tmp_path / "seed_2", pbfgs_num=1)
    runs[2] = StoredRun(tmp_path / "seed_2")
    require_alike([runs[0], runs[2]])
    with pytest.raises(UserError, match="--pbfgs_num is 1 here and"):
        require_alike(runs)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--epochs", "12"], "--epochs is 12 here and 6 there"),
        (["--limit", "64"], "--limit is 64 here and 128 there"),
        (["--dataset", "folder"], "--dataset is folder here and digits there"),
        (["--pbfgs_batch_size", "64"], "--pbfgs_batch_size is 64 here and 1024 there"),
    ],
)
def test_stored_runs_are_of_what_was_asked_for(finished, capsys, flags, words):
    _, kept = finished
    argv = ["table1", "--models", "lenet", "--seeds", "0", "1", "--stored", *flags]
    assert reproduce.main([*argv, "--results_dir", str(kept)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and words in error


def test_what_p_bfgs_needs_of_memory_is_passed_on():
    flags = ["--pbfgs_batch_size", "64", "--accumulate", "16", "--pbfgs_pieces", "8"]
    args = reproduce.build_parser().parse_args(["table1", *flags])
    for row in TABLE1.rows:
        parsed = train_cmd.build_parser().parse_args(reproduce.command(args, row))
        assert (parsed.pbfgs_batch_size, parsed.accumulate, parsed.pbfgs_pieces) == (64, 16, 8)


def test_shorter_runs_have_a_shorter_warmup_of_the_learning_rate():
    """Of the one model whose schedule has any."""
    for model, expected in (("vit", "2"), ("lenet", None)):
        args = reproduce.build_parser().parse_args(["table1", "--epochs", "45"])
        row = next(row for row in TABLE1.rows if row.model == model)
        parsed = train_cmd.build_parser().parse_args(reproduce.command(args, row))
        assert parsed.lr_warmup == (expected and int(expected))
        assert train_cmd.make_settings(parsed, [train_cmd.METHODS[0]]).warmup_cmd in (6, 10)


@pytest.mark.parametrize("name", TABLES)
def test_every_row_is_a_command_that_is_understood(name):
    args = reproduce.build_parser().parse_args([name])
    for row in TABLES[name].rows:
        parsed = train_cmd.build_parser().parse_args(reproduce.command(args, row))
        methods = [method for method in train_cmd.METHODS if getattr(parsed, method.name)]
        assert set(row.paper) <= {method.name for method in methods}
        settings = train_cmd.make_settings(parsed, methods)
        assert settings.warmup_cmd == 20 and settings.epochs >= 90


def test_rows_of_one_run_share_it():
    first = next(row for row in TABLE1.rows if row.model == "res18")
    second = next(row for row in TABLE2.rows if row.label == "SGD + Mom")
    args = reproduce.build_parser().parse_args(["table1"])
    assert reproduce.run_folder(args, first, 0) == reproduce.run_folder(args, second, 0)
    assert "ema" in methods_of(first)  # its steps could not be replayed for table 2
    places = [reproduce.run_folder(args, row, 0) for row in TABLE2.rows]
    assert len(set(places)) == len(places)


@pytest.mark.parametrize("whole", [90, 120, 150])
@pytest.mark.parametrize("epochs", [6, 7, 12, 50, 149, 400])
def test_shorter_runs_leave_room_for_every_method(epochs, whole):
    argv = ["--model", "lenet", *of_shorter_runs(epochs, whole), "--seeds", "0"]
    for method in train_cmd.METHODS:
        argv += [method.flags[0], "True"]
    parsed = train_cmd.build_parser().parse_args(argv)
    settings = train_cmd.make_settings(parsed, list(train_cmd.METHODS))
    assert settings.epochs == epochs and settings.warmup_cmd >= 2
