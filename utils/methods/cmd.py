"""Post-hoc and online CMD as compared methods."""

import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from torch import nn

from utils.base_utils import get_model
from utils.cmd.clustering import sample_weights
from utils.cmd.fitting import fit_cmd
from utils.cmd.model import CMDModel
from utils.cmd.online import OnlineCMD
from utils.cmd.vector import layer_sizes, read_vector, write_vector
from utils.methods.base import Method
from utils.storage.metrics import Metrics
from utils.storage.store import Store
from utils.storage.trajectory import Trajectory
from utils.system.arguments import at_least, memory
from utils.system.errors import UserError
from utils.system.options import option
from utils.system.ranks import ALONE, Ranks
from utils.training.run import Run
from utils.training.seeding import stream_seed
from utils.training.settings import MODELS_OWN, TrainingSettings


@dataclass(frozen=True, kw_only=True)
class FitSettings(TrainingSettings):
    """The settings of a fit, but for its last epoch."""

    group: ClassVar[str] = "CMD"

    modes: int = option(None, "M, modes at the most", int, metavar="M", told=MODELS_OWN)
    samples: int = option(None, "K, weights that are clustered", int, metavar="K", told=MODELS_OWN)
    start: int = option(0, "first epoch that CMD is fitted on", at_least(0), metavar="EPOCH")

    @classmethod
    def complete(cls, given: dict[str, Any]) -> dict[str, Any]:
        given = super().complete(given)
        for name in ("modes", "samples"):
            if given[name] is None:
                given[name] = getattr(get_model(given["model"]), name)
        return given


@dataclass(frozen=True, kw_only=True)
class WarmupSettings(TrainingSettings):
    """The warm-up of online CMD, which another method may share."""

    group: ClassVar[str] = "CMD"

    warmup_cmd: int = option(
        20, "F, last epoch of online CMD's warm-up, 1 … epochs − 1; epochs count from 0", int,
        metavar="EPOCH",
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class OnlineSettings(FitSettings, WarmupSettings):
    """The settings of online CMD."""


@dataclass(frozen=True, kw_only=True)
class AdaptiveSettings(OnlineSettings):
    """The settings of adaptive CMD."""

    memory: float = option(
        10, "H, of adaptive CMD: at epoch t, snapshot s counts (1 − 1/H)^(t − s)", memory,
        metavar="H",
    )  # fmt: skip


class _CMD(Method):
    """What the CMD methods share: the file of the fitted parameters."""

    @classmethod
    def files(cls) -> tuple[str, ...]:
        return (f"{cls.name}.pt",)

    @classmethod
    def n_parameters(cls, n_weights: int, settings: OnlineSettings, folder: Path) -> int:
        """a, b and mode of each weight, and each mode's reference with its curve."""
        modes = load_cmd(Store.of(folder), cls.files()[0]).modes
        return 3 * n_weights + modes * (settings.epochs + 1)


class OnlineCMDMethod(_CMD):
    """Online CMD, fitted at the end of the warm-up and updated after every epoch.

    Attributes:
        draw: the number of the sample's draw, 0 for the run's own (utils.methods.draws).
    """

    draw: ClassVar[int] = 0

    name, label, flags, default = "cmd_online", "Online CMD", ("--cmd_online",), True
    help = "fit CMD after the warm-up, and update it every epoch"
    color = "#0072B2"
    Settings = OnlineSettings

    def __init__(self, run: Run, metrics: Metrics) -> None:
        super().__init__(run, metrics)
        settings, memory = run.settings, self.memory(run.settings)
        if self.draw:
            settings = replace(settings, seed=stream_seed(settings.seed, self.draw))
        self.online = online_cmd(run.model, settings, run.trajectory, run.ranks, memory)

    @classmethod
    def memory(cls, settings: OnlineSettings) -> float | None:
        """H, None for the paper's."""
        return None

    @classmethod
    def check(cls, settings: OnlineSettings) -> None:
        check_online(settings, cls.flags[0])

    @classmethod
    def departs(cls, settings: OnlineSettings) -> int:
        return settings.warmup_cmd

    @classmethod
    def warmup_end(cls, settings: OnlineSettings) -> int | None:
        return settings.warmup_cmd

    def follow(self, epoch: int, module: nn.Module) -> nn.Module:
        self.online.update_parameters(module)
        return module if epoch < self.settings.warmup_cmd else self.online.module

    @classmethod
    def files(cls) -> tuple[str, ...]:
        return () if cls.draw else super().files()

    def finish(self) -> None:
        cmd = self.online.model
        if self.files() and self.run.ranks.first:
            self.run.store.save(cmd.state_dict(), self.files()[0])


class AdaptiveCMD(OnlineCMDMethod):
    """Online CMD with a memory: the same modes, a and b from the recent past."""

    name, label, flags, default = "cmd_adaptive", "Adaptive CMD", ("--cmd_adaptive",), False
    help = "online CMD that remembers the last epochs most (--memory)"
    color = "#332288"
    Settings = AdaptiveSettings

    @classmethod
    def memory(cls, settings: AdaptiveSettings) -> float | None:
        return settings.memory


class PostHocCMD(_CMD):
    """CMD fitted once on the whole run."""

    name, label, flags, default = "cmd_posthoc", "Post-hoc CMD", ("--cmd_PostHoc",), True
    help = "fit CMD on the whole run once it is over, and test it at every epoch"
    color = "#D55E00"
    Settings = FitSettings
    after_run = True

    @classmethod
    def states(cls) -> tuple[str, ...]:
        return cls.files()

    @classmethod
    def check(cls, settings: FitSettings) -> None:
        _check_sample(settings)
        if settings.start >= settings.epochs:
            raise UserError(
                f"--start {settings.start}: choose 0 … {settings.epochs - 1} "
                f"(below --epochs {settings.epochs})"
            )

    def __init__(self, run: Run, metrics: Metrics) -> None:
        super().__init__(run, metrics)
        self.module = copy.deepcopy(run.model)

    def prepare(self) -> None:
        run, settings, name = self.run, self.settings, self.files()[0]
        if not run.ranks.object_from_first((run.folder / name).exists):
            sample = sample_weights(layer_sizes(self.module), settings.samples, settings.seed)
            cmd = fit_cmd(
                run.trajectory.array,
                sample,
                settings.modes,
                settings.start,
                device=run.device,
                ranks=run.ranks,
            )
            if run.ranks.first:
                run.store.save(cmd.state_dict(), name)
            run.ranks.wait()
        cmd = load_cmd(run.store, name).to(run.device)
        self._own = cmd.of_weights(run.ranks.share(run.n_weights))  # this rank's

    def follow(self, epoch: int, module: nn.Module) -> nn.Module:
        own, ranks = self._own, self.run.ranks
        part = own.reconstruct(read_vector(module)[own.reference])
        write_vector(ranks.gather(part, self.run.n_weights), self.module)
        return self.module


def load_cmd(store: Store, name: str) -> CMDModel:
    """CMD's parameters in a file of a run.

    Raises UserError if it does not hold them.
    """
    with store.reading(name) as state:
        return CMDModel.from_state_dict(state)


def online_cmd(
    model: nn.Module,
    settings: OnlineSettings,
    history: Trajectory,
    ranks: Ranks = ALONE,
    memory: float | None = None,
    warmup: int | None = None,
) -> OnlineCMD:
    """Online CMD with a run's settings, its warm-up read back from the run's trajectory.

    Args:
        model: what it follows.
        memory: H, None for the paper's.
        warmup: F, None for the settings'.
    """
    return OnlineCMD(
        model,
        modes=settings.modes,
        samples=settings.samples,
        warmup=settings.warmup_cmd if warmup is None else warmup,
        seed=settings.seed,
        start=settings.start,
        history=history,
        ranks=ranks,
        memory=memory,
        # its parameters need gradients as the model's do: what was compiled for one is for both
        module=copy.deepcopy(model),
    )


def check_online(settings: OnlineSettings, flag: str) -> None:
    """Raise UserError unless the settings are fit for `online_cmd`; `flag` turns the method off."""
    _check_sample(settings)
    last = settings.epochs - 1
    if not 1 <= settings.warmup_cmd <= last:
        fix = (
            f"choose 1 … {last} (--epochs {settings.epochs} − 1)"
            if last >= 1
            else "it needs --epochs 2 or more"
        )
        raise UserError(f"--warmup_cmd {settings.warmup_cmd}: {fix}, or {flag} ''")
    if settings.start >= settings.warmup_cmd:
        raise UserError(
            f"--start {settings.start}: choose 0 … {settings.warmup_cmd - 1} "
            f"(below --warmup_cmd {settings.warmup_cmd})"
        )


def _check_sample(settings: FitSettings) -> None:
    if settings.modes < 1:
        raise UserError(f"--modes {settings.modes}: choose 1 or more")
    if settings.samples < settings.modes:
        raise UserError(f"--samples {settings.samples}: choose at least --modes {settings.modes}")
