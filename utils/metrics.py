"""metrics.csv: one row a method and epoch, on the disk as soon as it is known."""

import csv
import io
import os
from dataclasses import astuple, dataclass, fields
from pathlib import Path

from utils.errors import UserError
from utils.files import write_text


@dataclass(frozen=True)
class Row:
    """One tested epoch. Losses are means over images, accuracies fractions; None where a method
    has none. seconds: what the method spent on the epoch."""

    method: str
    epoch: int
    train_loss: float | None
    train_acc: float | None
    test_loss: float
    test_acc: float
    seconds: float

    def text(self) -> str:
        line = io.StringIO()
        values = ("" if value is None else value for value in astuple(self))
        csv.writer(line, lineterminator="\n").writerow(values)
        return line.getvalue()

    @classmethod
    def parse(cls, values: list[str]) -> "Row":
        method, epoch, *numbers = values
        return cls(method, int(epoch), *(float(text) if text else None for text in numbers))


COLUMNS = [field.name for field in fields(Row)]


class Metrics:
    """The rows of a metrics.csv, read once and appended to."""

    def __init__(self, path: Path, writable: bool = True) -> None:
        """Open the file, or create it; a last line cut short by a kill is dropped.

        writable: whether the file is to be mended so that rows can be added.

        Raises UserError if it is not a metrics file.
        """
        self.path = path
        self._rows: dict[tuple[str, int], Row] = {}
        header = ",".join(COLUMNS) + "\n"
        text = path.read_text() if path.exists() else ""
        lines = text.splitlines(keepends=True)
        if lines and not lines[-1].endswith("\n"):
            lines.pop()
        if not lines:
            lines = [header]
        if lines[0] != header:
            raise UserError(
                f"{path} is not a metrics file of this suite: --overwrite starts afresh"
            )
        for number, values in enumerate(csv.reader(lines[1:]), start=2):
            try:
                row = Row.parse(values)
            except (TypeError, ValueError) as error:
                raise UserError(
                    f"{path}, line {number}: not a row of metrics: --overwrite starts afresh"
                ) from error
            self._rows[row.method, row.epoch] = row
        if writable and "".join(lines) != text:
            write_text("".join(lines), path)

    def add(self, row: Row) -> None:
        """Take in a row, and write it."""
        self.remember(row)
        self.write(row)

    def remember(self, row: Row) -> None:
        """Take in a row that is written elsewhere, or later."""
        self._rows[row.method, row.epoch] = row

    def write(self, row: Row) -> None:
        """Append a row to the file."""
        with self.path.open("a", encoding="utf-8", newline="") as file:
            file.write(row.text())
            file.flush()
            os.fsync(file.fileno())

    @classmethod
    def stored(cls, path: Path) -> "Metrics":
        """The rows of a file that is there, which is left as it is.

        Raises UserError if it is not a metrics file or not there.
        """
        if not path.exists():
            raise UserError(f"{path} is not there")
        return cls(path, writable=False)

    def has(self, method: str, epoch: int) -> bool:
        return (method, epoch) in self._rows

    def get(self, method: str, epoch: int) -> Row:
        return self._rows[method, epoch]

    def of(self, method: str) -> list[Row]:
        """A method's rows, by epoch."""
        rows = [row for (name, _), row in self._rows.items() if name == method]
        return sorted(rows, key=lambda row: row.epoch)
