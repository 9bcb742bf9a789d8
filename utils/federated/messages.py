"""Packages as the content of Flower's messages, and client memory as records of its context."""

import numpy as np

from utils.federated.exchange import Package
from utils.federated.flower import Array, ArrayRecord, ConfigRecord, RecordDict

PACKAGE, NUMBERS, ORDER = "package", "numbers", "order"


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
    try:
        arrays = {name: array.numpy() for name, array in content[PACKAGE].items()}
        numbers = {name: int(value) for name, value in content[NUMBERS].items()}
    except Exception as error:  # what was sent instead may be anything
        raise ValueError(f"not a package ({type(error).__name__}: {error})") from error
    return Package(arrays, numbers)


def order_of(content: RecordDict) -> dict:
    """Read what a message tells besides its package."""
    return dict(content[ORDER])


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
