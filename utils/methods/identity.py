"""Which settings each stored thing depends on: the rule by which results are reused or averaged.

A run's weights depend on the settings of its training, a method's rows and state on those that
it names besides (`Method.own_settings`), a row also on the test batch. A setting may change
as long as nothing that is stored depends on it.
"""

from collections.abc import Collection
from pathlib import Path

from utils.base_utils import WITH_WARMUP
from utils.methods.registry import METHODS, Method
from utils.storage.metrics import Metrics
from utils.storage.sealed import file_digest
from utils.system.errors import UserError
from utils.training.settings import Settings, differences


def undecided(settings: Settings, stored: Collection[type[Method]], tested: bool) -> set[str]:
    """The names of the settings on which nothing depends.

    Args:
        settings: the run's.
        stored: the methods of which something is stored.
        tested: whether rows are.
    """
    own = {name for method in METHODS for name in method.own_settings}
    names = own - {name for method in stored for name in method.own_settings}
    if not tested:
        names.add("test_batch_size")
    if settings.scheduler != WITH_WARMUP:
        names.add("lr_warmup")
    return names


def refused(
    folder: Path, settings: Settings, recorded: dict, metrics: Metrics, averages: Collection[str]
) -> list[str]:
    """Where settings differ from those that something in a run's folder depends on: one phrase
    each, naming the flag.

    Args:
        folder: the run's.
        settings: those that it is to go on with.
        recorded: those that it was made with, by name.
        metrics: its rows.
        averages: the names of the methods whose state is in its checkpoint.
    """
    stored = [
        method
        for method in METHODS
        if metrics.of(method.name)
        or method.name in averages
        or any((folder / name).exists() for name in method.states())
    ]
    tested = any(metrics.of(method.name) for method in METHODS)
    return differences(settings, recorded, undecided(settings, stored, tested))


def identify_weights(given: str | None) -> str:
    """What --weights stands for: "imagenet" if None, "none", or a digest of the file's content.

    Raises UserError if there is no such file or it cannot be read.
    """
    if given in (None, "imagenet", "none"):
        return given or "imagenet"
    try:
        return f"sha256:{file_digest(Path(given))[:16]}"
    except OSError as error:
        raise UserError(
            f"--weights {given}: {error}; give a state file of torchvision's vit_b_16, or "
            "--weights none to train from scratch"
        ) from error
