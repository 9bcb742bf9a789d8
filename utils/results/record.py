"""What is known of a run from its small files alone: configuration, metrics, summary."""

import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean

from utils.methods.identity import undecided
from utils.methods.registry import METHODS
from utils.results.summary import LAST
from utils.storage.metrics import Metrics
from utils.storage.store import CONFIG, Store, read_config, usable
from utils.system.errors import UserError
from utils.training.run import METRICS, METRICS_SUMS, SUMMARY
from utils.training.settings import Settings, differences

KEPT = (CONFIG, METRICS, METRICS_SUMS, SUMMARY)


class Record:
    """A run's settings, the commands that made it and its metrics; nothing is written.

    store: reads the run's files. settings: Settings. commands: those that made the run, in order.
    classes: the names of the data set's. data_dir: where its images lay last, None where that was
    not kept. hardware: the processor and torch's version.
    """

    def __init__(self, folder: Path) -> None:
        """Read the run in `folder`.

        Raises UserError if there is none or a file of it is damaged.
        """
        self.folder = folder
        if not (folder / CONFIG).exists():
            raise UserError(f"{folder} holds no run")
        config = read_config(folder)
        remedy = "it may be of another version of this suite"
        with usable(folder / CONFIG, remedy):
            self.settings = Settings(**config["settings"])
            self.commands = [str(command) for command in config["commands"]]
            self.classes = [str(name) for name in config["classes"]]
            data_dir = config.get("data_dir")
            self.data_dir = None if data_dir is None else str(data_dir)
            environment = config["environment"]
            self.hardware = f"{environment['processor']}, torch {environment['versions']['torch']}"
        self.store = Store(folder, config["run"])
        sums = self.store.sums(METRICS_SUMS, writable=False)
        self.metrics = Metrics.stored(folder / METRICS, sums)

    def epochs(self, method: str) -> int:
        """How many epochs of a method are known."""
        return sum(self.metrics.has(method, t) for t in range(self.settings.epochs))

    def finished(self, method: str) -> bool:
        """Whether every epoch of a method is known."""
        return self.epochs(method) == self.settings.epochs

    def last(self, method: str) -> float:
        """Test accuracy at the last epoch, a fraction."""
        return self.metrics.of(method)[-1].test_acc

    def mean_last(self, method: str) -> float:
        """Test accuracy, a fraction, as a mean over the last ten epochs."""
        return fmean(row.test_acc for row in self.metrics.of(method)[-LAST:])

    def copy_to(self, folder: Path) -> None:
        """Keep the run's small files in another folder."""
        folder.mkdir(parents=True, exist_ok=True)
        for name in KEPT:
            if (self.folder / name).exists():
                shutil.copyfile(self.folder / name, folder / name)


def require_alike(records: Sequence[Record]) -> None:
    """Raise UserError unless the runs differ in nothing but the seed that their rows depend on, so
    that a mean over them is of one experiment."""
    first = records[0]
    for other in records[1:]:
        both = [m for m in METHODS if first.metrics.of(m.name) and other.metrics.of(m.name)]
        free = undecided(first.settings, both, tested=True) | {"seed"}
        found = differences(other.settings, asdict(first.settings), free)
        if found:
            raise UserError(
                f"{other.folder} (here) is not to be averaged with {first.folder} (there): "
                f"{'; '.join(found)}; leave one of them out of --seeds, or choose another "
                "--results_dir"
            )
