"""Several processes that follow one model: what CMD asks of them, and one that is alone."""

from collections.abc import Callable
from typing import Protocol, TypeVar

from torch import Tensor

T = TypeVar("T")


class Ranks(Protocol):
    """Processes (ranks) that hold the same model, each in charge of a range of its weights. All of
    them call what sends something, in the same order.

    Attributes:
        size: how many there are.
    """

    size: int

    def share(self, count: int) -> slice:
        """This rank's part of `count` things in a row."""

    def gather(self, part: Tensor, count: int) -> Tensor:
        """`count` numbers, of which each rank gives its share, on every rank."""

    def object_from_first(self, make: Callable[[], T]) -> T:
        """What `make` returns on the first rank; it is not called elsewhere."""


class Alone:
    """One process, to which nothing has to be sent."""

    size = 1

    def share(self, count: int) -> slice:
        return slice(0, count)

    def gather(self, part: Tensor, count: int) -> Tensor:
        return part

    def object_from_first(self, make: Callable[[], T]) -> T:
        return make()


ALONE = Alone()
