"""What a federated result depends on."""

import json
from collections.abc import Collection
from dataclasses import asdict, dataclass, fields

import numpy as np
from torch import nn

from utils.base_utils import ModelEntry, get_model
from utils.federated.embedding import CMDClient, CMDServer, EmbeddingSettings
from utils.federated.exchange import ClientSide, ServerSide
from utils.federated.fedavg import FedAvgClient, FedAvgServer
from utils.federated.freezing import FreezingClient, FreezingServer, FreezingSettings
from utils.federated.partition import IID

FEDAVG, CMD, APF, A_APF = METHODS = ("fedavg", "cmd", "apf", "a-apf")
OWN_SETTINGS = {  # that matter to one method alone, or to the two of a kind
    CMD: ("modes", "samples", "warmup_cmd", "embed_window", "embed_perc", "embed_max"),
    APF: ("apf_alpha", "apf_threshold", "apf_every"),
    A_APF: ("apf_alpha", "apf_threshold", "apf_every"),
}
CHECKPOINT_BYTES = {FEDAVG: 6, CMD: 40, APF: 29, A_APF: 29}  # for each weight, at the most
LABELS = {FEDAVG: "FedAvg", CMD: "CMD", APF: "APF", A_APF: "A-APF"}
COLORS = {FEDAVG: "#666666", CMD: "#0072B2", APF: "#D55E00", A_APF: "#E69F00"}


@dataclass(frozen=True)
class FederatedSettings:
    """Everything that the numbers of a method depend on; flags of federated_cmd.py.

    data: the images' fingerprint. limit: images of each split, None for all. To a client those that
    are nothing to its method are None.
    """

    model: str
    dataset: str
    data: str
    limit: int | None
    seed: int
    clients: int
    rounds: int
    local_epochs: int
    fraction: float
    partition: str
    alpha: float
    optimizer: str
    lr: float
    momentum: float | None
    batch_size: int
    precision: str
    modes: int
    samples: int
    warmup_cmd: int
    embed_window: int
    embed_perc: float
    embed_max: float
    apf_alpha: float
    apf_threshold: float
    apf_every: int

    @property
    def entry(self) -> ModelEntry:
        return get_model(self.model)

    def build(self, n_classes: int) -> nn.Module:
        """A model without pretrained weights."""
        return self.entry.build(n_classes)

    def undecided(self, done: Collection[str]) -> set[str]:
        """The settings on which nothing depends that the methods in `done` have done."""
        if not done:
            return {field.name for field in fields(self)}
        unused = {name for names in OWN_SETTINGS.values() for name in names}
        if self.partition == IID:
            unused.add("alpha")
        return unused - {name for method in done for name in OWN_SETTINGS.get(method, ())}

    def text(self, method: str) -> str:
        """What a method's clients are told: no other method's settings, which may change while it
        goes on, and would change the size of its messages."""
        left_out = self.undecided([method])
        told = {name: value for name, value in asdict(self).items() if name not in left_out}
        return json.dumps(told, sort_keys=True)

    @classmethod
    def parse(cls, text: str) -> "FederatedSettings":
        """What `text` wrote."""
        return cls(**dict.fromkeys(field.name for field in fields(cls)) | json.loads(text))

    def _freezing(self, method: str) -> FreezingSettings:
        return FreezingSettings(
            self.apf_alpha, self.apf_threshold, self.apf_every, method == A_APF, self.seed
        )

    def server(self, method: str, theta: np.ndarray, module: nn.Module) -> ServerSide:
        """A method's server. module: of the layers whose weights θ holds."""
        if method == CMD:
            embedding = EmbeddingSettings(
                self.modes, self.samples, self.warmup_cmd, self.embed_window, self.embed_perc,
                self.embed_max,
                self.seed,
            )  # fmt: skip
            return CMDServer(theta, module, embedding)
        if method == FEDAVG:
            return FedAvgServer(theta)
        return FreezingServer(theta, self._freezing(method))

    def client(self, method: str, n_weights: int) -> ClientSide:
        """A method's client."""
        if method == CMD:
            return CMDClient(n_weights)
        if method == FEDAVG:
            return FedAvgClient(n_weights)
        return FreezingClient(n_weights, self._freezing(method))
