"""One training run in its folder: trained an epoch at a time, watched by methods, resumable.

The order of writing makes a kill at any moment harmless. After an epoch the snapshot is appended
to the trajectory, then the checkpoint replaced, then the row of each method tested appended, all
while the next epoch trains. A restart goes on from the checkpoint, forgets a snapshot newer than
it, and shows the methods the stored snapshots again, testing only where a row is missing.
"""

import copy
import math
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.swa_utils import AveragedModel

from utils.base_utils import evaluate, get_model, train_epoch
from utils.cmd.vector import layer_sizes, read_vector, write_vector
from utils.data.datasets import Dataset
from utils.methods.embedded import EmbeddedCMD
from utils.methods.identity import refused
from utils.methods.registry import METHODS, Method
from utils.storage.background import Background
from utils.storage.files import remove_drafts, require_room
from utils.storage.lock import FolderLock
from utils.storage.metrics import Metrics, Row
from utils.storage.store import AFRESH, CONFIG, Store, read_config, usable
from utils.storage.trajectory import Trajectory
from utils.system.errors import UserError
from utils.system.ranks import ALONE, Ranks
from utils.training.precision import Arithmetic
from utils.training.seeding import INITIAL_WEIGHTS, epoch_generator, stream_seed
from utils.training.settings import Settings, environment

CHECKPOINT, KEPT_OPTIMIZER = "checkpoint.pt", "optimizer.pt"
TRAJECTORY, TRAJECTORY_SUMS = "trajectory.npy", "trajectory.sums"
TEST_BATCH_SIZE = {
    "cpu": 500,
    "cuda": 1000,
}  # where the result does not depend on it; else the training's
METRICS, METRICS_SUMS = "metrics.csv", "metrics.sums"
SUMMARY, PLOT = "summary.json", "all_methods_test_acc.png"
OWN_FILES = (CONFIG, CHECKPOINT, KEPT_OPTIMIZER, TRAJECTORY, TRAJECTORY_SUMS)
OWN_FILES += (METRICS, METRICS_SUMS, SUMMARY, PLOT)
OWN_FILES += tuple(
    file for method in METHODS for file in (*method.files(), *method.scratch_files())
)


def tested_at_once(settings: Settings, device: torch.device, asked: int | None = None) -> int:
    """Images in a test batch: as set where the result depends on it, else as asked for, else what
    suits the device."""
    suits = TEST_BATCH_SIZE.get(device.type, settings.batch_size)
    return settings.test_batch_size or asked or suits


class Run:
    """The run with the given settings in `folder`, new or gone on with; a context manager, as
    the folder is held against other processes until it is left."""

    def __init__(
        self,
        folder: Path,
        settings: Settings,
        dataset: Dataset,
        device: torch.device,
        command: str = "",
        overwrite: bool = False,
        progress: Callable[[Iterable, int], Iterable] = lambda batches, epoch: batches,
        ranks: Ranks = ALONE,
        compiled: bool = False,
        test_batch_size: int | None = None,
        weights: str | None = None,
        data_dir: str | None = None,
    ) -> None:
        """Open the run, or start it; nothing is written or removed if it cannot.

        command: what was asked for, kept with the run.
        progress: wraps the batches of an epoch, given with its number.
        ranks: those that work on it, each of which opens it.
        compiled: whether the model's passes are compiled.
        test_batch_size: images tested at once, where that is no setting; None for what suits the
            device.
        weights: what a pretrained model starts from, as the command line has it.
        data_dir: where the images lie, kept with the run; None for where they are known to.

        Raises UserError if other settings' results lie in `folder`, another process works there, a
        file there is damaged, the model cannot be built or has fewer weights than modes, or the
        disk has no room for the trajectory.
        """
        self.folder, self.settings, self.device, self.ranks = folder, settings, device, ranks
        self.progress = progress
        self.entry = get_model(settings.model)
        self.arithmetic = Arithmetic(settings.precision, compiled)
        self.test_batch_size = tested_at_once(settings, device, test_batch_size)
        self._data_dir = data_dir
        self._weights = weights or "imagenet"
        self._background = Background(device)
        self._lock: FolderLock | None = None
        try:
            with ranks.first_goes_first():
                if ranks.first and folder.is_dir():
                    self._lock = FolderLock(folder)
                self._open(dataset, command, overwrite and ranks.first)
            self._parallel = ranks.parallel(self.model)
        except BaseException:
            self.__exit__()
            raise

    def _open(self, dataset: Dataset, command: str, overwrite: bool) -> None:
        folder, settings, device = self.folder, self.settings, self.device
        stored = None if overwrite else self._stored_state()
        self.dataset = dataset.to(device)
        self.model = self.ranks.synchronised(self._build_model(len(dataset.classes)))
        self.optimizer, self.scheduler = self.make_optimizer(self.model)
        self.n_weights = sum(layer_sizes(self.model))
        if settings.modes > self.n_weights:
            raise UserError(
                f"--modes {settings.modes}: --model {settings.model} has {self.n_weights:,} "
                "weights; choose fewer"
            )
        self._require_room(counting_own_files=overwrite)
        if stored is None:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = self._lock or FolderLock(folder)
            for name in OWN_FILES:
                (folder / name).unlink(missing_ok=True)
            self.store = Store.new(folder)
            self._write_config([], environment(device, self.ranks.size))
        self.store = Store.of(folder)
        if self.ranks.first:
            remove_drafts(folder, OWN_FILES)
        self._replayed: nn.Module | None = None
        self._averages: dict[str, AveragedModel] = {}  # that take in every step
        self.step_states: dict[str, dict] = {}  # theirs, where the run goes on
        self.train_history: list[tuple[float, float, float]] = []  # loss, accuracy, seconds
        writable = self.ranks.first
        self.trajectory = Trajectory(
            folder / TRAJECTORY,
            self.n_weights,
            self._background.wait,
            self.store.sums(TRAJECTORY_SUMS, writable=writable),
        )
        self._load_checkpoint(stored)
        self.metrics = Metrics(
            folder / METRICS, writable, self.store.sums(METRICS_SUMS, writable=writable)
        )
        if self.ranks.first:
            self._record(command)

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, *_) -> None:
        """Finish writing, and give the folder to other processes."""
        self._background.close()
        if self._lock is not None:
            self._lock.release()

    @property
    def epochs_done(self) -> int:
        return len(self.train_history)

    def wait(self) -> None:
        """Until all that was done so far is on the disk, on all ranks; raises OSError if it
        could not be written."""
        self._background.wait()
        self.ranks.wait()

    def make_optimizer(self, model: nn.Module) -> tuple[Optimizer, LRScheduler | None]:
        """An optimizer and a schedule for `model` with the run's settings."""
        settings = self.settings
        optimizer = self.entry.make_optimizer(
            model, settings.lr, settings.optimizer, settings.momentum
        )
        steps = -(-len(self.dataset.train) // settings.batch_size)
        return optimizer, self.entry.make_scheduler(
            optimizer, settings.epochs, steps, settings.scheduler, settings.lr_warmup
        )

    def follow_steps(self, name: str, average: AveragedModel) -> None:
        """Have an average take in the weights after every step from here on, and keep its state."""
        self._averages[name] = average

    def kept_optimizer(self) -> dict | None:
        """The optimizer's and the schedule's state at the epoch where embedding may begin."""
        if not (self.folder / KEPT_OPTIMIZER).exists():
            return None
        return self.store.load(KEPT_OPTIMIZER, f"--cmd_embed '' leaves it out, {AFRESH}")

    def remaining(self, methods: Sequence[type[Method]]) -> list[type[Method]]:
        """The methods that have an epoch to be tested or a file to be saved."""
        return [
            method
            for method in methods
            if not all(self.metrics.has(method.name, t) for t in range(self.settings.epochs))
            or not all((self.folder / name).exists() for name in method.files())
        ]

    def ahead(self, methods: Sequence[type[Method]]) -> tuple[int, int]:
        """How many epochs of training and how many tests the methods are from being finished."""
        epochs, settings = range(self.settings.epochs), self.settings
        training, tests = settings.epochs - self.epochs_done, 0
        for method in methods:
            missing = {epoch for epoch in epochs if not self.metrics.has(method.name, epoch)}
            own = set(method.training_epochs(settings))
            training += len(missing & own if self._under_way(method, missing) else own)
            tests += len(missing & set(epochs[method.departs(settings) :]))
        tests += sum(
            1
            for epoch in epochs
            if self._tested_before(epoch) is None
            and any(
                epoch < method.departs(settings) and not self.metrics.has(method.name, epoch)
                for method in methods
            )
        )
        return training, tests

    def _under_way(self, method: type[Method], missing: set[int]) -> bool:
        """Whether a method has a state of its own training to go on from, its rows missing only
        from some epoch on; else it trains from its departure."""
        state = any((self.folder / name).exists() for name in method.states())
        return state and missing == set(range(min(missing, default=0), self.settings.epochs))

    def epochs(self) -> Iterator[tuple]:
        """The run, an epoch at a time: those already trained from the trajectory, then the rest.

        Yields (epoch, module holding θ(epoch)).
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

    def follow(self, methods: list[Method], epoch: int, module: nn.Module) -> list[Row]:
        """Show an epoch to each method, and test it there unless that was done before.

        The run's own model is tested once for all methods. Returns the new rows.
        """
        rows = []
        for method in methods:
            start = time.perf_counter()
            follower = method.follow(epoch, module)
            if self.metrics.has(method.name, epoch):
                continue
            result = self._tested_before(epoch) if follower is module else None
            if result is None:
                result = evaluate(
                    follower,
                    self.dataset.test,
                    self.entry.transform,
                    self.test_batch_size,
                    self.arithmetic,
                    self.ranks,
                )
            if follower is not module and not math.isfinite(result[0]):
                warnings.warn(
                    f"{method.label}: its test loss in epoch {epoch} is {result[0]}", stacklevel=2
                )
            seconds = time.perf_counter() - start
            if method.trains:
                seconds += self.train_history[epoch][2]
            train = (None, None) if follower is module and not method.trains else method.trained
            row = Row(method.name, epoch, *(train or (None, None)), *result, round(seconds, 3))
            self.metrics.remember(row)
            if self.ranks.first:
                self._background.submit(self.metrics.write, row)
            rows.append(row)
        return rows

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

        parallel: `ranks.parallel(model)`. after_step: called with the model after every step.
        """
        return train_epoch(
            model,
            self.dataset.train,
            self.entry.transform,
            optimizer,
            scheduler,
            self.settings.batch_size,
            epoch_generator(self.settings.seed, epoch, self.device, self.ranks.rank),
            self.dataset.mirror,
            lambda batches: self.progress(batches, epoch),
            after_step,
            self.arithmetic,
            self.ranks,
            parallel,
        )

    def require_finite(self, loss: float, module: nn.Module, epoch: int, who: str) -> None:
        """Raise UserError if training went to NaN or infinity."""
        if not (math.isfinite(loss) and read_vector(module).isfinite().all()):
            raise UserError(
                f"--lr {self.settings.lr:g}: the training loss of {who} became NaN or infinite in "
                f"epoch {epoch}; the {epoch} before it are kept in {self.folder}; try a smaller "
                "--lr"
            )

    def _tested_before(self, epoch: int) -> tuple[float, float] | None:
        """Test loss and accuracy of the run's own model, if a method had it tested."""
        for method in METHODS:
            if epoch < method.departs(self.settings) and self.metrics.has(method.name, epoch):
                row = self.metrics.get(method.name, epoch)
                return row.test_loss, row.test_acc
        return None

    def _train(self, epoch: int) -> None:
        start = time.perf_counter()
        averages = [average.update_parameters for average in self._averages.values()]
        loss, accuracy = self.train(
            epoch, self.model, self.optimizer, self.scheduler, self._parallel, averages
        )
        self.require_finite(loss, self.model, epoch, "the run")
        self._background.wait()  # for the epoch before; one is under way at a time
        self.train_history.append((loss, accuracy, time.perf_counter() - start))
        state = copy.deepcopy(self._state()) if self.ranks.first else {}
        self._background.submit(self._store, epoch, read_vector(self.model), state)

    def _store(self, epoch: int, theta: Tensor, state: dict) -> None:
        """Write what an epoch leaves behind."""
        own = self.ranks.share(self.n_weights)
        self.trajectory.write(theta[own], own.start)
        if self.ranks.first:
            self.trajectory.seal(theta)
        self.ranks.wait_in_background()
        self.trajectory.count(in_file=self.ranks.first)
        if self.ranks.first:
            if epoch == EmbeddedCMD.departs(self.settings):
                kept = {"epoch": epoch} | {name: state[name] for name in ("optimizer", "scheduler")}
                self.store.save(kept, KEPT_OPTIMIZER)
            self.store.save(state, CHECKPOINT)

    def _build_model(self, num_classes: int) -> nn.Module:
        options = {"weights": self._weights} if self.entry.pretrained else {}
        torch.manual_seed(stream_seed(self.settings.seed, INITIAL_WEIGHTS))
        try:
            model = self.entry.build(num_classes=num_classes, **options)
        except (OSError, ValueError) as error:
            raise UserError(
                f"--weights {self._weights}: {error}; give a state file of torchvision's "
                "vit_b_16, or --weights none to train from scratch"
            ) from error
        return model.to(self.device, memory_format=torch.channels_last)

    def _stored_state(self) -> dict | None:
        """What the run in the folder goes on from: its checkpoint, {} where no epoch is finished,
        None where there is no run.

        Raises UserError if something that is stored depends on other settings.
        """
        if not (self.folder / CONFIG).exists():
            foreign = [name for name in OWN_FILES if (self.folder / name).exists()]
            if foreign:
                raise UserError(
                    f"{self.folder} holds {foreign[0]} but no {CONFIG}: choose another "
                    "--results_dir, or --overwrite to start afresh"
                )
            return None
        config, state = read_config(self.folder), {}
        if (self.folder / CHECKPOINT).exists():
            state = Store(self.folder, config["run"]).load(CHECKPOINT, AFRESH)
        metrics = Metrics(self.folder / METRICS, writable=False)
        with usable(self.folder / CHECKPOINT, AFRESH):
            averages = set(state.get("averages", ()))
        with usable(self.folder / CONFIG, AFRESH):
            found = refused(self.folder, self.settings, config["settings"], metrics, averages)
        if found:
            raise UserError(
                f"{self.folder} holds a run with other settings: {'; '.join(found)}; "
                "choose another --results_dir, or --overwrite to start afresh"
            )
        return state

    def _write_config(self, commands: list[str], where: dict) -> None:
        config = {
            "settings": asdict(self.settings),
            "n_weights": self.n_weights,
            "classes": list(self.dataset.classes),
            "data_dir": self._data_dir,
            "commands": commands,
            "environment": where,
        }
        self.store.write_config(config)

    def _record(self, command: str) -> None:
        """Add the command to those that made the run, and have the settings as they are now.

        What methods left behind whose settings are others now, and of which no row is there, goes.
        """
        config, settings = read_config(self.folder), asdict(self.settings)
        for method in METHODS:
            before = (config["settings"].get(name, settings[name]) for name in method.own_settings)
            if [*before] != [settings[name] for name in method.own_settings]:
                for name in method.files():
                    (self.folder / name).unlink(missing_ok=True)
        commands = config.get("commands", [])
        if self._data_dir is None:
            self._data_dir = config.get("data_dir")
        if command and command not in commands:
            commands.append(command)
        self._write_config(commands, config["environment"])

    def _require_room(self, counting_own_files: bool) -> None:
        """The trajectory, checkpoints (one more while it is replaced), the kept optimizer, and the
        parameters and states of all methods."""
        own = [self.folder / name for name in OWN_FILES]
        already = sum(path.stat().st_size for path in own if path.exists())
        states = 3 if self.settings.optimizer == "adam" else 2
        needed = 4 * self.n_weights * (self.settings.epochs + 5 * states + 25)
        what = f"{self.settings.epochs} snapshots of {self.n_weights:,} weights, and more"
        require_room(self.folder, needed - already, what)

    def _state(self) -> dict:
        """What the next epoch starts from."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": None if self.scheduler is None else self.scheduler.state_dict(),
            "averages": {name: avg.state_dict() for name, avg in self._averages.items()},
            "train_history": self.train_history,
        }

    def _load_checkpoint(self, state: dict | None) -> None:
        if state:
            with usable(self.folder / CHECKPOINT, AFRESH):
                self.model.load_state_dict(state["model"])
                self.optimizer.load_state_dict(state["optimizer"])
                if self.scheduler is not None:
                    self.scheduler.load_state_dict(state["scheduler"])
                self.train_history = [tuple(entry) for entry in state["train_history"]]
                self.step_states = state["averages"]
        if len(self.trajectory) < self.epochs_done:
            raise UserError(
                f"{self.trajectory.path} holds {len(self.trajectory)} snapshots, "
                f"{self.epochs_done} epochs were trained: {AFRESH}"
            )
        self.trajectory.truncate(self.epochs_done)
