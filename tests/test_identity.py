"""Results are reused for the settings that they depend on, and for no others."""

import json
import os
import shutil
from dataclasses import asdict, fields, replace

import pytest
import torch
from PIL import Image

import train_cmd
from utils.base_utils import MODELS
from utils.data.datasets import load_dataset
from utils.data.image_folder import DECODER
from utils.methods.identity import undecided_in
from utils.methods.registry import METHODS, Settings
from utils.results.stored_run import StoredRun
from utils.storage.metrics import COLUMNS, Metrics
from utils.training.optimizers import WARMUP_EPOCHS
from utils.training.settings import differences

pytestmark = pytest.mark.usefixtures("narrow")

BASE = ["--dataset", "digits", "--model", "lenet", "--limit", "40", "--epochs", "6"]
SIZES = ["--warmup_cmd", "2", "--embed_window", "1", "--warmup_pbfgs", "2", "--pbfgs_num", "2"]
SIZES += [
    "--pbfgs_batch_size",
    "20",
    "--modes",
    "3",
    "--samples",
    "50",
    "--swa_start",
    "2",
    "--lawa_epochs",
    "4",
]
ON = [word for method in METHODS for word in (method.flags[0], "True")]
CMD = {"cmd_posthoc", "cmd_online", "cmd_adaptive", "cmd_embed"}
BOTH = {"pbfgs", "pbfgs_equal"}
ALL = {method.name for method in METHODS}
DEPEND = {  # of the methods' own settings: another value, and whose numbers depend on it
    "modes": (2, CMD),
    "samples": (60, CMD),
    "start": (1, CMD),
    "warmup_cmd": (3, {"cmd_online", "cmd_adaptive", "cmd_embed", "pbfgs_equal"}),
    "memory": (3.0, {"cmd_adaptive"}),
    "embed_window": (2, {"cmd_embed"}),
    "embed_perc": (20.0, {"cmd_embed"}),
    "perc_rel": (True, {"cmd_embed"}),
    "embed_memory": (3.0, {"cmd_embed"}),
    "embed_in_place": (True, {"cmd_embed"}),
    "warmup_pbfgs": (3, {"pbfgs"}),
    "pbfgs_num": (1, BOTH),
    "pbfgs_batch_size": (40, BOTH),
    "accumulate": (2, BOTH),
    "pbfgs_updates": ("single", BOTH),
    "ema_decay": (0.5, {"ema"}),
    "swa_start": (3, {"swa"}),
    "lawa_epochs": (3, {"lawa"}),
}
SCHEDULED = {"lr_warmup"}  # depended on where the schedule has a warm-up
TESTED = {"test_batch_size"}  # depended on by rows
OTHERS = {"limit": 30, "weights": "none", "momentum": 0.5, "test_batch_size": 7}  # where None is


def changed(settings, name):
    """The settings with another value of one."""
    before = getattr(settings, name)
    if name in DEPEND or name in OTHERS:
        return replace(settings, **{name: (*DEPEND.get(name, ()), OTHERS.get(name))[0]})
    return replace(settings, **{name: f"{before}." if isinstance(before, str) else before + 1})


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a finished run with every method."""
    results = tmp_path_factory.mktemp("finished")
    assert train_cmd.main([*BASE, *SIZES, *ON, "--results_dir", str(results)]) == 0
    return results / "lenet"


def rows_of(folder):
    metrics = Metrics.stored(folder / "metrics.csv")
    return {name: [(row.test_loss, row.test_acc) for row in metrics.of(name)] for name in ALL}


@pytest.mark.parametrize("name", DEPEND)
def test_which_numbers_depend_on_a_setting(finished, tmp_path, monkeypatch, name):
    """The table above, and the methods' own settings, are what runs show."""
    value, methods = DEPEND[name]
    for method in METHODS:
        assert (name in method.own_settings()) == (method.name in methods), method.name
    monkeypatch.setattr(train_cmd, "plot_test_accuracy", lambda *_: None)
    argv = [*BASE, *SIZES, *ON, f"--{name}", str(value), "--results_dir", str(tmp_path)]
    assert train_cmd.main(argv) == 0
    before, after = rows_of(finished), rows_of(tmp_path / "lenet")
    assert {method for method in ALL if before[method] != after[method]} == methods


def only(folder, metrics, tested, under_way):
    """A run's folder in which the rows of some methods and the states of others are stored."""
    folder.mkdir()
    rows = [row.text() for method in tested for row in metrics.of(method.name)]
    (folder / "metrics.csv").write_text(",".join(COLUMNS) + "\n" + "".join(rows))
    for method in under_way:
        for name in method.states():
            (folder / name).touch()


@pytest.mark.parametrize("scheduler", ["none", "warmup_cosine"])
def test_a_change_is_refused_exactly_if_something_stored_depends_on_it(
    finished, tmp_path, scheduler
):
    """Every setting × every method: with rows or a state under way, alone, with all siblings or
    missing among them."""
    record = StoredRun(finished)
    settings = replace(record.settings, scheduler=scheduler)
    cases = []
    for number, method in enumerate(METHODS):
        others = [other for other in METHODS if other is not method]
        cases += [
            (f"{number} has rows", [method], []),
            (f"{number} is under way", [], [method]),
            (f"{number} among rows of others", METHODS, []),
            (f"{number} under way among rows of others", others, [method]),
            (f"{number} is not there", others, []),
        ]
    cases.append(("nothing", [], []))
    for case, tested, under_way in cases:
        folder = tmp_path / case
        only(folder, record.metrics, tested, under_way)
        averages = {method.name for method in under_way if method.watches_steps}
        # a state is a file or an average in the checkpoint; others have none
        states = {m.name for m in under_way if m.states() or m.watches_steps}
        stored = {method.name for method in tested} | states
        free = undecided_in(settings, folder, averages)
        for name in (field.name for field in fields(Settings)):
            phrases = differences(changed(settings, name), asdict(settings), free)
            depends = True
            if name in DEPEND:
                depends = bool(stored & DEPEND[name][1])
            elif name in TESTED:
                depends = bool(tested)
            elif name in SCHEDULED:
                depends = scheduler == "warmup_cosine"
            words = "--data_dir" if name == "data" else f"--{name}"
            assert (words in " ".join(phrases)) == depends, (case, name, phrases)
            assert len(phrases) == depends
        assert not differences(settings, asdict(settings), free)


def test_a_method_without_rows_decides_nothing_for_its_sibling(tmp_path, capsys):
    """Of which one has rows, and the other none."""
    argv = [*BASE[:-2], "--epochs", "9", "--warmup_cmd", "2", "--p_bfgs", "True"]
    argv += ["--warmup_pbfgs", "3", "--results_dir", str(tmp_path)]
    assert train_cmd.main([*argv, "--pbfgs_num", "2"]) == 0
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    capsys.readouterr()
    assert train_cmd.main([*argv, "--pbfgs_num", "1"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "--pbfgs_num is 1 here and 2 there" in error
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_averages_over_steps_are_of_their_decay(tmp_path, monkeypatch, capsys):
    """Stopped with a checkpoint and no row yet."""
    argv = [*BASE, "--warmup_cmd", "1", "--ema", "True", "--results_dir", str(tmp_path)]

    def stop(self, row):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Metrics, "write", stop)
        assert train_cmd.main([*argv, "--ema_decay", "0.9"]) == 130
    assert (tmp_path / "lenet/checkpoint.pt").exists()
    assert not Metrics(tmp_path / "lenet/metrics.csv", writable=False).of("ema")
    capsys.readouterr()
    assert train_cmd.main([*argv, "--ema_decay", "0.5"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "--ema_decay is 0.5 here and 0.9 there" in error
    assert train_cmd.main([*argv, "--ema_decay", "0.9"]) == 0


def test_a_fit_is_of_its_settings_before_it_was_tested(finished, tmp_path, capsys):
    shutil.copytree(finished, tmp_path / "lenet")
    metrics = tmp_path / "lenet/metrics.csv"
    lines = metrics.read_text().splitlines(keepends=True)
    metrics.write_text("".join(line for line in lines if not line.startswith("cmd_")))
    capsys.readouterr()
    argv = [*BASE, *SIZES, "--results_dir", str(tmp_path), "--modes", "2"]
    assert train_cmd.main(argv) == 2
    assert "--modes is 2 here and 3 there" in capsys.readouterr().err
    (tmp_path / "lenet/cmd_posthoc.pt").unlink()
    assert train_cmd.main([*argv, "--cmd_online", ""]) == 0
    # what nothing goes on from, of other settings now, does not stay
    assert not (tmp_path / "lenet/cmd_online.pt").exists()
    assert not (tmp_path / "lenet/cmd_embed.pt").exists()
    assert json.loads((tmp_path / "lenet/config.json").read_text())["settings"]["modes"] == 2


def test_weights_are_known_by_their_content(tmp_path, monkeypatch, capsys):
    first, second, moved = (tmp_path / name for name in ("a.pt", "b.pt", "moved.pt"))
    torch.save({"a": torch.zeros(3)}, first)
    torch.save({"a": torch.ones(3)}, second)
    shutil.copy(first, moved)

    def settings(weights):
        flags = ["--model", "vit", *([] if weights is None else ["--weights", str(weights)])]
        args = train_cmd.build_parser().parse_args(flags)
        return train_cmd.make_settings(args, [METHODS[0]])

    assert settings(first) == settings(moved) != settings(second)
    assert settings(None).weights == "imagenet" and settings("none").weights == "none"
    shutil.copy(second, first)
    assert settings(first) == settings(second) != settings(moved)
    argv = ["--model", "vit", "--weights", str(tmp_path / "no.pt"), "--dataset", "digits"]
    assert train_cmd.main([*argv, "--results_dir", str(tmp_path / "results")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "--weights" in error and "no.pt" in error


def test_another_image_of_the_same_size_and_time(tmp_path, monkeypatch):
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            (tmp_path / "pets" / split / name).mkdir(parents=True)
            for number in range(2):
                image = Image.new("RGB", (32, 32), (10 * number, 0, 0))
                image.save(tmp_path / "pets" / split / name / f"{number}.bmp")
    first = load_dataset("folder", str(tmp_path / "pets"), 32, False)
    path = tmp_path / "pets/train/cat/0.bmp"
    before = path.stat()
    Image.new("RGB", (32, 32), (0, 0, 200)).save(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size
    second = load_dataset("folder", str(tmp_path / "pets"), 32, False)
    assert second.fingerprint() != first.fingerprint()
    assert second.train.images.max() == 200
    monkeypatch.setattr("utils.data.image_folder.DECODER", DECODER + ", of another version")
    decoded = []
    monkeypatch.setattr(
        "utils.data.image_folder.as_rgb", lambda image: decoded.append(1) or image.convert("RGB")
    )
    load_dataset("folder", str(tmp_path / "pets"), 32, False)
    assert len(decoded) == 8


def test_settings_of_runs_made_before_are_read():
    old = {field.name: 1 for field in fields(Settings)}
    del old["lr_warmup"]
    assert Settings(**old).lr_warmup == 5 == WARMUP_EPOCHS


@pytest.mark.parametrize("model", MODELS)
def test_the_warmup_of_a_schedule_belongs_to_it(model, tmp_path, capsys):
    has_warmup = MODELS[model].scheduler == "warmup_cosine"
    argv = ["--model", model, "--lr_warmup", "3"]
    args = train_cmd.build_parser().parse_args(argv)
    if has_warmup:
        assert train_cmd.make_settings(args, [METHODS[0]]).lr_warmup == 3
        assert train_cmd.main([*argv, "--epochs", "3", "--results_dir", str(tmp_path)]) == 2
        assert "would only rise in --epochs 3" in capsys.readouterr().err
    else:
        assert train_cmd.main([*argv, "--results_dir", str(tmp_path)]) == 2
        error = capsys.readouterr().err
        assert "--lr_warmup 3" in error and "--scheduler warmup_cosine" in error
