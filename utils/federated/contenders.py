"""Who is compared: each method at each transport."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from utils.cmd.vector import layer_sizes
from utils.federated.exchange import ClientSide, ServerSide, Vector
from utils.federated.methods import METHODS, FederatedMethod
from utils.federated.settings import FederatedSettings
from utils.federated.transport import BF16, FP32, INT8, TRANSPORTS, Sender

DOWN, UP = 1, 2  # in the streams of draws
LINES = {FP32: "-", BF16: "--", INT8: ":"}  # in plots


@dataclass(frozen=True)
class Contender:
    """A method at a transport, which is a row of the comparison.

    Attributes:
        method: its name, of METHODS.
        transport: one of TRANSPORTS.
    """

    method: str
    transport: str = FP32

    @classmethod
    def named(cls, name: str) -> "Contender":
        """Find the one of a name."""
        method, _, transport = name.rpartition("-")
        return cls(method, transport) if transport in TRANSPORTS else cls(name)

    @property
    def name(self) -> str:
        """Name it in files and messages, where a method at fp32 has the method's name."""
        return self.method if self.transport == FP32 else f"{self.method}-{self.transport}"

    @property
    def label(self) -> str:
        """Name it in tables and plots."""
        label = self._method.label
        return label if self.transport == FP32 else f"{label} {self.transport}"

    @property
    def look(self) -> dict[str, str]:
        """Choose how its lines are drawn."""
        return {"color": self._method.color, "linestyle": LINES[self.transport]}

    def checkpoint_bytes(self, settings: FederatedSettings) -> int:
        """Count the most bytes that its checkpoint takes for each weight.

        Where changes are coded, it has those of the last message, and what the server and each
        client have still to say.
        """
        coded = self._method.coding(settings, self.transport) is not None
        return self._method.checkpoint_bytes + coded * (9 + 4 * settings.clients)

    def server(self, settings: FederatedSettings, theta: Vector, module: nn.Module) -> ServerSide:
        """Make its server; for the arguments see FederatedMethod."""
        sender = self._sender(settings, layer_sizes(module), (DOWN, 0))
        return self._method.server(settings, theta, module, sender)

    def client(self, settings: FederatedSettings, sizes: Sequence[int], part: int) -> ClientSide:
        """Make a client.

        Args:
            settings: the run's.
            sizes: how many weights each layer of θ has.
            part: of the images, which the client has.
        """
        return self._method.client(settings, sum(sizes), self._sender(settings, sizes, (UP, part)))

    @property
    def _method(self) -> FederatedMethod:
        return METHODS[self.method]

    def _sender(
        self, settings: FederatedSettings, sizes: Sequence[int], stream: tuple[int, int]
    ) -> Sender | None:
        coding = self._method.coding(settings, self.transport)
        return None if coding is None else Sender(coding, sizes, (settings.seed, *stream))


CONTENDERS = tuple(Contender(method, transport) for method in METHODS for transport in TRANSPORTS)
NAMES = tuple(contender.name for contender in CONTENDERS)  # in the order of tables
