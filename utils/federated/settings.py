"""What a federated result depends on."""

import json
from collections.abc import Collection
from dataclasses import asdict, dataclass, fields

from torch import nn

from utils.base_utils import ModelEntry, get_model


@dataclass(frozen=True)
class FederatedSettings:
    """Everything that the numbers of a method depend on: flags of federated_cmd.py, and `data`.

    A client is not told the settings that are nothing to its method; they are None there.

    Attributes:
        data: the images' fingerprint.
        limit: how many images of each split are used; None for all.
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
        """Build a model without pretrained weights."""
        return self.entry.build(n_classes)

    def text(self, left_out: Collection[str]) -> str:
        """Write the settings as clients are told them.

        Args:
            left_out: names of settings that are nothing to the method: they may change while it
                goes on, and would change the size of its messages.
        """
        told = {name: value for name, value in asdict(self).items() if name not in left_out}
        return json.dumps(told, sort_keys=True)

    @classmethod
    def parse(cls, text: str) -> "FederatedSettings":
        """Read what `text` wrote."""
        return cls(**dict.fromkeys(field.name for field in fields(cls)) | json.loads(text))
