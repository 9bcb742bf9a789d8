"""Which settings each stored thing depends on: the rule by which results are reused or averaged.

A run's weights depend on the settings of its training, a method's rows and state on its own
settings besides, a row also on the test batch. A setting may change as long as nothing that is
stored depends on it.
"""

from collections.abc import Collection
from pathlib import Path

from utils.methods.base import Method
from utils.methods.registry import METHODS, Settings
from utils.storage.metrics import Metrics
from utils.training.folder import METRICS
from utils.training.optimizers import WITH_WARMUP
from utils.training.settings import TrainingSettings


def undecided(
    settings: TrainingSettings, stored: Collection[type[Method]], tested: bool
) -> set[str]:
    """The names of the settings on which nothing depends.

    Args:
        settings: the run's.
        stored: the methods of which something is stored.
        tested: whether rows are.
    """
    own = {name for method in METHODS for name in method.own_settings()}
    names = own - {name for method in stored for name in method.own_settings()}
    if not tested:
        names.add("test_batch_size")
    if settings.scheduler != WITH_WARMUP:
        names.add("lr_warmup")
    return names


def undecided_in(settings: Settings, folder: Path, averages: Collection[str]) -> set[str]:
    """The names of the settings on which nothing in a run's folder depends.

    Args:
        settings: the run's.
        averages: the names of the methods whose state is in its checkpoint.

    Raises UserError if its metrics are damaged.
    """
    metrics = Metrics(folder / METRICS, writable=False)
    stored = [
        method
        for method in METHODS
        if metrics.of(method.name)
        or method.name in averages
        or any((folder / name).exists() for name in method.states())
    ]
    return undecided(settings, stored, any(metrics.of(method.name) for method in METHODS))


def outdated(before: dict, now: dict) -> list[str]:
    """The names of the files of methods whose own settings differ from those before.

    Args:
        before, now: settings by name; one that was not recorded before has not changed.
    """
    return [
        file
        for method in METHODS
        if any(before.get(name, now[name]) != now[name] for name in method.own_settings())
        for file in method.files()
    ]
