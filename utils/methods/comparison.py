"""The methods on one run: what is left of them, their tests and their rows."""

import math
import time
import warnings
from collections.abc import Iterator, Sequence
from functools import partial
from typing import NamedTuple

from torch import nn

from utils.methods.base import Method
from utils.methods.embedded import EmbeddedCMD
from utils.methods.identity import outdated, undecided_in
from utils.methods.registry import METHODS, Settings
from utils.storage.metrics import Metrics, Row
from utils.system.errors import UserError
from utils.training.folder import METRICS, METRICS_SUMS, Watchers
from utils.training.run import Run


class Progress(NamedTuple):
    """What an epoch of a comparison came to.

    Attributes:
        epoch: its number.
        trained: (mean loss, accuracy, seconds) of the run's training, where it was trained now.
        rows: of the methods that were tested in it.
    """

    epoch: int
    trained: tuple[float, float, float] | None
    rows: list[Row]


class Comparison:
    """The methods that are compared on a run.

    Attributes:
        run: the run that they watch.
        methods: the methods' classes.
        metrics: the rows of all methods ever tested on the run.
    """

    def __init__(self, run: Run, methods: Sequence[type[Method]]) -> None:
        """Open the rows of a run.

        Raises UserError if they are damaged.
        """
        self.run, self.methods = run, methods
        first = run.ranks.first
        with run.ranks.first_goes_first():
            sums = run.store.sums(METRICS_SUMS, writable=first)
            self.metrics = Metrics(run.folder / METRICS, first, sums)

    def remaining(self) -> list[type[Method]]:
        """The methods that have an epoch to be tested or a file to be saved."""
        epochs, folder = range(self.run.settings.epochs), self.run.folder
        return [
            method
            for method in self.methods
            if not all(self.metrics.has(method.name, epoch) for epoch in epochs)
            or not all((folder / name).exists() for name in method.files())
        ]

    def ahead(self) -> tuple[int, int]:
        """How many epochs of training and how many tests are left."""
        settings, methods = self.run.settings, self.remaining()
        epochs = range(settings.epochs)
        training, tests = settings.epochs - self.run.epochs_done, 0
        for method in methods:
            missing = {epoch for epoch in epochs if not self.metrics.has(method.name, epoch)}
            own = set(method.training_epochs(settings))
            training += len(missing & own if self._under_way(method, missing) else own)
            tests += len(missing & set(epochs[method.departs(settings) :]))
        tests += sum(
            1
            for epoch in epochs
            if self._tested_before(epoch) is None
            and any(
                epoch < method.departs(settings) and not self.metrics.has(method.name, epoch)
                for method in methods
            )
        )
        return training, tests

    def complete(self) -> Iterator[Progress]:
        """Do what is left of the run and of the methods on it, and yield each epoch in which
        anything was trained or tested."""
        run, remaining = self.run, self.remaining()
        for method in remaining:
            method.require(run)
        alongside = [make(run, self.metrics) for make in remaining if not make.after_run]
        for method in alongside:
            method.prepare()
        if alongside or run.epochs_done < run.settings.epochs:
            for epoch, module in run.epochs():
                trained = run.train_history[epoch] if module is run.model else None
                rows = self.follow(alongside, epoch, module)
                if rows or trained:
                    yield Progress(epoch, trained, rows)
        run.wait()  # until all rows are written, which a method's state may have to give again
        for method in alongside:
            method.finish()
        for method in (make(run, self.metrics) for make in remaining if make.after_run):
            method.prepare()
            for epoch in range(run.settings.epochs):
                rows = self.follow([method], epoch, run.at(epoch))
                if rows and epoch >= method.departs(run.settings):  # before, it is the run's model
                    yield Progress(epoch, None, rows)
            run.wait()
            method.finish()

    def follow(self, methods: Sequence[Method], epoch: int, module: nn.Module) -> list[Row]:
        """Show an epoch to each method, and test it there unless that was done before.

        The run's own model is tested once for all methods. Returns the new rows.
        """
        run, rows = self.run, []
        for method in methods:
            start = time.perf_counter()
            follower = method.follow(epoch, module)
            if self.metrics.has(method.name, epoch):
                continue
            result = self._tested_before(epoch) if follower is module else None
            if result is None:
                result = run.test(follower)
            if follower is not module and not math.isfinite(result[0]):
                warnings.warn(
                    f"{method.label}: its test loss in epoch {epoch} is {result[0]}", stacklevel=2
                )
            seconds = time.perf_counter() - start
            if method.trains:
                seconds += run.train_history[epoch][2]
            train = (None, None) if follower is module and not method.trains else method.trained
            row = Row(method.name, epoch, *(train or (None, None)), *result, round(seconds, 3))
            self.metrics.remember(row)
            if run.ranks.first:
                run.in_background(self.metrics.write, row)
            rows.append(row)
        return rows

    def _tested_before(self, epoch: int) -> tuple[float, float] | None:
        """Test loss and accuracy of the run's own model, if a method had it tested."""
        for method in METHODS:
            if epoch < method.departs(self.run.settings) and self.metrics.has(method.name, epoch):
                row = self.metrics.get(method.name, epoch)
                return row.test_loss, row.test_acc
        return None

    def _under_way(self, method: type[Method], missing: set[int]) -> bool:
        """Whether a method has a state of its own training to go on from, its rows missing only
        from some epoch on; else it trains from its departure."""
        state = any((self.run.folder / name).exists() for name in method.states())
        return state and missing == set(range(min(missing, default=0), self.run.settings.epochs))


def watchers(settings: Settings) -> Watchers:
    """What a run has to know of the methods, whichever of them are compared on it."""
    return Watchers(
        files=tuple(name for m in METHODS for name in (*m.files(), *m.scratch_files())),
        keep_optimizer_at=EmbeddedCMD.departs(settings),
        require=partial(_require_weights, settings.modes, settings.model),
        undecided=partial(undecided_in, settings),
        outdated=outdated,
    )


def _require_weights(modes: int, model: str, n_weights: int) -> None:
    if modes > n_weights:
        raise UserError(f"--modes {modes}: --model {model} has {n_weights:,} weights; choose fewer")
