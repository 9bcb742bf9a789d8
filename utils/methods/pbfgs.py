"""P-BFGS as a compared method (utils.pbfgs_utils)."""

import contextlib
import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from utils.cmd.snapshots import Snapshots
from utils.cmd.vector import read_vector, trainable_ranges, write_vector
from utils.methods.base import Method
from utils.methods.cmd import WarmupSettings
from utils.pbfgs_utils import SubspaceBFGS, principal_directions
from utils.storage.metrics import Metrics
from utils.system.arguments import at_least
from utils.system.errors import UserError
from utils.system.options import option
from utils.training.epochs import Batch, count_correct, in_pieces
from utils.training.precision import BF16, TF32
from utils.training.recompute import normalises_batches, recomputed
from utils.training.run import Run
from utils.training.settings import TrainingSettings

EPOCH, SINGLE = UPDATES = ("epoch", "single")
PIECE_ON_CPU = 128  # images differentiated at once, whose activations are near the cores' caches


@dataclass(frozen=True, kw_only=True)
class SubspaceSettings(TrainingSettings):
    """The settings of P-BFGS, but for its warm-up."""

    group: ClassVar[str] = "P-BFGS"

    pbfgs_num: int = option(
        40, "d, dimensions of its subspace, at most its warm-up's epochs", at_least(1), metavar="D"
    )
    pbfgs_batch_size: int = option(
        1024, "images in one of its mini-batches", at_least(1), metavar="B"
    )
    accumulate: int = option(
        1, "mini-batches to a step, all of them in the line search", at_least(1), metavar="A"
    )
    pbfgs_updates: str = option(
        EPOCH,
        "epoch: a pass over the training set an epoch; single: one step an epoch from a batch of "
        "--batch_size, its curvature forgotten, as the paper's public code has it",
        choices=UPDATES,
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class LongSettings(SubspaceSettings):
    """The settings of P-BFGS with a warm-up of its own."""

    warmup_pbfgs: int = option(
        80, "F_p, last epoch before P-BFGS, 1 … epochs − 2", int, metavar="EPOCH"
    )


@dataclass(frozen=True, kw_only=True)
class EqualSettings(SubspaceSettings, WarmupSettings):
    """The settings of P-BFGS with online CMD's warm-up."""


class PBFGS(Method):
    """P-BFGS: from epoch F_p on, BFGS in the principal directions of snapshots 0 … F_p.

    An epoch is a full pass over the training set in steps of `accumulate` mini-batches, B lasting
    from step to step; with the updates "single", as the paper's public code has it, one such step
    an epoch, from batches of the run's own size, B starting from the identity.
    """

    name, label, flags, default = "pbfgs", "P-BFGS", ("--p_bfgs", "--pbfgs"), False
    help = "train on in the principal directions of a warm-up"
    color = "#009E73"
    Settings = LongSettings
    warmup_flag = "warmup_pbfgs"
    after_run = True

    def __init__(self, run: Run, metrics: Metrics) -> None:
        super().__init__(run, metrics)
        self.module = copy.deepcopy(run.model)
        self._warmup, self._num = self.warmup_and_num(run.settings)
        self._arithmetic = run.compute.arithmetic
        if self._arithmetic.precision == BF16:
            # the line search compares losses that differ by less than bfloat16 resolves; tf32 is
            # float32 where there is none
            self._arithmetic = replace(self._arithmetic, precision=TF32)
        size = run.settings.batch_size if self._single else run.settings.pbfgs_batch_size
        on_cpu = run.device.type == "cpu"
        normalises = normalises_batches(self.module)
        suits = run.entry.pieces or (PIECE_ON_CPU if on_cpu and not normalises else size)
        self._pieces = min(run.compute.pieces or suits, size)
        # a piece of its images would give BatchNorm other statistics
        self._recomputes = self._pieces < size and normalises
        if self._recomputes:
            self._pieces, self._arithmetic = size, replace(self._arithmetic, compiled=False)
        self._epoch = self._warmup  # the last one that the module has been through

    @classmethod
    def warmup_and_num(cls, settings: SubspaceSettings) -> tuple[int, int]:
        """The last epoch of the warm-up, F_p, and the number of directions, d."""
        return settings.warmup_pbfgs, settings.pbfgs_num

    @classmethod
    def check(cls, settings: SubspaceSettings) -> None:
        warmup, num = cls.warmup_and_num(settings)
        last = settings.epochs - 2
        if not 1 <= warmup <= last:
            fix = f"choose 1 … {last}" if last >= 1 else "it needs --epochs 3 or more"
            raise UserError(
                f"--{cls.warmup_flag} {warmup}: {fix}, so that an epoch of --epochs "
                f"{settings.epochs} is left, or {cls.flags[0]} ''"
            )
        if num > warmup:
            raise UserError(
                f"--pbfgs_num {num}: {warmup + 1} snapshots span at most {warmup} directions; "
                f"choose 1 … {warmup}, or a longer --{cls.warmup_flag}"
            )

    @classmethod
    def departs(cls, settings: SubspaceSettings) -> int:
        return cls.warmup_and_num(settings)[0] + 1

    @classmethod
    def training_epochs(cls, settings: SubspaceSettings) -> range:
        return range(cls.departs(settings), settings.epochs)

    @classmethod
    def scratch_files(cls) -> tuple[str, ...]:
        return (f"{cls.name}_state.pt",)

    @classmethod
    def n_parameters(cls, n_weights: int, settings: SubspaceSettings, folder: Path) -> int:
        """The warm-up's snapshots, of which the directions are combinations, and x afterwards."""
        warmup, num = cls.warmup_and_num(settings)
        return n_weights * (warmup + 1) + num * len(cls.training_epochs(settings))

    def prepare(self) -> None:
        run = self.run
        snapshots = Snapshots(run.trajectory.array, end=self._warmup + 1, device=run.device)
        try:
            directions = principal_directions(snapshots, self._num, trainable_ranges(self.module))
        except ValueError as error:
            raise UserError(f"--pbfgs_num {self._num}: {error}; choose fewer") from error
        directions = run.ranks.from_first(directions)  # alike to the last bit
        write_vector(run.trajectory[self._warmup], self.module)
        self._bfgs = SubspaceBFGS(self.module, directions, not self._single, run.ranks.sum)
        if run.ranks.object_from_first(self._state_file.exists):
            with run.store.reading(self._state_file.name) as state:
                if not self._goes_on_from(state["epoch"]):
                    return
                self._epoch, self.trained = state["epoch"], state["trained"]
                self.module.load_state_dict(state["buffers"], strict=False)
                self._bfgs.load_state_dict(state["bfgs"])

    def follow(self, epoch: int, module: nn.Module) -> nn.Module:
        if epoch < self.departs(self.settings):
            return module
        if epoch > self._epoch:
            self.trained = self._train(epoch)
            self._epoch = epoch
            state = {
                "epoch": epoch,
                "trained": self.trained,
                "buffers": dict(self.module.named_buffers()),
                "bfgs": self._bfgs.state_dict(),
            }
            if self.run.ranks.first:
                self.run.store.save(state, self._state_file.name)
        return self.module

    def finish(self) -> None:
        if self.run.ranks.first:
            self._state_file.unlink(missing_ok=True)

    @property
    def _single(self) -> bool:
        return self.settings.pbfgs_updates == SINGLE

    @property
    def _state_file(self) -> Path:
        return self.run.folder / self.scratch_files()[0]

    def _train(self, epoch: int) -> tuple[float, float]:
        """An epoch's steps; returns the mean loss and the accuracy before each of them."""
        run, settings = self.run, self.settings
        size = settings.accumulate
        batches = run.batches(epoch, None if self._single else settings.pbfgs_batch_size)
        steps = range(1 if self._single else -(-len(batches) // size))
        drawn = iter(batches)
        self.module.train()
        total_loss, n_images = 0.0, 0
        n_correct = torch.zeros((), dtype=torch.int64, device=run.device)
        with self._arithmetic.products(), self._memory_saved():
            for _ in run.compute.progress(steps, epoch):
                step = list(islice(drawn, size))
                count = sum(batch.total for batch in step)
                logits = partial(self._arithmetic.logits, self.module)
                losses = [
                    _PartialLoss(logits, piece, count)
                    for batch in step
                    for piece in in_pieces(batch, self._pieces)
                ]
                total_loss += count * self._bfgs.step(losses)
                n_correct += sum(loss.n_correct for loss in losses)
                n_images += count
        self._bfgs.settle()
        run.ranks.align_buffers(self.module)
        run.require_finite(total_loss, read_vector(self.module), epoch, self.label)
        return total_loss / n_images, int(run.ranks.sum(n_correct)) / n_images

    @contextlib.contextmanager
    def _memory_saved(self) -> Iterator[None]:
        """Around passes: activations are computed again, where they have to be."""
        if not self._recomputes:
            yield
            return
        # torch cannot compile that, and may have compiled the module for its tests
        with self.run.compute.arithmetic.uncompiled(), recomputed(self.module):
            yield


class EqualPBFGS(PBFGS):
    """P-BFGS with the warm-up that online CMD has, and as many directions as that spans at most."""

    name, label, flags, default = "pbfgs_equal", "P-BFGS (equal)", ("--pbfgs_equal",), False
    help = "the same with CMD's warm-up, in as many directions as that can span"
    color = "#882255"
    Settings = EqualSettings
    warmup_flag = "warmup_cmd"

    @classmethod
    def warmup_and_num(cls, settings: SubspaceSettings) -> tuple[int, int]:
        return settings.warmup_cmd, min(settings.pbfgs_num, settings.warmup_cmd)


class _PartialLoss:
    """The share that some images of this rank have of the mean loss over `count` images: a
    function of nothing, as the line search calls it."""

    def __init__(self, model: Callable[[Tensor], Tensor], batch: Batch, count: int) -> None:
        self._model, self._images, self._labels = model, batch.images, batch.labels
        self._count = count if batch.n_images else math.inf  # images that do not count weigh 0
        self.n_correct: Tensor | None = None  # of those that count, at the first call

    def __call__(self) -> Tensor:
        logits = self._model(self._images)
        if self.n_correct is None:
            self.n_correct = count_correct(logits, self._labels) * math.isfinite(self._count)
        return functional.cross_entropy(logits, self._labels, reduction="sum") / self._count
