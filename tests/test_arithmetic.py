"""Precision and compilation of the passes."""

import itertools
import shutil

import pytest
import torch
from torch import nn

import train_cmd
from tests.conftest import SMALL
from utils.base_utils import CIFAR, get_model
from utils.data.datasets import load_dataset
from utils.methods.registry import Settings
from utils.pbfgs_utils import SubspaceBFGS
from utils.storage.metrics import Metrics
from utils.system.errors import UserError
from utils.training.compute import Compute
from utils.training.epochs import TrainingBatches, evaluate, train_epoch
from utils.training.optimizers import make_optimizer
from utils.training.precision import Arithmetic, choose_precision
from utils.training.settings import differences

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def digits():
    return load_dataset("digits", "", 32, False).limited(256)


def trained(digits, arithmetic):
    torch.manual_seed(0)
    entry = get_model("lenet")
    model = entry.build(num_classes=10)
    optimizer = make_optimizer(entry.optimizer, model, entry.lr, entry.momentum)
    batches = TrainingBatches(digits, CIFAR, 64, torch.Generator().manual_seed(0))
    compute = Compute(arithmetic=arithmetic)
    loss, _ = train_epoch(model, batches, optimizer, compute=compute)
    return model, loss, evaluate(model, digits.test, CIFAR, 128, compute)[0]


def test_bf16_is_of_the_passes_alone(digits):
    plain, loss, test_loss = trained(digits, Arithmetic())
    rough, rough_loss, rough_test_loss = trained(digits, Arithmetic("bf16"))
    assert {p.dtype for p in rough.parameters()} == {torch.float32}
    assert rough_loss != loss and rough_loss == pytest.approx(loss, rel=0.02)
    assert rough_test_loss == pytest.approx(test_loss, rel=0.05)
    assert any(
        not torch.equal(p, q) for p, q in zip(plain.parameters(), rough.parameters(), strict=True)
    )


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_compiled_is_the_same(digits):
    model, loss, test_loss = trained(digits, Arithmetic(compiled=True))
    assert model._compiled_call_impl is not None
    _, plain_loss, plain_test_loss = trained(digits, Arithmetic())
    assert loss == pytest.approx(plain_loss, rel=1e-4)
    assert test_loss == pytest.approx(plain_test_loss, rel=1e-3)


class Drawing(nn.Module):
    """Its output tells what each of two dropouts left out."""

    def __init__(self):
        super().__init__()
        self.weight, self.dropout = nn.Parameter(torch.ones(1)), nn.Dropout()

    def forward(self, images):
        return self.dropout(self.dropout(images * self.weight) + 1)


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_line_search_repeats_the_draws_of_what_is_compiled():
    module, arithmetic, images = Drawing(), Arithmetic(compiled=True), torch.full((64,), 0.1)
    drawn = []

    def loss():
        out = arithmetic.logits(module, images)
        drawn.append((torch.stack((out == 0, out == 2)), torch.is_inference_mode_enabled()))
        return (out**2).mean()

    bfgs = SubspaceBFGS(module, torch.ones(1, 1))
    with arithmetic.products():
        bfgs.step([loss, loss])
    (first, second, *trials), modes = zip(*drawn, strict=True)
    assert modes[:3] == (False, False, True) and len(trials) % 2 == 0
    assert first.any(1).all() and not torch.equal(first, second)
    for mask, again in zip(itertools.cycle((first, second)), trials, strict=False):
        assert torch.equal(mask, again)


def test_what_cannot_be_compiled_is_said(digits, monkeypatch):
    def fails(*_):
        raise torch._dynamo.exc.TorchDynamoException("no compiler\nand more")

    def compile_to_that(module, **_):
        module._compiled_call_impl = fails

    monkeypatch.setattr(torch.nn.Module, "compile", compile_to_that)
    with pytest.raises(UserError, match=r"--compile True: not available here \(no compiler\)"):
        trained(digits, Arithmetic(compiled=True))


def test_tf32_flags_are_set_around_the_passes_only():
    def flags():
        return torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32

    before = flags()
    with Arithmetic("tf32").products():
        assert flags() == (True, True)
    with Arithmetic("bf16").products():
        assert flags() == (False, False)
    assert flags() == before


def test_what_the_device_has():
    assert choose_precision(None, CPU) == "fp32"
    assert choose_precision("bf16", CPU) == "bf16"
    with pytest.raises(UserError, match=r"--precision tf32.*choose fp32 or bf16"):
        choose_precision("tf32", CPU)


def test_precision_is_a_setting(tmp_path, capsys):
    argv = [*SMALL, "--epochs", "2", "--warmup_cmd", "1", "--results_dir", str(tmp_path)]
    assert train_cmd.main([*argv, "--precision", "bf16"]) == 0
    assert train_cmd.main(argv) == 2
    assert "--precision is fp32 here and bf16 there" in capsys.readouterr().err


def test_test_batch_size_is_a_setting_where_the_result_depends_on_it(tmp_path, capsys):
    argv = [*SMALL, "--epochs", "2", "--warmup_cmd", "1", "--results_dir", str(tmp_path)]
    assert train_cmd.main(argv) == 0
    (tmp_path / "lenet/metrics.csv").unlink()
    before = Metrics(tmp_path / "lenet/metrics.csv").of("sgd")
    assert train_cmd.main([*argv, "--test_batch_size", "7"]) == 0
    rows = Metrics.stored(tmp_path / "lenet/metrics.csv").of("sgd")
    assert not before and len(rows) == 2
    args = train_cmd.build_parser().parse_args([])
    assert _settings(args).test_batch_size == 128
    args = train_cmd.build_parser().parse_args(["--test_batch_size", "7"])
    settings = _settings(args)
    assert settings.test_batch_size == 7
    stored = vars(settings) | {"test_batch_size": 128}
    assert differences(settings, stored) == ["--test_batch_size is 7 here and 128 there"]


@pytest.mark.parametrize("name", ["res18", "preres164", "lenet", "wideres", "googlenet"])
def test_the_table_says_where_the_test_batch_matters(name):
    entry = get_model(name)
    with torch.device("meta"):
        model = entry.build(num_classes=10)
    by_batch = any(
        isinstance(layer, torch.nn.BatchNorm2d) and layer.running_mean is None
        for layer in model.modules()
    )
    assert by_batch == (entry.test_batch_size is not None)


def test_settings_of_runs_made_before_there_was_a_choice():
    args = train_cmd.build_parser().parse_args(["--model", "lenet"])
    settings = _settings(args)
    stored = {k: v for k, v in vars(settings).items() if k not in ("precision", "test_batch_size")}
    assert Settings(**stored) == settings and differences(settings, stored) == []


def _settings(args) -> Settings:
    return train_cmd.make_settings(args, train_cmd.METHODS[:1])
