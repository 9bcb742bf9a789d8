"""Embedded CMD in federated learning (paper, section 4).

The server fits CMD on the synchronised weights after a warm-up of rounds, updates it every round,
and every L rounds embeds the P % of weights whose a, b changed least. An embedded weight is
a · w_r + b from then on: server and clients compute it from its reference, and it is sent no more
in either direction; its a, b and mode are sent once. References are always sent.
"""

import copy
import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn

from utils.cmd.embedding import steadiest
from utils.cmd.online import OnlineCMD
from utils.cmd.vector import write_vector
from utils.federated.coefficients import Coefficients
from utils.federated.exchange import ClientSide, Package, Restraint, ServerSide, Vector
from utils.federated.projection import Projection
from utils.federated.transport import Arrays, Sender


@dataclass(frozen=True)
class EmbeddingSettings:
    """The settings of embedded CMD.

    Attributes:
        modes: M.
        samples: K.
        warmup: F, the round whose weights CMD is first fitted with.
        window: L.
        percentage: P, of all weights.
        most: percentage of all weights that are ever embedded; the others stay live, for training
            to go on with.
        seed: of the sample.
        memory: H, of the rounds whose weights a, b are fitted to; None for all alike.
    """

    modes: int = 10
    samples: int = 1000
    warmup: int = 10
    window: int = 4
    percentage: float = 10.0
    most: float = 55.0
    seed: int = 0
    memory: float | None = None


def embeddable(n_weights: int, most: float) -> int:
    """Count the weights that may be embedded: `most` percent of N."""
    return int(n_weights * most / 100)


class CMDServer(ServerSide):
    """The server of embedded CMD."""

    def __init__(
        self,
        theta: Vector,
        module: nn.Module,
        settings: EmbeddingSettings,
        sender: Sender | None = None,
    ) -> None:
        """Start from θ.

        Args:
            theta: float32 [N].
            module: of the layers whose weights θ holds; it is copied.
            settings: those of embedded CMD.
            sender: codes changes; None to send values.
        """
        super().__init__(theta, sender)
        self.settings = settings
        self._online = OnlineCMD(
            module, settings.modes, settings.samples, settings.warmup, settings.seed,
            memory=settings.memory,
        )  # fmt: skip
        self._followed = copy.deepcopy(module)  # θ as a module, which is what CMD follows
        self.coefficients = Coefficients.none(len(theta))  # of weights not embedded: at the last L
        self._embedded_at = np.zeros(len(theta), dtype=np.int32)  # the version; 0 for not embedded

    def _news(self) -> Package:
        latest = self._embedded_after(self.version - 1)
        live = self.live | latest  # in the last round
        return Package(self._told_of(self.live, live) | self._told(latest))

    def _everything(self, have: int | None) -> Package:
        """Tell of the weights embedded since the client knew of all: their a, b stay."""
        told = self._told(self._embedded_after(have or 0))
        package = Package({"values": self.theta[self.live]} | told)
        if have:
            package.numbers["since"] = have
        return package

    def _embedded_after(self, version: int) -> np.ndarray:
        """Find the weights that are embedded, but were not at a version, bool [N]."""
        return self._embedded_at > version

    def _told(self, which: np.ndarray) -> dict[str, np.ndarray]:
        """Gather what a client has to know of the weights in `which`, bool [N].

        It takes 9 bytes for each of them, a bit for each weight, and 4 bytes for each reference.
        """
        if not which.any():
            return {}
        known = self.coefficients
        return {
            "which": np.packbits(which),
            "a": known.a[which],
            "b": known.b[which],
            "mode": known.mode[which],
            "reference": known.reference.astype(np.int32),
        }

    def _completed(self, theta: Vector) -> Vector:
        return self.coefficients.apply(theta)

    def _aggregated(self) -> None:
        settings, round_number = self.settings, self.version - 1  # rounds count from 0 as epochs do
        self.theta = self._completed(self.theta)
        write_vector(torch.from_numpy(self.theta), self._followed)
        self._online.update_parameters(self._followed)
        if round_number < settings.warmup:
            return
        if round_number == settings.warmup:
            cmd = self._online.model
            a, b, mode, reference = (
                each.numpy().copy() for each in (cmd.a, cmd.b, cmd.mode, cmd.reference)
            )
            self.coefficients = Coefficients(a, b, mode, reference, self.coefficients.embedded)
        elif (round_number - settings.warmup) % settings.window == 0:
            self._embed_more()

    def _embed_more(self) -> None:
        """Embed the weights whose (a, b) changed least since the last time."""
        settings, known, cmd = self.settings, self.coefficients, self._online.model
        a, b = cmd.a.numpy(), cmd.b.numpy()
        change = np.hypot((a - known.a).astype(np.float64), (b - known.b).astype(np.float64))
        n_weights = len(change)
        room = embeddable(n_weights, settings.most) - int(known.embedded.sum())
        count = min(math.ceil(n_weights * settings.percentage / 100), room)
        arrays = (change, known.embedded, known.reference)
        more = steadiest(*map(torch.from_numpy, arrays), count)
        self._embedded_at[more.numpy()] = self.version
        self.coefficients = replace(
            known,
            a=np.where(known.embedded, known.a, a),
            b=np.where(known.embedded, known.b, b),
            embedded=self._embedded_at > 0,
        )
        self.live = ~self.coefficients.embedded
        self.theta = self._completed(self.theta)

    def state_dict(self) -> dict:
        own = {"embedded_at": self._embedded_at, "cmd": self._online.state_dict()}
        return super().state_dict() | self.coefficients.state_dict() | own

    def load_state_dict(self, state: dict) -> None:
        super().load_state_dict(state)
        self.coefficients = Coefficients.from_state_dict(state)
        self._embedded_at = state["embedded_at"]
        self._online.load_state_dict(state["cmd"])


class CMDClient(ClientSide):
    """The client of embedded CMD."""

    def __init__(self, n_weights: int, sender: Sender | None = None) -> None:
        super().__init__(n_weights, sender)
        self.coefficients = Coefficients.none(n_weights)

    def restraint(self, model: nn.Module) -> Restraint | None:
        known = self.coefficients
        return Projection(known, model) if known.embedded.any() else None

    def _take_news(self, package: Package) -> None:
        self._learn(package.arrays)
        self.theta = self.coefficients.apply(self._after(package.arrays, self.live))

    def _learn(self, arrays: Arrays) -> None:
        """Take in what a server told of newly embedded weights, if there are any."""
        known = self.coefficients
        if "which" not in arrays:
            return
        which = np.unpackbits(arrays["which"], count=len(known.embedded)).astype(bool)
        new = {}
        for name in ("a", "b", "mode"):
            new[name] = getattr(known, name).astype(arrays[name].dtype)
            new[name][which] = arrays[name]
        reference = arrays["reference"].astype(np.int64)
        self.coefficients = Coefficients(
            **new, reference=reference, embedded=known.embedded | which
        )
        self.live = ~self.coefficients.embedded

    def _take_everything(self, package: Package) -> None:
        if package.numbers["since"] < 0:
            self.coefficients = Coefficients.none(len(self.theta))
            self.live = ~self.coefficients.embedded
        self._learn(package.arrays)
        theta = self.theta.copy()
        theta[self.live] = package.arrays["values"]
        self.theta = self.coefficients.apply(theta)

    def state_dict(self) -> dict:
        return super().state_dict() | self.coefficients.state_dict()

    def load_state_dict(self, state: dict) -> None:
        super().load_state_dict(state)
        self.coefficients = Coefficients.from_state_dict(state)
