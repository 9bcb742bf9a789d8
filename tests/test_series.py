"""Order and membership of a series of checkpoints are never an accident of a listing."""

import os
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.cmd.checkpoints.series import choose, find_series
from utils.cmd.errors import InputError

NO_WEIGHTS = ("optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin", ".json", ".txt")


def is_checkpoint(path):
    """A stand-in: files with weights' endings, and folders that hold one or are sharded."""
    if path.is_dir():
        files = [entry for entry in path.iterdir() if entry.is_file() and is_checkpoint(entry)]
        return len(files) == 1 or (path / "model.safetensors.index.json").exists()
    return path.suffix in (".pt", ".pth", ".ckpt", ".safetensors", ".bin") and not str(
        path
    ).endswith(NO_WEIGHTS)


def make(folder, *names):
    paths = []
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
        paths.append(path)
    return paths


def names(series, folder):
    return [str(path.relative_to(folder)) for path in series.paths]


def test_the_numbers_decide_as_given_and_in_a_folder(tmp_path):
    files = make(tmp_path, *(f"epoch_{epoch}.pt" for epoch in range(12)))
    right = [f"epoch_{epoch}.pt" for epoch in range(12)]
    for paths in (sorted(files), random.Random(0).sample(files, 12), [tmp_path]):
        assert names(find_series(paths, is_checkpoint), tmp_path) == right
    notes = find_series(sorted(files), is_checkpoint).notes
    assert len(notes) == 1 and "--as_given" in notes[0]
    assert find_series(files, is_checkpoint).notes == []
    kept = find_series(sorted(files), is_checkpoint, as_given=True)
    assert kept.paths == sorted(files) and "against the numbers" in kept.notes[0]


@pytest.mark.parametrize("how", ["files", "folders", "run"])
def test_a_trainers_folder(tmp_path, how):
    steps = range(4, 52, 4)
    for step in steps:
        make(tmp_path, *(f"run/checkpoint-{step}/{name}" for name in (
            "model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth",
            "training_args.bin", "trainer_state.json")))  # fmt: skip
    make(tmp_path, "run/model.safetensors", "run/training_args.bin")
    run = tmp_path / "run"
    paths = {
        "files": sorted(run.glob("checkpoint-*/model.safetensors")),
        "folders": sorted(run.glob("checkpoint-*")),
        "run": [run],
    }[how]
    end = "/model.safetensors" if how == "files" else ""
    series = find_series(paths, is_checkpoint)
    assert names(series, run) == [f"checkpoint-{step}{end}" for step in steps]
    aside = [note for note in series.notes if note.startswith("set aside")]
    assert len(aside) == (how == "run") and all("run/model.safetensors" in note for note in aside)
    everything = find_series(sorted(run.glob("checkpoint-*/*")), is_checkpoint)
    assert len(everything.paths) == len(steps)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", ".metadata",
                                  "model.safetensors.index.json"])  # fmt: skip
def test_a_trainers_folder_is_not_a_numbered_file_in_it(tmp_path, name):
    for step in (4, 8):
        make(tmp_path, f"checkpoint-{step}/{name}", f"checkpoint-{step}/cmd_20.pt")
        make(tmp_path, f"plain/checkpoint-{step}/step_{step}.pt")
    folders = [tmp_path / "checkpoint-4", tmp_path / "checkpoint-8"]
    assert find_series(folders, Path.exists).paths == folders
    named = [tmp_path / f"plain/checkpoint-{step}/step_{step}.pt" for step in (4, 8)]
    assert find_series([file.parent for file in named], Path.exists).paths == named


def test_what_is_no_moment_is_set_aside_with_a_line(tmp_path):
    make(tmp_path, *(f"epoch_{epoch}.pt" for epoch in range(9, 12)), "best.pt", "model_best.pt",
         "checkpoint.pth", "last.pt", "cmd/cmd.safetensors", "cmd/reconstructed.pt",
         "reconstructed.pt", "cmd.safetensors", ".hidden_3.pt", "notes.txt")  # fmt: skip
    (tmp_path / "epoch_12.pt").symlink_to(tmp_path / "epoch_11.pt")
    series = find_series([tmp_path], is_checkpoint)
    assert names(series, tmp_path) == ["epoch_9.pt", "epoch_10.pt", "epoch_11.pt"]
    assert sum("was made by CMD" in note for note in series.notes) == 4
    for name in ("best.pt", "model_best.pt", "checkpoint.pth", "last.pt", "epoch_12.pt"):
        assert sum(f"/{name} " in note for note in series.notes) == 1, name


def test_names_of_lightning(tmp_path):
    for pattern in ("epoch={}-step={}.ckpt", "val_loss={2:.2f}-epoch={0}-step={1}.ckpt",
                    "e{}-s{}-loss{:.3f}.ckpt"):  # fmt: skip
        folder = tmp_path / pattern[:5]
        order = [
            pattern.format(epoch, 40 * (epoch + 1), 9 / (epoch + 1)) for epoch in range(3, 15, 2)
        ]
        make(folder, *order, "last.ckpt")
        series = find_series([folder], is_checkpoint)
        assert names(series, folder) == order
        assert len(series.notes) == 1 and "last.ckpt" in series.notes[0]
        assert names(choose(series, first=5, to=11), folder) == order[1:5]
        nested = find_series([tmp_path / pattern[:5]], is_checkpoint)
        assert nested.paths == series.paths


def test_shards_are_one_checkpoint(tmp_path):
    for step in (8, 16, 128):
        make(tmp_path, *(f"checkpoint-{step}/{name}" for name in (
            "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors",
            "model.safetensors.index.json")))  # fmt: skip
    folders = [tmp_path / f"checkpoint-{step}" for step in (8, 16, 128)]
    for paths in (sorted(folders), [tmp_path], sorted(tmp_path.glob("*/*.safetensors"))):
        assert find_series(paths, is_checkpoint).paths == folders
    with pytest.raises(InputError, match=r"1 checkpoints were found.*two are the least"):
        find_series([folders[0]], is_checkpoint)


def test_what_is_not_clear_is_refused(tmp_path):
    files = make(tmp_path, "a_1.pt", "a_2.pt", "b_1.pt", "b_2.pt")
    with pytest.raises(InputError, match="there are two series"):
        find_series([tmp_path], is_checkpoint)
    with pytest.raises(InputError, match="--as_given"):
        find_series([files[0], files[3]], is_checkpoint)
    assert find_series([files[3], files[0]], is_checkpoint, True).paths == [files[3], files[0]]
    twice = make(tmp_path / "twice", "x_1.pt", "x_01.pt", "x_2.pt")
    with pytest.raises(InputError, match="same number"):
        find_series(twice, is_checkpoint)
    with pytest.raises(InputError, match="is not there"):
        find_series([tmp_path / "none.pt"], is_checkpoint)
    with pytest.raises(InputError, match=r"0 checkpoints were found.*holds no weights"):
        find_series(make(tmp_path, "notes.txt"), is_checkpoint)


def test_a_part_is_chosen(tmp_path):
    files = make(tmp_path, *(f"step_{step}.pt" for step in range(0, 100, 10)))
    series = find_series([tmp_path], is_checkpoint)
    for chosen, expected in (
        ({"first": 20}, files[2:]),
        ({"to": 35}, files[:4]),
        ({"every": 3}, files[::3]),
        ({"every": 4}, files[1::4]),
        ({"last": 4}, files[-4:]),
        ({"first": 10, "to": 80, "every": 2, "last": 3}, [files[4], files[6], files[8]]),
    ):
        assert choose(series, **chosen).paths == expected
    with pytest.raises(InputError, match=r"--from 90: 1 of 10.*from 0 to 90"):
        choose(series, first=90)


@pytest.mark.parametrize(
    "order",
    [
        ["step_100_loss_3e-04.pt", "step_200_loss_7e-05.pt", "step_300_loss_0.5.pt"],
        ["3f2e7-model_1.pt", "3f2e7-model_2.pt", "3f2e7-model_10.pt"],
        ["checkpoint_0.5_step_1.pt", "checkpoint_0.7_step_2.pt", "checkpoint_0.6_step_3.pt"],
        ["dice_0.5_model_1.pt", "dice_0.7_model_2.pt", "dice_0.6_model_3.pt"],
        ["batch_64/step_1.pt", "batch_32/step_2.pt", "batch_16/step_3.pt"],
        ["2024-01-28_09-30.pt", "2024-02-05_08-10.pt", "2024-12-01_07-00.pt"],
        ["step_99999999999999999998.pt", "step_99999999999999999999.pt"],
        ["epoch=1-elbo=1.5.ckpt", "epoch=2-elbo=-0.5.ckpt", "epoch=3-elbo=-1.5.ckpt"],
        ["epoch_1.pt", "epoch_2.safetensors", "epoch_3.pth", "epoch_10.bin"],
        ["a/b/c/d/epoch_9.pt", "a/b/c/d/epoch_10.pt"],
    ],
)
def test_which_numbers_order(tmp_path, order):
    make(tmp_path, *order)
    assert names(find_series([tmp_path], is_checkpoint), tmp_path) == order


@pytest.mark.parametrize(
    ("found", "words"),
    [
        ([f"version_{v}/epoch={e}-step={10 * e + v}.ckpt" for v in (0, 1) for e in (1, 2, 3)],
         "two series"),
        (["seed_1/epoch_1.pt", "seed_1/epoch_3.pt", "seed_2/epoch_2.pt"], "two series"),
        ([f"run_{r}/model_{m}.pt" for r in (1, 2) for m in (0, 1, 2)], "two series"),
        (["epoch_1.pt", "epoch_2.pt", "epoch_3.pt", "epoch_1_ema.pt", "epoch_2_ema.pt"],
         "two series"),
        ([f"model_v1.{v}.pt" for v in (8, 9, 10, 11)], "versions or decimals"),
        (["28-01-2024.pt", "05-02-2024.pt", "01-03-2024.pt"], "date"),
    ],
)  # fmt: skip
def test_what_does_not_tell_the_order_is_refused(tmp_path, found, words):
    files = make(tmp_path, *found)
    with pytest.raises(InputError, match=words):
        find_series([tmp_path], is_checkpoint)
    assert find_series(files, is_checkpoint, as_given=True).paths == files


def test_links(tmp_path):
    files = make(tmp_path / "real", "epoch_1.pt", "epoch_2.pt", "epoch_3.pt")
    (tmp_path / "real/best.pt").symlink_to("epoch_3.pt")
    (tmp_path / "real/epoch_4.pt").hardlink_to(files[2])
    (tmp_path / "link").symlink_to("real")
    for folder in ("real", "link"):
        series = find_series([tmp_path / folder], is_checkpoint)
        assert [path.name for path in series.paths] == [file.name for file in files]
        assert sum(" is the same as " in note for note in series.notes) == 2


def test_one_folder_in_several_spellings(tmp_path, monkeypatch):
    files = make(tmp_path / "x", "epoch_1.pt", "epoch_2.pt", "epoch_3.pt")
    monkeypatch.chdir(tmp_path / "x")
    paths = [Path("epoch_3.pt"), Path("../x/epoch_1.pt"), files[1]]
    assert [path.name for path in find_series(paths, is_checkpoint).paths] == [
        file.name for file in files
    ]


def test_as_given_keeps_what_is_given_twice(tmp_path):
    one, two = make(tmp_path, "epoch_1.pt", "epoch_2.pt")
    assert find_series([one, two, one], is_checkpoint, as_given=True).paths == [one, two, one]


def test_many_outputs_of_the_command_are_no_series(tmp_path):
    make(tmp_path, "epoch_1.pt", "epoch_2.pt", *(
        f"described_{number}/{name}" for number in range(5)
        for name in ("cmd.safetensors", "sampled.safetensors", "reconstructed/model.safetensors")
    ))  # fmt: skip
    series = find_series([tmp_path], is_checkpoint)
    assert names(series, tmp_path) == ["epoch_1.pt", "epoch_2.pt"]
    assert all("was made by CMD" in note for note in series.notes)


PATTERNS = ["epoch_{}.pt", "checkpoint-{}/model.safetensors", "{:05d}.ckpt", "run7/step{}.pth",
            "m.{}.bin", "epoch={}-val_loss={loss:.3f}.ckpt", "acc{loss:.2f}_ep{}.pt"]  # fmt: skip


@settings(deadline=None, max_examples=150)
@given(
    pattern=st.sampled_from(PATTERNS),
    numbers=st.lists(st.integers(0, 2000), min_size=2, max_size=12, unique=True),
    others=st.lists(st.sampled_from(["best.pt", "last.ckpt", "notes.txt", "optimizer.pt",
                                     "model_final.pth", "cmd/cmd.safetensors"]), unique=True),
    shuffle=st.randoms(use_true_random=False),
    as_folder=st.booleans(),
)  # fmt: skip
def test_any_series(tmp_path_factory, pattern, numbers, others, shuffle, as_folder):
    """The moments are those with numbers, in the order of these, whatever lies beside them."""
    folder = tmp_path_factory.mktemp("series")
    losses = {number: shuffle.random() for number in numbers}
    right = [pattern.format(n, loss=losses[n]) for n in sorted(numbers)]
    make(folder, *right, *others)
    found = [Path(path) for path, _, _ in os.walk(folder)] if as_folder else list(
        make(folder, *right, *others)
    )  # fmt: skip
    paths = [folder] if as_folder else found
    shuffle.shuffle(paths)
    series = find_series(paths, is_checkpoint)
    ours = names(series, folder)
    ends = "/model.safetensors"
    assert [name.removesuffix(ends) for name in ours] == [name.removesuffix(ends) for name in right]
    weights = [name for name in others if is_checkpoint(folder / name)]
    aside = [note for note in series.notes if note.startswith("set aside")]
    assert len(aside) >= len(weights)
