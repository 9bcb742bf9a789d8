"""One model a process, which is lent to a client for a round."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from utils.cmd.vector import Entry, walk
from utils.federated.settings import FederatedSettings

_idle: dict[tuple, tuple[nn.Module, list[Entry]]] = {}  # the last one given back


@contextmanager
def lent_model(
    settings: FederatedSettings, n_classes: int, device: torch.device
) -> Iterator[nn.Module]:
    """Lend a model on a device, to be written θ into; what is not in θ is as in a new one.

    It is lent to one client at a time: another that needs one meanwhile, as where one was given up
    on and still trains, gets its own.
    """
    key = (settings.entry, n_classes, str(device))
    lent = _idle.pop(key, None)
    if lent is None:
        model = settings.build(n_classes).to(device, memory_format=torch.channels_last)
        lent = model, [_copy(entry) for entry in walk(model) if not _in_vector(entry)]
    model, others = lent
    for entry in map(_copy, others):
        setattr(entry.owner, entry.key, entry.tensor)
    yield model
    model.zero_grad()
    _idle.clear()
    _idle[key] = lent


def _in_vector(entry: Entry) -> bool:
    return entry.persistent and entry.tensor.is_floating_point()


def _copy(entry: Entry) -> Entry:
    return entry._replace(tensor=entry.tensor.clone())
