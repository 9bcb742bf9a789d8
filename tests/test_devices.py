"""What is said of devices, and what a GPU would be told, where there is none."""

import contextlib

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from models.lenet import LeNet5
from utils.base_utils import CIFAR
from utils.cmd import snapshots as snapshots_module
from utils.cmd.snapshots import Snapshots
from utils.cmd.vector import layer_sizes, write_vector
from utils.data.datasets import Split
from utils.system.command import run_command
from utils.system.devices import choose_device
from utils.training.compute import Compute
from utils.training.epochs import Batch, evaluate, train_epoch
from utils.training.exponential import ExponentialAverage
from utils.training.optimizers import make_optimizer
from utils.training.precision import Arithmetic, choose_precision

GPU = torch.device("cuda", 1)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            torch.OutOfMemoryError(
                "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of "
                "4 GiB of which\n1 GiB is free. See documentation."
            ),
            "CUDA out of memory. Tried to allocate 2.00 GiB: lower --this",
        ),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9"),
            "out of memory (DefaultCPUAllocator: can't allocate memory: you tried to allocate 9)",
        ),
        (MemoryError(), "out of memory (no more memory): lower --this"),
    ],
)
def test_out_of_memory_is_one_line_that_says_what_to_lower(capsys, error, words):
    def work():
        raise error

    assert run_command("program", "--flag x", work, smaller="lower --this") == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and said.startswith(f"program: error: {words}")


def test_other_errors_of_torch_are_not_taken_for_it():
    def work():
        raise RuntimeError("a shape is wrong")

    with pytest.raises(RuntimeError, match="a shape is wrong"):
        run_command("program", "--flag x", work)


def test_bf16_is_looked_up_on_the_device_itself(monkeypatch):
    asked = []

    class Current:
        def __init__(self, device):
            asked.append(device)

        def __enter__(self):
            asked.append("in")

        def __exit__(self, *_):
            asked.append("out")

    def supported(including_emulation):
        asked.append("asked")
        return not including_emulation

    monkeypatch.setattr(torch.cuda, "device", Current)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    assert choose_precision(None, GPU) == "bf16"
    assert asked == [GPU, "in", "asked", "out"]


def test_convolutions_are_tried_around_the_passes_only():
    before = torch.backends.cudnn.benchmark
    with Arithmetic().products():
        assert torch.backends.cudnn.benchmark
    assert torch.backends.cudnn.benchmark == before


def test_a_device_has_its_number():
    assert choose_device("cpu") == torch.device("cpu")
    with FakeTensorMode():
        first = torch.device("cuda", 0)
        assert choose_device("cuda") == choose_device("cuda:0") == first
        rows = torch.empty(3, 5, device="cuda:0")
        snapshots = Snapshots(rows, device="cuda")
        assert snapshots.device == first
        [(_, columns)] = snapshots.parts()
        assert columns._is_view(), "nothing is staged"


class EndOfEpochError(Exception):
    pass


class Sums:
    """A rank that stops where the host may wait for the device: at the end of an epoch."""

    rank, size = 0, 1

    def align_buffers(self, module):
        pass

    def sum(self, totals):
        assert totals.is_meta
        raise EndOfEpochError


def test_training_and_tests_wait_for_nothing_before_their_end(monkeypatch):
    """Tensors on `meta` have no numbers: whatever the host asks of one is an error."""
    monkeypatch.setattr(Arithmetic, "autocast", lambda *_: contextlib.nullcontext())
    model = LeNet5().to("meta", memory_format=torch.channels_last)
    optimizer = make_optimizer("sgd", model, 0.1, 0.9)
    average = ExponentialAverage(model, 0.9)
    images, labels = (torch.zeros(8, *shape, device="meta") for shape in ((32, 32, 3), ()))
    images, labels = images.to(torch.uint8), labels.long()
    batch = Batch(CIFAR.finish(CIFAR.cut(images, (labels, labels, labels > 0))), labels, 8, 8)
    assert batch.images.is_meta
    with pytest.raises(RuntimeError, match="meta"):
        batch.images.sum().item()
    compute = Compute(torch.device("meta"), ranks=Sums())
    with pytest.raises(EndOfEpochError):
        train_epoch(model, [batch] * 3, optimizer, None, compute, [average.update_parameters])
    with pytest.raises(EndOfEpochError):
        evaluate(model, Split(images, labels), CIFAR, 4, compute)
    assert average.n_averaged == 3


def test_parts_on_a_gpu_shrink_with_what_is_computed_of_them(monkeypatch):
    monkeypatch.setattr(snapshots_module, "STAGED_ELEMENTS", 1000)
    rows = torch.empty(4, 1000, device="meta")
    for products, expected in ((0, 250), (6, 100), (10_000, 1)):
        part, columns = next(Snapshots(rows).parts(products=products))
        assert columns.shape == (4, part.stop - part.start) == (4, expected)


def test_a_vector_from_the_host_reaches_a_model_by_one_copy(monkeypatch):
    """On a fake GPU: one transfer, whatever the number of layers."""

    class Transfers(TorchDispatchMode):
        found = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            tensors = [x for x in (*args, out) if isinstance(x, torch.Tensor)]
            self.found += len({x.device.type for x in tensors}) > 1
            return out

    model = nn.Sequential(*(nn.Linear(3, 3) for _ in range(9)))
    on_meta = nn.Sequential(*(nn.Linear(3, 3) for _ in range(9))).to("meta")
    vector = torch.randn(sum(layer_sizes(model)))
    write_vector(vector, model)
    assert torch.equal(model[8].bias, vector[-3:])
    with Transfers() as transfers:
        write_vector(vector, on_meta)
    assert transfers.found == 1
