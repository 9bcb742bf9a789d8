"""Tables that are printed and written: as Markdown, a file each, and their numbers as JSON."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from utils.storage.files import write_json, write_text
from utils.system.tables import format_table

NUMBERS = "numbers.json"


@dataclass(frozen=True)
class Table:
    """A table of results.

    Attributes:
        name: of its file, without the ending.
        title: what is above it.
        header: the headings of the columns.
        rows: the cells.
        notes: what is below it, a line each.
        numbers: what the cells were made of, by name, for each row.
    """

    name: str
    title: str
    header: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    notes: Sequence[str] = ()
    numbers: Sequence[dict] = field(default=())

    def text(self) -> str:
        """Format it for the terminal."""
        table = [format_table(self.header, self.rows)] if self.rows else []
        return "\n".join([f"{self.title}\n", *table, *self.notes])

    def markdown(self) -> str:
        """Format it as Markdown."""
        lines = [self.header, ["---"] * len(self.header), *self.rows] if self.rows else []
        table = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
        notes = "\n".join(f"- {note}" for note in self.notes)
        return "\n\n".join(part for part in (f"# {self.title}", table, notes) if part) + "\n"


def write_report(tables: Sequence[Table], made: dict, folder: Path) -> None:
    """Write the tables, and what they were made with, to a folder."""
    for table in tables:
        write_text(table.markdown(), folder / f"{table.name}.md")
    found = {
        table.name: {"title": table.title, "notes": [*table.notes], "rows": [*table.numbers]}
        for table in tables
    }
    write_json(made | {"tables": found}, folder / NUMBERS)
