"""What a federated result depends on: the flags of federated_cmd.py but those of its machinery."""

import json
from collections.abc import Collection
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar

from torch import nn

from utils.base_utils import MODELS, ModelEntry, get_model
from utils.federated.partition import LARGEST_ALPHA, PARTITIONS
from utils.system.arguments import at_least, fraction, memory_or_none, positive, up_to
from utils.system.options import option, same_option
from utils.training.optimizers import OPTIMIZERS
from utils.training.precision import FP32, PRECISIONS
from utils.training.settings import (
    MODELS_OWN,
    DataSettings,
    TrainingSettings,
    complete_training,
)

# Settings that clients are not told: messages are as long as in runs from before there were these.
SERVERS_OWN = ("memory",)


@dataclass(frozen=True, kw_only=True)
class FederationSettings(DataSettings):
    """Clients and rounds."""

    group: ClassVar[str] = "federation"

    clients: int = option(10, "how many clients there are", at_least(1))
    rounds: int = option(100, "how many rounds are played", at_least(1))
    local_epochs: int = option(1, "epochs of each client in a round", at_least(1))
    fraction: float = option(1.0, "share of the clients that take part in a round", up_to(1))
    partition: str = option(
        PARTITIONS[0], "of the images: alike, or classes in shares drawn from Dir(alpha)",
        choices=PARTITIONS,
    )  # fmt: skip
    alpha: float = option(0.5, "of --partition dirichlet", up_to(LARGEST_ALPHA))


@dataclass(frozen=True, kw_only=True)
class ClientSettings(DataSettings):
    """What clients train, and how."""

    group: ClassVar[str] = "model and training"

    model: str = option("res18", "the model", choices=MODELS)
    optimizer: str = option(
        None, "of clients, afresh every round", choices=OPTIMIZERS, told=MODELS_OWN
    )
    lr: float = same_option(TrainingSettings, "lr")
    momentum: float | None = same_option(TrainingSettings, "momentum")
    batch_size: int = option(128, "images in a training batch", at_least(1), metavar="B")
    seed: int = option(
        0, "of the initial weights, the partition and all draws of the rounds", at_least(0)
    )
    precision: str = option(
        None, "of forward and backward passes", choices=PRECISIONS,
        told="bf16 on GPUs that have it, else fp32",
    )  # fmt: skip

    @classmethod
    def complete(cls, given: dict[str, Any]) -> dict[str, Any]:
        given = super().complete(given)
        of_training = complete_training(
            given["model"], given["optimizer"], given["lr"], given["momentum"]
        )
        given["precision"] = given["precision"] or FP32
        return given | dict(zip(("optimizer", "lr", "momentum"), of_training, strict=True))


@dataclass(frozen=True, kw_only=True)
class CMDRounds(DataSettings):
    """Embedded CMD, which counts in rounds."""

    group: ClassVar[str] = "CMD"

    modes: int = option(None, "modes at the most", at_least(1), metavar="M", told=MODELS_OWN)
    samples: int = option(
        None, "weights that are clustered", at_least(1), metavar="K", told=MODELS_OWN
    )
    warmup_cmd: int = option(10, "last round of the warm-up, from 0", at_least(1), metavar="ROUND")
    embed_window: int = option(4, "rounds from one embedding to the next", at_least(1), metavar="L")
    embed_perc: float = option(
        10.0, "percentage of all weights embedded each time", up_to(100), metavar="P"
    )
    embed_max: float = option(
        55.0, "percentage of all weights that are ever embedded", up_to(100), metavar="P"
    )
    memory: float | None = option(
        None, "embed by a, b of the last rounds, of which s counts (1 − 1/H)^(t − s) at round t; "
        "none: of all rounds alike", memory_or_none, metavar="H", told="none", before=None,
    )  # fmt: skip

    @classmethod
    def complete(cls, given: dict[str, Any]) -> dict[str, Any]:
        given = super().complete(given)
        entry = get_model(given["model"])
        own = {"modes": entry.modes, "samples": entry.samples}
        return given | {name: value for name, value in own.items() if given[name] is None}


@dataclass(frozen=True, kw_only=True)
class FreezingRounds(DataSettings):
    """APF and A-APF."""

    group: ClassVar[str] = "APF and A-APF"

    apf_alpha: float = option(
        0.99, "share of the averages that stays, a check", fraction, metavar="ALPHA"
    )
    apf_threshold: float = option(
        0.05, "of effective perturbation, below which a weight is stable", positive, metavar="P"
    )
    apf_every: int = option(1, "rounds from one check to the next", at_least(1), metavar="ROUNDS")


@dataclass(frozen=True, kw_only=True)
class TopKRounds(DataSettings):
    """Top-k of changes."""

    group: ClassVar[str] = "top-k"

    topk: float = option(
        10.0, "percentage of the weights whose changes are sent", up_to(100), metavar="P"
    )


@dataclass(frozen=True, kw_only=True)
class FederatedSettings(TopKRounds, FreezingRounds, CMDRounds, ClientSettings, FederationSettings):
    """Everything that the numbers of a method depend on.

    A client is not told the settings that are nothing to it; they are None there.
    """

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
        left_out = {*left_out, *SERVERS_OWN}
        told = {name: value for name, value in asdict(self).items() if name not in left_out}
        return json.dumps(told, sort_keys=True)

    @classmethod
    def parse(cls, text: str) -> "FederatedSettings":
        """Read what `text` wrote."""
        return cls(**dict.fromkeys(field.name for field in fields(cls)) | json.loads(text))
