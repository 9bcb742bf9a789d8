"""A table of the paper in Markdown, from stored runs."""

from collections.abc import Iterable, Mapping, Sequence

from utils.results.paired import LEVEL, paired_difference
from utils.results.paper import Figure, Table, TableRow
from utils.results.stored_run import StoredRun
from utils.results.summary import LAST, THE_RUN, mean_and_deviation
from utils.training.precision import FP32

NOTHING = "–"


def markdown(
    table: Table, found: Mapping[TableRow, Mapping[int, StoredRun]], seeds: Sequence[int]
) -> str:
    """Return the table, its legend, and what was run.

    Args:
        table: the paper's.
        found: the stored runs of each row, by seed.
        seeds: those asked for.
    """
    headings = [heading for _, heading in table.columns]
    epochs = [record.settings.epochs for records in found.values() for record in records.values()]
    or_all = " (of all, where there are fewer)" if min(epochs, default=LAST) < LAST else ""
    lines = [
        f"**{table.title}, %.** In a cell: ours at the last epoch / as a mean of the last {LAST}"
        f"{or_all}, over seeds {', '.join(map(str, seeds))} (the paper's).",
        "",
        "| | " + " | ".join(headings) + " |",
        "| --- |" + " --- |" * len(headings),
    ]
    for row, records in found.items():
        cells = [cell(name, row.paper.get(name), records, seeds) for name, _ in table.columns]
        lines.append("| " + " | ".join([row.label, *cells]) + " |")
    lines += differences(table, found)
    lines += ["", "Run as", ""]
    for row, records in found.items():
        lines += describe(row, records, seeds)
    return "\n".join(lines)


def cell(
    method: str, paper: Figure | None, records: Mapping[int, StoredRun], seeds: Sequence[int]
) -> str:
    """Return ours over the finished runs, how many these are if not all, and the paper's."""
    finished = [record for record in records.values() if record.finished(method)]
    ours = NOTHING
    if finished:
        last, mean = (
            mean_and_deviation([get(record, method) for record in finished])
            for get in (StoredRun.last, StoredRun.mean_last)
        )
        ours = f"{last} / {mean}"
        if len(finished) < len(seeds):
            ours += f", {len(finished)} of {len(seeds)} seeds"
    return ours if paper is None else f"{ours} ({paper[0]:.2f} ± {paper[1]:.2f})"


def differences(table: Table, found: Mapping[TableRow, Mapping[int, StoredRun]]) -> list[str]:
    """Return the table of each method minus the run itself, of the seeds that have both; empty
    where there is none."""
    compared = [(name, heading) for name, heading in table.columns if name != THE_RUN.name]
    rows = [
        [row.label, *(difference_cell(name, records.values()) for name, _ in compared)]
        for row, records in found.items()
    ]
    if not any(cell != NOTHING for _, *cells in rows for cell in cells):
        return []
    headings = ["", *(heading for _, heading in compared)]
    return [
        "",
        f"**Minus {THE_RUN.label}, percentage points**, paired by seed, with the "
        f"{100 * LEVEL:.0f} % interval by Student's t and the number of seeds. In a cell: the last "
        f"epoch / the mean of the last {LAST}.",
        "",
        *("| " + " | ".join(cells) + " |" for cells in (headings, ["---"] * len(headings), *rows)),
    ]


def difference_cell(method: str, records: Iterable[StoredRun]) -> str:
    """Return a method's differences over the runs in which it and the run are finished."""
    both = [record for record in records if all(map(record.finished, (method, THE_RUN.name)))]
    if not both:
        return NOTHING
    last, mean = (
        paired_difference(
            *([get(record, name) for record in both] for name in (method, THE_RUN.name))
        )
        for get in (StoredRun.last, StoredRun.mean_last)
    )
    seeds = "1 seed" if len(both) == 1 else f"{len(both)} seeds"
    return f"{last.points()} / {mean.points()}, {seeds}"


def describe(row: TableRow, records: Mapping[int, StoredRun], seeds: Sequence[int]) -> list[str]:
    """List how far a row's runs are, their settings, and the commands that made them."""
    lines, told = [], []
    for seed in seeds:
        record = records.get(seed)
        if record is None:
            lines.append(f"- {row.label}, seed {seed}: not run")
            continue
        settings = record.settings
        setting = f"{settings.epochs} epochs on {settings.dataset}"
        if settings.limit is not None:
            setting += f", --limit {settings.limit}"
        if settings.precision != FP32:
            setting += f", in {settings.precision}"
        behind = [
            f"{name} at epoch {record.epochs(name)} of {settings.epochs}"
            for name in row.paper
            if not record.finished(name)
        ]
        state = f"; unfinished: {', '.join(behind)}" if behind else ""
        same = "; by the same commands" if record.commands == told else ""
        lines.append(f"- {row.label}, seed {seed}: {setting}, {record.hardware}{state}{same}")
        if not same:
            lines += [f"  - `{command}`" for command in record.commands]
            told = record.commands
    return lines
