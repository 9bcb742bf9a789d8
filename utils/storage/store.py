"""The files of one run: each sealed, naming the run, and refused if it is not as it was written."""

import contextlib
import secrets
from collections.abc import Iterator
from pathlib import Path

from utils.storage.sealed import (
    Sums,
    load_tensors,
    read_sealed_json,
    save_tensors,
    write_sealed_json,
)
from utils.system.errors import UserError

CONFIG = "config.json"
AFRESH = "--overwrite starts afresh"
ANEW = "remove it, and the run's command makes it again"


class Store:
    """Reads and writes the files of a run in its folder.

    Attributes:
        folder: the folder's path.
        run: the run's name, drawn when it began, which tells its files from other runs'.
    """

    def __init__(self, folder: Path, run: str) -> None:
        self.folder, self.run = folder, run

    @classmethod
    def new(cls, folder: Path) -> "Store":
        """Return the store of a run that begins."""
        return cls(folder, secrets.token_hex(16))

    @classmethod
    def of(cls, folder: Path) -> "Store":
        """Return the store of the run in a folder.

        Raises UserError if its configuration is damaged.
        """
        return cls(folder, read_config(folder)["run"])

    def write_config(self, content: dict) -> None:
        write_sealed_json({"run": self.run} | content, self.folder / CONFIG)

    def save(self, state: dict, name: str) -> None:
        """Write tensors and numbers, whole or not at all."""
        save_tensors(state, self.folder / name, self.run)

    def load(self, name: str, remedy: str = ANEW) -> dict:
        """Read what `save` wrote.

        Raises UserError, ending in the remedy, if the file is damaged or of another run.
        """
        with self.reading(name, remedy) as state:
            return state

    @contextlib.contextmanager
    def reading(self, name: str, remedy: str = ANEW) -> Iterator[dict]:
        """Read what `save` wrote, for a block that uses it.

        Raises UserError if the file is not there; and, ending in the remedy, if it is damaged or
        of another run, or if the block cannot use it.
        """
        path = self.folder / name
        if not path.exists():
            raise UserError(f"{path} is not there")
        with usable(path, remedy):
            yield load_tensors(path, self.run)

    def sums(self, name: str, remedy: str = AFRESH, writable: bool = True) -> Sums:
        """Open the checksums in a file.

        Raises UserError, ending in the remedy, if they are of another run.
        """
        with usable(self.folder / name, remedy):
            return Sums(self.folder / name, self.run, writable)


def read_config(folder: Path) -> dict:
    """Read a run's configuration.

    Raises UserError if it is damaged.
    """
    with usable(folder / CONFIG, AFRESH):
        content = read_sealed_json(folder / CONFIG)
        if not isinstance(content["run"], str):
            raise ValueError(f"{folder / CONFIG} names no run")
        return content


@contextlib.contextmanager
def usable(path: Path, remedy: str) -> Iterator[None]:
    """Run a block that uses the content of a file.

    Raises UserError, naming the file and ending in the remedy, if the content cannot be used.
    """
    try:
        yield
    except UserError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RuntimeError) as error:
        words = " ".join(str(error).split())[:200]
        if str(path) not in words:
            words = f"{path} does not hold what it should ({words})"
        raise UserError(f"{words}: {remedy}") from error
