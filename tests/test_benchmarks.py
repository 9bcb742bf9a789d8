import importlib
import itertools
import re
import subprocess
import sys

import numpy as np
import pytest

from benchmarks import measure, samples, scaling
from benchmarks.synthetic import module_of, write_trajectory
from tests.conftest import ROOT, exit_code
from utils.cmd.vector import layer_sizes
from utils.results.stored_run import StoredRun


@pytest.fixture
def benchmark(monkeypatch, capsys):
    """Run a benchmark within this process, which takes less time; some are run in others."""

    def run(name, *arguments):
        module = importlib.import_module(f"benchmarks.{name.removesuffix('.py')}")
        for loaded, each in list(sys.modules.items()):
            if loaded.startswith("benchmarks.") and hasattr(each, "alone"):
                monkeypatch.setattr(each, "alone", lambda function, *given: function(*given))
        code = exit_code(lambda: module.main([*map(str, arguments)]))
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


def in_a_process(name, *arguments):
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / name, *map(str, arguments)],
        capture_output=True, text=True,
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


def test_fit(tmp_path):
    code, out, error = in_a_process("fit.py", "-N", 20_000, "-T", 12, "-K", 100, "-M", 4,
                                 "--repeats", 1, "--folder", tmp_path)  # fmt: skip
    assert code == 0, error
    for words in ("N = 20,000, T = 12, M = 4, K = 100", "sequential read", "× read", "peak MB"):
        assert words in out
    assert not any(tmp_path.iterdir())


@pytest.mark.filterwarnings("ignore:.* samples are fewer than two")
def test_sweep(tmp_path, monkeypatch, benchmark):
    monkeypatch.setattr(scaling, "STEPS", 2)
    plot = tmp_path / "sweep.png"
    code, out, error = benchmark("fit.py", "-N", 5000, "-T", 20, "-K", 50, "-M", 2, "--repeats", 1,
                                 "--folder", tmp_path, "--sweep", plot)  # fmt: skip
    assert code == 0, error
    assert out.count("clustering") == 4
    assert list(tmp_path.iterdir()) == [plot]


def test_series(tmp_path, benchmark):
    code, out, error = benchmark("series.py", "-N", 20_000, "-T", 3, "--folder", tmp_path)
    assert code == 0, error
    assert "10 files" not in out and "30 files" in out and "the command" in out.splitlines()[-1]
    assert not any(tmp_path.iterdir())


@pytest.mark.filterwarnings("ignore:.* samples are fewer than two")
def test_online(tmp_path, benchmark):
    code, out, error = benchmark("online.py", "-N", 20_000, "-T", 10, "-F", 5, "-K", 100,
                                 "--drift", 20, "--memory", 10, "--folder", tmp_path)  # fmt: skip
    assert code == 0, error
    for words in ("copies of the vectors", "ms an update", "CMD, H = 10", "after 20 updates"):
        assert words in out
    assert not any(tmp_path.iterdir())


def test_samples(real_run, capsys):
    argv = ["--model", "lenet", "--results_dir", str(real_run.parent), "--draws", "2"]
    assert samples.main([*argv, "--memory", "3", "1e9", "--lawa", "5"]) == 0
    rows = {}
    for line in capsys.readouterr().out.splitlines():
        found = re.match(r"(.*?)  +(\d+\.\d\d)( ± \d+\.\d\d)?( \([+-]\d+\.\d\d\))?$", line)
        if found:
            rows[found[1]] = found
    record = StoredRun(real_run)
    assert float(rows["SGD"][2]) == pytest.approx(100 * record.mean_last("sgd"), abs=0.005)
    assert rows["Online CMD"][3] and rows["Adaptive CMD, H = 3"][3]
    # a memory as good as endless is none
    assert rows["Adaptive CMD, H = 1e+09"].groups()[1:] == rows["Online CMD"].groups()[1:]
    assert "mean of the latest 5 epochs" in rows


def test_subspace(tmp_path, monkeypatch, benchmark):
    # in this process, what was needed before may be enough, and nothing can be divided by 0 bytes
    monkeypatch.setattr(measure, "anonymous_memory", itertools.count().__next__)
    code, out, error = benchmark("subspace.py", "-N", 20_000, "-T", 12, "-d", 4,
                                 "--repeats", 1, "--folder", tmp_path)  # fmt: skip
    assert code == 0, error
    ours = next(line for line in out.splitlines() if line.startswith("principal_directions"))
    assert "exact PCA, float64" in out and float(ours.split()[-1]) < 1e-3
    assert not any(tmp_path.iterdir())


def test_train(benchmark):
    code, out, error = benchmark("train.py", "--models", "lenet", "--dataset", "digits",
                                 "--limit", 128, "--epochs", 1)  # fmt: skip
    assert code == 0, error
    assert "lenet, fp32, cpu" in out and "the methods add" in out
    for words in ("training ", "one test", "training, SGD, Online CMD, EMA, SWA tested"):
        line = next(line for line in out.splitlines() if line.startswith(words))
        assert float(line[len(words) :].split()[0]) > 0


def test_writing(tmp_path, benchmark):
    code, out, error = benchmark("writing.py", "--model", "lenet", "--repeats", 1,
                                 "--folder", tmp_path)  # fmt: skip
    assert code == 0, error
    assert "6.6 MB an epoch" in out  # the snapshot, and two such of Adam
    assert "the writer" in out and "the training waits" in out and "plain write" in out
    assert not any(tmp_path.iterdir())


def test_whole(tmp_path, benchmark):
    code, out, error = benchmark("whole.py", "--model", "lenet", "--dataset", "digits", "--limit",
                                 128, "--measured", 1, "--epochs", 8, "-F", 3, "--folder",
                                 tmp_path)  # fmt: skip
    assert code == 0, error
    assert "548,878 weights, 8 epochs" in out
    costs = [line.split()[-3:] for line in out.splitlines()[6:-1]]
    assert len(costs) == 6
    in_all = sum(float(each) * int(times) for each, times, _ in costs)
    assert int(out.split()[-1].replace(",", "")) == pytest.approx(in_all, abs=1)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("train.py", ["--official", "/nowhere"], "--official /nowhere"),
        ("train.py", ["--precisions", "tf32"], "--precision tf32"),
        ("whole.py", ["--epochs", "5", "-F", "4"], "-F 4"),
        ("subspace.py", ["-T", "12", "-d", "12"], "-d 12"),
        ("fit.py", ["-N", "5", "-K", "10"], "-K 10"),
        ("fit.py", ["-T", "1"], "-T 1"),
        ("fit.py", ["--official", "nowhere"], "--official nowhere"),
        ("fit.py", ["--folder", "nowhere"], "--folder nowhere"),
        ("online.py", ["-T", "5"], "-T 5"),
        ("writing.py", ["--folder", "nowhere"], "--folder nowhere"),
    ],
)
def test_bad_input(name, arguments, words, benchmark):
    code, _, error = benchmark(name, *arguments)
    assert code == 2 and words in error and error.count("\n") == 1


def test_synthetic_trajectory_is_the_seeds(tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        write_trajectory(tmp_path / name, 1000, 6, seed)
    a, b, c = (np.load(tmp_path / name, mmap_mode="r") for name in "abc")
    assert a.shape == (6, 1000) and np.array_equal(a, b) and not np.array_equal(a, c)
    (tmp_path / "a").write_bytes((tmp_path / "c").read_bytes())
    write_trajectory(tmp_path / "a", 1000, 8, 0)  # another length: written afresh
    assert np.array_equal(np.load(tmp_path / "a")[:6], b)


@pytest.mark.parametrize("n_weights", [1, 10, 62, 1000, 12_345])
def test_module_has_so_many_weights(n_weights):
    assert sum(layer_sizes(module_of(n_weights))) == n_weights
