"""Tables for the terminal."""

from collections.abc import Sequence


def format_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Set rows of words under a header, the first column to the left and the others to the right.

    Raises ValueError if a row is not as long as the header.
    """
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = [
        "  ".join(
            cell.rjust(width) if column else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in (header, ["─" * width for width in widths], *rows)
    ]
    return "\n".join(lines)
