"""One training run in its folder: trained an epoch at a time, stored, resumed and replayed.

The order of writing makes a kill at any moment harmless. After an epoch the snapshot is appended
to the trajectory, then the checkpoint replaced, then the rows of those that watch the run appended,
all while the next epoch trains. A restart goes on from the checkpoint, forgets a snapshot newer
than it, and shows the stored snapshots again. What the model was is in the trajectory's snapshot;
the checkpoint holds what else the next epoch starts from.
"""

import copy
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from utils.base_utils import DOWNLOADED, get_model
from utils.cmd.vector import layer_sizes, not_in_vector, read_vector, restore, write_vector
from utils.data.datasets import Dataset
from utils.storage.background import Background
from utils.storage.host import Host, StateCopy
from utils.storage.store import AFRESH, usable
from utils.storage.trajectory import Trajectory
from utils.system.errors import UserError
from utils.training.compute import Compute
from utils.training.epochs import TrainingBatches, evaluate, train_epoch
from utils.training.exponential import ExponentialAverage
from utils.training.folder import (
    CHECKPOINT,
    KEPT_OPTIMIZER,
    NOBODY,
    TRAJECTORY,
    TRAJECTORY_SUMS,
    RunFolder,
    Watchers,
)
from utils.training.optimizers import make_optimizer, make_scheduler
from utils.training.seeding import INITIAL_WEIGHTS, epoch_generator, stream_seed
from utils.training.settings import TrainingSettings, environment

# images in a test batch that is no part of the result, by device; else the training's
TEST_BATCH_SIZE = {"cpu": 500, "cuda": 1000}


def tested_at_once(
    settings: TrainingSettings, device: torch.device, asked: int | None = None
) -> int:
    """Images in a test batch: as set where the result depends on it, else as asked for, else what
    suits the device."""
    suits = TEST_BATCH_SIZE.get(device.type, settings.batch_size)
    return settings.test_batch_size or asked or suits


class Run:
    """A run with certain settings in a folder, new or gone on with; a context manager, as the
    folder is held against other processes until it is left.

    Attributes:
        folder: the path of the folder.
        store: reads and writes the folder's sealed files.
        settings: what the run's numbers depend on.
        compute: how it is computed; device and ranks are the compute's.
        dataset: the images, on the device.
        transform: makes the model's input of them.
        model: the model that is trained.
        n_weights: N.
        trajectory: the stored snapshots.
        train_history: (mean loss, accuracy, seconds) of each epoch's training.
        step_states: the states of the averages over steps where the run goes on, by name.
    """

    def __init__(
        self,
        folder: Path,
        settings: TrainingSettings,
        dataset: Dataset,
        compute: Compute,
        watchers: Watchers = NOBODY,
        overwrite: bool = False,
        weights: str | None = None,
        test_batch_size: int | None = None,
    ) -> None:
        """Open the run, or start it; nothing is written or removed if it cannot.

        Args:
            compute: its ranks each open the run.
            watchers: what those that watch the run leave and need.
            overwrite: start afresh, and replace what the folder holds.
            weights: what a pretrained model starts from, as the command line has it.
            test_batch_size: images tested at once, where that is no setting; None for what suits
                the device.

        Raises UserError if other settings' results are in `folder`, another process works there, a
        file there is damaged, the model cannot be built or has too few weights, or the disk has no
        room for the trajectory.
        """
        self.folder, self.settings, self.compute = folder, settings, compute
        self.device, self.ranks = compute.device, compute.ranks
        self.entry = get_model(settings.model)
        self.test_batch_size = tested_at_once(settings, self.device, test_batch_size)
        self._watchers = watchers
        self._background = Background(self.device)
        self._theta: Tensor | None = None
        self._theta_host, self._state_copy = Host(), StateCopy(self.device)
        self._place: RunFolder | None = None
        try:
            with self.ranks.first_goes_first():
                self._place = RunFolder(folder, settings, watchers, self.ranks.first)
                self._open(dataset, overwrite and self.ranks.first, weights or DOWNLOADED)
            self._parallel = self.ranks.parallel(self.model)
        except BaseException:
            self.__exit__()
            raise

    def _open(self, dataset: Dataset, overwrite: bool, weights: str) -> None:
        place, settings = self._place, self.settings
        stored = None if overwrite else place.stored_state()
        self.dataset = dataset.to(self.device)
        self.transform = self.entry.transform_of(dataset)
        self.model = self._build_model(len(dataset.classes), weights)
        self.optimizer, self.scheduler = self.make_optimizer(self.model)
        self.n_weights = sum(layer_sizes(self.model))
        self._watchers.require(self.n_weights)
        place.require_room(self.n_weights)
        if stored is None:
            place.begin(
                {
                    "settings": asdict(settings),
                    "n_weights": self.n_weights,
                    "classes": list(dataset.classes),
                    "environment": environment(self.device, self.ranks.size),
                }
            )
        place.open()
        self.store = place.store
        self._replayed: nn.Module | None = None
        self._averages: dict[str, ExponentialAverage] = {}  # that take in every step
        self.step_states: dict[str, dict] = {}
        self.train_history: list[tuple[float, float, float]] = []
        self.trajectory = Trajectory(
            self.folder / TRAJECTORY,
            self.n_weights,
            self._background.wait,
            self.store.sums(TRAJECTORY_SUMS, writable=self.ranks.first),
        )
        self._load_checkpoint(stored)

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, *_) -> None:
        """Finish writing, and give the folder to other processes."""
        self._background.close()
        if self._place is not None:
            self._place.release()

    @property
    def epochs_done(self) -> int:
        return len(self.train_history)

    def record(self, command: str = "", data_dir: str | None = None) -> None:
        """Keep, with the run, the command that goes on with it and where its images are."""
        if self.ranks.first:
            self._place.record(command, data_dir)

    def in_background(self, call: Callable, *arguments) -> None:
        """Have something written while the next epoch trains, after all that was given before."""
        self._background.submit(call, *arguments)

    def wait(self) -> None:
        """Until all that was done so far is on the disk, on all ranks; raises OSError if it
        could not be written."""
        self._background.wait()
        self.ranks.wait()

    def make_optimizer(self, model: nn.Module) -> tuple[Optimizer, LRScheduler | None]:
        """An optimizer and a schedule for `model` with the run's settings."""
        settings = self.settings
        optimizer = make_optimizer(settings.optimizer, model, settings.lr, settings.momentum)
        steps = -(-len(self.dataset.train) // settings.batch_size)
        return optimizer, make_scheduler(
            settings.scheduler, optimizer, settings.epochs, steps, settings.lr_warmup
        )

    def follow_steps(self, name: str, average: ExponentialAverage) -> None:
        """Have an average take in the weights after every step from here on, and keep its state."""
        self._averages[name] = average

    def epochs(self) -> Iterator[tuple[int, nn.Module]]:
        """The run, an epoch at a time: those already trained from the trajectory, then the rest.

        Yields (epoch, module holding θ(epoch)), the model itself where the epoch was trained now.
        """
        for epoch in range(self.settings.epochs):
            if epoch < self.epochs_done:
                yield epoch, self.at(epoch)
            else:
                self._train(epoch)
                yield epoch, self.model

    def at(self, epoch: int) -> nn.Module:
        """The model as it was after an epoch, from the trajectory."""
        if self._replayed is None:
            self._replayed = copy.deepcopy(self.model)
        write_vector(self.trajectory[epoch], self._replayed)
        return self._replayed

    def batches(self, epoch: int, batch_size: int | None = None) -> TrainingBatches:
        """The training images as an epoch meets them.

        Args:
            batch_size: images in a batch, None for the run's own.
        """
        generator = epoch_generator(self.settings.seed, epoch, self.device, self.ranks.rank)
        size = batch_size or self.settings.batch_size
        return TrainingBatches(self.dataset, self.transform, size, generator, self.ranks)

    def train(
        self,
        epoch: int,
        model: nn.Module,
        optimizer: Optimizer,
        scheduler: LRScheduler | None,
        parallel: nn.Module,
        after_step: Sequence[Callable[[nn.Module], None]] = (),
    ) -> tuple[float, float]:
        """Train an epoch; returns its mean loss and accuracy (a fraction).

        Args:
            parallel: `ranks.parallel(model)`.
            after_step: each is called with the model after every step.
        """
        batches = self.compute.progress(self.batches(epoch), epoch)
        return train_epoch(model, batches, optimizer, scheduler, self.compute, after_step, parallel)

    def test(self, module: nn.Module) -> tuple[float, float]:
        """Mean loss and accuracy (a fraction) of a module on the test images."""
        return evaluate(
            module, self.dataset.test, self.transform, self.test_batch_size, self.compute
        )

    def require_finite(self, loss: float, theta: Tensor, epoch: int, who: str) -> None:
        """Raise UserError if training went to NaN or infinity."""
        finite = math.isfinite(loss) and (theta.sum().isfinite() or theta.isfinite().all())
        if not finite:  # a sum tells at once, unless it alone is beyond float32
            raise UserError(
                f"--lr {self.settings.lr:g}: the training loss of {who} became NaN or infinite in "
                f"epoch {epoch}; the {epoch} before it are kept in {self.folder}; try a smaller "
                "--lr"
            )

    def _train(self, epoch: int) -> None:
        start = time.perf_counter()
        averages = [average.update_parameters for average in self._averages.values()]
        loss, accuracy = self.train(
            epoch, self.model, self.optimizer, self.scheduler, self._parallel, averages
        )
        self._background.wait()  # for the epoch before; one is under way at a time
        self._theta = theta = read_vector(self.model, out=self._theta)
        self.require_finite(loss, theta, epoch, "the run")
        self.train_history.append((loss, accuracy, time.perf_counter() - start))
        if self.ranks.first:
            self._state_copy.take(self._state())
        self._background.submit(self._store, epoch, theta)

    def _store(self, epoch: int, theta: Tensor) -> None:
        """Write what an epoch leaves behind."""
        own = self.ranks.share(self.n_weights)
        if self.ranks.first:
            theta = self._theta_host.bring(theta)
            self.trajectory.write(theta[own], own.start)
            self.trajectory.seal(theta)
        else:
            self.trajectory.write(self._theta_host.bring(theta[own]), own.start)
        self.ranks.wait_in_background()
        self.trajectory.count(in_file=self.ranks.first)
        if self.ranks.first:
            state = self._state_copy.on_host()
            if epoch == self._watchers.keep_optimizer_at:
                kept = {"epoch": epoch} | {name: state[name] for name in ("optimizer", "scheduler")}
                self.store.save(kept, KEPT_OPTIMIZER)
            self.store.save(state, CHECKPOINT)

    def _build_model(self, num_classes: int, weights: str) -> nn.Module:
        torch.manual_seed(stream_seed(self.settings.seed, INITIAL_WEIGHTS))
        model = self.entry.build(num_classes, weights)
        model = model.to(self.device, memory_format=torch.channels_last)
        return self.ranks.synchronised(model)

    def _state(self) -> dict:
        """What the next epoch starts from, beside the snapshot of the model."""
        return {
            "model": not_in_vector(self.model.state_dict()),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": None if self.scheduler is None else self.scheduler.state_dict(),
            "averages": {name: avg.state_dict() for name, avg in self._averages.items()},
            "train_history": self.train_history,
        }

    def _load_checkpoint(self, state: dict | None) -> None:
        if state:
            with usable(self.folder / CHECKPOINT, AFRESH):
                self.train_history = [tuple(entry) for entry in state["train_history"]]
        elif len(self.trajectory) > 1:  # a kill before the first checkpoint leaves one at most
            raise UserError(
                f"{self.folder / CHECKPOINT} is not there, {self.trajectory.path} holds "
                f"{len(self.trajectory)} snapshots: {AFRESH}"
            )
        if len(self.trajectory) < self.epochs_done:
            raise UserError(
                f"{self.trajectory.path} holds {len(self.trajectory)} snapshots, "
                f"{self.epochs_done} epochs were trained: {AFRESH}"
            )
        if state:
            with usable(self.folder / CHECKPOINT, AFRESH):
                theta = self.trajectory[self.epochs_done - 1]
                restore(self.model, theta, state["model"])
                self.optimizer.load_state_dict(state["optimizer"])
                if self.scheduler is not None:
                    self.scheduler.load_state_dict(state["scheduler"])
                self.step_states = state["averages"]
        self.trajectory.truncate(self.epochs_done)
