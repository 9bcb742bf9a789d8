import itertools
import os
import subprocess
import sys
from pathlib import Path

# Several tests run side by side. Before torch is imported, and for the processes of tests.
os.environ["OMP_NUM_THREADS"] = "1"

from dataclasses import replace

import hypothesis
import pytest
import torch
from torch import Tensor, nn

from models.lenet import LeNet5
from utils.base_utils import MODELS

ROOT = Path(__file__).parent.parent
SMALL = ["--dataset", "digits", "--model", "lenet", "--limit", "256", "--samples", "200"]


ON_GPU = (
    pytest.mark.device,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"),
)


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=ON_GPU)])
def device(request):
    """Each device that the algorithms have to be right on."""
    return torch.device(request.param)


def exit_code(command):
    """What a command ends with, whether it returns or exits."""
    try:
        return command()
    except SystemExit as stopped:
        return stopped.code


@pytest.fixture(scope="session")
def real_run(tmp_path_factory):
    """The folder of a finished LeNet run on the digits: 12 epochs, warm-up 4."""
    import train_cmd

    results = tmp_path_factory.mktemp("real")
    argv = [*SMALL, "--epochs", "12", "--warmup_cmd", "4", "--results_dir", str(results)]
    assert train_cmd.main(argv) == 0
    return results / "lenet"


LONGEST = (
    "train_cmd", "federated_runners", "federated_cmd", "ranks", "torture", "alone", "visualize",
    "benchmarks", "pictures_say", "fuzz",
)  # fmt: skip


def pytest_collection_modifyitems(items):
    """Begin with the files that take longest, lest one of two processes waits for the other."""
    order = {f"test_{name}": number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.stem, len(order)))


def interrupted(call, number):
    """The call, but Ctrl-C comes instead the number-th time that it is called."""
    count = itertools.count(1)

    def called(*arguments):
        if next(count) == number:
            raise KeyboardInterrupt
        return call(*arguments)

    return called


class NarrowLeNet(nn.Module):
    """LeNet-5 of the mean of the colours: 61,706 weights with ten classes."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.net = LeNet5(num_classes, in_channels=1)

    def forward(self, images: Tensor) -> Tensor:
        return self.net(images.mean(1, keepdim=True))


@pytest.fixture(scope="module")
def narrow():
    """In this process LeNet is narrow, for tests to which its size is nothing."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(MODELS, "lenet", replace(MODELS["lenet"], constructor=NarrowLeNet))
        yield


@pytest.fixture
def command():
    """Runs train_cmd.py in a process of its own."""

    def run(*arguments, **options):
        return subprocess.run(
            [sys.executable, ROOT / "train_cmd.py", *map(str, arguments)],
            capture_output=True,
            text=True,
            cwd=ROOT,
            env=os.environ | {"MPLBACKEND": "agg"},
            **options,
        )

    return run


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


hypothesis.settings.register_profile("thorough")
