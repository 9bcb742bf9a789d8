"""Image folders as they are met: each loads, or gets one line that names the file."""

import os

import numpy as np
import pytest
import torch
from PIL import Image

import train_cmd
from tests.test_data import make_folder
from utils.data.datasets import load_dataset
from utils.system.errors import UserError

pytestmark = pytest.mark.usefixtures("narrow")

RUN = ["--dataset", "folder", "--model", "lenet", "--epochs", "2", "--warmup_cmd", "1"]
NOT_UTF_8 = os.fsdecode(b"c\xe4t")


@pytest.fixture
def root(tmp_path):
    return make_folder(tmp_path / "pets")


def load(root, size=32, resizes=False):
    return load_dataset("folder", str(root), size, resizes)


def pixels_of(root, image, name="0.png"):
    """The image as it comes out of the folder, uint8 [32, 32, 3]."""
    for path in (root / "train").rglob("*.png"):
        path.unlink()
    for label in ("cat", "dog"):
        image.save(root / "train" / label / name)
    return load(root).train.images[0].numpy()


def gradient():
    return np.linspace(0, 255, 32 * 32).reshape(32, 32)


@pytest.mark.parametrize("mode", ["L", "1", "P", "RGBA", "LA", "CMYK"])
def test_grey_indexed_and_transparent_images_become_rgb(root, mode):
    colours = np.stack([gradient(), gradient().T, 255 - gradient()], axis=-1).astype(np.uint8)
    image = Image.fromarray(colours).convert("L" if mode == "LA" else mode.replace("A", ""))
    if mode.endswith("A"):
        image.putalpha(Image.fromarray(gradient().astype(np.uint8)))
    name = "0.tif" if mode == "CMYK" else "0.png"
    expected = np.array(image.convert("RGB"))
    assert pixels_of(root, image, name).tolist() == expected.tolist()


def test_an_indexed_image_with_transparent_colours(root, recwarn):
    image = Image.fromarray(gradient().astype(np.uint8)).convert("P")
    image.info["transparency"] = bytes(range(256))
    image.save(root / "train/cat/0.png", transparency=bytes(range(256)))
    assert load(root).train.images.shape == (12, 32, 32, 3)
    assert not recwarn.list


def test_sixteen_bits_keep_their_order(root):
    grey = (gradient() * 257).astype(np.uint16)
    found = pixels_of(root, Image.fromarray(grey))
    assert (found == (grey >> 8)[..., None]).all() and found.max() == 255 and found.min() == 0


def test_numbers_of_no_known_range_are_refused(root):
    Image.fromarray(gradient().astype(np.float32)).save(root / "train/cat/0.tif")
    with pytest.raises(UserError, match=r"cat/0\.tif cannot be read.*mode F"):
        load(root)


def test_classes_of_one_image(tmp_path, capsys):
    root = make_folder(tmp_path / "pets", classes=("a", "b", "c"), train=1, test=1)
    argv = [*RUN, "--data_dir", str(root), "--results_dir", str(tmp_path / "results")]
    assert train_cmd.main([*argv, "--batch_size", "2"]) == 0, capsys.readouterr().err


def test_other_files_and_hidden_ones_are_left_out(root):
    before = load(root).fingerprint()
    (root / "train/notes.txt").write_text("not an image")
    (root / "train/cat/labels.csv").write_text("0,cat")
    (root / "train/cat/._0.png").write_bytes(b"a resource fork")
    (root / "train/cat/.DS_Store").write_bytes(b"\0")
    (root / "train/.ipynb_checkpoints").mkdir()
    (root / "test/.ipynb_checkpoints").mkdir()
    (root / "train/cat/empty").mkdir()
    (root / "train/0.png").write_bytes(b"in no class")
    assert load(root).fingerprint() == before and load(root).classes == ["cat", "dog"]


@pytest.mark.parametrize("target", [".", "..", "../.."])
def test_a_link_that_leads_back_is_refused(root, target):
    (root / "train/cat/again").symlink_to(target, target_is_directory=True)
    with pytest.raises(UserError, match="cat/again is a link to a folder that it is in"):
        load(root)


def test_links_to_elsewhere_are_followed(root, tmp_path):
    make_folder(tmp_path / "more", classes=("horse",))
    for split in ("train", "test"):
        (root / split / "horse").symlink_to(tmp_path / "more" / split / "horse")
    assert load(root).classes == ["cat", "dog", "horse"]
    (root / "train/cat/gone.png").symlink_to(tmp_path / "nowhere.png")
    with pytest.raises(UserError, match=r"cat/gone\.png cannot be read"):
        load(root)


def test_a_link_to_itself_is_no_folder(root):
    (root / "train/cat/self.png").symlink_to(root / "train/cat/self.png")
    with pytest.raises(UserError, match=r"cat/self\.png cannot be read"):
        load(root)


def test_names_that_are_not_utf_8(tmp_path, capsys):
    root = make_folder(tmp_path / "pets")
    for split in ("train", "test"):
        (root / split / "cat").rename(root / split / NOT_UTF_8)
    argv = [*RUN, "--data_dir", str(root), "--results_dir", str(tmp_path / "results")]
    assert train_cmd.main(argv) == 0
    assert train_cmd.main(argv) == 0  # from the cache, and its own configuration
    assert load(root).classes[0] == NOT_UTF_8
    (root / "train" / NOT_UTF_8 / f"{NOT_UTF_8}.png").write_bytes(b"nonsense")
    capsys.readouterr()
    assert train_cmd.main(argv) == 2
    error = capsys.readouterr().err
    assert "cannot be read as an image" in error and error.count("\n") == 1


def test_ten_thousand_and_one_classes(tmp_path, capsys):
    image = tmp_path / "one.png"
    Image.fromarray(np.full((32, 32, 3), 7, np.uint8)).save(image)
    for split, n_classes in (("train", 10_001), ("test", 300)):
        for label in range(n_classes):
            folder = tmp_path / "many" / split / f"{label:05}"
            folder.mkdir(parents=True)
            os.link(image, folder / "0.png")
    argv = [*RUN, "--data_dir", str(tmp_path / "many"), "--limit", "300"]
    assert train_cmd.main([*argv, "--results_dir", str(tmp_path / "results")]) == 0
    assert len(load(tmp_path / "many").classes) == 10_001


def test_a_test_split_of_another_size(tmp_path):
    root = make_folder(tmp_path / "pets", train=3, test=9, size=(32, 32))
    other = make_folder(tmp_path / "large", test=9, size=(50, 40))
    (root / "test").rename(tmp_path / "away")
    (other / "test").rename(root / "test")
    for resizes, size in ((False, 32), (True, 224)):
        found = load(root, size, resizes)
        assert found.train.images.shape == (6, size, size, 3)
        assert found.test.images.shape == (18, size, size, 3)
        assert torch.equal(found.test.labels.bincount(), torch.tensor([9, 9]))
