"""Numbers that go wrong: what is computed with them, and what is printed."""

import math

import pytest
import torch
from torch import nn

import train_cmd
from utils.cmd_utils import OnlineCMD, fit_cmd
from utils.pbfgs_utils import SubspaceBFGS
from utils.storage.metrics import Metrics
from utils.training import run as run_module

pytestmark = pytest.mark.usefixtures("narrow")

RUN = ["--dataset", "digits", "--model", "lenet", "--limit", "64", "--epochs", "5"]
RUN += ["--warmup_cmd", "1", "--cmd_embed", "1", "--embed_window", "1", "--ema", "1", "--swa", "1"]
RUN += ["--samples", "200"]


@pytest.fixture
def main(tmp_path, capsys):
    """Runs train_cmd.py; gives the exit code and what it wrote to stderr."""

    def run(*arguments):
        code = train_cmd.main([*RUN, *arguments, "--results_dir", str(tmp_path)])
        return code, capsys.readouterr().err

    run.folder = tmp_path / "lenet"
    return run


def test_training_that_overflows_gets_one_line(main):
    code, error = main("--optimizer", "sgd", "--lr", "1e40")
    assert code == 2 and error.count("\n") == 1
    assert "--lr 1e+40" in error and "NaN or infinite in epoch 0" in error


def test_weights_that_overflow_with_a_finite_loss(main, monkeypatch):
    real = run_module.train_epoch

    def overflows(model, *others):
        done = real(model, *others)
        with torch.no_grad():
            next(model.parameters())[0, 0, 0, 0] = math.inf
        return done

    monkeypatch.setattr(run_module, "train_epoch", overflows)
    code, error = main()
    assert code == 2 and "NaN or infinite in epoch 0; the 0 before it are kept" in error


def test_pbfgs_that_becomes_nan_gets_one_line(main, monkeypatch):
    real = SubspaceBFGS.step
    monkeypatch.setattr(SubspaceBFGS, "step", lambda *given: math.nan * real(*given))
    code, error = main("--p_bfgs", "1", "--warmup_pbfgs", "2", "--pbfgs_num", "2")
    assert code == 2 and error.count("\n") == 1
    assert "P-BFGS became NaN or infinite in epoch 3" in error
    assert not Metrics.stored(main.folder / "metrics.csv").has("pbfgs", 3)


def test_a_method_whose_loss_is_not_finite_is_reported(main, monkeypatch):
    real, calls = run_module.evaluate, []

    def sometimes(*arguments):
        calls.append(1)
        loss, accuracy = real(*arguments)
        return (math.inf if len(calls) == 2 else loss), accuracy

    monkeypatch.setattr(run_module, "evaluate", sometimes)
    with pytest.warns(UserWarning, match="EMA: its test loss in epoch 0 is inf"):
        code, error = main()
    assert (code, error) == (0, "")
    assert Metrics.stored(main.folder / "metrics.csv").get("ema", 0).test_loss == math.inf


def test_weights_that_never_move(main):
    code, error = main("--lr", "1e-40")
    assert (code, error) == (0, "")
    code, error = main("--lr", "1e-40", "--p_bfgs", "1", "--warmup_pbfgs", "2", "--pbfgs_num", "2")
    assert code == 2 and "--pbfgs_num 2" in error and error.count("\n") == 1


@pytest.mark.parametrize("scale", [1e-20, 1e-32, 1e-38, 1e-44, 0.0])
def test_references_that_hardly_move_overflow_nothing(scale):
    generator = torch.Generator().manual_seed(0)
    curve = torch.randn(12, 1, generator=generator).cumsum(0)
    weights = curve * torch.randn(1, 200, generator=generator)
    weights += 0.1 * torch.randn(12, 200, generator=generator)
    weights[:, :50] *= scale  # these are sampled: the references are among them
    cmd = fit_cmd(weights, torch.arange(50), 3)
    assert cmd.a.isfinite().all() and cmd.b.isfinite().all()
    modelled = torch.stack([cmd.reconstruct(values) for values in cmd.reference_history])
    assert modelled.isfinite().all()
    # each weight is described no worse than by its mean
    error = (modelled - weights).double().square().sum(0)
    assert (error <= 1.0001 * weights.var(0, correction=0).double() * 12 + 1e-9).all()


def test_weights_near_the_largest_number():
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(9, 1, generator=generator) * torch.randn(1, 60, generator=generator)
    cmd = fit_cmd(weights / weights.abs().max() * 3e38, torch.arange(60), 2)
    assert cmd.a.isfinite().all() and cmd.b.isfinite().all()


def test_a_reference_that_stops_after_the_warmup():
    generator = torch.Generator().manual_seed(0)
    model = nn.Linear(10, 4)
    online = OnlineCMD(model, modes=2, samples=44, warmup=4)
    for epoch in range(30):
        with torch.no_grad():
            for parameter in model.parameters():
                step = 0.1 * torch.randn(parameter.shape, generator=generator)
                parameter += step if epoch <= 4 else 0 * step
                if epoch > 4:
                    parameter.view(-1)[1::2] += 0.1  # others go on
        online.update_parameters(model)
    cmd = online.model
    assert cmd.a.isfinite().all() and online.module.weight.isfinite().all()
    fitted = fit_cmd(torch.stack([torch.zeros(44), torch.ones(44)]), torch.arange(44), 2)
    assert fitted.a.isfinite().all()


def test_a_variance_that_would_become_negative():
    """BatchNorm's running variance falls; its line goes on below 0, the model does not."""
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8)).eval()
    online = OnlineCMD(model, modes=1, samples=20, warmup=3)
    for epoch in range(12):
        with torch.no_grad():
            model[0].weight += 1.0
            model[0].bias -= 0.5
            model[1].running_var.copy_(torch.full((8,), max(1 - 0.3 * epoch, 0.01)))
        online.update_parameters(model)
    variance = online.model.reconstruct(online.model.reference_history[-1])
    assert variance.min() < 0  # as it is fitted
    assert (online.module[1].running_var >= 0).all()
    assert online.module(torch.ones(2, 6)).isfinite().all()
