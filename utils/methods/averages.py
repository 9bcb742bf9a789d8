"""Averages of the run's weights as compared methods.

EMA: an exponential moving average over steps ("Acceleration of Stochastic Approximation by
Averaging", SIAM J. Control Optim. 1992, is its equal-weight origin). SWA: the mean of epochs'
weights ("Averaging Weights Leads to Wider Optima and Better Generalization", UAI 2018). LAWA: the
mean of the latest epochs' ("Stop Wasting My Time! Saving Days of ImageNet and BERT Training with
Latest Weight Averaging", 2022).
"""

import copy
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import AveragedModel, update_bn

from utils.cmd.vector import read_vector, write_vector
from utils.methods.base import Method
from utils.storage.metrics import Metrics
from utils.storage.store import AFRESH, usable
from utils.system.arguments import at_least, positive, truth_or_count
from utils.system.errors import UserError
from utils.system.options import option
from utils.training.exponential import ExponentialAverage
from utils.training.run import Run
from utils.training.settings import TrainingSettings

LAWA_EPOCHS = 10  # where neither --lawa nor --lawa_epochs has a number


@dataclass(frozen=True, kw_only=True)
class EMASettings(TrainingSettings):
    """The settings of EMA."""

    group: ClassVar[str] = "averages"

    ema_decay: float = option(
        0.999, "share of EMA's average that stays, a step; below 1, and smaller for a run of fewer "
        "than a few times 1 / (1 − D) steps", positive, metavar="D",
    )  # fmt: skip


class EMA(Method):
    """θ̄ ← d·θ̄ + (1 − d)·θ after every step, buffers with it."""

    name, label, flags, default = "ema", "EMA", ("--ema",), False
    help = "average the weights exponentially over steps"
    color = "#E69F00"
    watches_steps = True
    Settings = EMASettings

    def __init__(self, run: Run, metrics: Metrics) -> None:
        super().__init__(run, metrics)
        self.average = ExponentialAverage(run.model, self.settings.ema_decay)

    @classmethod
    def check(cls, settings: EMASettings) -> None:
        if settings.ema_decay >= 1:
            raise UserError(f"--ema_decay {settings.ema_decay:g}: choose a decay below 1")

    def prepare(self) -> None:
        run = self.run
        if run.epochs_done:
            state = run.step_states.get(self.name)
            if state is None:
                raise UserError(
                    f"--ema True: the run in {run.folder} was trained without it, and its steps "
                    "are gone: choose another --results_dir, or --overwrite to start afresh"
                )
            tested = (self.metrics.has(self.name, epoch) for epoch in range(run.epochs_done - 1))
            if not all(tested):
                raise UserError(
                    f"--ema True: {self.metrics.path} lacks rows of it, whose averages are gone: "
                    "--ema '' leaves it out, --overwrite starts afresh"
                )
            with usable(run.folder, AFRESH):
                self.average.load_state_dict(state)
        run.follow_steps(self.name, self.average)

    def follow(self, epoch: int, module: nn.Module) -> nn.Module:
        self.average.copy_counts(module)
        self.run.ranks.align_buffers(self.average.module)
        return self.average.module


def has_statistics(module: nn.Module) -> bool:
    """Whether a module's BatchNorm keeps statistics, which an average's weights would change."""
    return any(
        isinstance(layer, _BatchNorm) and layer.track_running_stats for layer in module.modules()
    )


class _OfEpochs(Method):
    """What averages over epochs share: BatchNorm's statistics are counted for the average."""

    def _count_statistics(self, epoch: int, average: nn.Module) -> None:
        """Have an average's BatchNorm see the training images, if it is to be tested."""
        run = self.run
        if has_statistics(average) and not self.metrics.has(self.name, epoch):
            arithmetic = run.compute.arithmetic
            # uncompiled, as each BatchNorm without a momentum breaks the graph
            with arithmetic.products(), arithmetic.autocast(run.device), arithmetic.uncompiled():
                update_bn((batch.images for batch in run.batches(epoch)), average)
            run.ranks.mean_buffers(average)


@dataclass(frozen=True, kw_only=True)
class SWASettings(TrainingSettings):
    """The settings of SWA."""

    group: ClassVar[str] = "averages"

    swa_start: int = option(
        None, "first epoch that SWA averages", at_least(0), metavar="EPOCH",
        told="3/4 of the epochs",
    )  # fmt: skip

    @classmethod
    def complete(cls, given: dict[str, Any]) -> dict[str, Any]:
        given = super().complete(given)
        if given["swa_start"] is None:
            given["swa_start"] = given["epochs"] * 3 // 4
        return given


class SWA(_OfEpochs):
    """The mean of θ(t) over the epochs from `swa_start` on, with statistics of its own."""

    name, label, flags, default = "swa", "SWA", ("--swa",), False
    help = "average the weights over the last epochs"
    color = "#56B4E9"
    Settings = SWASettings

    def __init__(self, run: Run, metrics: Metrics) -> None:
        super().__init__(run, metrics)
        self.average = AveragedModel(run.model)

    @classmethod
    def check(cls, settings: SWASettings) -> None:
        if settings.swa_start >= settings.epochs:
            raise UserError(
                f"--swa_start {settings.swa_start}: choose 0 … {settings.epochs - 1} "
                f"(below --epochs {settings.epochs}), or --swa ''"
            )

    @classmethod
    def departs(cls, settings: SWASettings) -> int:
        return settings.swa_start + 1  # the mean of one is that one

    def follow(self, epoch: int, module: nn.Module) -> nn.Module:
        if epoch >= self.settings.swa_start:
            self.average.update_parameters(module)
        if epoch < self.departs(self.settings):
            return module
        self._count_statistics(epoch, self.average.module)
        return self.average.module


@dataclass(frozen=True, kw_only=True)
class LAWASettings(TrainingSettings):
    """The settings of LAWA: `--lawa K` stands for `--lawa True --lawa_epochs K`."""

    group: ClassVar[str] = "averages"

    lawa_epochs: int = option(
        None,
        "K, epochs that LAWA averages",
        at_least(2),
        metavar="K",
        told=str(LAWA_EPOCHS),
        before=LAWA_EPOCHS,
    )

    @classmethod
    def complete(cls, given: dict[str, Any]) -> dict[str, Any]:
        given = super().complete(given)
        by_method = given["lawa"] if given["lawa"] > 1 else None  # True is 1
        asked = {by_method, given["lawa_epochs"]} - {None}
        if len(asked) > 1:
            raise UserError(
                f"--lawa {by_method} and --lawa_epochs {given['lawa_epochs']}: give one of them"
            )
        given["lawa_epochs"] = asked.pop() if asked else LAWA_EPOCHS
        return given


class LAWA(_OfEpochs):
    """The mean of θ(t) over the latest K epochs, or as many as there are, with statistics of its
    own. What leaves the mean is read back from the trajectory."""

    name, label, flags, default = "lawa", "LAWA", ("--lawa",), False
    help = "average the weights over the latest K epochs (from 2 on; True: over --lawa_epochs)"
    value, metavar = staticmethod(truth_or_count), "K"
    color = "#999933"
    Settings = LAWASettings

    def __init__(self, run: Run, metrics: Metrics) -> None:
        super().__init__(run, metrics)
        self.average = copy.deepcopy(run.model)
        self._sum = torch.zeros(run.n_weights, dtype=torch.float64, device=run.device)

    @classmethod
    def departs(cls, settings: TrainingSettings) -> int:
        return 1  # the mean of one is that one

    def follow(self, epoch: int, module: nn.Module) -> nn.Module:
        latest = self.settings.lawa_epochs
        self._sum += read_vector(module)
        if epoch >= latest:
            self._sum -= self.run.trajectory[epoch - latest].to(self._sum.device)
        if epoch < self.departs(self.settings):
            return module
        write_vector((self._sum / min(epoch + 1, latest)).float(), self.average)
        self._count_statistics(epoch, self.average)
        return self.average
