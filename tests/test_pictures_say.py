"""A picture says what it shows, or is left out with one line that says why.

pytest tests/test_pictures_say.py --hypothesis-profile thorough      # ten times as many
"""

import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import event, given
from hypothesis import strategies as st
from PIL import Image

import train_cmd
import visualize
from tests import picture_runs as small
from tests.command_lines import fuzzed
from tests.conftest import interrupted
from tests.picture_runs import TINY
from utils.base_utils import get_model
from utils.cmd.model import CMDModel
from utils.cmd.vector import write_vector
from utils.methods.registry import METHODS
from utils.results.pictures import correlation, dynamics, landscape, modes
from utils.results.stored_run import StoredRun
from utils.results.summary import over_seeds, table
from utils.storage.store import Store, read_config
from utils.system.command import run_command
from utils.training import run as run_module
from utils.training.epochs import evaluate

LABELS = {method.label: method.name for method in METHODS} | {"the run": "sgd"}
OF_TINY = ["--dataset", "digits", "--model", TINY, "--limit", "90", "--epochs", "6"]
OF_TINY += ["--warmup_cmd", "2", "--samples", "60", "--lr", "0.02"]


@pytest.fixture(scope="module", autouse=True)
def _small_model():
    with pytest.MonkeyPatch.context() as patch:
        small.prepare(patch)
        yield


@pytest.fixture
def drawn(monkeypatch):
    return small.Drawn(monkeypatch)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Results with a run of the small model by most methods, embedded CMD with it."""
    results = tmp_path_factory.mktemp("finished")
    argv = [*OF_TINY, "--cmd_embed", "1", "--embed_window", "1", "--ema", "1"]
    small.train(argv, results)
    return results


@pytest.fixture
def copied(finished, tmp_path):
    """The same, to be changed."""
    return shutil.copytree(finished, tmp_path / "copied")


@fuzzed(12)
@given(argv=small.runs(), whole=st.booleans(), images=st.sampled_from([[], ["--images", "30"]]))
def test_all_of_any_run(tmp_path_factory, argv, whole, images):
    results = tmp_path_factory.mktemp("any")
    with pytest.MonkeyPatch.context() as patch:
        drawn = small.Drawn(patch)
        folder = small.train(argv, results)
        check_accuracies(drawn.pop("all_methods_test_acc"), folder.parent)
        if not whole:
            small.keep_small_files(results)
        drawn.clear()
        code, lines, error = small.draw(argv, results, "all", "--points", "3", *images)
        assert (code, error) == (0, ""), (argv, lines, error)
        check_lines(lines, drawn, folder)
        check_accuracies(drawn["accuracy"], folder.parent)
        check_figures(drawn, folder)
    shutil.rmtree(results)


def check_lines(lines, drawn, folder):
    """Each picture is drawn, or named once with a reason that names a flag; each that can be drawn
    is."""
    lines = [line for line in lines if not line.startswith("note: ")]
    assert not any("is there room" in line for line in lines), lines
    can = drawable(folder)
    for name, line in zip(visualize.PICTURES, lines, strict=True):
        event(f"{name} {'drawn' if name in drawn else 'left out'}")
        if name not in drawn:
            assert line.startswith(f"{name} is left out: ") and "--" in line, line
            assert name not in can or ("--lr" in line and stands_still(folder)), line
    assert drawn.keys() <= can


def drawable(folder):
    """The pictures that a run's settings and files allow, if it moves."""
    config = json.loads((folder / "config.json").read_text())["settings"]
    start, last = config["start"], config["epochs"] - 1
    can, sampled = {"accuracy"}, config["samples"] >= config["modes"] >= 1
    if (folder / "trajectory.npy").exists() and sampled and start < last:
        can.add("correlation")
        if start < config["warmup_cmd"] <= last:
            can |= {"dynamics", "stability"}
    if (folder / "cmd_posthoc.pt").exists():
        can |= {"modes"} if start < last else set()
        can |= {"landscape"} if CMDModel.load(folder / "cmd_posthoc.pt").modes > 1 else set()
    return can | ({"embedding"} if (folder / "cmd_embed.pt").exists() else set())


def stands_still(folder):
    run = StoredRun(folder)
    rows = np.load(folder / "trajectory.npy")[run.settings.start :, run.sample]
    return (rows == rows[0]).all()


def check_accuracies(texts, folder):
    """Every method's figure is the table's, and no method is missing."""
    said = small.percentages(texts)
    assert {LABELS[label]: value for label, value in said.items()} == small.table_of(folder)


def check_figures(drawn, folder):
    """What else the pictures say, each held against where it comes from."""
    if "embedding" in drawn:
        summary = json.loads((folder / "summary.json").read_text())["methods"]["cmd_embed"]
        assert f"mean over the run: {100 * summary['embedded_mean']:.1f} %" in drawn["embedding"]
    if "modes" in drawn:
        shares = CMDModel.load(folder / "cmd_posthoc.pt").mode.long().bincount()
        said = re.findall(r"mode (\d+) \(([\d.]+) %\)", "\n".join(drawn["modes"]))
        assert len(said) == min(len(shares), modes.SHOWN)
        for mode, share in said:
            assert share == f"{100 * int(shares[int(mode)]) / int(shares.sum()):.1f}"
    if "correlation" in drawn:
        words = "\n".join(drawn["correlation"])
        counts = re.findall(r"(?:mode \d+|\d+ more): ([\d,]+)", words)
        sampled = len(StoredRun(folder).sample)
        assert sum(int(count.replace(",", "")) for count in counts) == sampled
        assert f"{sampled:,} sampled" in words or "The one sampled weight" in words
    if "landscape" in drawn:
        check_landscape(drawn, folder)


def check_landscape(drawn, folder):
    titles = [title for title, _ in drawn.panels["landscape"] if title]
    legends = [small.percentages(lines) for _, lines in drawn.panels["landscape"] if lines]
    for title, said in zip(titles, legends, strict=True):
        named = [value for label, value in said.items() if label.startswith("Post-hoc CMD")]
        assert len(named) == 1 and not said.keys() & LABELS.keys()
        split, count = re.fullmatch(
            r"(training|test) set, (\d+)(?: of \d+)? images", title
        ).groups()
        assert named[0] == computed_again(folder, split, int(count)), title
        if split == "test" and " of " not in title:
            assert named[0] == small.table_of(folder)["cmd_posthoc"]


def computed_again(folder, split, count):
    """Post-hoc CMD's accuracy on some images at the last epoch, in percent."""
    run, cmd = StoredRun(folder), CMDModel.load(folder / "cmd_posthoc.pt")
    entry, dataset = get_model(run.settings.model), run.dataset().limited(count)
    model = entry.build(num_classes=len(dataset.classes)).to(memory_format=torch.channels_last)
    write_vector(cmd.reconstruct(cmd.reference_history[-1]), model)
    images = dataset.train if split == "training" else dataset.test
    batch = entry.test_batch_size or 500
    accuracy = evaluate(model, images, entry.transform, batch, run.compute(torch.device("cpu")))[1]
    return f"{100 * accuracy:.2f}"


def left_out(lines, name):
    """Why a picture is left out."""
    return next(line for line in lines if line.startswith(f"{name} is left out: "))


@pytest.mark.parametrize(
    ("flags", "name", "words"),
    [
        (["--epochs", "4", "--warmup_cmd", "20"], "dynamics", "--warmup_cmd 20"),
        (["--start", "2"], "dynamics", "--warmup_cmd 2: it needs a run with 3 … 5"),
        (["--epochs", "1"], "modes", "--epochs 1"),
        (["--start", "5"], "correlation", "--start 5"),
        (["--modes", "1"], "landscape", "--axes 0 1"),
        (["--lr", "1e-50"], "modes", "--lr 1e-50: no weight moves"),
        (["--modes", "0", "--cmd_PostHoc", ""], "correlation", "--modes 0"),
        (["--modes", "61", "--cmd_PostHoc", ""], "correlation", "--samples 60"),
        (["--cmd_PostHoc", ""], "landscape", "--cmd_PostHoc True"),
        ([], "embedding", "--embed_window 10"),
    ],
)
def test_what_cannot_be_drawn_names_its_flag(drawn, tmp_path, flags, name, words):
    argv = [*OF_TINY, "--cmd_online", "", *flags]
    small.train(argv, tmp_path)
    code, lines, _ = small.draw(argv, tmp_path, "all", "--points", "2")
    assert code == 0 and words in left_out(lines, name) and "accuracy" in drawn
    code, _, error = small.draw(argv, tmp_path, name)
    assert code == 2 and words in error and error.count("\n") == 1


def test_kept_runs_are_drawn_without_what_was_not_kept(copied, drawn):
    small.keep_small_files(copied)
    code, lines, _ = small.draw(OF_TINY, copied, "accuracy")
    assert code == 0 and len(lines) == 2 and "cmd_embed.pt is not there" in lines[0]
    assert "Embedded\n(%)" not in drawn["accuracy"]
    check_accuracies(drawn["accuracy"], copied)


def test_of_a_run_that_stopped_nothing_is_drawn(drawn, tmp_path, monkeypatch):
    stops = interrupted(run_module.train_epoch, 3)
    monkeypatch.setattr(run_module, "train_epoch", stops)
    assert train_cmd.main([*OF_TINY, "--results_dir", str(tmp_path)]) == 130
    code, lines, error = small.draw(OF_TINY, tmp_path, "all")
    assert code == 2 and "allows no picture" in error and error.count("\n") == 1
    assert not drawn and len(lines) == len(visualize.PICTURES)
    assert all("python train_cmd.py" in line for line in lines)


def test_a_missing_file_is_named(tmp_path, capsys):
    def work():
        (tmp_path / "no/such/file").read_text()

    assert run_command("program", "--flag x", work) == 2
    assert capsys.readouterr().err == f"program: error: {tmp_path / 'no'} is not there\n"


def test_what_accuracy_is_without_is_said(copied, drawn):
    metrics = copied / TINY / "metrics.csv"
    lines = metrics.read_text().splitlines(keepends=True)
    metrics.write_text("".join(line for line in lines if not line.startswith(("ema,5", "sgd"))))
    code, lines, _ = small.draw(OF_TINY, copied, "accuracy")
    notes = [line for line in lines if line.startswith("note: accuracy is without ")]
    assert code == 0 and len(notes) == 2
    assert "EMA, which has 5 of 6 epochs" in notes[0] and "--sgd True" in notes[1]
    assert not any(text.startswith("EMA") for text in drawn["accuracy"])


def test_pictures_of_seeds_say_whose_they_are(tmp_path, drawn):
    argv = [*OF_TINY, "--cmd_online", "", "--seeds", "4", "7"]
    small.train(argv, tmp_path)
    drawn.clear()
    _, lines, _ = small.draw(argv, tmp_path, "all", "--points", "2")
    assert lines[0] == "note: all pictures but accuracy are of the first seed, 4"
    for name, texts in drawn.items():
        whose = "over 2 seeds" if name == "accuracy" else "seed 4"
        assert any(text.startswith(f"{TINY} on digits") and text.endswith(whose) for text in texts)


def test_a_picture_from_before_is_not_taken_for_one_of_now(copied, drawn):
    small.draw(OF_TINY, copied, "modes")
    (copied / TINY / "cmd_posthoc.pt").unlink()
    _, lines, _ = small.draw(OF_TINY, copied, "all")
    assert "modes.png is of an earlier call" in left_out(lines, "modes")


@pytest.mark.parametrize("name", ["cmd_embed.pt", "cmd_posthoc.pt", "trajectory.npy"])
def test_a_damaged_file_costs_only_its_own_pictures(copied, drawn, name):
    (copied / TINY / name).write_bytes(b"not what it was")
    code, lines, error = small.draw(OF_TINY, copied, "all", "--points", "2")
    assert (code, error) == (0, "") and "accuracy" in drawn
    assert len([line for line in lines if not line.startswith("note")]) == len(visualize.PICTURES)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--points", "1001"], "--points 1001"),
        (["--span", "1e300"], "--span 1e+300"),
        (["--span", "1e-12"], "--span 1e-12"),
        (["--classes", "9", "--images", "5"], "--classes 9"),
    ],
)
def test_a_landscape_that_cannot_be(finished, drawn, tmp_path, flags, words):
    code, _, error = small.draw(
        OF_TINY, finished, "landscape", "--output", str(tmp_path), "--points", "3", *flags
    )
    assert code == 2 and words in error and error.count("\n") == 1


def test_classes_and_other_figures_of_the_table_are_said(finished, drawn, tmp_path, monkeypatch):
    argv = ["landscape", "--points", "2", "--classes", "3", "--output", str(tmp_path)]
    monkeypatch.setattr(landscape, "_in_the_table", lambda run: 0.5)
    assert small.draw(OF_TINY, finished, *argv)[0] == 0
    titles = [title for title, _ in drawn.panels["landscape"] if title]
    assert titles == ["training set, 90 images", "test set, 90 images", "3 (test), 9 images"]
    test = [lines for _, lines in drawn.panels["landscape"] if lines][1]
    assert test[0] == "Post-hoc CMD (last epoch): 50.00 %"
    assert test[1].startswith("on this machine, rounded otherwise: ")


def test_grids_of_another_precision_or_test_batch_are_others(finished, tmp_path):
    run, cpu = StoredRun(finished / TINY), torch.device("cpu")
    for changes in ({}, {"precision": "bf16"}, {"test_batch_size": 7}, {}):
        run.settings = replace(run.settings, **changes)
        landscape.draw_landscape(run, run.dataset(), cpu, tmp_path / "x", ["png"], points=2)
    grids = list(tmp_path.glob("*.npz"))
    assert len(grids) == 3
    cut = grids[0].read_bytes()
    grids[0].write_bytes(cut[: len(cut) // 2])
    assert landscape.Landscape.load(grids[0], "key") is None


def test_images_are_found_again_however_they_were_given(drawn, tmp_path, monkeypatch):
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            (tmp_path / "my pets" / split / name).mkdir(parents=True)
            for number in range(4):
                image = Image.new("RGB", (32, 32), (60 * number, 90 * (name == "cat"), 0))
                image.save(tmp_path / "my pets" / split / name / f"{number}.png")
    argv = ["--dataset", "folder", "--model", TINY, "--epochs", "4", "--cmd_online", ""]
    folder = small.train([*argv, f"--data_dir={tmp_path / 'my pets'}"], tmp_path / "results")
    picture = ["landscape", "--points", "2"]
    assert small.draw(argv, tmp_path / "results", *picture)[0] == 0
    check_landscape(drawn, folder)

    config = read_config(folder)
    assert config.pop("data_dir") == str(tmp_path / "my pets")
    Store.of(folder).write_config(config)  # as runs from before have it
    monkeypatch.chdir(tmp_path)
    code, _, error = small.draw(argv, tmp_path / "results", *picture)
    assert code == 2 and "--data_dir data" in error and error.count("\n") == 1
    given = [*picture, "--data_dir", "my pets"]
    assert small.draw(argv, tmp_path / "results", *given)[0] == 0
    small.train([*argv, "--data_dir", "my pets"], tmp_path / "results")
    assert read_config(folder)["data_dir"] == "my pets"


def test_correlations_of_many(finished, drawn, tmp_path, monkeypatch):
    monkeypatch.setattr(correlation, "DRAWN", 25)
    monkeypatch.setattr(correlation, "LABELS", 2)
    output = ["--output", str(tmp_path)]
    assert small.draw(OF_TINY, finished, "correlation", *output)[0] == 0
    texts = drawn["correlation"]
    assert any("Every 3rd of 60 sampled weights" in text for text in texts)
    assert any("how many of all 60" in text for text in texts)
    labels = [re.fullmatch(r"(mode 0|2 more): (\d+)", text) for text in texts]
    assert sum(int(label[2]) for label in labels if label) == 60
    assert [correlation.ordinal(n) for n in (2, 3, 4, 11)] == ["2nd", "3rd", "4th", "11th"]


def test_modes_of_many(finished, drawn, tmp_path, monkeypatch):
    monkeypatch.setattr(modes, "SHOWN", 2)
    assert small.draw(OF_TINY, finished, "modes", "--output", str(tmp_path))[0] == 0
    assert any("the first 2 of 3 modes" in text for text in drawn["modes"])
    assert "rest" in drawn["modes"]
    assert modes.folded(np.array([[1, 2, 3, 4]])).tolist() == [[1, 2, 7]]


def test_dmd_of_what_does_not_move_or_goes_far():
    pytest.importorskip("pydmd")
    still = dynamics.by_dmd(np.ones((1, 5)), np.ones((2, 1)), 4, 3)
    assert still.rank == 1 and still.error == pytest.approx(np.zeros(5))
    nothing = dynamics.by_dmd(np.zeros((1, 5)), np.ones((2, 1)), 4, 3)
    assert nothing.rank == 0 and nothing.error.tolist() == [0] * 5
    far = dynamics.by_dmd(np.array([[1e-300, 1.0, *[2.0] * 8]]), np.ones((2, 1)), 4, 2)
    assert far.rank == 1 and len(far.error) == 10


def test_tables_name_what_they_hold(finished):
    summary = json.loads((finished / TINY / "summary.json").read_text())
    assert "mean of last 6" in table(summary) and "mean of last 10" not in table(summary)
    both = over_seeds([0, 1], [summary, summary])
    for name, figures in summary["methods"].items():
        order = [key for key in figures if key != "best_epoch"]
        assert [key for key in both["methods"][name] if key in figures] == order
