"""All of Flower that the suite uses; only this file uses what is private to it.

Telemetry, update checks and Ray's usage reports are off unless the environment says otherwise;
`flwr run` does not install an environment of its own at every start.
"""

import logging
import os
import signal
import sys

from utils.system.interrupts import SIGNALS

QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # or clients see no GPU, whatever --device says
    "RAY_worker_niceness": "0",  # Ray's own 15 starves its workers wherever else anything runs
}
for _name, _value in QUIET.items():  # before Flower is imported, which reads them
    os.environ.setdefault(_name, _value)

from flwr.app import (  # noqa: E402
    Array,
    ArrayRecord,
    ConfigRecord,
    Context,
    Error,
    Message,
    MessageType,
    MetricRecord,
    RecordDict,
)
from flwr.clientapp import ClientApp  # noqa: E402
from flwr.common.serde import message_to_proto  # noqa: E402 (private)
from flwr.serverapp import Grid, ServerApp  # noqa: E402
from flwr.serverapp.strategy import Strategy  # noqa: E402
from flwr.supercore.task_identity import TaskIdentity  # noqa: E402 (private)

__all__ = [
    "Array",
    "ArrayRecord",
    "ClientApp",
    "ConfigRecord",
    "Context",
    "Error",
    "Grid",
    "Message",
    "MessageType",
    "MetricRecord",
    "RecordDict",
    "ServerApp",
    "Strategy",
    "become_server",
    "set_identity",
    "silence",
    "simulate",
    "wire_bytes",
]

NUMBER = (1 << 64) - 1  # as nodes, runs and tasks get one
DIGEST = "0" * 64  # as messages get one


def wire_bytes(message: Message) -> int:
    """Count the message's bytes as Flower serialises it, with identities as long as Flower's get.

    Its own identities are drawn or counted again when a run goes on, and the larger they are the
    more bytes they take.
    """
    proto = message_to_proto(message)
    metadata = proto.metadata
    metadata.run_id = metadata.src_node_id = metadata.dst_node_id = NUMBER
    metadata.message_id = DIGEST
    if metadata.reply_to_message_id:
        metadata.reply_to_message_id = DIGEST
    for task in ("src_task_id", "dst_task_id"):
        if metadata.HasField(task):
            setattr(metadata, task, NUMBER)
    return proto.ByteSize()


def become_server(run_id: int, node_id: int) -> None:
    """Let this process write messages as the server of a run (private)."""
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, run_id, node_id


def set_identity(message: Message, identity: str) -> Message:
    """Give a message its identity, as Flower's own transports do on sending (private)."""
    message.metadata.__dict__["_message_id"] = identity
    return message


def silence() -> None:
    """Let Flower log only what went wrong."""
    logging.getLogger("flwr").setLevel(logging.ERROR)


def simulate(server: ServerApp, client: ClientApp, nodes: int) -> None:
    """Run the apps on Ray, each client on a core.

    The function of Flower that does it is deprecated, without a successor in Python.
    """
    import ray
    from flwr.simulation import run_simulation

    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    path = os.pathsep.join(filter(None, (*sys.path, os.environ.get("PYTHONPATH"))))
    ray.init(
        include_dashboard=False,
        logging_level=logging.ERROR,
        runtime_env={"env_vars": {"PYTHONPATH": path}},
    )
    for number, handler in handlers.items():  # Ray has its own of SIGTERM
        signal.signal(number, handler)
    resources = {"num_cpus": 1, "num_gpus": 0.0}
    run_simulation(
        server, client, nodes, backend_config={"client_resources": resources},
        verbose_logging=False,
    )  # fmt: skip
