"""Who is compared: each method at each transport."""

from dataclasses import dataclass

from torch import nn

from utils.cmd.vector import layer_sizes, named_layers
from utils.federated.draws import DOWN, UP
from utils.federated.exchange import ClientSide, ServerSide, Vector
from utils.federated.methods import METHODS, FederatedMethod
from utils.federated.settings import FederatedSettings
from utils.federated.transport import BF16, FP32, INT8, TRANSPORTS, Sender

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
        return self._method.checkpoint_bytes(settings) + coded * (9 + 4 * settings.clients)

    def server(self, settings: FederatedSettings, theta: Vector, module: nn.Module) -> ServerSide:
        """Make its server; for the arguments see FederatedMethod."""
        sender = self._sender(settings, module, (DOWN, 0))
        return self._method.server(settings, theta, module, sender)

    def client(self, settings: FederatedSettings, module: nn.Module, part: int) -> ClientSide:
        """Make a client.

        Args:
            settings: the run's.
            module: of the layers whose weights θ holds.
            part: of the images, which the client has.
        """
        sender = self._sender(settings, module, (UP, part))
        return self._method.client(settings, sum(layer_sizes(module)), sender)

    @property
    def _method(self) -> FederatedMethod:
        return METHODS[self.method]

    def _sender(
        self, settings: FederatedSettings, module: nn.Module, stream: tuple[int, int]
    ) -> Sender | None:
        coding = self._method.coding(settings, self.transport)
        if coding is None:
            return None
        layers = [tensor for _, tensor in named_layers(module)]
        statistics = [not isinstance(tensor, nn.Parameter) for tensor in layers]
        sizes = [tensor.numel() for tensor in layers]
        return Sender(coding, sizes, (settings.seed, *stream), statistics)


CONTENDERS = tuple(Contender(method, transport) for method in METHODS for transport in TRANSPORTS)
NAMES = tuple(contender.name for contender in CONTENDERS)  # in the order of tables
