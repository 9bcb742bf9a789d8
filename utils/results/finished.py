"""A finished run, opened to look at."""

import warnings
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn

from utils.base_utils import get_model
from utils.cmd.clustering import sample_weights
from utils.cmd.fitting import CMDModel
from utils.cmd.vector import layer_names, layer_sizes
from utils.data.datasets import Dataset
from utils.methods.base import Method
from utils.methods.cmd import PostHocCMD, load_cmd
from utils.results.record import Record
from utils.storage.trajectory import Trajectory
from utils.system.errors import UserError
from utils.system.ranks import ALONE
from utils.training.precision import Arithmetic
from utils.training.run import TRAJECTORY, TRAJECTORY_SUMS, tested_at_once


class FinishedRun:
    """What a run has left in its folder; nothing of it is changed.

    record: its settings, commands and metrics. settings: the former. arithmetic: of its passes, not
    compiled. ranks: those that look at it.
    """

    ranks = ALONE

    def __init__(self, folder: Path) -> None:
        """Open the run.

        Raises UserError if there is none in the folder or a file of it is damaged.
        """
        self.folder = folder
        self.record = Record(folder)
        self.settings = self.record.settings
        self.arithmetic = Arithmetic(self.settings.precision)

    @property
    def command(self) -> str:
        """The command that makes what is missing of the run."""
        commands = self.record.commands
        return commands[-1] if commands else f"python train_cmd.py --model {self.settings.model}"

    def require(self, name: str, method: type[Method] | None = None) -> Path:
        """The path of a file of the run.

        method: that makes it, if the run's command may lack it.

        Raises UserError, naming the command that makes it or why none does, if it is not there.
        """
        path = self.folder / name
        if path.exists():
            return path
        if method is None:
            raise UserError(f"{path} is not there; this makes it: {self.command}")
        command = f"{self.command} {method.flags[0]} True"
        try:
            method.check(self.settings)
        except UserError as error:
            raise UserError(
                f"{path} is not there; {command} would make it, but for {error}"
            ) from error
        raise UserError(f"{path} is not there; this makes it: {command}")

    def tested_at_once(self, device: torch.device) -> int:
        """Images in a test batch of the run's, on a device."""
        return tested_at_once(self.settings, device)

    @cached_property
    def model(self) -> nn.Module:
        """A model of the run's architecture, its weights of no meaning."""
        entry = get_model(self.settings.model)
        options = {"weights": "none"} if entry.pretrained else {}
        model = entry.build(num_classes=len(self.record.classes), **options).eval()
        return model.to(memory_format=torch.channels_last)  # as the run's was

    @cached_property
    def layers(self) -> list[tuple[str, int]]:
        """(name, weights) of each layer, in θ's order."""
        return list(zip(layer_names(self.model), layer_sizes(self.model), strict=True))

    @cached_property
    def trajectory(self) -> Trajectory:
        """All T snapshots.

        Raises UserError if they are not all there.
        """
        path, n_weights = self.require(TRAJECTORY), sum(size for _, size in self.layers)
        sums = self.record.store.sums(TRAJECTORY_SUMS, writable=False)
        trajectory = Trajectory(path, n_weights, sums=sums)
        if len(trajectory) < self.settings.epochs:
            raise UserError(
                f"{path} holds {len(trajectory)} of {self.settings.epochs} epochs; this goes on "
                f"with them: {self.command}"
            )
        return trajectory

    def dataset(self, data_dir: str | None = None) -> Dataset:
        """The images that the run was trained and tested on.

        data_dir: where they lie, None for where the run had them.

        Raises UserError if those to be had are others.
        """
        settings = self.settings
        if data_dir is None:
            kept = self.record.data_dir
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
        generator = torch.Generator().manual_seed(self.settings.seed)
        with warnings.catch_warnings():  # that it is small was said when the run was made
            warnings.simplefilter("ignore", UserWarning)
            return sample_weights(sizes, self.settings.samples, generator)

    @cached_property
    def posthoc(self) -> CMDModel:
        """CMD's parameters, fitted on all snapshots.

        Raises UserError if they are not there or of another model.
        """
        path = self.require(PostHocCMD.files()[0], PostHocCMD)
        cmd = load_cmd(self.record.store, path.name)
        if cmd.n_weights != sum(size for _, size in self.layers):
            raise UserError(
                f"{path} is of a model of {cmd.n_weights:,} weights, not of this run: remove it, "
                f"and this makes it: {self.command}"
            )
        return cmd
