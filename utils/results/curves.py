"""Rows of metrics as curves in TensorBoard, while they come in."""

from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from utils.system.errors import UserError

FOLDER, EVENTS = "tensorboard", "events.out.tfevents.*"


class Curves:
    """The rows of several methods: each method is a run of TensorBoard's, each column a chart."""

    def __init__(self, folder: Path, step: str) -> None:
        """Begin the curves of a run, in its folder, in place of those of an earlier command.

        Args:
            folder: the run's.
            step: the column that counts the rows, such as "epoch".
        """
        self._folder, self._step = folder / FOLDER, step
        self._writers: dict[str, Any] = {}
        self._written: set[tuple[str, int]] = set()
        clear_curves(folder)

    def add(self, label: str, rows: Iterable[Any]) -> None:
        """Write those rows of a method that were not written yet.

        Args:
            label: the method's name.
            rows: of dataclasses, whose numbers are drawn.
        """
        if label not in self._writers:
            self._writers[label] = _summary_writer()(str(self._folder / label))
        writer = self._writers[label]
        for row in rows:
            columns = asdict(row)
            step = columns.pop(self._step)
            if (label, step) in self._written:
                continue
            self._written.add((label, step))
            for name, value in columns.items():
                if isinstance(value, (int, float)) and not isinstance(value, bool):
                    writer.add_scalar(name, value, step)
        writer.flush()

    def close(self) -> None:
        """Finish the files."""
        for writer in self._writers.values():
            writer.close()


def clear_curves(folder: Path) -> None:
    """Remove the curves of a run from its folder."""
    for path in (folder / FOLDER).glob(f"*/{EVENTS}"):
        path.unlink()


def require_tensorboard() -> None:
    """Check that TensorBoard is there.

    Raises:
        UserError: it is not.
    """
    try:
        _summary_writer()
    except ImportError as error:
        raise UserError(
            f"--tensorboard True: TensorBoard cannot be used ({error}): pip install tensorboard, "
            "or leave the flag out"
        ) from error


def _summary_writer() -> type:
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter
