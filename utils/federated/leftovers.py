"""What clients have still to say, which is kept with the server's checkpoint where they are here.

A client that codes its changes keeps what its messages left out. Without that, a run that was
stopped would not end as one left alone.
"""

from collections.abc import Mapping

from utils.federated.flower import Grid, RecordDict
from utils.federated.messages import recall, remember
from utils.federated.runners import InProcessGrid
from utils.federated.settings import FederatedSettings
from utils.federated.transport import Sender, Vector

KEY, RESIDUAL = "left.", "residual"


def run_of(settings: FederatedSettings, contender: str) -> str:
    """Name a run, of a contender's name, among those that clients may be asked to take part in."""
    return f"{settings.seed}.{contender}"


def forget_others(records: RecordDict, run: str) -> None:
    """Let a client's memory be that of one run."""
    for name in list(records):
        if not name.removeprefix(KEY).startswith(f"{run}."):
            del records[name]


def leave_over(records: RecordDict, run: str, sender: Sender) -> None:
    """Keep, in a client's memory, what its sender has still to say.

    Args:
        records: the memory.
        run: names the run.
        sender: the client's.
    """
    remember(records, KEY + run, {RESIDUAL: sender.residual})


def take_up(records: RecordDict, run: str, sender: Sender) -> bool:
    """Give a client's sender what it had still to say; tells whether that is kept."""
    state = recall(records, KEY + run)
    if state is None:
        return False
    sender.residual = state[RESIDUAL].copy()
    return True


def of_clients(grid: Grid, run: str) -> dict[int, Vector] | None:
    """Gather what the clients of a run have still to say, by node, where they are in this process.

    Returns None where they are elsewhere.
    """
    if not isinstance(grid, InProcessGrid):
        return None
    states = {node: recall(context.state, KEY + run) for node, context in grid.contexts.items()}
    return {node: state[RESIDUAL] for node, state in states.items() if state is not None}


def to_clients(grid: Grid, run: str, left: Mapping[int, Vector]) -> bool:
    """Give the clients of a run what `of_clients` gathered; tells whether they are here."""
    if not isinstance(grid, InProcessGrid):
        return False
    for node, residual in left.items():
        remember(grid.contexts[node].state, KEY + run, {RESIDUAL: residual})
    return True
