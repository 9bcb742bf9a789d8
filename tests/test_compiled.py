"""What --compile compiles: counted on a small comparison, without a compiler."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounter
from torch._dynamo.utils import counters

import train_cmd
from tests.conftest import SMALL
from utils import base_utils
from utils.system.errors import UserError
from utils.training import precision
from utils.training.precision import Arithmetic

# 256 images and as many in tests, neither a multiple of its batch
SIZES = ["--batch_size", "100", "--test_batch_size", "150", "--pbfgs_batch_size", "120"]


class Small(nn.Module):
    """What there is in the suite's models, once each."""

    def __init__(self, num_classes=10):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 5, stride=4, bias=False)
        self.bn, self.dropout = nn.BatchNorm2d(4), nn.Dropout(0.3)
        self.head = nn.Linear(4 * 7 * 7, num_classes)

    def forward(self, images):
        return self.head(self.dropout(self.bn(self.conv(images)).relu().flatten(1)))


@pytest.fixture
def graphs(monkeypatch):
    """Counts what is compiled, to graphs that run uncompiled."""
    torch.compiler.reset()
    counters.clear()
    counter, compile_in_place = CompileCounter(), nn.Module.compile

    def counted(module, **options):
        compile_in_place(module, backend=counter, **options)

    monkeypatch.setattr(nn.Module, "compile", counted)
    yield counter
    torch.compiler.reset()


def test_each_size_of_batch_has_a_graph(graphs, tmp_path, monkeypatch):
    entry = base_utils.MODELS["lenet"]
    monkeypatch.setitem(base_utils.MODELS, "lenet", replace(entry, constructor=Small))
    seen = []
    monkeypatch.setattr(train_cmd, "describe", lambda *_: seen.append(graphs.frame_count) or "")
    methods = ["--ema", "1", "--swa", "1", "--lawa", "2", "--cmd_adaptive", "1"]
    methods += ["--cmd_embed", "1", "--p_bfgs", "1"]
    sizes = ["--epochs", "6", "--warmup_cmd", "2", "--embed_window", "1", "--swa_start", "3"]
    sizes += ["--warmup_pbfgs", "4", "--pbfgs_num", "2", *SIZES]
    argv = [*SMALL, *methods, *sizes, "--results_dir", str(tmp_path)]
    assert train_cmd.main([*argv, "--compile", "True"]) == 0
    # whole and last batches in training and in tests; P-BFGS's, with gradients and without
    *before, last = seen
    assert before == [4] * len(before) and last == 8
    assert not counters["graph_break"]
    assert train_cmd.main(argv) == 0  # without --compile it is the same run, which is finished
    assert len(seen) == len(before) + 1


class Nested(nn.Module):
    """A block whose activations can be computed again, beside a layer."""

    def __init__(self, num_classes=10):
        super().__init__()
        self.first, self.block = nn.Conv2d(3, 3, 1), Small(num_classes)

    def forward(self, images):
        return self.block(self.first(images))


def test_passes_that_save_memory_are_not_compiled(graphs, tmp_path, monkeypatch):
    entry = base_utils.MODELS["lenet"]
    monkeypatch.setitem(base_utils.MODELS, "lenet", replace(entry, constructor=Nested))
    argv = [*SMALL, "--epochs", "5", "--warmup_cmd", "1", "--p_bfgs", "1", "--warmup_pbfgs", "2"]
    argv += ["--pbfgs_num", "2", "--pbfgs_pieces", "60", *SIZES, "--cmd_PostHoc", ""]
    argv += ["--cmd_online", "", "--results_dir"]
    assert train_cmd.main([*argv, str(tmp_path / "compiled"), "--compile", "True"]) == 0
    assert graphs.frame_count == 4  # of training and of tests, P-BFGS's own among them
    assert train_cmd.main([*argv, str(tmp_path / "plain")]) == 0
    tables = [(tmp_path / name / "lenet/metrics.csv").read_text() for name in ("compiled", "plain")]
    ours, theirs = ([line.rsplit(",", 1)[0] for line in table.splitlines()] for table in tables)
    assert ours == theirs


def test_more_graphs_than_torch_may_keep_are_said(graphs, monkeypatch):
    monkeypatch.setattr(precision, "GRAPHS", 2)
    arithmetic, model = Arithmetic(compiled=True), Small()
    with arithmetic.products():
        arithmetic.logits(model, torch.zeros(2, 3, 32, 32))
        arithmetic.logits(model, torch.zeros(3, 3, 32, 32))
        with pytest.raises(UserError, match="--compile True: more than 2 graphs"):
            arithmetic.logits(model, torch.zeros(4, 3, 32, 32))


def test_what_is_better_not_compiled(graphs):
    arithmetic, model = Arithmetic(compiled=True), Small()
    images = torch.zeros(2, 3, 32, 32)
    with arithmetic.products():
        arithmetic.logits(model, images)
        with arithmetic.uncompiled():
            model(torch.zeros(3, 3, 32, 32))
        assert graphs.frame_count == 1
        arithmetic.logits(model, images)
        copied = copy.deepcopy(model)
        assert copied._compiled_call_impl is None
        arithmetic.logits(copied, images)  # a copy has the graph of what it is a copy of
    assert graphs.frame_count == 1
