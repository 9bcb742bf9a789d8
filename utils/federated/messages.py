"""Packages as the content of Flower's messages, and client memory as records of its context."""

import contextlib
from collections.abc import Iterator

import numpy as np

from utils.federated.exchange import Package
from utils.federated.flower import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

PACKAGE, NUMBERS, ORDER, METRICS = "package", "numbers", "order", "metrics"
IMAGES, LOSS = "num-examples", "train_loss"


def content_of(package: Package, **order: str | int) -> RecordDict:
    """Make a message's content.

    Args:
        package: what is sent of θ.
        order: what else is told, by name.
    """
    record = ArrayRecord({name: Array(value) for name, value in package.arrays.items()})
    return RecordDict(
        {PACKAGE: record, NUMBERS: ConfigRecord(dict(package.numbers)), ORDER: ConfigRecord(order)}
    )


def package_of(content: RecordDict) -> Package:
    """Read the package in a message's content.

    Raises:
        ValueError: it holds none, or arrays that are not plain numbers.
    """
    with _reading("a package"):
        arrays = {name: array.numpy() for name, array in content[PACKAGE].items()}
        numbers = {name: int(value) for name, value in content[NUMBERS].items()}
    return Package(arrays, numbers)


def order_of(content: RecordDict) -> dict:
    """Read what a message tells besides its package.

    Raises:
        ValueError: it does not tell that.
    """
    with _reading("an answer"):
        return dict(content[ORDER])


def part_of(content: RecordDict) -> int:
    """Read which part of the images a client says it has.

    Raises:
        ValueError: it does not say that.
    """
    with _reading("an answer"):
        return int(content[ORDER]["part"])


def metrics_record(images: int, loss: float) -> MetricRecord:
    """Make the record of how many images a client trained on, and its mean loss."""
    return MetricRecord({IMAGES: images, LOSS: loss})


def metrics_of(content: RecordDict) -> tuple[int, float]:
    """Read what a client trained on: how many images, and its mean loss.

    Raises:
        ValueError: it does not tell that.
    """
    with _reading("an answer"):
        metrics = content[METRICS]
        return int(metrics[IMAGES]), float(metrics[LOSS])


@contextlib.contextmanager
def _reading(what: str) -> Iterator[None]:
    """Read what was sent, instead of which anything may be.

    Raises:
        ValueError: the block cannot use it.
    """
    try:
        yield
    except Exception as error:
        raise ValueError(f"not {what} ({type(error).__name__}: {error})") from error


def remember(records: RecordDict, name: str, state: dict) -> None:
    """Keep a state dictionary of arrays and numbers as records."""
    arrays = {key: value for key, value in state.items() if isinstance(value, np.ndarray)}
    records[f"{name}.arrays"] = ArrayRecord({key: Array(value) for key, value in arrays.items()})
    numbers = {key: value for key, value in state.items() if key not in arrays}
    records[f"{name}.numbers"] = ConfigRecord(numbers)


def recall(records: RecordDict, name: str) -> dict | None:
    """Read the state dictionary that was kept under a name; returns None if there is none."""
    if f"{name}.arrays" not in records:
        return None
    arrays = {key: value.numpy() for key, value in records[f"{name}.arrays"].items()}
    return arrays | dict(records[f"{name}.numbers"])
