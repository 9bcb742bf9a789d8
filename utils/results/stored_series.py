"""What the command on checkpoints left, opened for pictures: its sample stands for a run."""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from utils.cmd.checkpoints.series import PARAMETERS, SAMPLED
from utils.cmd.model import CMDModel
from utils.system.errors import UserError

MAKES = "python -m utils.cmd_utils CHECKPOINT … --output {} --overwrite"
WARMUP = 3  # online CMD's warm-up is this part of the series
MEMORY = 10.0  # of adaptive CMD, in checkpoints
LR = 0.0  # is not known


@dataclass(frozen=True)
class SeriesSettings:
    """What pictures ask of a run's settings; an epoch is a checkpoint.

    Attributes:
        words: what the series is, for a caption.
        epochs: how many checkpoints there are.
        modes: M.
        samples: K.
        warmup_cmd: the checkpoint that ends online CMD's warm-up.
    """

    words: str
    epochs: int
    modes: int
    samples: int
    warmup_cmd: int
    start: int = 0
    seed: int = 0
    memory: float = MEMORY
    lr: float = LR
    unit = "Checkpoint"


class SampledTrajectory:
    """The sampled weights as a trajectory.

    Attributes:
        array: float32 [T, K].
    """

    def __init__(self, rows: Tensor) -> None:
        """Take rows, float32 [T, K]."""
        self.array: np.ndarray = rows.numpy()

    def __getitem__(self, moment: int) -> Tensor:
        """The weights at a moment, float32 [K]."""
        return torch.from_numpy(self.array[moment])


class WeightVector(nn.Module):
    """So many weights, as a module that CMD can follow."""

    def __init__(self, count: int) -> None:
        """Make the weights."""
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(count))


class StoredSeries:
    """The results of the command on checkpoints, with what pictures ask of a run.

    Pictures are of the sample, but for the modes' shares of the layers, which are of all weights.

    Attributes:
        folder: the command's output folder.
        settings: those that pictures ask for.
        layers: (name, number of weights) of each layer of θ.
        all_modes: [N], the mode of every weight.
        posthoc: CMD's parameters of the sample alone.
        sample: int64 [K], places in the sample itself.
        trajectory: of the sample.
    """

    def __init__(self, folder: Path) -> None:
        """Read the results in a folder.

        Raises:
            UserError: they are not there, or not whole.
        """
        self.folder = folder
        remedy = f"this makes it: {MAKES.format(folder)}"
        for name in (PARAMETERS, SAMPLED):
            if not (folder / name).is_file():
                raise UserError(f"{folder / name} is not there; {remedy}")
        try:
            cmd = CMDModel.load(folder / PARAMETERS)
            with safe_open(folder / SAMPLED, "pt") as file:
                told = file.metadata()
                index, rows = file.get_tensor("sample"), file.get_tensor("trajectory")
            names, sizes, moments = (json.loads(told[k]) for k in ("layers", "sizes", "moments"))
            self.layers = list(zip(names, sizes, strict=True))
            at = torch.searchsorted(index, cmd.reference)
            if (
                sum(sizes) != cmd.n_weights
                or rows.shape != (len(moments), len(index))
                or not torch.equal(index[at.clamp(max=len(index) - 1)], cmd.reference)
            ):
                raise ValueError("the files are not of one fit")
        except (OSError, ValueError, TypeError, KeyError, SafetensorError) as error:
            raise UserError(f"{folder / SAMPLED} cannot be used ({error}); {remedy}") from error
        self.all_modes = cmd.mode
        self.posthoc = CMDModel(
            cmd.a[index], cmd.b[index], cmd.mode[index], at, cmd.reference_history
        )
        self.sample = torch.arange(len(index))
        self.trajectory = SampledTrajectory(rows)
        self.settings = SeriesSettings(
            words=f"{len(index):,} sampled weights of {len(moments)} checkpoints, {moments[0]} … "
            f"{moments[-1]}",
            epochs=len(moments),
            modes=cmd.modes,
            samples=len(index),
            warmup_cmd=max(1, len(moments) // WARMUP),
        )

    @cached_property
    def model(self) -> nn.Module:
        """A module of the sampled weights."""
        return WeightVector(len(self.sample))
