"""Load the paper's public functions from a clone of its repository (`--official PATH`)."""

import contextlib
import importlib
import importlib.util
import io
import multiprocessing
import sys
import warnings
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image

from utils.system.errors import UserError

if TYPE_CHECKING:  # it takes a second, in every measured process
    from utils.data.datasets import Dataset


def load(path: str) -> ModuleType:
    """Load the clone's module of CMD functions.

    Raises:
        UserError: it is not there, or cannot work here.
    """
    file = Path(path) / "utils" / "cmd_utils.py"
    if not file.is_file():
        raise UserError(f"--official {path}: there is no {file}; give a clone of the paper's code")
    try:
        import pandas
    except ImportError as error:
        raise UserError(f"--official {path} needs pandas: pip install 'pandas<3'") from error
    if int(pandas.__version__.split(".")[0]) >= 3:
        # the clone writes a and b through chained indexing, which pandas 3 turned into a no-op
        raise UserError(f"--official {path}: pandas {pandas.__version__} is too new for it: "
                        "pip install 'pandas<3'")  # fmt: skip
    spec = importlib.util.spec_from_file_location("public_cmd_utils", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def training_file(path: str) -> Path:
    """Return the path of the clone's module of training.

    Raises:
        UserError: it is not there.
    """
    file = Path(path) / "utils" / "base_utils.py"
    if not file.is_file():
        raise UserError(f"--official {path}: there is no {file}; give a clone of the paper's code")
    return file


def load_training(path: str, dataset: "Dataset") -> ModuleType:
    """Load the clone's module of models, loaders, training and testing.

    `dataset` takes the place of its CIFAR-10. Its packages replace ours of the same names, so the
    process can do nothing else afterwards.
    """
    file = training_file(path)
    for name in [name for name in sys.modules if name.split(".")[0] in ("models", "utils")]:
        del sys.modules[name]
    others = [place for place in sys.path if not (Path(place) / "utils" / file.name).exists()]
    sys.path[:] = [str(file.parent.parent), *others]
    module = importlib.import_module("utils.base_utils")
    images = {True: dataset.train, False: dataset.test}

    class Images(torch.utils.data.Dataset):
        """Images decoded and transformed one by one, as in torchvision's CIFAR10."""

        def __init__(self, root, train, download, transform):
            split, self.transform = images[train], transform
            self.data, self.targets = split.images.numpy(), split.labels.tolist()

        def __len__(self):
            return len(self.data)

        def __getitem__(self, index):
            return self.transform(Image.fromarray(self.data[index])), self.targets[index]

    module.torchvision.datasets.CIFAR10 = Images
    multiprocessing.set_start_method("fork", force=True)  # for loaders' workers, as in its script
    return module


def transposed(path: Path, end: int | None = None) -> np.ndarray:
    """Read the trajectory as the public code holds it in memory: float32 [N, T]."""
    stored = np.load(path, mmap_mode="r")[:end]
    weights = np.empty(stored.shape[::-1], dtype=np.float32)
    for start in range(0, len(weights), 1 << 18):
        weights[start : start + (1 << 18)] = stored[:, start : start + (1 << 18)].T
    return weights


@contextlib.contextmanager
def quietly():
    """Keep off the terminal what the functions print and warn of."""
    with (
        warnings.catch_warnings(),
        np.errstate(all="ignore"),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        yield
