"""The compared methods. To add one, add a class and name it in METHODS.

Every method watches one training run. After each epoch it is shown a module with that epoch's
weights θ(t), and gives back the module to be tested in its name.
"""

import copy
from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar

import torch
from torch import nn

from utils.clustering import sample_weights
from utils.errors import UserError
from utils.fitting import CMDModel, fit_cmd
from utils.flat import layer_sizes, read_vector, write_vector
from utils.online import OnlineCMD
from utils.settings import Settings
from utils.trajectory import Trajectory


class Method(ABC):
    """A compared method.

    name: in metrics.csv and summary.json. label: in the table and the plot. flags: on the command
    line, the first one the paper's. color: in every plot. trains: whether the run's own training
    is its. after_run: whether it needs the whole trajectory before its first test.
    """

    name: ClassVar[str]
    label: ClassVar[str]
    flags: ClassVar[tuple[str, ...]]
    default: ClassVar[bool]
    help: ClassVar[str]
    color: ClassVar[str]
    trains: ClassVar[bool] = False
    after_run: ClassVar[bool] = False

    def __init__(self, module: nn.Module, trajectory: Trajectory, settings: Settings) -> None:
        self.trajectory, self.settings = trajectory, settings

    @classmethod  # noqa: B027 (optional to override)
    def check(cls, settings: Settings) -> None:
        """Raise UserError if the method cannot run with these settings."""

    def prepare(self, folder: Path) -> None:  # noqa: B027
        """Called once before the first epoch is shown; after the run where `after_run`."""

    @abstractmethod
    def follow(self, epoch: int, module: nn.Module) -> nn.Module:
        """Take in θ(epoch), in `module`, and return what to test, which may be `module` itself."""

    def finish(self, folder: Path) -> None:  # noqa: B027
        """Called once after the last epoch: save what is worth keeping."""

    @classmethod
    def files(cls) -> tuple[str, ...]:
        """The files `prepare` and `finish` leave in the run's folder."""
        return ()

    @classmethod
    def n_parameters(cls, n_weights: int, n_epochs: int, folder: Path) -> int:
        """How many numbers describe the run of T epochs."""
        return n_weights * n_epochs


class SGD(Method):
    """The training run itself."""

    name, label, flags, default = "sgd", "SGD", ("--sgd",), True
    help = "test the trained weights themselves"
    color = "#666666"
    trains = True

    def follow(self, epoch: int, module: nn.Module) -> nn.Module:
        return module


class _CMD(Method):
    """What the CMD methods share: the file of the fitted parameters."""

    @classmethod
    def files(cls) -> tuple[str, ...]:
        return (f"{cls.name}.pt",)

    @classmethod
    def n_parameters(cls, n_weights: int, n_epochs: int, folder: Path) -> int:
        """a, b and mode of each weight, and each mode's reference with its curve."""
        modes = CMDModel.load(folder / cls.files()[0]).modes
        return 3 * n_weights + modes * (n_epochs + 1)


class OnlineCMDMethod(_CMD):
    """Online CMD, fitted at the end of the warm-up and updated after every epoch."""

    name, label, flags, default = "cmd_online", "Online CMD", ("--cmd_online",), True
    help = "fit CMD after the warm-up, and update it every epoch"
    color = "#0072B2"

    def __init__(self, module: nn.Module, trajectory: Trajectory, settings: Settings) -> None:
        super().__init__(module, trajectory, settings)
        self.online = OnlineCMD(
            module,
            modes=settings.modes,
            samples=settings.samples,
            warmup=settings.warmup_cmd,
            seed=settings.seed,
            start=settings.start,
            history=trajectory,
        )

    @classmethod
    def check(cls, settings: Settings) -> None:
        _check_sample(settings)
        last = settings.epochs - 1
        if not 1 <= settings.warmup_cmd <= last:
            fix = (
                f"choose 1 … {last} (--epochs {settings.epochs} − 1)"
                if last >= 1
                else "it needs --epochs 2 or more"
            )
            raise UserError(f"--warmup_cmd {settings.warmup_cmd}: {fix}, or --cmd_online ''")
        if settings.start >= settings.warmup_cmd:
            raise UserError(
                f"--start {settings.start}: choose 0 … {settings.warmup_cmd - 1} "
                f"(below --warmup_cmd {settings.warmup_cmd})"
            )

    def follow(self, epoch: int, module: nn.Module) -> nn.Module:
        self.online.update_parameters(module)
        return module if epoch < self.settings.warmup_cmd else self.online.module

    def finish(self, folder: Path) -> None:
        self.online.model.save(folder / self.files()[0])


class PostHocCMD(_CMD):
    """CMD fitted once on the whole run."""

    name, label, flags, default = "cmd_posthoc", "Post-hoc CMD", ("--cmd_PostHoc",), True
    help = "fit CMD on the whole run once it is over, and test it at every epoch"
    color = "#D55E00"
    after_run = True

    @classmethod
    def check(cls, settings: Settings) -> None:
        _check_sample(settings)
        if settings.start >= settings.epochs:
            raise UserError(
                f"--start {settings.start}: choose 0 … {settings.epochs - 1} "
                f"(below --epochs {settings.epochs})"
            )

    def __init__(self, module: nn.Module, trajectory: Trajectory, settings: Settings) -> None:
        super().__init__(module, trajectory, settings)
        self.module = copy.deepcopy(module)
        self.device = read_vector(module).device

    def prepare(self, folder: Path) -> None:
        path = folder / self.files()[0]
        if not path.exists():
            settings = self.settings
            generator = torch.Generator().manual_seed(settings.seed)
            sample = sample_weights(layer_sizes(self.module), settings.samples, generator)
            cmd = fit_cmd(
                self.trajectory.array, sample, settings.modes, settings.start, device=self.device
            )
            cmd.save(path)
        self.cmd = CMDModel.load(path).to(self.device)

    def follow(self, epoch: int, module: nn.Module) -> nn.Module:
        theta = read_vector(module)
        reference_weights = theta[self.cmd.reference]
        write_vector(self.cmd.reconstruct(reference_weights), self.module)
        return self.module


class PBFGS(Method):
    """P-BFGS, whose flags exist and say that it is not built yet."""

    name, label, flags, default = "pbfgs", "P-BFGS", ("--p_bfgs", "--pbfgs"), False
    help = "train on in a low-dimensional subspace (not built yet)"
    color = "#009E73"

    @classmethod
    def check(cls, settings: Settings) -> None:
        raise UserError(
            "--p_bfgs True: P-BFGS is not built yet; leave the flag out, or --p_bfgs ''"
        )

    def follow(self, epoch: int, module: nn.Module) -> nn.Module:
        raise NotImplementedError


METHODS: tuple[type[Method], ...] = (SGD, PostHocCMD, OnlineCMDMethod, PBFGS)


def _check_sample(settings: Settings) -> None:
    if settings.modes < 1:
        raise UserError(f"--modes {settings.modes}: choose 1 or more")
    if settings.samples < settings.modes:
        raise UserError(f"--samples {settings.samples}: choose at least --modes {settings.modes}")
