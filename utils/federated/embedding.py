"""Embedded CMD in federated learning (paper, section 4; DESIGN: embedded CMD).

The server fits CMD on the synchronised weights after a warm-up of rounds, updates it every round,
and every L rounds embeds the P % of weights whose a, b changed least. An embedded weight is
a · w_r + b from then on, computed by all from its reference, and is sent no more in either
direction; a, b and mode are sent once. References are always sent.
"""

import copy
import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from utils.federated.exchange import ClientSide, Package, ServerSide, Vector
from utils.flat import write_vector
from utils.online import OnlineCMD

ARRAYS = ("a", "b", "mode", "reference", "embedded")


@dataclass(frozen=True)
class EmbeddingSettings:
    """modes, samples: M, K. warmup: F, the round whose weights CMD is first fitted with. window: L.
    percentage: P, of all weights. most: percentage of all weights that are ever embedded. seed: of
    the sample.

    Where nearly all weights are embedded, a step of a reference is taken by its whole mode, and
    training goes astray: `most` keeps enough of them live.
    """

    modes: int = 10
    samples: int = 1000
    warmup: int = 10
    window: int = 3
    percentage: float = 10.0
    most: float = 70.0
    seed: int = 0


def affine(theta: Vector, a: Vector, b: Vector, mode: np.ndarray, reference: np.ndarray) -> Vector:
    """a · w_r + b, float32, each operation rounded by itself: the same on every machine."""
    return a * theta[reference[mode]] + b


class CMDServer(ServerSide):
    """The server of embedded CMD."""

    def __init__(self, theta: Vector, module: nn.Module, settings: EmbeddingSettings) -> None:
        """module: of the layers whose weights θ holds; it is copied."""
        super().__init__(theta)
        self.settings = settings
        self._online = OnlineCMD(
            module, settings.modes, settings.samples, settings.warmup, settings.seed
        )
        self._followed = copy.deepcopy(module)  # θ as a module, which is what CMD follows
        n_weights = len(theta)
        self.a, self.b = (np.zeros(n_weights, dtype=np.float32) for _ in range(2))
        self.mode = np.zeros(n_weights, dtype=np.int8)
        self.reference = np.zeros(0, dtype=np.int64)
        self.embedded = np.zeros(n_weights, dtype=bool)
        self._latest = np.zeros(n_weights, dtype=bool)  # embedded when this version was made

    def _news(self) -> Package:
        return Package({"values": self.theta[self.live]} | self._coefficients(self._latest))

    def _everything(self) -> Package:
        return Package({"values": self.theta[self.live]} | self._coefficients(self.embedded))

    def _coefficients(self, which: np.ndarray) -> dict[str, np.ndarray]:
        """What has to be known of the weights in `which`: 9 bytes for each, a bit for others."""
        if not which.any():
            return {}
        return {
            "which": np.packbits(which),
            "a": self.a[which],
            "b": self.b[which],
            "mode": self.mode[which],
            "reference": self.reference.astype(np.int32),
        }

    def _aggregated(self) -> None:
        settings, round_number = self.settings, self.version - 1  # rounds count from 0 as epochs do
        self._set_embedded()
        write_vector(torch.from_numpy(self.theta), self._followed)
        self._online.update_parameters(self._followed)
        self._latest = np.zeros_like(self.embedded)
        if round_number < settings.warmup:
            return
        if round_number == settings.warmup:
            cmd = self._online.model
            self.a, self.b = cmd.a.numpy().copy(), cmd.b.numpy().copy()
            self.mode, self.reference = cmd.mode.numpy().copy(), cmd.reference.numpy().copy()
        elif (round_number - settings.warmup) % settings.window == 0:
            self._embed_more()

    def _embed_more(self) -> None:
        cmd = self._online.model
        a, b = cmd.a.numpy(), cmd.b.numpy()
        change = np.hypot((a - self.a).astype(np.float64), (b - self.b).astype(np.float64))
        change[self.embedded] = np.inf
        change[self.reference] = np.inf  # never embedded
        n_weights, settings = len(change), self.settings
        room = int(n_weights * settings.most / 100) - int(self.embedded.sum())
        free = min(room, int(np.isfinite(change).sum()))
        count = min(math.ceil(n_weights * settings.percentage / 100), free)
        self._latest[np.argsort(change, kind="stable")[:count]] = True
        self.a = np.where(self.embedded, self.a, a)
        self.b = np.where(self.embedded, self.b, b)
        self.embedded |= self._latest
        self.live = ~self.embedded
        self._set_embedded()

    def _set_embedded(self) -> None:
        which = self.embedded
        if which.any():
            self.theta[which] = affine(
                self.theta, self.a[which], self.b[which], self.mode[which], self.reference
            )

    def state_dict(self) -> dict:
        own = {name: getattr(self, name) for name in ARRAYS}
        return (
            super().state_dict() | own | {"latest": self._latest, "cmd": self._online.state_dict()}
        )

    def load_state_dict(self, state: dict) -> None:
        super().load_state_dict(state)
        for name in ARRAYS:
            setattr(self, name, state[name])
        self._latest = state["latest"]
        self._online.load_state_dict(state["cmd"])


class CMDClient(ClientSide):
    """The client of embedded CMD."""

    def __init__(self, n_weights: int) -> None:
        super().__init__(n_weights)
        self.a, self.b = (np.zeros(n_weights, dtype=np.float32) for _ in range(2))
        self.mode = np.zeros(n_weights, dtype=np.int8)
        self.reference = np.zeros(0, dtype=np.int64)
        self.embedded = np.zeros(n_weights, dtype=bool)

    def restrained(self, theta: Vector) -> Vector:
        return self._embed(theta)

    @property
    def redirects(self) -> bool:
        return self.restrains

    def restrained_gradient(self, gradient: Vector) -> Vector:
        """By the chain rule: an embedded weight's goes, times a, to its reference."""
        passed_on = np.where(self.embedded, self.a * gradient, 0)
        total = np.bincount(self.mode, weights=passed_on, minlength=len(self.reference))
        own = np.where(self.embedded, np.float32(0), gradient)
        own[self.reference] += total.astype(np.float32)
        return own

    def _take_news(self, package: Package) -> None:
        arrays = package.arrays
        if "which" in arrays:
            n_weights = len(self.embedded)
            which = np.unpackbits(arrays["which"], count=n_weights).astype(bool)
            for name in ("a", "b", "mode"):
                values = getattr(self, name).astype(arrays[name].dtype)
                values[which] = arrays[name]
                setattr(self, name, values)
            self.reference = arrays["reference"].astype(np.int64)
            self.embedded = self.embedded | which
        self.live = ~self.embedded
        theta = self.theta.copy()
        theta[self.live] = arrays["values"]
        self.theta = self._embed(theta)

    def _take_everything(self, package: Package) -> None:
        self.embedded = np.zeros_like(self.embedded)
        self._take_news(package)

    def _embed(self, theta: Vector) -> Vector:
        if not self.embedded.any():
            return theta
        modelled = affine(theta, self.a, self.b, self.mode, self.reference)
        return np.where(self.embedded, modelled, theta)

    def state_dict(self) -> dict:
        return super().state_dict() | {name: getattr(self, name) for name in ARRAYS}

    def load_state_dict(self, state: dict) -> None:
        super().load_state_dict(state)
        for name in ARRAYS:
            setattr(self, name, state[name])
