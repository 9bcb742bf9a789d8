"""What is known of a run from its small files alone: configuration, metrics, summary."""

import json
import shutil
from pathlib import Path
from statistics import fmean

from utils.errors import UserError
from utils.metrics import Metrics
from utils.report import LAST
from utils.run import CONFIG, METRICS, SUMMARY
from utils.settings import Settings


class Record:
    """A run's settings, the commands that made it and its metrics; nothing is written.

    settings: Settings. commands: those that made the run, in order. classes: the names of the
    data set's. hardware: the processor and torch's version.
    """

    def __init__(self, folder: Path) -> None:
        """Read the run in `folder`.

        Raises UserError if there is none or a file of it is damaged.
        """
        self.folder = folder
        path = folder / CONFIG
        if not path.exists():
            raise UserError(f"{folder} holds no run")
        try:
            config = json.loads(path.read_text())
            self.settings = Settings(**config["settings"])
            self.commands = [str(command) for command in config["commands"]]
            self.classes = [str(name) for name in config["classes"]]
            environment = config["environment"]
            self.hardware = f"{environment['processor']}, torch {environment['versions']['torch']}"
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} is damaged, or of another version of this suite") from error
        self.metrics = Metrics.stored(folder / METRICS)

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
        for name in (CONFIG, METRICS, SUMMARY):
            if (self.folder / name).exists():
                shutil.copyfile(self.folder / name, folder / name)
