"""Several processes on one run: what one of them alone would have done."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import train_cmd
from tests.conftest import ROOT, SMALL
from utils.cmd.model import CMDModel
from utils.storage.metrics import Metrics
from utils.storage.sealed import load_tensors
from utils.system.ranks import Ranks

SIZES = ["--epochs", "6", "--warmup_cmd", "2", "--embed_window", "1", "--swa_start", "3"]
SIZES += ["--lawa_epochs", "2"]
SIZES += ["--warmup_pbfgs", "3", "--pbfgs_num", "2", "--pbfgs_batch_size", "100"]
ALL = ["--p_bfgs", "1", "--cmd_embed", "1", "--cmd_adaptive", "1"]
ALL += ["--ema", "1", "--swa", "1", "--lawa", "1"]
METHODS = ("sgd", "cmd_posthoc", "cmd_online", "cmd_adaptive", "cmd_embed", "pbfgs")
METHODS += ("ema", "swa", "lawa")


# the arguments, and then others that are wrong
TWICE = """
import sys, train_cmd
print("code", train_cmd.main(sys.argv[1:]))
sys.exit(train_cmd.main([*sys.argv[1:], "--warmup_cmd", "6", "--results_dir", "wrong"]))
"""


def torchrun(program, results, *flags, n_ranks):
    return subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *(f"--nproc_per_node={n_ranks}", "--no-python", sys.executable, *program),
            *(*SMALL, *SIZES, *flags, "--results_dir", results),
        ],
        capture_output=True,
        text=True,
        cwd=results,
        env=os.environ | {"MPLBACKEND": "agg", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        timeout=240,
    )


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The folder of a run of one process."""
    results = tmp_path_factory.mktemp("alone")
    assert train_cmd.main([*SMALL, *SIZES, *ALL, "--results_dir", str(results)]) == 0
    return results / "lenet"


@pytest.fixture(scope="module")
def by_two(tmp_path_factory):
    """(results of a run of two processes, how they ended, which was with bad input)."""
    results = tmp_path_factory.mktemp("two")
    return results, torchrun(["-c", TWICE], results, *ALL, n_ranks=2)


def accuracies(folder, method):
    rows = Metrics.stored(folder / "metrics.csv").of(method)
    assert [row.epoch for row in rows] == list(range(6))
    return [row.test_acc for row in rows]


def check_cmd(folder, results):
    """CMD by several processes is that of one process on the same trajectory."""
    alone = shutil.copytree(folder, results / "lenet")
    kept = (alone / "metrics.csv").read_text().splitlines(keepends=True)
    kept = [line for line in kept if not line.startswith("cmd_")]
    (alone / "metrics.csv").write_text("".join(kept))
    for path in alone.glob("cmd_*.pt"):
        path.unlink()
    argv = [*SMALL, *SIZES, "--cmd_adaptive", "1", "--results_dir", str(results)]
    assert train_cmd.main(argv) == 0
    assert (alone / "trajectory.npy").read_bytes() == (folder / "trajectory.npy").read_bytes()
    for method in ("cmd_posthoc", "cmd_online", "cmd_adaptive"):
        ours, theirs = (CMDModel.load(at / f"{method}.pt") for at in (folder, alone))
        assert torch.equal(ours.reference, theirs.reference)
        assert torch.equal(ours.mode, theirs.mode)
        torch.testing.assert_close(ours.a, theirs.a)
        torch.testing.assert_close(ours.b, theirs.b)
        assert accuracies(folder, method) == accuracies(alone, method)


def test_cmd_of_the_same_trajectory(by_two, tmp_path):
    check_cmd(by_two[0] / "lenet", tmp_path)


def test_everything_by_two_as_by_one(alone, by_two):
    results, ended = by_two
    assert ended.stdout.count("code 0") == 2, ended.stderr
    assert ended.stdout.count("lenet on digits") == 1  # one process speaks
    folder = results / "lenet"
    assert {path.name for path in folder.iterdir()} == {path.name for path in alone.iterdir()}
    ours, theirs = (np.load(at / "trajectory.npy") for at in (folder, alone))
    assert np.abs(ours[0] - theirs[0]).max() < 1e-3  # the same batches; sums in another order
    for method in METHODS:
        assert (
            np.abs(np.subtract(accuracies(folder, method), accuracies(alone, method))).max() < 0.1
        )
    shares = (load_tensors(at / "cmd_embed.pt")["embedded"].sum() for at in (folder, alone))
    assert next(shares) == next(shares)
    assert json.loads((folder / "config.json").read_text())["environment"]["ranks"] == 2

    # Finished, one process finds nothing left to do, and another number goes on with a run that
    # was cut off.
    settings = [*SMALL, *SIZES, *ALL, "--results_dir", str(results)]
    before = (folder / "metrics.csv").read_bytes()
    assert train_cmd.main(settings) == 0
    assert (folder / "metrics.csv").read_bytes() == before


def test_another_number_of_ranks_goes_on(tmp_path, monkeypatch):
    from utils.training import run as run_module

    real = run_module.train_epoch

    def interrupted(*arguments):
        if len(np.load(tmp_path / "lenet" / "trajectory.npy", mmap_mode="r")) == 4:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(run_module, "train_epoch", interrupted)
    flags = ["--ema", "1"]
    while_alone = [*SMALL, *SIZES, *flags, "--results_dir", str(tmp_path)]
    assert train_cmd.main(while_alone) == 130
    trained = np.load(tmp_path / "lenet" / "trajectory.npy").copy()
    assert 4 <= len(trained) < 6

    flags += ["--cmd_adaptive", "1"]  # which follows what is stored first
    result = torchrun([ROOT / "train_cmd.py"], tmp_path, *flags, n_ranks=3)
    assert result.returncode == 0, result.stderr
    went_on = np.load(tmp_path / "lenet" / "trajectory.npy")
    assert len(went_on) == 6 and np.array_equal(went_on[: len(trained)], trained)
    assert np.isfinite(went_on).all()
    accuracies(tmp_path / "lenet", "ema")
    check_cmd(tmp_path / "lenet", tmp_path / "alone")


def test_bad_input_is_said_once(by_two):
    results, ended = by_two
    assert ended.returncode != 0
    assert ended.stderr.count("train_cmd.py: error: --warmup_cmd 6") == 1
    assert 'train_cmd.py", line' not in ended.stderr  # a traceback, but for torchrun's own
    assert [path.name for path in results.iterdir()] == ["lenet"]


@given(count=st.integers(0, 300), size=st.integers(1, 9))
def test_shares_cover_everything_once(count, size):
    members = [_rank(rank, size) for rank in range(size)]
    covered = [i for member in members for i in range(count)[member.share(count)]]
    assert covered == list(range(count))
    if count:
        shares = [member.batch_share(count) for member in members]
        assert sum(n_images for _, n_images in shares) == count
        assert all(len(range(count)[share]) == max(1, n_images) for share, n_images in shares)


def _rank(rank, size):
    member = Ranks(rank)
    member.size = size
    return member
