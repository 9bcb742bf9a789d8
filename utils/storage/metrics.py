"""metrics.csv: one row a method and epoch, on the disk as soon as it is known."""

import csv
import io
from dataclasses import astuple, dataclass, fields
from pathlib import Path

from utils.storage.files import append, write_text
from utils.storage.sealed import Sums, digest
from utils.system.errors import UserError


@dataclass(frozen=True)
class Row:
    """One tested epoch. Losses are means over images, accuracies fractions.

    Attributes:
        method: its name.
        epoch: from 0.
        train_loss, train_acc: of the epoch's training; None where the method has none.
        test_loss, test_acc: on the test images.
        seconds: what the method spent on the epoch.
    """

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

    def __init__(self, path: Path, writable: bool = True, sums: Sums | None = None) -> None:
        """Open the file, or create it; a last line cut short by a kill is dropped.

        Args:
            path: the file's.
            writable: whether to mend the file so that rows can be added.
            sums: the rows' checksums, in any order; None leaves rows unchecked.

        Raises UserError if it is not a metrics file, or a row is not as it was written.
        """
        self.path, self._sums = path, sums
        self._rows: dict[tuple[str, int], Row] = {}
        header = ",".join(COLUMNS) + "\n"
        text = path.read_text(errors="replace") if path.exists() else ""
        lines = text.splitlines(keepends=True)
        if lines and not lines[-1].endswith("\n"):
            lines.pop()
        if not lines:
            lines = [header]
        if lines[0] != header:
            raise UserError(
                f"{path} is not a metrics file of this suite: --overwrite starts afresh"
            )
        if sums is not None:
            sums.read()  # the checksums of rows added since are there
        known = None if sums is None else set(sums.digests)
        for number, line in enumerate(lines[1:], start=2):
            try:
                if known is not None and digest(line.encode()) not in known:
                    raise ValueError("no such row was written")
                row = Row.parse(next(csv.reader([line])))
            except (TypeError, ValueError, StopIteration, csv.Error) as error:
                held = "" if sums is None else f" by {sums.path.name}"
                raise UserError(
                    f"{path}, line {number}: not a row of this run's metrics{held}: remove the "
                    "line, and the run's command tests that epoch again, or --overwrite starts "
                    "afresh"
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
        if self._sums is not None:  # first, so that only damaged rows have no checksum
            self._sums.add(row.text().encode())
        append(self.path, row.text())

    @classmethod
    def stored(cls, path: Path, sums: Sums | None = None) -> "Metrics":
        """Read the rows of an existing file, which is left as it is.

        Raises UserError if it is not a metrics file or not there, or a row is not as written.
        """
        if not path.exists():
            raise UserError(f"{path} is not there")
        return cls(path, writable=False, sums=sums)

    def has(self, method: str, epoch: int) -> bool:
        return (method, epoch) in self._rows

    def get(self, method: str, epoch: int) -> Row:
        return self._rows[method, epoch]

    def of(self, method: str) -> list[Row]:
        """A method's rows, by epoch."""
        rows = [row for (name, _), row in self._rows.items() if name == method]
        return sorted(rows, key=lambda row: row.epoch)
