"""One run followed by online CMD with several samples of its weights: the lottery made visible.

A further draw of the sample is a method of its own, with rows and tests as any other has, whose
figures are told with those of the method that it is a draw of.
"""

from collections.abc import Sequence

from utils.methods.base import Method
from utils.methods.cmd import OnlineCMDMethod
from utils.storage.metrics import Metrics

_made: dict[tuple[type[OnlineCMDMethod], int], type[OnlineCMDMethod]] = {}


def with_draws(methods: Sequence[type[Method]], count: int) -> list[type[Method]]:
    """The methods, and further draws of online and adaptive CMD, `count` in all of each."""
    draws = [
        draw_of(method, number)
        for method in methods
        if issubclass(method, OnlineCMDMethod)
        for number in range(1, count)
    ]
    return [*methods, *draws]


def draw_of(method: type[OnlineCMDMethod], number: int) -> type[OnlineCMDMethod]:
    """The method with another draw of its sample, from 1 on; the same class each time."""
    if (method, number) not in _made:
        name, label = f"{method.name}_draw{number}", f"{method.label}, draw {number}"
        own = {"name": name, "label": label, "draw": number}
        _made[method, number] = type(f"{method.__name__}{number}", (method,), own)
    return _made[method, number]


def stored_draws(method: type[Method], metrics: Metrics, epochs: int) -> list[type[Method]]:
    """The method itself and its further draws that are there for all epochs; the method alone
    where it is neither online nor adaptive CMD."""
    found = [method]
    while issubclass(method, OnlineCMDMethod):
        draw = draw_of(method, len(found))
        if not all(metrics.has(draw.name, epoch) for epoch in range(epochs)):
            break
        found.append(draw)
    return found
