"""What a server and its clients tell each other of θ: they take in vectors, and make packages.

The server holds the synchronised weights θ and their version, the number of aggregations behind
them. In a round it makes each client a package that brings it to θ, bit for bit; the client trains,
and answers with its live weights, whose weighted mean is the server's next θ. Server and client
know the same of which weights are live, without being told.

Where a sender codes what is said, both sides say by how much live weights change, and add what is
read from the message to the θ that both have.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from torch import nn

from utils.federated.transport import Arrays, Sender, Vector, expected

Restraint = Callable[[nn.Module], None]
CHANGES = "changes."  # of the names of a coded message's arrays in a server's state


class OutOfStepError(Exception):
    """A package builds on a version that the client does not have: it needs everything."""


@dataclass
class Package:
    """What is sent: arrays and numbers by name."""

    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    numbers: dict[str, int] = field(default_factory=dict)

    @property
    def payload(self) -> int:
        """Count the bytes of the arrays: of each weight sent, and what a method has to tell."""
        return sum(array.nbytes for array in self.arrays.values())


class ServerSide(ABC):
    """A method's server.

    Attributes:
        theta: float32 [N], the synchronised weights.
        version: how many aggregations made them.
        live: bool [N], the weights that clients send in this round.
        sender: codes its changes; None where values are sent, as they are.
    """

    def __init__(self, theta: Vector, sender: Sender | None = None) -> None:
        self.theta, self.sender = np.array(theta, dtype=np.float32), sender
        self._changes: Arrays = {}  # coded: what made this version of the one before
        self.version = 0
        self.live = np.ones(len(theta), dtype=bool)

    @property
    def live_share(self) -> float:
        return float(self.live.mean())

    def down(self, have: int | None) -> Package:
        """Make the package for a client.

        Args:
            have: the version that the client knows; None where that is none, or not certain.
        """
        in_step = have is not None and have == self.version - 1
        package = self._news() if in_step else self._everything(have)
        numbers = {"version": self.version, "since": have if in_step else -1}
        package.numbers = numbers | package.numbers
        return package

    def check(self, package: Package) -> None:
        """Check that a client's answer can be taken in.

        Raises:
            ValueError: it cannot.
        """
        if package.numbers.get("version") != self.version:
            raise ValueError(f"an answer to version {package.numbers.get('version')}, not to "
                             f"{self.version}")  # fmt: skip
        theta = self.theta.copy()
        if self.sender is None:
            count = int(self.live.sum())
            values = expected(package.arrays, "values", np.float32, count)
        else:
            values = self.sender.read(package.arrays, self.live)
        with np.errstate(over="ignore", invalid="ignore"):
            theta[self.live] = values if self.sender is None else theta[self.live] + values
            theta = self._completed(theta)
        if not np.isfinite(theta).all():
            raise ValueError("weights that are not finite")

    def aggregate(self, packages: Sequence[Package], counts: Sequence[int]) -> None:
        """Make the next version: the mean of what clients sent, weighted by their counts.

        Args:
            packages: the clients' answers.
            counts: how many images each client trained on.

        Raises:
            ValueError: with what earlier messages left out, their mean is too large to be sent; the
                version stays as it was.
        """
        if self.sender is None:
            self.theta[self.live] = weighted_mean([p.arrays["values"] for p in packages], counts)
        else:
            read = [self.sender.read(package.arrays, self.live) for package in packages]
            mean = weighted_mean(read, counts)
            changes, sent = self.sender.send(mean, self.live, self.version)
            with np.errstate(over="ignore"):
                values = self.theta[self.live] + sent
            if not np.isfinite(values).all():
                raise ValueError("weights that are not finite")
            self._changes, self.theta[self.live] = changes, values
        self.version += 1
        self._aggregated()

    def _told_of(self, which: np.ndarray, live: np.ndarray) -> Arrays:
        """Tell a client that knows the version before of some weights, bool [N].

        Args:
            which: the weights.
            live: those that were live in the last round.
        """
        if self.sender is None:
            return {"values": self.theta[which]}
        kept = which[live]
        if kept.all():
            return dict(self._changes)
        return self.sender.of_some(self._changes, live, kept)

    @abstractmethod
    def _news(self) -> Package:
        """Make the package for a client that knows the version before."""

    @abstractmethod
    def _everything(self, have: int | None) -> Package:
        """Make the package for a client that missed what made this version.

        Args:
            have: the version that it knows. A package that builds on it says so, as its number
                "since".
        """

    def _completed(self, theta: Vector) -> Vector:
        """Compute what is not sent of θ."""
        return theta

    def _aggregated(self) -> None:  # noqa: B027 (optional to override)
        """Decide what is live from now on: θ has its next version."""

    def state_dict(self) -> dict:
        """Give all that `load_state_dict` needs to go on: arrays and numbers."""
        state = {"theta": self.theta, "version": self.version, "live": self.live}
        if self.sender is None:
            return state
        changes = {CHANGES + name: value for name, value in self._changes.items()}
        return state | {"residual": self.sender.residual} | changes

    def load_state_dict(self, state: dict) -> None:
        self.theta, self.version, self.live = state["theta"], state["version"], state["live"]
        if self.sender is not None:
            self.sender.residual = state["residual"]
            names = [name for name in state if name.startswith(CHANGES)]
            self._changes = {name.removeprefix(CHANGES): state[name] for name in names}


class ClientSide(ABC):
    """A method's client: what it knows of the synchronised weights.

    Attributes:
        theta: float32 [N], what the server's θ was at the client's version.
        version: the version that the client knows; None for none.
        live: bool [N], the weights that the client sends.
        sender: codes its changes, and keeps what it has still to say; None where values are sent.
    """

    def __init__(self, n_weights: int, sender: Sender | None = None) -> None:
        self.theta, self.sender = np.zeros(n_weights, dtype=np.float32), sender
        self.version: int | None = None
        self.live = np.ones(n_weights, dtype=bool)

    def receive(self, package: Package) -> None:
        """Take in a package, after which θ is the server's.

        Raises:
            OutOfStepError: the package is for a client of another version; nothing has changed.
            ValueError: it is coded, and not a message about these weights: the client does not
                know any more what it had been told.
        """
        version, since = package.numbers["version"], package.numbers["since"]
        if since >= 0 and since != self.version:
            raise OutOfStepError(f"news since version {since}, this client has {self.version}")
        if since >= 0 and since == version - 1:
            self._take_news(package)
        else:
            self._take_everything(package)
        self.version = version

    def restraint(self, model: nn.Module) -> Restraint | None:
        """Make what turns the model, after each local step of a round, into one that is allowed.

        Args:
            model: the model that is trained.

        Returns:
            It is called with the model, which it changes in place, on its device, and without a
            wait of the host for it. None where every model is allowed.
        """
        return None

    def up(self, theta: Vector) -> Package:
        """Make the answer from the trained weights.

        Raises:
            ValueError: they cannot be coded, as they are not finite.
        """
        values = np.ascontiguousarray(theta[self.live], dtype=np.float32)
        arrays = {"values": values}
        if self.sender is not None:
            with np.errstate(over="ignore", invalid="ignore"):  # which is said by what follows
                change = values - self.theta[self.live]
            arrays, _ = self.sender.send(change, self.live, self.version)
        return Package(arrays, {"version": self.version})

    def _after(self, news: Arrays, which: np.ndarray) -> Vector:
        """Compute θ, after news of the weights in `which`, bool [N]."""
        theta = self.theta.copy()
        if self.sender is None:
            theta[which] = news["values"]
        else:
            theta[which] += self.sender.read(news, which)
        return theta

    @abstractmethod
    def _take_news(self, package: Package) -> None: ...

    @abstractmethod
    def _take_everything(self, package: Package) -> None: ...

    def state_dict(self) -> dict:
        """Give all that it knows, for `load_state_dict`: arrays and numbers."""
        version = -1 if self.version is None else self.version
        return {"theta": self.theta, "version": version, "live": self.live}

    def load_state_dict(self, state: dict) -> None:
        self.theta, self.live = state["theta"], state["live"]
        self.version = None if state["version"] < 0 else state["version"]


def weighted_mean(vectors: Sequence[np.ndarray], counts: Sequence[int]) -> np.ndarray:
    """Compute Σ cᵢ vᵢ / Σ cᵢ, summed in float64 in the order given: float32 [n].

    "Communication-Efficient Learning of Deep Networks from Decentralized Data", AISTATS 2017.

    Args:
        vectors: float32 [n] each.
        counts: one for each vector.

    Raises:
        ValueError: there are no vectors, not as many counts, or the counts' sum is not positive.
    """
    if not vectors or len(vectors) != len(counts) or sum(counts) <= 0:
        raise ValueError(f"{len(vectors)} vectors with counts {list(counts)} have no mean")
    total = np.zeros(vectors[0].shape, dtype=np.float64)
    for vector, count in zip(vectors, counts, strict=True):
        total += count * vector.astype(np.float64)
    return (total / sum(counts)).astype(np.float32)
