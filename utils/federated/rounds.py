"""A contender's rounds on the server, which tests and keeps each, and goes on where it stopped."""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor

from utils.cmd.vector import read_vector, write_vector
from utils.federated.client import images_of
from utils.federated.contenders import Contender
from utils.federated.flower import ArrayRecord, Grid
from utils.federated.leftovers import of_clients, run_of, to_clients
from utils.federated.methods import undecided
from utils.federated.settings import FederatedSettings
from utils.federated.strategy import ExchangeStrategy
from utils.storage.store import Store
from utils.training.compute import Compute
from utils.training.epochs import evaluate
from utils.training.precision import Arithmetic
from utils.training.seeding import INITIAL_WEIGHTS, stream_seed

TEST_BATCH_SIZE = 500  # where it is no part of the result


@dataclass(frozen=True)
class Round:
    """One round. Losses are means over images, accuracies fractions.

    Attributes:
        round: its number, from 1.
        train_loss: the clients' mean; None if no client answered.
        live: share of the weights that clients send in the next round.
        down_messages, up_messages: how many messages were sent to clients, and by them.
        down_payload, up_payload: bytes of what they carry.
        down_wire, up_wire: bytes of them as serialised.
        lost: whether what clients had still to say before it was lost.
        seconds: what it took.
    """

    round: int
    test_loss: float
    test_acc: float
    train_loss: float | None
    live: float
    down_messages: int
    down_payload: int
    down_wire: int
    up_messages: int
    up_payload: int
    up_wire: int
    lost: bool
    seconds: float

    @classmethod
    def stored(cls, row: dict) -> "Round":
        """Make a round of what a checkpoint holds of it; older ones do not tell what was lost."""
        return cls(**{"lost": False} | row)


@dataclass(frozen=True)
class Place:
    """Where a run is done.

    Attributes:
        store: the results'.
        device: the server's, and the clients' where they choose none.
        data_dir: the folder of the images.
        timeout: seconds that clients may take.
        n_weights: N.
    """

    store: Store
    device: torch.device
    data_dir: str
    timeout: float
    n_weights: int


def checkpoint_of(contender: str) -> str:
    """Name the file in the store from which a contender goes on, by its name."""
    return f"{contender}/checkpoint.pt"


def stored_history(store: Store, contender: str) -> list[Round]:
    """Read the rounds of a contender that has a checkpoint.

    Raises:
        UserError: its checkpoint is damaged.
    """
    with store.reading(checkpoint_of(contender)) as state:
        return [Round.stored(row) for row in state["history"]]


def run_rounds(
    grid: Grid,
    settings: FederatedSettings,
    name: str,
    place: Place,
    tell: Callable[[list[Round]], None],
) -> list[Round]:
    """Play what is left of a contender's rounds; returns all of them.

    Args:
        grid: the clients.
        settings: the run's.
        name: the contender's.
        place: where the run is done.
        tell: is called with all rounds so far after each one.

    Raises:
        UserError: its checkpoint is damaged.
    """
    dataset, _ = images_of(
        settings.model, settings.dataset, place.data_dir, settings.limit, str(place.device)
    )
    torch.manual_seed(stream_seed(settings.seed, INITIAL_WEIGHTS))
    model = settings.build(len(dataset.classes))
    contender, run = Contender.named(name), run_of(settings, name)
    server = contender.server(settings, read_vector(model).numpy(), model)
    model = model.to(place.device, memory_format=torch.channels_last)
    order = {
        "settings": settings.text(undecided(settings, [contender.method])),
        "method": name,
        "data_dir": place.data_dir,
        "device": str(place.device),
    }
    strategy = ExchangeStrategy(server, order, settings.clients, settings.fraction, settings.seed)
    history: list[Round] = []
    checkpoint = checkpoint_of(name)
    path = place.store.folder / checkpoint
    path.parent.mkdir(exist_ok=True)
    lost = False
    if path.exists():
        with place.store.reading(checkpoint) as state:
            server.load_state_dict(_unpacked(state["server"]))
            history = [Round.stored(row) for row in state["history"]]
            strategy.go_on(len(history), state["have"])
            if server.sender is not None:
                left = state["left"]
                lost = left is None or not to_clients(grid, run, _unpacked(left))
    if len(history) == settings.rounds:
        return history
    if strategy.sends_more:
        strategy.say(
            f"note: {contender.label} goes on after round {len(history)}: clients have lost "
            "what they knew and are sent everything once; the figures count what they would have "
            "been sent"
        )
    if lost:
        strategy.say(
            f"note: {contender.label} goes on after round {len(history)}: what clients had still "
            "to say is lost, and the figures are not those of a run left alone"
        )
    start = time.perf_counter()

    def after_round(number: int, _: ArrayRecord) -> None:
        nonlocal start, lost
        if number == 0:  # before the first one
            return
        write_vector(torch.from_numpy(server.theta), model)
        loss, accuracy = evaluate(
            model, dataset.test, settings.entry.transform_of(dataset),
            settings.entry.test_batch_size or TEST_BATCH_SIZE,
            Compute(place.device, Arithmetic(settings.precision)),
        )  # fmt: skip
        down, up, now = strategy.down, strategy.up, time.perf_counter()
        history.append(
            Round(
                len(history) + 1, loss, accuracy, strategy.train_loss, server.live_share,
                down.messages, down.payload, down.wire, up.messages, up.payload, up.wire,
                lost or (strategy.forgot and server.sender is not None), round(now - start, 3),
            )
        )  # fmt: skip
        start, lost = now, False
        rows = [asdict(row) for row in history]
        state = {"server": _packed(server.state_dict()), "history": rows, "have": strategy.have}
        if server.sender is not None:
            left = of_clients(grid, run)
            state["left"] = None if left is None else _packed(left)
        place.store.save(state, checkpoint)
        tell(history)

    strategy.start(
        grid,
        ArrayRecord(),
        num_rounds=settings.rounds - len(history),
        timeout=place.timeout,
        evaluate_fn=after_round,
    )
    return history


def describe(contender: Contender, row: Round, rounds: int) -> str:
    """What is printed of a round.

    Args:
        contender: whose round it is.
        row: the round.
        rounds: how many there will be.
    """
    megabytes = (row.down_payload + row.up_payload) / 1e6
    loss = "nobody answered" if row.train_loss is None else f"train loss {row.train_loss:.4f}"
    return (
        f"{contender.label}, round {row.round:>{len(str(rounds))}} of {rounds} | {loss}, "
        f"test {100 * row.test_acc:.2f} % | {megabytes:.2f} MB, {100 * row.live:.0f} % live next, "
        f"{row.seconds:.1f} s"
    )


def _packed(state: dict) -> dict:
    """Make tensors of the arrays, which are stored without pickled code."""
    return {
        name: torch.from_numpy(value) if isinstance(value, np.ndarray) else value
        for name, value in state.items()
    }


def _unpacked(state: dict) -> dict:
    """Make arrays of the tensors, as they were before `_packed`."""
    return {
        name: value.numpy() if isinstance(value, Tensor) else value for name, value in state.items()
    }
