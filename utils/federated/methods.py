"""The methods that are compared. To add one, write its two sides and name it in METHODS."""

from collections.abc import Callable, Collection
from dataclasses import dataclass, fields, replace

from torch import nn

from utils.federated.embedding import CMDClient, CMDServer, EmbeddingSettings
from utils.federated.exchange import ClientSide, ServerSide, Vector
from utils.federated.fedavg import FedAvgClient, FedAvgServer
from utils.federated.freezing import FreezingClient, FreezingServer, FreezingSettings
from utils.federated.partition import IID
from utils.federated.settings import CMDRounds, FederatedSettings, FreezingRounds, TopKRounds
from utils.federated.topk import TopK
from utils.federated.transport import CODINGS, FP32, Coding, Sender
from utils.system.errors import UserError
from utils.system.options import options_of
from utils.training.settings import DataSettings


def _any_settings(settings: FederatedSettings) -> None:
    """Accept all settings."""


def _changes_unless_fp32(settings: FederatedSettings, transport: str) -> Coding | None:
    """Code changes, but send values where they are sent in full."""
    return None if transport == FP32 else CODINGS[transport]


@dataclass(frozen=True)
class FederatedMethod:
    """What is known of a method besides its algorithm.

    Attributes:
        label: its name in tables and plots.
        color: its color in plots.
        checkpoint_bytes: counts the most bytes that its checkpoint takes for each weight.
        server: makes its server from the settings, θ, a module of the layers whose weights θ
            holds, and what codes its changes, if anything does.
        client: makes a client of it from the settings, the number of weights, and the same.
        coding: how it writes changes at a transport; None where values are sent.
        own_settings: names of the settings that matter to it alone, or to it and its like.
        check: raises UserError where it cannot run with the settings.
    """

    label: str
    color: str
    checkpoint_bytes: Callable[[FederatedSettings], int]
    server: Callable[[FederatedSettings, Vector, nn.Module, Sender | None], ServerSide]
    client: Callable[[FederatedSettings, int, Sender | None], ClientSide]
    coding: Callable[[FederatedSettings, str], Coding | None] = _changes_unless_fp32
    own_settings: tuple[str, ...] = ()
    check: Callable[[FederatedSettings], None] = _any_settings


def _declared_by(block: type[DataSettings]) -> tuple[str, ...]:
    """Return the names of the settings that a block of FederatedSettings adds."""
    return tuple(name for name in options_of(block) if name not in options_of(DataSettings))


def _cmd_server(
    settings: FederatedSettings, theta: Vector, module: nn.Module, sender: Sender | None
) -> CMDServer:
    embedding = EmbeddingSettings(
        modes=settings.modes,
        samples=settings.samples,
        warmup=settings.warmup_cmd,
        window=settings.embed_window,
        percentage=settings.embed_perc,
        most=settings.embed_max,
        seed=settings.seed,
        memory=settings.memory,
    )
    return CMDServer(theta, module, embedding, sender)


def _checkpoint_bytes_of_cmd(settings: FederatedSettings) -> int:
    """Count what is kept in the warm-up, where θ is kept of each round, or afterwards."""
    return max(28 + 4 * settings.warmup_cmd, 44)


def _check_cmd(settings: FederatedSettings) -> None:
    """Check that a round follows in which the first embedded weights are not sent."""
    first = settings.warmup_cmd + settings.embed_window + 1  # rounds are said from 1 on
    if first >= settings.rounds:
        raise UserError(
            f"--warmup_cmd {settings.warmup_cmd} and --embed_window {settings.embed_window}: the "
            f"first weights would be embedded after round {first}, which leaves none of --rounds "
            f"{settings.rounds}; choose smaller ones, more rounds, or --methods without cmd"
        )


def _freezing_method(label: str, color: str, random: bool) -> FederatedMethod:
    """Describe APF, or A-APF, which also freezes at random."""

    def freezing(settings: FederatedSettings) -> FreezingSettings:
        return FreezingSettings(
            alpha=settings.apf_alpha,
            threshold=settings.apf_threshold,
            every=settings.apf_every,
            random=random,
            seed=settings.seed,
        )

    return FederatedMethod(
        label=label,
        color=color,
        checkpoint_bytes=lambda settings: 29,
        server=lambda settings, theta, module, sender: FreezingServer(
            theta, freezing(settings), sender
        ),
        client=lambda settings, n_weights, sender: FreezingClient(
            n_weights, freezing(settings), sender
        ),
        own_settings=_declared_by(FreezingRounds),
    )


FEDAVG = FederatedMethod(
    label="FedAvg",
    color="#666666",
    checkpoint_bytes=lambda settings: 6,
    server=lambda settings, theta, module, sender: FedAvgServer(theta, sender),
    client=lambda settings, n_weights, sender: FedAvgClient(n_weights, sender),
)
CMD = "cmd"
METHODS = {
    "fedavg": FEDAVG,
    CMD: FederatedMethod(
        label="CMD",
        color="#0072B2",
        checkpoint_bytes=_checkpoint_bytes_of_cmd,
        server=_cmd_server,
        client=lambda settings, n_weights, sender: CMDClient(n_weights, sender),
        own_settings=_declared_by(CMDRounds),
        check=_check_cmd,
    ),
    "apf": _freezing_method("APF", "#D55E00", random=False),
    "a-apf": _freezing_method("A-APF", "#E69F00", random=True),
    "topk": replace(
        FEDAVG,
        label="top-k",
        color="#009E73",
        coding=lambda settings, transport: TopK(settings.topk, CODINGS[transport]),
        own_settings=_declared_by(TopKRounds),
    ),
}


def undecided(settings: FederatedSettings, done: Collection[str]) -> set[str]:
    """Name the settings on which nothing depends.

    Args:
        settings: the run's.
        done: the names of the methods of which something is stored.
    """
    if not done:
        return {field.name for field in fields(FederatedSettings)}
    own = {name for method in METHODS.values() for name in method.own_settings}
    names = own - {name for method in done for name in METHODS[method].own_settings}
    if settings.partition == IID:
        names.add("alpha")
    return names
