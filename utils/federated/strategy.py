"""A method's server side as a Flower strategy, which chooses clients and weighs messages."""

import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from utils.federated.draws import TAKING_PART, drawing
from utils.federated.exchange import Package, ServerSide
from utils.federated.flower import (
    ArrayRecord,
    ConfigRecord,
    Grid,
    Message,
    MessageType,
    MetricRecord,
    Strategy,
    wire_bytes,
)
from utils.federated.messages import content_of, metrics_of, order_of, package_of, part_of

MEETING = 300.0  # seconds for clients to connect and to say who they are


def taking_part(clients: int, fraction: float) -> int:
    """Count the clients that take part in a round."""
    return max(1, round(fraction * clients))


@dataclass
class Traffic:
    """What a round sent in one direction.

    Attributes:
        messages: how many.
        payload: bytes of what they carry.
        wire: bytes of them as serialised.
    """

    messages: int = 0
    payload: int = 0
    wire: int = 0

    def count(self, package: Package, message: Message) -> None:
        self.messages += 1
        self.payload += package.payload
        self.wire += wire_bytes(message)


class ExchangeStrategy(Strategy):
    """Rounds of a method.

    Attributes:
        have: the version that each client, by its part of the images, is known to have.
        round: how many rounds are over; the server's version lags where nobody answered.
        down, up: the traffic of the last round.
        train_loss: the clients' mean in the last round; None if no client answered.
        forgot: whether a client was found in the last round to have lost its memory.
    """

    def __init__(
        self,
        server: ServerSide,
        order: dict[str, str | int],
        clients: int,
        fraction: float,
        seed: int,
        say: Callable[[str], None] = lambda words: print(words, file=sys.stderr, flush=True),
    ) -> None:
        """Prepare for the first round.

        Args:
            server: the method's.
            order: what clients are told besides packages.
            clients: how many there are.
            fraction: of clients that take part in each round.
            seed: of the draws of who takes part.
            say: is told of clients that are left out.
        """
        self.server, self.order, self.say = server, order, say
        self.clients, self.fraction, self.seed = clients, fraction, seed
        self.have: dict[int, int] = {}
        self.round = 0
        self.down, self.up = Traffic(), Traffic()
        self.train_loss: float | None = None
        self.forgot = False
        self._nodes: dict[int, int] = {}  # of each part
        self._left_out: set[int] = set()  # nodes of which that was said
        self._forgetful: set[int] = set()  # parts whose clients no longer know what they did
        self._heard: set[int] = set()  # parts whose clients remember what they had still to say

    def go_on(self, rounds: int, have: dict[int, int]) -> None:
        """Go on after some rounds with clients that have lost their memory.

        Clients are sent everything once, but what is counted is what they would have been sent, as
        a restart is no part of a method's traffic.

        Args:
            rounds: how many rounds are over.
            have: what `have` was after these rounds.
        """
        self.round, self.have, self._forgetful = rounds, dict(have), set(have)

    @property
    def sends_more(self) -> bool:
        """Tell whether a client may now be sent more than is counted."""
        known = {self.have.get(part) for part in self._forgetful}
        everything = self.server.down(None).payload
        return any(self.server.down(have).payload != everything for have in known)

    def summary(self) -> None:
        """Log nothing."""

    def meet(self, grid: Grid, timeout: float) -> None:
        """Ask the nodes that are not known yet which part of the images they have.

        Args:
            grid: the nodes.
            timeout: seconds to wait, the first time, for all clients to be connected, and for them
                to answer.
        """
        end = time.monotonic() + timeout
        while not self._nodes and len(list(grid.get_node_ids())) < self.clients:
            if time.monotonic() > end:
                break
            time.sleep(0.5)
        connected = set(grid.get_node_ids())
        for part in [part for part, node in self._nodes.items() if node not in connected]:
            del self._nodes[part]
            self._forget(part)
        unknown = sorted(connected - set(self._nodes.values()))
        asked = [Message(content_of(Package()), node, MessageType.QUERY) for node in unknown]
        for reply in grid.send_and_receive(asked, timeout=timeout) if asked else ():
            if not reply.has_content():
                continue
            node = reply.metadata.src_node_id
            try:
                part = part_of(reply.content)
                if part in self._nodes:
                    raise ValueError(f"another one has part {part}, too")
                self._nodes[part] = node
            except ValueError as error:  # it is asked again, and the other may have gone
                if node not in self._left_out:
                    self.say(f"note: node {node} is left out: {error}")
                self._left_out.add(node)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Make a message for each client that takes part."""
        self.forgot = False
        self.meet(grid, MEETING)
        draw = drawing(self.seed, TAKING_PART, self.round)
        count = taking_part(self.clients, self.fraction)
        parts = np.sort(draw.permutation(self.clients)[:count]).tolist()
        self.down, self._asked, messages = Traffic(), {}, []
        for part in parts:
            if part not in self._nodes:
                self._leave_out(part, "it is not connected")
                continue
            package, message = self._for(part, self.have.get(part))
            self.down.count(package, message)
            if part in self._forgetful:
                self._forgetful.remove(part)
                _, message = self._for(part, None)
            self._asked[self._nodes[part]] = part
            messages.append(message)
        return messages

    def _for(self, part: int, have: int | None) -> tuple[Package, Message]:
        """Make the package for a client that has the version `have`, and the message with it."""
        package = self.server.down(have)
        content = content_of(package, **self.order)
        return package, Message(content, self._nodes[part], MessageType.TRAIN)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Aggregate the answers that can be used, in the order of the clients' parts."""
        self.up, taken = Traffic(), {}
        silent = dict(self._asked)
        for reply in replies:
            part = silent.pop(reply.metadata.src_node_id, None)
            if part is None:
                continue
            try:
                taken[part] = self._answer(part, reply)
            except ValueError as error:
                self._leave_out(part, str(error))
        for part in silent.values():
            self._leave_out(part, "it did not answer in time")
        for part in taken:
            self.have[part] = self.server.version
        self.round += 1
        self.train_loss = None
        if taken:
            answers = [taken[part] for part in sorted(taken)]
            packages, counts, losses = zip(*answers, strict=True)
            self.train_loss = float(np.average(losses, weights=counts))
            try:
                self.server.aggregate(packages, counts)
            except ValueError as error:
                self.say(f"note: round {self.round} changes nothing: its mean has {error}")
        return None, None

    def _answer(self, part: int, reply: Message) -> tuple[Package, int, float]:
        """Read a client's answer: its package, how many images it trained on, and its mean loss.

        Raises:
            ValueError: the answer cannot be used.
        """
        if reply.has_error():
            reason = " ".join(str(reply.error.reason).split())
            raise ValueError(f"it failed ({reason[-200:]})")
        package = package_of(reply.content)
        self.up.count(package, reply)
        order = order_of(reply.content)
        if "behind" in order:
            self._forget(part)
            raise ValueError("it was out of step, and is sent everything next time")
        if "anew" in order and part in self._heard:
            self.forgot = True
        self._heard.add(part)
        self.server.check(package)
        count, loss = metrics_of(reply.content)
        if count <= 0:
            raise ValueError(f"it trained on {count} images")
        return package, count, loss

    def _forget(self, part: int) -> None:
        """Take note that a client has nothing of what it was told."""
        self.have.pop(part, None)
        self._forgetful.discard(part)
        self._heard.discard(part)
        self.forgot = True

    def _leave_out(self, part: int, reason: str) -> None:
        self.have.pop(part, None)  # what it knows is not certain any more
        self.say(f"note: round {self.round + 1} goes on without client {part}: {reason}")

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Ask no client: the server has the test images."""
        return ()

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> None:
        """Do nothing: nothing was asked."""
