import os

import numpy as np
import pytest
import torch
from PIL import Image

from utils.data.datasets import Dataset, Split, load_dataset
from utils.storage.sealed import load_tensors, save_tensors
from utils.system.errors import UserError


def make_folder(root, classes=("cat", "dog"), train=6, test=4, size=(32, 32), kind="png"):
    random = np.random.default_rng(0)
    for split, count in (("train", train), ("test", test)):
        for label, name in enumerate(classes):
            (root / split / name).mkdir(parents=True)
            for index in range(count):
                pixels = random.integers(0, 100, (size[1], size[0], 3)) + 100 * label
                image = Image.fromarray(pixels.astype(np.uint8))
                image.save(root / split / name / f"{index}.{kind}")
    return root


def test_digits():
    data = load_dataset("digits", "unused", 32, False)
    assert data.train.images.shape == (1437, 32, 32, 3) and data.test.images.shape[0] == 360
    assert data.train.images.dtype == torch.uint8 and data.train.images.max() == 255
    assert data.classes == [*"0123456789"] and not data.mirror
    assert data.test.labels.bincount().min() >= 30
    assert data.fingerprint() == load_dataset("digits", "", 32, False).fingerprint()


def test_limit_is_balanced_deterministic_and_keeps_the_order():
    labels = torch.tensor([0, 0, 0, 0, 0, 1, 2, 2, 0, 1])
    images = torch.arange(10, dtype=torch.uint8)[:, None, None, None]
    split = Split(images, labels)
    data = Dataset(split, split, ["a", "b", "c"]).limited(6)
    assert data.train.labels.tolist() == [0, 0, 1, 2, 2, 1]
    assert data.train.images.flatten().tolist() == [0, 1, 5, 6, 7, 9]
    assert len(data.limited(99).train) == 6
    assert len(data.limited(1).train) == 1


def test_fingerprint_sees_every_image_label_and_shape():
    images, labels = torch.zeros(4, 2, 2, 3, dtype=torch.uint8), torch.zeros(4, dtype=torch.int64)
    base = Dataset(Split(images, labels), Split(images, labels), ["a"])
    changed = images.clone()
    changed[3, 1, 1, 2] = 1
    relabelled = labels.clone()
    relabelled[2] = 1
    variants = [
        base,
        Dataset(Split(changed, labels), base.test, ["a"]),
        Dataset(base.train, Split(images, relabelled), ["a"]),
        Dataset(Split(images.reshape(4, 1, 4, 3), labels), base.test, ["a"]),
    ]
    assert len({variant.fingerprint() for variant in variants}) == len(variants)


@pytest.mark.parametrize("kind", ["png", "bmp", "tif", "webp", "gif"])
def test_folder_is_read_whole_with_its_labels(tmp_path, kind):
    root = make_folder(tmp_path / "pets", kind=kind)
    data = load_dataset("folder", str(root), 32, False)
    assert data.classes == ["cat", "dog"]
    assert data.train.images.shape == (12, 32, 32, 3) and len(data.test) == 8
    bright = data.train.images.float().mean((1, 2, 3)) > 100
    assert torch.equal(bright.long(), data.train.labels)
    assert data.test.labels.tolist() != sorted(data.test.labels.tolist())  # not class by class
    if kind == "png":
        stored = {Image.open(p).tobytes() for p in (root / "train").rglob("*.png")}
        assert {image.numpy().tobytes() for image in data.train.images} == stored


def test_folder_is_decoded_once_until_it_changes(tmp_path, monkeypatch):
    root = make_folder(tmp_path / "pets")
    first = load_dataset("folder", str(root), 32, False)
    assert (tmp_path / "pets-32px.pt").exists()
    with monkeypatch.context() as patch:
        patch.setattr("utils.data.image_folder._decode", None)
        assert load_dataset("folder", str(root), 32, False).fingerprint() == first.fingerprint()
        patch.chdir(tmp_path)
        assert load_dataset("folder", "pets", 32, False).fingerprint() == first.fingerprint()
    Image.new("RGB", (32, 32), "red").save(root / "train" / "cat" / "0.png")
    os.utime(root / "train" / "cat" / "0.png", (1, 1))
    assert load_dataset("folder", str(root), 32, False).fingerprint() != first.fingerprint()
    (tmp_path / "pets-32px.pt").write_bytes(b"damaged")
    assert len(load_dataset("folder", str(root), 32, False).train) == 12


def test_folder_with_other_sizes_and_modes(tmp_path):
    root = make_folder(tmp_path / "pets", size=(50, 20))
    Image.new("L", (7, 9), 30).save(root / "train" / "cat" / "grey.png")
    Image.new("RGBA", (32, 32), (1, 2, 3, 0)).save(root / "train" / "dog" / "clear.png")
    (root / "train" / "cat" / "notes.txt").write_text("not an image")
    (root / "train" / "README").write_text("nor a class")
    data = load_dataset("folder", str(root), 32, False)
    assert data.train.images.shape == (14, 32, 32, 3)
    assert load_dataset("folder", str(root), 224, True).train.images.shape[1:3] == (224, 224)


def test_small_images_of_one_size_are_left_to_a_transform_that_resizes(tmp_path):
    root = make_folder(tmp_path / "pets", size=(48, 48))
    assert load_dataset("folder", str(root), 224, True).train.images.shape[1:3] == (48, 48)


def broken_image(root):
    (root / "test" / "dog" / "1.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")


def truncated_image(root):
    path = root / "train" / "cat" / "0.png"
    path.write_bytes(path.read_bytes()[:900])


def unknown_class(root):
    (root / "test" / "dog").rename(root / "test" / "wolf")


def empty_class(root):
    for path in (root / "train" / "cat").iterdir():
        path.unlink()


def no_test(root):
    (root / "test").rename(root / "validation")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (broken_image, r"dog/1\.png cannot be read"),
        (truncated_image, r"cat/0\.png cannot be read"),
        (unknown_class, "test/wolf is a class that train does not have"),
        (empty_class, "cat"),
        (no_test, "test/<class>"),
    ],
)
def test_bad_folders_get_one_line(tmp_path, damage, words):
    root = make_folder(tmp_path / "pets")
    damage(root)
    with pytest.raises(UserError, match=words) as caught:
        load_dataset("folder", str(root), 32, False)
    assert "--data_dir" in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "pets-32px.pt").exists()


def test_the_packed_file_stands_for_the_folder(tmp_path):
    root = make_folder(tmp_path / "pets")
    data = load_dataset("folder", str(root), 32, False)
    packed = tmp_path / "carried.pt"
    (tmp_path / "pets-32px.pt").rename(packed)
    for size, resizes in ((32, False), (224, True)):
        alone = load_dataset("folder", str(packed), size, resizes)
        assert alone.fingerprint() == data.fingerprint() and alone.classes == ["cat", "dog"]
    older = load_tensors(packed)
    del older["classes"]
    save_tensors(older, packed)
    assert load_dataset("folder", str(packed), 32, False).classes == ["0", "1"]


def without_images(state):
    del state["train"]


def other_types(state):
    state["test"] = (state["test"][0].float(), state["test"][1])


def fewer_labels(state):
    state["train"] = (state["train"][0], state["train"][1][1:])


def new_label(state):
    state["test"][1][0] = 2


def fewer_names(state):
    del state["classes"][1:]


def no_names(state):
    state["classes"] = 2


@pytest.mark.parametrize(
    "damage", [without_images, other_types, fewer_labels, new_label, fewer_names, no_names]
)
def test_bad_packed_files_get_one_line(tmp_path, damage):
    load_dataset("folder", str(make_folder(tmp_path / "pets")), 32, False)
    packed = tmp_path / "pets-32px.pt"
    with pytest.raises(UserError, match="its images are 32 × 32, the model takes 16 × 16"):
        load_dataset("folder", str(packed), 16, True)
    state = load_tensors(packed)
    damage(state)
    save_tensors(state, packed)
    with pytest.raises(UserError, match=r"pets-32px\.pt: this is no packed data set"):
        load_dataset("folder", str(packed), 32, False)
    packed.write_bytes(packed.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"pets-32px\.pt: this is no packed data set"):
        load_dataset("folder", str(packed), 32, False)


def test_missing_folder(tmp_path):
    with pytest.raises(UserError, match="nowhere"):
        load_dataset("folder", str(tmp_path / "nowhere"), 32, False)


def test_cifar10_without_a_network_says_what_to_do(tmp_path, monkeypatch):
    def no_network(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", no_network)
    with pytest.raises(UserError, match="--dataset digits") as caught:
        load_dataset("cifar10", str(tmp_path), 32, False)
    assert "cifar-10-python.tar.gz" in str(caught.value) and "\n" not in str(caught.value)


def test_cifar10_uses_what_is_there(tmp_path, monkeypatch):
    class Fake:
        def __init__(self, root, train, download):
            assert root == str(tmp_path) and not download
            self.data = np.full((5, 32, 32, 3), train, dtype=np.uint8)
            self.targets, self.classes = [0, 1, 0, 1, 0], ["a", "b"]

    monkeypatch.setattr("torchvision.datasets.CIFAR10", Fake)
    data = load_dataset("cifar10", str(tmp_path), 32, False)
    assert (data.train.images == 1).all() and (data.test.images == 0).all()
    assert data.train.labels.tolist() == [0, 1, 0, 1, 0]
