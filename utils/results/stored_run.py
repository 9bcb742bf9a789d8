"""A stored run, opened to be read: small files at once, weights when they are first needed."""

import itertools
import shlex
import shutil
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn

from utils.base_utils import get_model
from utils.cmd.clustering import sample_weights
from utils.cmd.model import CMDModel
from utils.cmd.vector import layer_names, layer_sizes
from utils.data.datasets import Dataset
from utils.methods.base import Method
from utils.methods.cmd import PostHocCMD, load_cmd
from utils.methods.identity import undecided
from utils.methods.registry import METHODS, Settings
from utils.results.summary import COMPARED, settled
from utils.storage.metrics import Metrics
from utils.storage.store import CONFIG, Store, read_config, usable
from utils.storage.trajectory import Trajectory
from utils.system.errors import UserError
from utils.training.compute import Compute
from utils.training.folder import (
    METRICS,
    METRICS_SUMS,
    SUMMARY,
    TRAJECTORY,
    TRAJECTORY_SUMS,
    results_dir_of,
)
from utils.training.precision import Arithmetic
from utils.training.run import tested_at_once
from utils.training.settings import differences

RESULTS_DIR = "--results_dir"
KEPT = (CONFIG, METRICS, METRICS_SUMS, SUMMARY)


class StoredRun:
    """What a run has left in its folder, where nothing is changed.

    Attributes:
        folder: the path of the folder.
        settings: what the run's numbers depend on.
        commands: those that made the run, in order.
        classes: the names of the data set's classes.
        data_dir: the folder of its images when they were last used, None where that was not kept.
        hardware: the processor, and torch's version.
        store: reads the run's files.
        metrics: the rows of all methods.
    """

    def __init__(self, folder: Path) -> None:
        """Read the run in `folder`.

        Raises UserError if there is none or a file of it is damaged.
        """
        self.folder = folder
        if not (folder / CONFIG).exists():
            raise UserError(f"{folder} holds no run")
        config = read_config(folder)
        remedy = "it may be of another version of this suite"
        with usable(folder / CONFIG, remedy):
            self.settings = Settings(**config["settings"])
            self.commands = [str(command) for command in config["commands"]]
            self.classes = [str(name) for name in config["classes"]]
            data_dir = config.get("data_dir")
            self.data_dir = None if data_dir is None else str(data_dir)
            environment = config["environment"]
            self.hardware = f"{environment['processor']}, torch {environment['versions']['torch']}"
        self.store = Store(folder, config["run"])
        sums = self.store.sums(METRICS_SUMS, writable=False)
        self.metrics = Metrics.stored(folder / METRICS, sums)

    def epochs(self, method: str) -> int:
        """Count the epochs of a method that have a row."""
        return sum(self.metrics.has(method, t) for t in range(self.settings.epochs))

    def finished(self, method: str) -> bool:
        """Whether every epoch of a method has a row."""
        return self.epochs(method) == self.settings.epochs

    def last(self, method: str) -> float:
        """Return a method's test accuracy at its last epoch, a fraction."""
        return settled(self.metrics.of(method))[COMPARED[0]]

    def mean_last(self, method: str) -> float:
        """Return a method's test accuracy, a fraction, as a mean over its last ten epochs."""
        return settled(self.metrics.of(method))[COMPARED[1]]

    def copy_to(self, folder: Path) -> None:
        """Copy the run's small files to another folder."""
        folder.mkdir(parents=True, exist_ok=True)
        for name in KEPT:
            if (self.folder / name).exists():
                shutil.copyfile(self.folder / name, folder / name)

    @property
    def command(self) -> str:
        """The command that makes what the run lacks, in the folder where it is now."""
        made = self.commands[-1:] or [f"python train_cmd.py --model {self.settings.model}"]
        words = shlex.split(made[0])
        while RESULTS_DIR in words:
            at = words.index(RESULTS_DIR)
            del words[at : at + 2]
        return shlex.join([*words, RESULTS_DIR, str(results_dir_of(self.folder))])

    def require(self, name: str, method: type[Method] | None = None) -> Path:
        """Return the path of a file of the run.

        Args:
            name: the file's.
            method: the one that makes the file, if the run's command may leave it out.

        Raises UserError, naming the command that makes it or why none does, if it is not there.
        """
        path = self.folder / name
        if path.exists():
            return path
        if method is None:
            raise UserError(f"{path} is not there; this makes it: {self.command}")
        command, has = self.command, f"{method.flags[0]} True"
        if has not in command:
            command += f" {has}"
        try:
            method.check(self.settings)
        except UserError as error:
            raise UserError(
                f"{path} is not there; {command} would make it, but for {error}"
            ) from error
        raise UserError(f"{path} is not there; this makes it: {command}")

    def compute(self, device: torch.device) -> Compute:
        """Return how the run's models are tested on a device."""
        return Compute(device, Arithmetic(self.settings.precision))

    def tested_at_once(self, device: torch.device) -> int:
        """Return how many images a test batch of the run has, on a device."""
        return tested_at_once(self.settings, device)

    @cached_property
    def model(self) -> nn.Module:
        """A model of the run's architecture, whose weights mean nothing."""
        model = get_model(self.settings.model).build(len(self.classes)).eval()
        return model.to(memory_format=torch.channels_last)  # as the run's was

    @cached_property
    def layers(self) -> list[tuple[str, int]]:
        """(name, number of weights) of each layer, in θ's order."""
        return list(zip(layer_names(self.model), layer_sizes(self.model), strict=True))

    @property
    def all_modes(self) -> Tensor:
        """[N], the mode of every weight by post-hoc CMD.

        Raises UserError if the run has none.
        """
        return self.posthoc.mode

    @cached_property
    def trajectory(self) -> Trajectory:
        """All T snapshots.

        Raises UserError if they are not all there.
        """
        path, n_weights = self.require(TRAJECTORY), sum(size for _, size in self.layers)
        sums = self.store.sums(TRAJECTORY_SUMS, writable=False)
        trajectory = Trajectory(path, n_weights, sums=sums)
        if len(trajectory) < self.settings.epochs:
            raise UserError(
                f"{path} holds {len(trajectory)} of {self.settings.epochs} epochs; this goes on "
                f"with them: {self.command}"
            )
        return trajectory

    def dataset(self, data_dir: str | None = None) -> Dataset:
        """Load the images that the run was trained and tested on.

        Args:
            data_dir: the folder that they are in; None for the one that the run used.

        Raises UserError if the images there are others.
        """
        settings = self.settings
        if data_dir is None:
            kept = self.data_dir
            data_dir = "data" if kept is None else kept
        entry = get_model(settings.model)
        dataset = entry.load_dataset(settings.dataset, data_dir, settings.limit)
        if dataset.fingerprint() != settings.data:
            raise UserError(
                f"--data_dir {data_dir}: its images are not those of the run in {self.folder}, "
                f"which was made by: {self.command}"
            )
        return dataset

    @cached_property
    def sample(self) -> Tensor:
        """The weights that CMD clustered, int64 [K]."""
        sizes = [size for _, size in self.layers]
        with warnings.catch_warnings():  # the run itself has warned of a small sample
            warnings.simplefilter("ignore", UserWarning)
            return sample_weights(sizes, self.settings.samples, self.settings.seed)

    @cached_property
    def posthoc(self) -> CMDModel:
        """CMD's parameters, fitted on all snapshots.

        Raises UserError if they are not there or of another model.
        """
        path = self.require(PostHocCMD.files()[0], PostHocCMD)
        cmd = load_cmd(self.store, path.name)
        if cmd.n_weights != sum(size for _, size in self.layers):
            raise UserError(
                f"{path} is of a model of {cmd.n_weights:,} weights, not of this run: remove it, "
                f"and this makes it: {self.command}"
            )
        return cmd


def require_alike(runs: Sequence[StoredRun]) -> None:
    """Raise UserError unless the runs differ only in the seed, among the settings that their rows
    depend on: a mean over them has to be of one experiment."""
    for first, other in itertools.combinations(runs, 2):
        both = [m for m in METHODS if first.metrics.of(m.name) and other.metrics.of(m.name)]
        free = undecided(first.settings, both, tested=True) | {"seed"}
        found = differences(other.settings, asdict(first.settings), free)
        if found:
            raise UserError(
                f"{other.folder} (here) cannot be averaged with {first.folder} (there): "
                f"{'; '.join(found)}; leave one of them out of --seeds, or choose another "
                "--results_dir"
            )
