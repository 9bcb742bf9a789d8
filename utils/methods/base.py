"""What a compared method is, and the plainest one."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import ClassVar

from torch import Tensor, nn

from utils.storage.metrics import Metrics
from utils.system.arguments import truth
from utils.training.run import Run
from utils.training.settings import TrainingSettings


class Method(ABC):
    """A compared method, which watches one training run.

    After each epoch it is shown a module with that epoch's weights θ(t), and gives back the module
    to be tested in its name.

    Attributes:
        name: its name in metrics.csv and summary.json.
        label: its name in tables and pictures.
        flags: turn it on or off on the command line, the first one the paper's.
        default: whether it is on.
        value: parses what follows the flag.
        metavar: stands for that in --help.
        help: what it does, for --help.
        color: in every picture.
        Settings: a class of settings, inherited from TrainingSettings, with those that its rows
            and state depend on besides (utils.methods.identity).
        trains: whether the run's own training is its.
        after_run: whether it is shown the epochs only once the run is over.
        watches_steps: whether it takes in every step of the training, and so cannot be added to a
            run later.
    """

    name: ClassVar[str]
    label: ClassVar[str]
    flags: ClassVar[tuple[str, ...]]
    default: ClassVar[bool] = False
    value: ClassVar[Callable[[str], bool | int]] = staticmethod(truth)
    metavar: ClassVar[str] = "BOOL"
    help: ClassVar[str]
    color: ClassVar[str]
    Settings: ClassVar[type[TrainingSettings]] = TrainingSettings
    trains: ClassVar[bool] = False
    after_run: ClassVar[bool] = False
    watches_steps: ClassVar[bool] = False

    def __init__(self, run: Run, metrics: Metrics) -> None:
        """Prepare to watch a run.

        Args:
            metrics: the rows that are there, the method's own among them.
        """
        self.run, self.settings, self.metrics = run, run.settings, metrics
        # loss and accuracy of the training behind the last module given back, if it is its own
        self.trained: tuple[float, float] | None = None

    @classmethod
    def own_settings(cls) -> tuple[str, ...]:
        """The names of the settings that it depends on besides those of training and testing."""
        shared = {field.name for field in fields(TrainingSettings)}
        return tuple(field.name for field in fields(cls.Settings) if field.name not in shared)

    @classmethod  # noqa: B027 (optional to override)
    def check(cls, settings: TrainingSettings) -> None:
        """Raise UserError if the method cannot run with these settings."""

    @classmethod
    def departs(cls, settings: TrainingSettings) -> int:
        """The first epoch at which its model is not the run's own."""
        return 0

    @classmethod
    def training_epochs(cls, settings: TrainingSettings) -> range:
        """The epochs that it trains itself, besides the run."""
        return range(0)

    @classmethod  # noqa: B027
    def require(cls, run: Run) -> None:
        """Raise UserError if the method cannot go on from what the run has; called before it is
        trained on."""

    def prepare(self) -> None:  # noqa: B027
        """Called once before the first epoch is shown; after the run where `after_run`.

        Raises UserError if the method cannot go on from what the run has.
        """

    @abstractmethod
    def follow(self, epoch: int, module: nn.Module) -> nn.Module:
        """Take in θ(epoch), in `module`, and return what to test, which may be `module` itself.

        An epoch that has its row already is shown again where a run goes on, and not tested.
        """

    def _goes_on_from(self, epoch: int) -> bool:
        """Whether the method's rows reach up to a state of its own training after `epoch`.

        Where one is missing, because somebody removed it, the state is past the epoch to be tested,
        and the method has to train again from its departure, which a note says.
        """
        first = self.departs(self.settings)
        if all(self.metrics.has(self.name, before) for before in range(first, epoch)):
            return True
        print(
            f"note: {self.label}: a row before epoch {epoch}, where it stands, is missing; it "
            f"trains again from epoch {first}",
            flush=True,
        )
        return False

    def finish(self) -> None:  # noqa: B027
        """Called once after the last epoch, all rows written: save what is worth keeping."""

    @classmethod
    def files(cls) -> tuple[str, ...]:
        """The files `prepare` and `finish` leave in the run's folder."""
        return ()

    @classmethod
    def scratch_files(cls) -> tuple[str, ...]:
        """The files that are there only while the method is under way."""
        return ()

    @classmethod
    def states(cls) -> tuple[str, ...]:
        """The files from which it goes on, where they are there."""
        return cls.scratch_files()

    @classmethod
    def n_parameters(cls, n_weights: int, settings: TrainingSettings, folder: Path) -> int:
        """How many numbers describe the run of T epochs."""
        return n_weights * settings.epochs

    @classmethod
    def figures(cls, folder: Path) -> dict:
        """What else the summary tells of it."""
        return {}

    @classmethod
    def warmup_end(cls, settings: TrainingSettings) -> int | None:
        """The epoch that plots mark as the end of its warm-up, if it has one worth a mark."""
        return None

    @classmethod
    def embedded_share(cls, folder: Path) -> Tensor | None:
        """[T], the share of weights that it has embedded after each epoch of a finished run."""
        return None


class SGD(Method):
    """The training run itself, by whatever optimizer it trains."""

    name, label, flags, default = "sgd", "SGD", ("--sgd",), True
    help = "test the trained weights themselves"
    color = "#666666"
    trains = True

    @classmethod
    def departs(cls, settings: TrainingSettings) -> int:
        return settings.epochs

    def follow(self, epoch: int, module: nn.Module) -> nn.Module:
        self.trained = self.run.train_history[epoch][:2]
        return module
