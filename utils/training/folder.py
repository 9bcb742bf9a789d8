"""The folder of a run: held by one process, of one run with certain settings, or cleared for it."""

from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass
from pathlib import Path

from utils.storage.files import remove_drafts, require_room
from utils.storage.lock import FolderLock
from utils.storage.store import AFRESH, CONFIG, Store, read_config, usable
from utils.system.errors import UserError
from utils.training.optimizers import ADAM
from utils.training.settings import TrainingSettings, differences

CHECKPOINT, KEPT_OPTIMIZER = "checkpoint.pt", "optimizer.pt"
TRAJECTORY, TRAJECTORY_SUMS = "trajectory.npy", "trajectory.sums"
METRICS, METRICS_SUMS = "metrics.csv", "metrics.sums"
SUMMARY, PLOT = "summary.json", "all_methods_test_acc.png"
SEEDS = "_seeds"
OWN_FILES = (CONFIG, CHECKPOINT, KEPT_OPTIMIZER, TRAJECTORY, TRAJECTORY_SUMS)
OWN_FILES += (METRICS, METRICS_SUMS, SUMMARY, PLOT)


@dataclass(frozen=True)
class Watchers:
    """What a run has to know of those that watch it, whom it does not know.

    Attributes:
        files: the names of all files that they may leave in its folder.
        keep_optimizer_at: the epoch whose optimizer they may go on from, None for none.
        require: called with N before anything is written; raises UserError if they need more
            weights.
        undecided: called with the run's folder and what its checkpoint keeps averages for; returns
            the names of the settings on which nothing stored depends.
        outdated: called with the settings before and now, by name; returns the names of files
            that depend on settings which have changed, and so have to go.
    """

    files: tuple[str, ...] = ()
    keep_optimizer_at: int | None = None
    require: Callable[[int], None] = lambda n_weights: None
    undecided: Callable[[Path, Collection[str]], Collection[str]] = lambda folder, averages: ()
    outdated: Callable[[dict, dict], Collection[str]] = lambda before, now: ()


NOBODY = Watchers()


class RunFolder:
    """A folder with the files of a run.

    Attributes:
        path: of the folder.
        store: reads and writes its sealed files, once the run is begun or gone on with.
    """

    def __init__(self, path: Path, settings: TrainingSettings, watchers: Watchers, writes: bool):
        """Hold the folder, if it exists.

        Args:
            writes: whether this process writes there; others only read.

        Raises UserError if another process works there.
        """
        self.path, self._settings, self._watchers, self._writes = path, settings, watchers, writes
        self._files = (*OWN_FILES, *watchers.files)
        self._lock = FolderLock(path) if writes and path.is_dir() else None

    def release(self) -> None:
        """Give the folder to other processes."""
        if self._lock is not None:
            self._lock.release()

    def stored_state(self) -> dict | None:
        """What the run in the folder goes on from: its checkpoint, {} where no epoch is finished,
        None where there is no run.

        Raises UserError if something that is stored depends on other settings.
        """
        if not (self.path / CONFIG).exists():
            foreign = [name for name in self._files if (self.path / name).exists()]
            if foreign:
                raise UserError(
                    f"{self.path} holds {foreign[0]} but no {CONFIG}: choose another "
                    "--results_dir, or --overwrite to start afresh"
                )
            return None
        config, state = read_config(self.path), {}
        if (self.path / CHECKPOINT).exists():
            state = Store(self.path, config["run"]).load(CHECKPOINT, AFRESH)
        with usable(self.path / CHECKPOINT, AFRESH):
            averages = set(state.get("averages", ()))
        undecided = self._watchers.undecided(self.path, averages)
        with usable(self.path / CONFIG, AFRESH):
            found = differences(self._settings, config["settings"], undecided)
        if found:
            raise UserError(
                f"{self.path} holds a run with other settings: {'; '.join(found)}; "
                "choose another --results_dir, or --overwrite to start afresh"
            )
        return state

    def require_room(self, n_weights: int) -> None:
        """Raise UserError unless there is room, besides what is there, for the trajectory,
        checkpoints (one more while it is replaced), the kept optimizer, and the parameters and
        states of the watchers."""
        own = [self.path / name for name in self._files]
        already = sum(path.stat().st_size for path in own if path.exists())
        states = 3 if self._settings.optimizer == ADAM else 2
        epochs = self._settings.epochs
        needed = 4 * n_weights * (epochs + 5 * states + 25)
        what = f"{epochs} snapshots of {n_weights:,} weights, and more"
        require_room(self.path, needed - already, what)

    def begin(self, config: dict) -> None:
        """Clear the folder, and start a run there."""
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock = self._lock or FolderLock(self.path)
        for name in self._files:
            (self.path / name).unlink(missing_ok=True)
        Store.new(self.path).write_config(config | {"commands": []})

    def open(self) -> None:
        """Go on with the run that was begun."""
        self.store = Store.of(self.path)
        if self._writes:
            remove_drafts(self.path, self._files)

    def record(self, command: str, data_dir: str | None) -> None:
        """Add a command to those that made the run, and keep the settings as they are now.

        Files of watchers go that depend on settings which have changed.

        Args:
            data_dir: where the images are; None keeps what is known.
        """
        config, settings = read_config(self.path), asdict(self._settings)
        for name in self._watchers.outdated(config["settings"], settings):
            (self.path / name).unlink(missing_ok=True)
        commands = config.get("commands", [])
        if command and command not in commands:
            commands.append(command)
        config |= {"settings": settings, "commands": commands}
        if data_dir is not None:
            config["data_dir"] = data_dir
        self.store.write_config(config)


def seeds_folder(results_dir: Path, model: str) -> Path:
    """Where a model's runs with several seeds are, each in a folder of its own."""
    return results_dir / f"{model}{SEEDS}"


def seed_folder(results_dir: Path | str, model: str, seed: int) -> Path:
    """Where a model's run with one of several seeds is."""
    return seeds_folder(Path(results_dir), model) / f"seed_{seed}"


def results_dir_of(folder: Path) -> Path:
    """Where the results are of which a run's folder is part."""
    return folder.parent.parent if folder.parent.name.endswith(SEEDS) else folder.parent
