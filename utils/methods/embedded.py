"""Embedded CMD as a compared method (paper, section 4)."""

import copy
import math
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from utils.cmd.embedding import steadiest
from utils.cmd.vector import layer_sizes, read_vector, write_vector
from utils.methods.base import Method
from utils.methods.cmd import OnlineSettings, check_online, online_cmd
from utils.storage.metrics import Metrics
from utils.storage.store import AFRESH, Store
from utils.system.arguments import at_least, memory_or_none, positive, truth
from utils.system.errors import UserError
from utils.system.options import option
from utils.training.folder import KEPT_OPTIMIZER
from utils.training.run import Run


@dataclass(frozen=True, kw_only=True)
class EmbeddedSettings(OnlineSettings):
    """The settings of embedded CMD."""

    group: ClassVar[str] = "embedded CMD"

    embed_window: int = option(
        10, "L, epochs from one embedding to the next", at_least(1), metavar="L"
    )
    embed_perc: float = option(
        10, "P, percentage of weights embedded each time", positive, metavar="P"
    )
    perc_rel: bool = option(
        False, "whether it is of the weights not yet embedded, not of all", truth, metavar="BOOL"
    )
    embed_memory: float | None = option(
        None,
        "a, b from the recent past, as with --memory; none: from all epochs alike, as in the paper",
        memory_or_none, metavar="H", told="none", before=None,
    )  # fmt: skip
    embed_in_place: bool = option(
        False,
        "embed a weight where it stands: b follows from its value and its reference's; else b is "
        "the fit's",
        truth, metavar="BOOL",
    )  # fmt: skip


class EmbeddedCMD(Method):
    """Online CMD that takes weights out of training, the steadiest first.

    From the warm-up's end on, every L epochs the P % of weights whose (a, b) changed least since
    the last such epoch are embedded: a, b are frozen, and after every epoch the weight is set to
    a · w_r + b. From the first such epoch on it trains by itself, with the run's optimizer. With a
    memory, a and b are those of adaptive CMD; in place, b is such that the weight stays where it is
    when it is embedded.
    """

    name, label, flags, default = "cmd_embed", "Embedded CMD", ("--cmd_embed",), False
    help = "train on while CMD takes the steadiest weights out of training"
    color = "#CC79A7"
    Settings = EmbeddedSettings
    after_run = True

    def __init__(self, run: Run, metrics: Metrics) -> None:
        super().__init__(run, metrics)
        self.module = copy.deepcopy(run.model)
        self.optimizer, self.scheduler = run.make_optimizer(self.module)
        self._parallel = run.ranks.parallel(self.module)
        memory = run.settings.embed_memory
        self.online = online_cmd(run.model, run.settings, run.trajectory, run.ranks, memory)
        self._epoch = -1  # the last one that was taken in
        self._a = self._b = torch.empty(0)  # of the last embedding; frozen where embedded
        self._embedded = torch.zeros(run.n_weights, dtype=torch.bool, device=run.device)
        self._counts: list[Tensor] = []  # embedded weights in each layer after each epoch

    @classmethod
    def check(cls, settings: EmbeddedSettings) -> None:
        check_online(settings, "--cmd_embed")
        if cls.departs(settings) > settings.epochs - 2:
            raise UserError(
                f"--embed_window {settings.embed_window}: the first weights would be embedded at "
                f"epoch {cls.departs(settings)} (--warmup_cmd {settings.warmup_cmd} and the "
                f"window), which leaves none of --epochs {settings.epochs}; choose a smaller one, "
                "or --cmd_embed ''"
            )
        if settings.embed_perc > 100:
            raise UserError(f"--embed_perc {settings.embed_perc:g}: choose a percentage up to 100")

    @classmethod
    def departs(cls, settings: EmbeddedSettings) -> int:
        return settings.warmup_cmd + settings.embed_window

    @classmethod
    def training_epochs(cls, settings: EmbeddedSettings) -> range:
        return range(cls.departs(settings) + 1, settings.epochs)

    @classmethod
    def files(cls) -> tuple[str, ...]:
        return ("cmd_embed.pt",)

    @classmethod
    def scratch_files(cls) -> tuple[str, ...]:
        return ("cmd_embed_state.pt",)

    @classmethod
    def n_parameters(cls, n_weights: int, settings: EmbeddedSettings, folder: Path) -> int:
        """The weights that are still trained, epoch by epoch, and a, b, mode of the others."""
        embedded = cls._result(folder)["embedded_counts"].sum(1)
        return n_weights * settings.epochs - int(embedded.sum()) + 3 * int(embedded[-1])

    @classmethod
    def figures(cls, folder: Path) -> dict:
        share = cls.embedded_share(folder)
        return {"embedded_mean": share.mean().item(), "embedded_last": share[-1].item()}

    @classmethod
    def embedded_share(cls, folder: Path) -> Tensor | None:
        result = cls._result(folder)
        return result["embedded_counts"].sum(1) / result["layer_sizes"].sum()

    @classmethod
    def _result(cls, folder: Path) -> dict:
        """What `finish` saved."""
        with Store.of(folder).reading(cls.files()[0]) as result:
            if result["embedded_counts"].shape[1:] != result["layer_sizes"].shape:
                raise ValueError("the counts are not of the layers")
            return result

    @classmethod
    def require(cls, run: Run) -> None:
        under_way = (run.folder / cls.scratch_files()[0]).exists()
        if run.epochs_done > cls.departs(run.settings) and not under_way:
            cls._kept(run)

    def prepare(self) -> None:
        run = self.run
        name = self.scratch_files()[0]
        if run.ranks.object_from_first((run.folder / name).exists):
            with run.store.reading(name) as state:
                if self._goes_on_from(state["epoch"]):
                    self._load_state(state)
                    return
        kept = self._kept(run)
        self.optimizer.load_state_dict(kept["optimizer"])
        if self.scheduler is not None:
            self.scheduler.load_state_dict(kept["scheduler"])

    @classmethod
    def _kept(cls, run: Run) -> dict:
        """The optimizer that it starts with, as the run kept it.

        Raises UserError if it kept none of that epoch.
        """
        kept, first = None, cls.departs(run.settings)
        if (run.folder / KEPT_OPTIMIZER).exists():
            kept = run.store.load(KEPT_OPTIMIZER, f"--cmd_embed '' leaves it out, {AFRESH}")
        if kept is None or kept["epoch"] != first:
            raise UserError(
                f"--cmd_embed True: the run in {run.folder} kept no optimizer of epoch {first} to "
                "start from (--warmup_cmd and --embed_window): choose another --results_dir, or "
                "--overwrite to start afresh"
            )
        return kept

    def follow(self, epoch: int, module: nn.Module) -> nn.Module:
        first = self.departs(self.settings)
        if epoch > self._epoch:
            if epoch <= first:
                self.online.update_parameters(module)
            if epoch == self.settings.warmup_cmd:
                self._a, self._b = self.online.model.a, self.online.model.b
            if epoch == first:
                write_vector(read_vector(module), self.module)
            if epoch > first:
                self.trained = self._train(epoch)
                self.online.update_parameters(self.module)
                self._set_embedded()
            if epoch >= first and (epoch - first) % self.settings.embed_window == 0:
                self._embed_more()
            self._counts.append(self._count())
            self._epoch = epoch
            if epoch >= first:
                state = self._state()
                if self.run.ranks.first:
                    self.run.store.save(state, self.scratch_files()[0])
        return self.module if epoch >= first else module

    def finish(self) -> None:
        cmd = self.online.model
        result = {
            "a": torch.where(self._embedded, self._a, cmd.a),
            "b": torch.where(self._embedded, self._b, cmd.b),
            "mode": cmd.mode,
            "reference": cmd.reference,
            "embedded": self._embedded,
            "layer_sizes": torch.tensor(layer_sizes(self.module)),
            "embedded_counts": torch.stack(self._counts),  # int64 [T, layers]
        }
        if self.run.ranks.first:
            self.run.store.save(result, self.files()[0])
            (self.run.folder / self.scratch_files()[0]).unlink(missing_ok=True)

    def _train(self, epoch: int) -> tuple[float, float]:
        run = self.run
        trained = run.train(epoch, self.module, self.optimizer, self.scheduler, self._parallel)
        run.require_finite(trained[0], read_vector(self.module), epoch, self.label)
        return trained

    def _set_embedded(self) -> None:
        """Set each embedded weight to a · w_r + b."""
        theta, cmd = read_vector(self.module), self.online.model
        w_r = theta[cmd.reference][cmd.mode.long()]
        write_vector(
            torch.where(self._embedded, torch.addcmul(self._b, self._a, w_r), theta), self.module
        )

    def _embed_more(self) -> None:
        """Embed the weights whose (a, b) changed least since the last time."""
        cmd, settings = self.online.model, self.settings
        change = torch.hypot(cmd.a - self._a, cmd.b - self._b)
        total = len(change) - (int(self._embedded.sum()) if settings.perc_rel else 0)
        count = math.ceil(total * settings.embed_perc / 100)
        more = steadiest(change, self._embedded, cmd.reference, count)
        self._a = torch.where(self._embedded, self._a, cmd.a)
        self._b = torch.where(self._embedded, self._b, cmd.b)
        if settings.embed_in_place:
            theta = read_vector(self.module)
            w_r = theta[cmd.reference][cmd.mode[more].long()]
            self._b[more] = theta[more] - self._a[more] * w_r
        self._embedded[more] = True
        self._set_embedded()

    def _count(self) -> Tensor:
        return torch.stack(
            [layer.sum() for layer in self._embedded.split(layer_sizes(self.module))]
        ).cpu()

    def _state(self) -> dict:
        return {
            "epoch": self._epoch,
            "trained": self.trained,
            "module": self.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": None if self.scheduler is None else self.scheduler.state_dict(),
            "online": self.online.state_dict(),
            "a": self._a,
            "b": self._b,
            "embedded": self._embedded,
            "counts": self._counts,
        }

    def _load_state(self, state: dict) -> None:
        device = self.run.device
        self._epoch, self.trained = state["epoch"], state["trained"]
        self.module.load_state_dict(state["module"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.scheduler is not None:
            self.scheduler.load_state_dict(state["scheduler"])
        self.online.load_state_dict(state["online"])
        self._a, self._b, self._embedded = (
            state[name].to(device) for name in ("a", "b", "embedded")
        )
        self._counts = state["counts"]
