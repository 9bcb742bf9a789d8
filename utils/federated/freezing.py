"""Adaptive Parameter Freezing (APF), which leaves weights alone that no longer move on the whole.

"Communication-Efficient Federated Learning with Adaptive Parameter Freezing", ICDCS 2021; A-APF,
which also freezes unstable weights at random, is its extension for over-parametrised models.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from utils.federated.draws import FREEZING, drawing
from utils.federated.exchange import ClientSide, Package, Restraint, ServerSide, Vector
from utils.federated.places import Places
from utils.federated.transport import Sender


@dataclass(frozen=True)
class FreezingSettings:
    """The settings of APF and A-APF.

    Attributes:
        alpha: share of the averages that stays at a check.
        threshold: of effective perturbation, below which a weight is stable.
        every: rounds from one check to the next.
        random: whether it is A-APF.
        seed: of A-APF's draws.
    """

    alpha: float = 0.99
    threshold: float = 0.05
    every: int = 1
    random: bool = False
    seed: int = 0


PREFIX = "freezing."  # of the names of a Freezing's state beside others'
CROWDED = 0.8  # share of frozen weights beyond which the threshold is halved
MOST, ROUNDS, LENGTHEN = 0.5, 2000, 20  # of A-APF: probability min(k / 2000, 0.5), length k / 20


class Freezing:
    """Which weights are frozen: server and clients, shown the same θ at the same rounds, agree.

    All of it is elementwise float32 in numpy, rounded the same on every machine.

    Attributes:
        frozen: bool [N], the weights that are frozen until the next check.
    """

    ARRAYS = ("mean", "size", "last", "length", "left", "moved")

    def __init__(self, theta: Vector, settings: FreezingSettings) -> None:
        self.settings = settings
        n_weights = len(theta)
        self.mean = np.zeros(n_weights, dtype=np.float32)  # E, of the change between checks
        self.size = np.zeros(n_weights, dtype=np.float32)  # A, of its absolute value
        self.last = theta.copy()  # at the last check
        self.length = np.zeros(n_weights, dtype=np.int32)  # freezing period, in checks
        self.left = np.zeros(n_weights, dtype=np.int32)  # checks for which it stays frozen
        self.moved = np.zeros(n_weights, dtype=bool)  # whether it has ever been seen to move
        self.threshold = np.float32(settings.threshold)

    @property
    def frozen(self) -> np.ndarray:
        return self.left > 0

    def due(self, round_number: int) -> bool:
        """Tell whether θ after so many rounds is checked."""
        return round_number > 0 and round_number % self.settings.every == 0

    def check(self, theta: Vector, round_number: int) -> None:
        """Decide which weights are frozen until the next check.

        Of those that were live since the last one, a stable weight's period grows by a check, and
        an unstable weight's is halved. A weight without any change on record (A = 0) is stable only
        if it was never seen to move.

        Args:
            theta: float32 [N], the synchronised weights.
            round_number: how many rounds made them.
        """
        settings, live = self.settings, self.left == 0
        change = theta - self.last
        self.moved |= live & (change != 0)
        keep, take = np.float32(settings.alpha), np.float32(1 - settings.alpha)
        self.mean = np.where(live, keep * self.mean + take * change, self.mean)
        self.size = np.where(live, keep * self.size + take * np.abs(change), self.size)
        self.last = theta.copy()

        with np.errstate(invalid="ignore", divide="ignore"):
            perturbation = np.abs(self.mean) / self.size
        stable = np.where(self.size > 0, perturbation < self.threshold, ~self.moved)
        period = np.where(stable, self.length + 1, self.length // 2).astype(np.int32)
        self.length = np.where(live, period, self.length)
        self.left = np.where(live, self.length, self.left - 1).astype(np.int32)
        if settings.random:
            self._freeze_at_random(live & ~stable, round_number)
        if self.frozen.mean() > CROWDED:
            self.threshold = np.float32(self.threshold / 2)

    def _freeze_at_random(self, unstable: np.ndarray, round_number: int) -> None:
        """Freeze some of the unstable weights, bool [N], for some checks (A-APF)."""
        draw = drawing(self.settings.seed, FREEZING, round_number)
        chosen = draw.random(len(unstable)) < min(round_number / ROUNDS, MOST)
        longest = 1 + round_number // LENGTHEN
        lengths = draw.integers(1, longest, size=len(unstable), endpoint=True, dtype=np.int32)
        chosen &= unstable
        self.left[chosen] = np.maximum(self.left[chosen], lengths[chosen])

    def state_dict(self) -> dict:
        return {name: getattr(self, name) for name in self.ARRAYS} | {
            "threshold": np.array([self.threshold], dtype=np.float32)
        }

    def load_state_dict(self, state: dict) -> None:
        for name in self.ARRAYS:
            setattr(self, name, state[name].copy())
        self.threshold = state["threshold"][0]


class FreezingServer(ServerSide):
    """The server of APF and A-APF."""

    def __init__(
        self, theta: Vector, settings: FreezingSettings, sender: Sender | None = None
    ) -> None:
        super().__init__(theta, sender)
        self.freezing = Freezing(self.theta, settings)
        self._sent = self.live.copy()  # live in the last round: what has changed since

    def _news(self) -> Package:
        return Package(self._told_of(self._sent, self._sent))

    def _everything(self, have: int | None) -> Package:
        """Send θ, and what was known at its last check, to go on deciding with the others."""
        if self.version == 0:  # nothing was
            return Package({"values": self.theta.copy()})
        return Package({"values": self.theta.copy()} | _prefixed(self.freezing))

    def _aggregated(self) -> None:
        self._sent = self.live.copy()  # a weight frozen now still goes down once
        if self.freezing.due(self.version):
            self.freezing.check(self.theta, self.version)
            self.live = ~self.freezing.frozen

    def state_dict(self) -> dict:
        return super().state_dict() | {"sent": self._sent} | _prefixed(self.freezing)

    def load_state_dict(self, state: dict) -> None:
        super().load_state_dict(state)
        self._sent = state["sent"]
        self.freezing.load_state_dict(_without_prefix(state))


class FreezingClient(ClientSide):
    """The client of APF and A-APF."""

    def __init__(
        self, n_weights: int, settings: FreezingSettings, sender: Sender | None = None
    ) -> None:
        super().__init__(n_weights, sender)
        self.freezing = Freezing(self.theta, settings)

    def restraint(self, model: nn.Module) -> Restraint | None:
        if self.live.all():
            return None
        device = next(model.parameters()).device
        frozen = torch.from_numpy(~self.live).to(device).nonzero().flatten()
        values = torch.from_numpy(self.theta).to(device)[frozen]
        places = Places(model, frozen)
        return lambda _: places.write(values)  # frozen weights are rolled back

    def _take_news(self, package: Package) -> None:
        self.theta = self._after(package.arrays, self.live)
        version = package.numbers["version"]
        if self.freezing.due(version):
            self.freezing.check(self.theta, version)
            self.live = ~self.freezing.frozen

    def _take_everything(self, package: Package) -> None:
        self.theta = package.arrays["values"].copy()
        self.freezing = Freezing(self.theta, self.freezing.settings)
        if package.numbers["version"] > 0:
            self.freezing.load_state_dict(_without_prefix(package.arrays))
        self.live = ~self.freezing.frozen

    def state_dict(self) -> dict:
        return super().state_dict() | _prefixed(self.freezing)

    def load_state_dict(self, state: dict) -> None:
        super().load_state_dict(state)
        self.freezing.load_state_dict(_without_prefix(state))


def _prefixed(freezing: Freezing) -> dict:
    """Give its state, under names that stand beside others'."""
    return {PREFIX + name: value for name, value in freezing.state_dict().items()}


def _without_prefix(state: dict) -> dict:
    """Pick out what `_prefixed` gave."""
    return {name[len(PREFIX) :]: value for name, value in state.items() if name.startswith(PREFIX)}
