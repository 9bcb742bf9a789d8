"""Data sets by name, each read from files in its own format."""

import bz2
import pickle
import struct
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat

import train_cmd
from utils.base_utils import MODELS, get_model
from utils.data.datasets import DATASETS, load_dataset
from utils.data.downloads import DOWNLOADS
from utils.system.errors import UserError

random = np.random.default_rng(0)
N = {"train": 6, "test": 4}  # images


def pixels(n, *shape):
    return random.integers(0, 256, (n, *shape), dtype=np.uint8)


def save(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)


def pickled(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(content))


def write_cifar10(root):
    folder = root / "cifar-10-batches-py"
    for name in [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]:
        pickled(folder / name, {"data": pixels(2, 3072), "labels": [0, 9]})
    pickled(folder / "batches.meta", {"label_names": [f"c{i}" for i in range(10)]})
    return 10, 2


def write_cifar100(root):
    folder = root / "cifar-100-python"
    for split, n in N.items():
        pickled(folder / split, {"data": pixels(n, 3072), "fine_labels": list(range(n))})
    pickled(folder / "meta", {"fine_label_names": [f"c{i}" for i in range(100)]})


def write_svhn(root):
    for split, n in N.items():
        labels = np.array([[10], [1], [2], [3], [4], [5]])[:n]  # 10 stands for 0
        savemat(root / f"{split}_32x32.mat", {"X": pixels(32, 32, 3, n), "y": labels})


def idx(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    path.write_bytes(header + array.tobytes())


def write_mnist(root, name="MNIST"):
    for prefix, n in (("train", 6), ("t10k", 4)):
        idx(root / name / "raw" / f"{prefix}-images-idx3-ubyte", pixels(n, 28, 28))
        idx(root / name / "raw" / f"{prefix}-labels-idx1-ubyte", np.arange(n, dtype=np.uint8))


def write_usps(root):
    for name, n in (("usps.bz2", 6), ("usps.t.bz2", 4)):
        lines = []
        for label in range(1, n + 1):
            values = " ".join(f"{i + 1}:{v:.3f}" for i, v in enumerate(random.uniform(-1, 1, 256)))
            lines.append(f"{label} {values}\n")
        with bz2.open(root / name, "wt") as file:
            file.writelines(lines)


def write_stl10(root):
    folder = root / "stl10_binary"
    folder.mkdir()
    for split, n in N.items():
        (folder / f"{split}_X.bin").write_bytes(pixels(n, 3, 96, 96).tobytes())
        (folder / f"{split}_y.bin").write_bytes(np.arange(1, n + 1, dtype=np.uint8).tobytes())
    names = ["airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck"]
    (folder / "unlabeled_X.bin").touch()
    (folder / "class_names.txt").write_text("\n".join(names))


def write_gtsrb(root):
    root = root / "gtsrb"
    for label in range(43):
        save(root / f"GTSRB/Training/{label:05}/0.ppm", pixels(40, 50, 3))
    lines = ["Filename;ClassId"]
    for i in range(4):
        save(root / f"GTSRB/Final_Test/Images/{i}.ppm", pixels(20, 20, 3))
        lines.append(f"{i}.ppm;{10 * i}")
    (root / "GT-final_test.csv").write_text("\n".join(lines))
    return 43, 4


def write_flowers102(root):
    folder = root / "flowers-102"
    for i in range(1, 11):
        save(folder / f"jpg/image_{i:05}.jpg", pixels(50, 60, 3))
    savemat(folder / "imagelabels.mat", {"labels": np.arange(1, 11)[None]})
    ids = {"trnid": np.arange(1, 7)[None], "tstid": np.arange(7, 11)[None], "valid": [[1]]}
    savemat(folder / "setid.mat", ids)


def write_pets(root):
    folder = root / "oxford-iiit-pet"
    (folder / "annotations").mkdir(parents=True)
    breeds = ["Abyssinian", "american_bulldog", "Bengal"]
    for split, n in (("trainval", 6), ("test", 4)):
        lines = []
        for i in range(n):
            name = f"{breeds[i % 3]}_{split}{i}"
            save(folder / f"images/{name}.jpg", pixels(40, 30, 3))
            lines.append(f"{name} {i % 3 + 1} 1 1")
        (folder / f"annotations/{split}.txt").write_text("\n".join(lines))


def write_dtd(root):
    folder = root / "dtd/dtd"
    (folder / "labels").mkdir(parents=True)
    for split, n in N.items():
        names = [f"{kind}/{split}{i}.jpg" for i in range(n // 2) for kind in ("dotted", "woven")]
        for name in names:
            save(folder / "images" / name, pixels(30, 30, 3))
        (folder / f"labels/{split}1.txt").write_text("\n".join(names))


WRITERS = {
    "cifar10": write_cifar10, "cifar100": write_cifar100, "svhn": write_svhn,
    "mnist": write_mnist, "fashion_mnist": lambda root: write_mnist(root, "FashionMNIST"),
    "kmnist": lambda root: write_mnist(root, "KMNIST"), "usps": write_usps, "stl10": write_stl10,
    "gtsrb": write_gtsrb, "flowers102": write_flowers102, "pets": write_pets, "dtd": write_dtd,
}  # fmt: skip
CLASSES = {"cifar100": 100, "gtsrb": 43, "flowers102": 102, "pets": 3, "dtd": 2}


@pytest.fixture
def whole(monkeypatch):
    """Files are taken for whole without torchvision's checksums, which those made here have not."""
    real = __import__("torchvision.datasets.utils", fromlist=["x"]).check_integrity
    for module in ("cifar", "svhn", "stl10", "flowers102"):
        monkeypatch.setattr(
            f"torchvision.datasets.{module}.check_integrity", lambda path, md5=None: real(path)
        )
    for name, entry in DOWNLOADS.items():
        monkeypatch.setitem(DOWNLOADS, name, replace(entry, n_images=None))


@pytest.mark.parametrize("name", DOWNLOADS)
def test_each_is_read_from_its_own_files(name, tmp_path, whole):
    counts = WRITERS[name](tmp_path) or (6, 4)
    data = load_dataset(name, str(tmp_path), 32, False)
    for split, n in zip((data.train, data.test), counts, strict=True):
        assert split.images.shape == (n, 32, 32, 3) and split.images.dtype == torch.uint8
        assert split.labels.shape == (n,) and split.labels.dtype == torch.int64
        assert split.labels.min() >= 0 and split.labels.max() < len(data.classes)
        assert split.images.float().std() > 10
    assert len(data.classes) == CLASSES.get(name, 10)
    assert len(set(data.classes)) == len(data.classes)
    grey = name in ("mnist", "fashion_mnist", "kmnist", "usps")
    assert grey == bool((data.train.images == data.train.images[..., :1]).all())
    assert data.mirror == DOWNLOADS[name].mirror
    assert all(len(values) == 3 for values in data.normalisation)
    assert data.fingerprint() == load_dataset(name, str(tmp_path), 32, False).fingerprint()


@pytest.mark.parametrize("name", ["usps", "mnist", "kmnist"])
def test_what_was_cut_short_is_one_line(name, tmp_path, monkeypatch):
    WRITERS[name](tmp_path)
    for path in tmp_path.rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UserError) as caught:
        load_dataset(name, str(tmp_path), 32, False)
    words = str(caught.value)
    assert "or not whole" in words and "remove what there is of it" in words and "\n" not in words


def test_what_was_unpacked_in_part_is_one_line(tmp_path):
    write_gtsrb(tmp_path)
    with pytest.raises(UserError, match="has 43 of 26,640 images of a split: remove gtsrb there"):
        load_dataset("gtsrb", str(tmp_path), 32, False)


def test_an_image_that_cannot_be_read_is_one_line(tmp_path, whole):
    write_pets(tmp_path)
    first = min((tmp_path / "oxford-iiit-pet/images").iterdir())
    first.write_bytes(first.read_bytes()[:40])
    for size, resizes in ((32, False), (224, True)):
        with pytest.raises(UserError, match=r"^--data_dir: image \d of torchvision's OxfordIII"):
            load_dataset("pets", str(tmp_path), size, resizes)


def test_a_model_that_resizes_gets_what_it_can_resize(tmp_path, whole):
    write_stl10(tmp_path)
    assert load_dataset("stl10", str(tmp_path), 224, True).train.images.shape[1:] == (96, 96, 3)
    assert load_dataset("stl10", str(tmp_path), 48, True).train.images.shape[1:] == (48, 48, 3)


def test_the_normalisation_is_the_data_set_s_but_for_pretrained_models(tmp_path, whole):
    write_mnist(tmp_path)
    data = load_dataset("mnist", str(tmp_path), 32, False)
    own = get_model("lenet").transform_of(data)
    assert own.mean == (0.1307,) * 3 and own.std == (0.3081,) * 3 and own.size == 32
    assert get_model("vit").transform_of(data) == get_model("vit").transform
    digits = load_dataset("digits", "", 32, False)
    for entry in MODELS.values():
        assert entry.transform_of(digits) == entry.transform
    write_cifar10(tmp_path)
    cifar = load_dataset("cifar10", str(tmp_path), 32, False)
    assert get_model("res18").transform_of(cifar) == get_model("res18").transform


def test_a_run_has_as_many_outputs_as_the_set_has_classes(tmp_path, whole):
    write_cifar100(tmp_path)
    argv = ["--dataset", "cifar100", "--data_dir", str(tmp_path), "--model", "lenet"]
    argv += ["--epochs", "2", "--warmup_cmd", "1", "--modes", "2", "--cmd_PostHoc", ""]
    assert train_cmd.main([*argv, "--results_dir", str(tmp_path / "out")]) == 0
    rows = (tmp_path / "out/lenet/metrics.csv").read_text().splitlines()
    assert len(rows) == 5


@pytest.mark.parametrize("name", DOWNLOADS)
def test_without_a_network_it_is_said_what_to_do(name, tmp_path, monkeypatch):
    def no_network(*_, **__):
        raise OSError("no network\nat all")

    for module in ("cifar", "svhn", "mnist", "stl10", "gtsrb", "flowers102", "oxford_iiit_pet",
                   "dtd"):  # fmt: skip
        for function in ("download_and_extract_archive", "download_url"):
            place = f"torchvision.datasets.{module}.{function}"
            monkeypatch.setattr(place, no_network, raising=False)
    monkeypatch.setattr("torchvision.datasets.usps.download_url", no_network)
    with pytest.raises(UserError) as caught:
        load_dataset(name, str(tmp_path), 32, False)
    words = str(caught.value)
    assert words.startswith(f"--dataset {name}: it is not in --data_dir {tmp_path}, or not whole")
    assert "--dataset digits" in words and "\n" not in words and "no network at all)" in words


def test_a_file_is_no_folder_to_download_to(tmp_path):
    (tmp_path / "file.pt").touch()
    with pytest.raises(UserError, match="is a file: give a folder"):
        load_dataset("mnist", str(tmp_path / "file.pt"), 32, False)


def test_the_flag_knows_them(capsys):
    assert set(DOWNLOADS) < set(DATASETS)
    with pytest.raises(SystemExit):
        train_cmd.build_parser().parse_args(["--dataset", "cifar1000"])
    error = capsys.readouterr().err
    assert "cifar100" in error and "fashion_mnist" in error
