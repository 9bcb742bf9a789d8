"""What decides between contenders: accuracy at equal bytes, and bytes to an accuracy."""

from collections.abc import Collection, Mapping, Sequence

import numpy as np

from utils.federated.contenders import Contender
from utils.federated.rounds import Round
from utils.federated.settings import FederatedSettings
from utils.federated.strategy import taking_part

MARKS = (10, 20, 30, 50, 100)  # of FedAvg's bytes, in percent
BELOW = (0.0, 0.5, 1.0)  # FedAvg's accuracy in the end, in points
OVER = 5  # rounds that an accuracy is the mean of, if it is to be reached
ROUNDING = 1e-9  # of differences of accuracies
FEDAVG = "fedavg"  # at fp32, whose bytes are 100 %


def opponent(name: str, names: Collection[str]) -> str | None:
    """Name the contender that another one is compared with: FedAvg at its transport, or at fp32.

    Args:
        name: the other's.
        names: of those that were run.

    Returns:
        None if there is none.
    """
    same_transport = Contender(FEDAVG, Contender.named(name).transport).name
    found = (each for each in (same_transport, FEDAVG) if each in names and each != name)
    return next(found, None)


def means(rounds: Sequence[Round]) -> np.ndarray:
    """Average the test accuracy of the last OVER rounds, up to each one: float64 [rounds].

    It is NaN of the first rounds, before which there are too few; of fewer rounds in all, all count
    at the last one.
    """
    window = min(OVER, len(rounds))
    accuracies = np.array([each.test_acc for each in rounds])
    averages = np.lib.stride_tricks.sliding_window_view(accuracies, window).mean(1)
    return np.concatenate([np.full(window - 1, np.nan), averages])


def sent_so_far(rounds: Sequence[Round]) -> np.ndarray:
    """Count the payload sent by the end of each round, both ways: int64 [rounds]."""
    return np.cumsum([each.down_payload + each.up_payload for each in rounds])


def whole(
    settings: FederatedSettings, histories: Mapping[str, Sequence[Round]], n_weights: int
) -> int:
    """Count what FedAvg sends in all rounds: what it did, or would if every client answered."""
    if FEDAVG in histories:
        return int(sent_so_far(histories[FEDAVG])[-1])
    clients = taking_part(settings.clients, settings.fraction)
    return 2 * 4 * n_weights * clients * settings.rounds


def within(rounds: Sequence[Round], limit: float) -> float | None:
    """Find the test accuracy of the last round by whose end no more than `limit` bytes were sent.

    Returns None if the first round took more.
    """
    played = int(np.searchsorted(sent_so_far(rounds), limit, side="right"))
    return rounds[played - 1].test_acc if played else None


def bytes_to(rounds: Sequence[Round], accuracy: float) -> int | None:
    """Count the bytes up to the first round with a test accuracy, or more; None if none has it.

    The accuracy is the mean of OVER rounds: of single ones the luckiest would be found, and the
    more rounds a method plays for its bytes, the luckier.
    """
    reached = np.flatnonzero(means(rounds) >= accuracy - ROUNDING)
    return int(sent_so_far(rounds)[reached[0]]) if len(reached) else None


def decisive(
    settings: FederatedSettings, histories: Mapping[str, Sequence[Round]], n_weights: int
) -> dict[str, dict]:
    """Compute the figures of each contender, by name.

    "within" has the accuracies at the MARKS, by them, and "bytes_to" the bytes to FedAvg's accuracy
    in the end but for the points in BELOW, by them; it is empty unless FedAvg was run, too.
    """
    total = whole(settings, histories, n_weights)
    targets = {}
    if FEDAVG in histories:
        end = float(means(histories[FEDAVG])[-1])
        targets = {f"{points:g}": end - points / 100 for points in BELOW}
    return {
        name: {
            "within": {f"{mark}": within(rounds, total * mark / 100) for mark in MARKS},
            "bytes_to": {key: bytes_to(rounds, target) for key, target in targets.items()},
        }
        for name, rounds in histories.items()
    }
