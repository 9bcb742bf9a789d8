"""One training run in its folder: trained an epoch at a time, watched by methods, resumable.

The order of writing makes a kill at any moment harmless. After an epoch the snapshot is appended
to the trajectory, then the checkpoint replaced, then each method tested and its row appended. A
restart goes on from the checkpoint, forgets a snapshot newer than it, and shows the methods the
stored snapshots again, testing only where a row is missing.
"""

import copy
import json
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from pathlib import Path

import torch
from torch import nn

from utils.base_utils import evaluate, get_model, train_epoch
from utils.data import Dataset
from utils.errors import UserError
from utils.files import load_tensors, save_tensors, write_json
from utils.flat import layer_sizes, read_vector, write_vector
from utils.methods import METHODS, Method
from utils.metrics import Metrics, Row
from utils.seeding import INITIAL_WEIGHTS, epoch_generator, stream_seed
from utils.settings import Settings, environment
from utils.trajectory import Trajectory, TrajectoryError

CONFIG, CHECKPOINT, TRAJECTORY = "config.json", "checkpoint.pt", "trajectory.npy"
METRICS, SUMMARY, PLOT = "metrics.csv", "summary.json", "all_methods_test_acc.png"
OWN_FILES = (CONFIG, CHECKPOINT, TRAJECTORY, METRICS, SUMMARY, PLOT)
OWN_FILES += tuple(file for method in METHODS for file in method.files())


class Run:
    """The run with the given settings in `folder`, new or gone on with."""

    def __init__(
        self,
        folder: Path,
        settings: Settings,
        dataset: Dataset,
        device: torch.device,
        overwrite: bool = False,
    ) -> None:
        """Open the run, or start it; nothing is written or removed if it cannot.

        Raises UserError if other settings' results lie in `folder`, a file there is damaged, the
        model cannot be built, or the disk has no room for the trajectory.
        """
        self.folder, self.settings, self.device = folder, settings, device
        self.entry = get_model(settings.model)
        exists = not overwrite and self._matches_stored()
        self.dataset = dataset.to(device)
        self.model = self._build_model(len(dataset.classes))
        self.optimizer = self.entry.make_optimizer(self.model, settings.lr)
        steps = -(-len(dataset.train) // settings.batch_size)
        self.scheduler = self.entry.make_scheduler(self.optimizer, settings.epochs, steps)
        self.n_weights = sum(layer_sizes(self.model))
        self._require_room(counting_own_files=overwrite)
        if not exists:
            folder.mkdir(parents=True, exist_ok=True)
            for name in OWN_FILES:
                (folder / name).unlink(missing_ok=True)
            config = {"settings": asdict(settings), "n_weights": self.n_weights}
            write_json(config | {"environment": environment(device)}, folder / CONFIG)
        self._replayed: nn.Module | None = None
        self.train_history: list[tuple[float, float, float]] = []  # loss, accuracy, seconds
        try:
            self.trajectory = Trajectory(folder / TRAJECTORY, self.n_weights)
            self._load_checkpoint()
        except (TrajectoryError, ValueError) as error:
            raise UserError(f"{error}: --overwrite starts afresh") from error
        self.metrics = Metrics(folder / METRICS)

    @property
    def epochs_done(self) -> int:
        return len(self.train_history)

    def remaining(self, methods: list[Method]) -> list[Method]:
        """The methods that have an epoch to be tested or a file to be saved."""
        return [
            method
            for method in methods
            if not all(self.metrics.has(method.name, t) for t in range(self.settings.epochs))
            or not all((self.folder / name).exists() for name in method.files())
        ]

    def epochs(self, progress: Callable[[Iterable, int], Iterable]) -> Iterator[tuple]:
        """The run, an epoch at a time: those already trained from the trajectory, then the rest.

        Yields (epoch, module holding θ(epoch)).
        """
        for epoch in range(self.settings.epochs):
            if epoch < self.epochs_done:
                yield epoch, self.at(epoch)
            else:
                self._train(epoch, progress)
                yield epoch, self.model

    def at(self, epoch: int) -> nn.Module:
        """The model as it was after an epoch, from the trajectory."""
        if self._replayed is None:
            self._replayed = copy.deepcopy(self.model)
        write_vector(self.trajectory[epoch], self._replayed)
        return self._replayed

    def follow(self, methods: list[Method], epoch: int, module: nn.Module) -> list[Row]:
        """Show an epoch to each method, and test it there unless that was done before.

        A module that several methods want tested is tested once. Returns the new rows.
        """
        rows = []
        tested: dict[int, tuple[float, float, float]] = {}
        for method in methods:
            start = time.perf_counter()
            follower = method.follow(epoch, module)
            own = time.perf_counter() - start
            if self.metrics.has(method.name, epoch):
                continue
            if id(follower) not in tested:
                start = time.perf_counter()
                result = evaluate(
                    follower, self.dataset.test, self.entry.transform, self.settings.batch_size
                )
                tested[id(follower)] = (*result, time.perf_counter() - start)
            loss, accuracy, seconds = tested[id(follower)]
            trained = self.train_history[epoch] if method.trains else (None, None, 0.0)
            spent = round(own + seconds + trained[2], 3)
            rows.append(Row(method.name, epoch, *trained[:2], loss, accuracy, spent))
            self.metrics.add(rows[-1])
        return rows

    def _train(self, epoch: int, progress: Callable[[Iterable, int], Iterable]) -> None:
        start = time.perf_counter()
        loss, accuracy = train_epoch(
            self.model,
            self.dataset.train,
            self.entry.transform,
            self.optimizer,
            self.scheduler,
            self.settings.batch_size,
            epoch_generator(self.settings.seed, epoch, self.device),
            self.dataset.mirror,
            lambda batches: progress(batches, epoch),
        )
        theta = read_vector(self.model)
        if not (torch.tensor(loss).isfinite() and theta.isfinite().all()):
            raise UserError(
                f"--lr {self.settings.lr:g}: the training loss became NaN or infinite in epoch "
                f"{epoch}; the {epoch} before it are kept in {self.folder}; try a smaller --lr"
            )
        self.trajectory.append(theta)
        self.train_history.append((loss, accuracy, time.perf_counter() - start))
        self._save_checkpoint()

    def _build_model(self, num_classes: int) -> nn.Module:
        options = {"weights": self.settings.weights} if self.entry.pretrained else {}
        torch.manual_seed(stream_seed(self.settings.seed, INITIAL_WEIGHTS))
        try:
            model = self.entry.build(num_classes=num_classes, **options)
        except (OSError, ValueError) as error:
            raise UserError(
                f"--weights {self.settings.weights}: {error}; give a state file of torchvision's "
                "vit_b_16, or --weights none to train from scratch"
            ) from error
        return model.to(self.device, memory_format=torch.channels_last)

    def _matches_stored(self) -> bool:
        path = self.folder / CONFIG
        if not path.exists():
            foreign = [name for name in OWN_FILES if (self.folder / name).exists()]
            if foreign:
                raise UserError(
                    f"{self.folder} holds {foreign[0]} but no {CONFIG}: choose another "
                    "--results_dir, or --overwrite to start afresh"
                )
            return False
        try:
            stored = json.loads(path.read_text())["settings"]
            differences = self.settings.differences(stored)
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} is damaged: --overwrite starts afresh") from error
        if differences:
            raise UserError(
                f"{self.folder} holds a run with other settings: {'; '.join(differences)}; "
                "choose another --results_dir, or --overwrite to start afresh"
            )
        return True

    def _require_room(self, counting_own_files: bool) -> None:
        """The trajectory, two checkpoints (one being replaced) and both methods' parameters."""
        own = [self.folder / name for name in OWN_FILES]
        already = sum(path.stat().st_size for path in own if path.exists())
        states = 3 if self.entry.optimizer == "adam" else 2
        needed = 4 * self.n_weights * (self.settings.epochs + 2 * states + 5)
        existing = next(
            path for path in (self.folder, *self.folder.resolve().parents) if path.exists()
        )
        free = shutil.disk_usage(existing).free
        if needed - already > free:
            raise UserError(
                f"--results_dir {self.folder.parent}: the run needs {needed:,} bytes there "
                f"({self.settings.epochs} snapshots of {self.n_weights:,} weights, and more), "
                f"{free:,} are free: make room, or choose another --results_dir"
            )

    def _save_checkpoint(self) -> None:
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": None if self.scheduler is None else self.scheduler.state_dict(),
            "train_history": self.train_history,
        }
        save_tensors(state, self.folder / CHECKPOINT)

    def _load_checkpoint(self) -> None:
        path = self.folder / CHECKPOINT
        if path.exists():
            state = load_tensors(path)
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            if self.scheduler is not None:
                self.scheduler.load_state_dict(state["scheduler"])
            self.train_history = [tuple(entry) for entry in state["train_history"]]
        if len(self.trajectory) < self.epochs_done:
            raise ValueError(
                f"{self.trajectory.path} holds {len(self.trajectory)} snapshots, "
                f"{self.epochs_done} epochs were trained"
            )
        self.trajectory.truncate(self.epochs_done)
