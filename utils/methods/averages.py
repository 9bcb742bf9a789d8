"""Averages of the run's weights as compared methods.

EMA: an exponential moving average over steps ("Acceleration of Stochastic Approximation by
Averaging", SIAM J. Control Optim. 1992, is its equal-weight origin). SWA: the mean of epochs'
weights ("Averaging Weights Leads to Wider Optima and Better Generalization", UAI 2018). LAWA: the
mean of the latest epochs' ("Stop Wasting My Time! Saving Days of ImageNet and BERT Training with
Latest Weight Averaging", 2022).
"""

import copy
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn

from utils.cmd.vector import read_vector, write_vector
from utils.methods.base import Method
from utils.storage.store import AFRESH, usable
from utils.system.arguments import truth_or_count
from utils.system.errors import UserError
from utils.training.seeding import epoch_generator
from utils.training.settings import Settings

if TYPE_CHECKING:
    from utils.training.run import Run


class EMA(Method):
    """θ̄ ← d·θ̄ + (1 − d)·θ after every step, buffers with it."""

    name, label, flags, default = "ema", "EMA", ("--ema",), False
    help = "average the weights exponentially over steps"
    color = "#E69F00"
    watches_steps = True
    own_settings = ("ema_decay",)

    def __init__(self, run: "Run") -> None:
        super().__init__(run)
        average = get_ema_multi_avg_fn(self.settings.ema_decay)
        self.average = AveragedModel(run.model, multi_avg_fn=average, use_buffers=True)
        # it is looked at every step, for which the host would wait for a GPU
        self.average.n_averaged = self.average.n_averaged.cpu()

    @classmethod
    def check(cls, settings: Settings) -> None:
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
            tested = (run.metrics.has(self.name, epoch) for epoch in range(run.epochs_done - 1))
            if not all(tested):
                raise UserError(
                    f"--ema True: {run.metrics.path} lacks rows of it, whose averages are gone: "
                    "--ema '' leaves it out, --overwrite starts afresh"
                )
            with usable(run.folder, AFRESH):
                self.average.load_state_dict(state)
        run.follow_steps(self.name, self.average)

    def follow(self, epoch: int, module: nn.Module) -> nn.Module:
        self.run.ranks.align_buffers(self.average.module)
        return self.average.module


def has_statistics(module: nn.Module) -> bool:
    """Whether a module's BatchNorm keeps statistics, which an average's weights would change."""
    return any(
        isinstance(layer, _BatchNorm) and layer.track_running_stats for layer in module.modules()
    )


class _OfEpochs(Method):
    """What averages over epochs share: BatchNorm's statistics, counted anew for the average."""

    def _count_statistics(self, epoch: int, average: nn.Module) -> None:
        """Have an average's BatchNorm see the training images, if it is to be tested."""
        run = self.run
        if has_statistics(average) and not run.metrics.has(self.name, epoch):
            with run.arithmetic.products(), run.arithmetic.autocast(run.device):
                update_bn(self._batches(epoch), average)
            run.ranks.mean_buffers(average)

    def _batches(self, epoch: int) -> Iterator[Tensor]:
        """The training images as an epoch of training sees them, this rank's of each batch."""
        run = self.run
        generator = epoch_generator(self.settings.seed, epoch, run.device, run.ranks.rank)
        order = torch.randperm(len(run.dataset.train), generator=generator, device=run.device)
        for batch in order.split(self.settings.batch_size):
            images, (share, _) = run.dataset.train.images[batch], run.ranks.batch_share(len(batch))
            yield run.entry.transform.train(images, generator, run.dataset.mirror, share)


class SWA(_OfEpochs):
    """The mean of θ(t) over the epochs from `swa_start` on; BatchNorm's statistics counted anew."""

    name, label, flags, default = "swa", "SWA", ("--swa",), False
    help = "average the weights over the last epochs"
    color = "#56B4E9"
    own_settings = ("swa_start",)

    def __init__(self, run: "Run") -> None:
        super().__init__(run)
        self.average = AveragedModel(run.model)

    @classmethod
    def check(cls, settings: Settings) -> None:
        if settings.swa_start >= settings.epochs:
            raise UserError(
                f"--swa_start {settings.swa_start}: choose 0 … {settings.epochs - 1} "
                f"(below --epochs {settings.epochs}), or --swa ''"
            )

    @classmethod
    def departs(cls, settings: Settings) -> int:
        return settings.swa_start + 1  # the mean of one is that one

    def follow(self, epoch: int, module: nn.Module) -> nn.Module:
        if epoch >= self.settings.swa_start:
            self.average.update_parameters(module)
        if epoch < self.departs(self.settings):
            return module
        self._count_statistics(epoch, self.average.module)
        return self.average.module


class LAWA(_OfEpochs):
    """The mean of θ(t) over the latest K epochs, or as many as there are; BatchNorm's statistics
    counted anew. What leaves the mean is read back from the trajectory."""

    name, label, flags, default = "lawa", "LAWA", ("--lawa",), False
    help = "average the weights over the latest K epochs (True: over --lawa_epochs)"
    value, metavar = staticmethod(truth_or_count), "K"
    color = "#999933"
    own_settings = ("lawa_epochs",)

    def __init__(self, run: "Run") -> None:
        super().__init__(run)
        self.average = copy.deepcopy(run.model)
        self._sum = torch.zeros(run.n_weights, dtype=torch.float64, device=run.device)

    @classmethod
    def departs(cls, settings: Settings) -> int:
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
