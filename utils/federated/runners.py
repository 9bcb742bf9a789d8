"""Where the apps run: in this process, or on Ray. A deployment runs them itself (README)."""

import itertools
import os
import sys
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as OutOfTime
from typing import NoReturn

from utils.federated.flower import (
    ClientApp,
    Context,
    Error,
    Grid,
    Message,
    RecordDict,
    ServerApp,
    become_server,
    set_identity,
    silence,
    simulate,
)
from utils.system import interrupts

RUN_ID, SERVER = 1, 0
FAILED, LATE = 1, 2  # codes of errors
CLIENT = "federated client"  # the name of threads


class InProcessGrid(Grid):
    """A grid whose clients are called one after the other, each with a context that it keeps.

    A client that raises, or takes longer than the timeout, answers with an error, and its memory
    stays as it was.
    """

    def __init__(self, client: ClientApp, nodes: int) -> None:
        self._client = client
        self.contexts = {
            node: Context(
                RUN_ID, node, {"partition-id": node - 1, "num-partitions": nodes}, RecordDict(), {}
            )
            for node in range(1, nodes + 1)
        }
        self._replies: dict[str, Message] = {}
        self._numbers = itertools.count(1)
        become_server(RUN_ID, SERVER)

    def set_run(self, run) -> None:
        """Do nothing: there is one run."""

    @property
    def run(self) -> None:
        return None

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        return Message(content, dst_node_id, message_type, group_id=group_id, ttl=ttl)

    def get_node_ids(self) -> Iterable[int]:
        return list(self.contexts)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        replies = {
            reply.metadata.reply_to_message_id: reply for reply in self.send_and_receive(messages)
        }
        self._replies |= replies
        return list(replies)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return [self._replies.pop(name) for name in message_ids if name in self._replies]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        return [self._call(message, timeout) for message in messages]

    def _call(self, message: Message, timeout: float | None) -> Message:
        node = message.metadata.dst_node_id
        set_identity(message, str(next(self._numbers)))
        context = self.contexts[node]
        own = Context(  # what a client that fails has changed is thrown away
            RUN_ID, node, context.node_config, context.state.copy(), context.run_config
        )
        answer: Future[Message] = Future()

        def work() -> None:
            try:
                answer.set_result(self._client(message, own))
            except BaseException as error:  # a client may raise anything, also to end a process
                answer.set_exception(RuntimeError(f"{type(error).__name__}: {error}"))

        # not a pool's thread, for which Python waits as it ends, whether it answers or not
        threading.Thread(target=work, name=CLIENT, daemon=True).start()
        try:
            reply = answer.result(timeout and min(timeout, threading.TIMEOUT_MAX))
        except OutOfTime:
            reply = Message(Error(LATE, f"no answer in {timeout:g} s"), reply_to=message)
        except RuntimeError as error:
            reply = Message(Error(FAILED, str(error)), reply_to=message)
        else:
            self.contexts[node] = own
        return reply


def in_process(server: ServerApp, client: ClientApp, nodes: int) -> None:
    """Run the apps here, without Ray."""
    silence()
    server(InProcessGrid(client, nodes), Context(RUN_ID, SERVER, {}, RecordDict(), {}))


def on_ray(server: ServerApp, client: ClientApp, nodes: int) -> None:
    """Run the apps by Flower's simulation, on Ray."""
    silence()
    simulate(server, client, nodes)


RUNNERS: dict[str, Callable[[ServerApp, ClientApp, int], None]] = {
    "inproc": in_process,
    "ray": on_ray,
}


def leave(code: int) -> NoReturn:
    """End the process, whose work is done.

    It ends at once if a client that was given up on is still at work in it, around which torch
    would not let Python end, or a server, for which Python would wait.
    """
    others = set(threading.enumerate()) - {threading.main_thread()}
    if any(thread.name == CLIENT or not thread.daemon for thread in others):
        for stream in filter(None, (sys.stdout, sys.stderr)):
            stream.flush()
        os._exit(code)
    interrupts.leave(code)
