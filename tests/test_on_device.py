"""Whole runs on each device: every method, stopped and gone on with."""

import numpy as np
import pytest

import train_cmd
from utils.methods.registry import METHODS
from utils.results.stored_run import StoredRun
from utils.training import run as run_module

EPOCHS = 5
RUN = ["--dataset", "digits", "--model", "lenet", "--limit", "64", "--epochs", str(EPOCHS)]
RUN += ["--warmup_cmd", "2", "--warmup_pbfgs", "3", "--pbfgs_num", "2", "--embed_window", "1"]
RUN += ["--precision", "fp32", "--pbfgs_pieces", "100"]
RUN += [flag for m in METHODS if not m.default for flag in (m.flags[0], "True")]


def losses(folder):
    """The test losses of every method, by its name: [T]."""
    metrics = StoredRun(folder / "lenet").metrics
    return {m.name: np.array([row.test_loss for row in metrics.of(m.name)]) for m in METHODS}


@pytest.fixture(scope="module")
def on_the_cpu(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cpu")
    assert train_cmd.main([*RUN, "--device", "cpu", "--results_dir", str(folder)]) == 0
    return losses(folder)


def test_every_method_stopped_and_gone_on_with(device, on_the_cpu, tmp_path, monkeypatch):
    argv, real, tests = [*RUN, "--device", device.type, "--results_dir", str(tmp_path)], [], []
    real = run_module.evaluate

    def evaluate(*arguments):
        tests.append(1)
        if len(tests) in (8, 30):
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(run_module, "evaluate", evaluate)
    codes = [train_cmd.main(argv) for _ in range(3)]
    assert codes == [130, 130, 0]
    for name, found in losses(tmp_path).items():
        assert found.shape == (EPOCHS,)
        if device.type == "cpu":
            assert np.array_equal(found, on_the_cpu[name]), name
        else:  # other roundings, which grow as it trains
            np.testing.assert_allclose(found, on_the_cpu[name], rtol=0.2, atol=0.02, err_msg=name)
