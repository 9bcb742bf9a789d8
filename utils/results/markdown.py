"""A table of the paper in Markdown, from the records of runs; and shorter runs of it."""

from collections.abc import Mapping, Sequence
from statistics import fmean, stdev

from utils.base_utils import WARMUP_EPOCHS, WITH_WARMUP
from utils.results.paper import Figure, Row, Table
from utils.results.record import Record
from utils.results.summary import LAST, percent
from utils.system.errors import UserError

WARMUP_CMD, WARMUP_PBFGS, PBFGS_NUM, EMBED_WINDOW = 20, 80, 40, 10  # of the paper's runs
SHORTEST = 6  # epochs that every method of every table can be run in


def of_shorter_runs(epochs: int, whole: int, scheduler: str = "none") -> list[str]:
    """Flags for a run of `epochs` in place of `whole`, its warm-ups as long in proportion, that of
    the learning rate's schedule with them.

    Raises UserError if there are too few for warm-ups.
    """
    if epochs < SHORTEST:
        raise UserError(f"--epochs {epochs}: choose {SHORTEST} or more, or leave it out")

    def scaled(length: int) -> int:
        return round(length * epochs / whole)

    warmup = max(2, scaled(WARMUP_CMD))
    of_pbfgs = min(max(warmup + 1, scaled(WARMUP_PBFGS)), epochs - 2)
    window = min(max(1, scaled(EMBED_WINDOW)), epochs - 2 - warmup)
    of_rate = ["--lr_warmup", str(max(1, scaled(WARMUP_EPOCHS)))] * (scheduler == WITH_WARMUP)
    return [
        "--epochs", str(epochs), "--warmup_cmd", str(warmup), "--warmup_pbfgs", str(of_pbfgs),
        "--pbfgs_num", str(min(PBFGS_NUM, of_pbfgs)), "--embed_window", str(window),
        *of_rate,
    ]  # fmt: skip


def markdown(table: Table, found: Mapping[Row, Mapping[int, Record]], seeds: Sequence[int]) -> str:
    """The table, its legend, and what was run.

    found: of each row, the records of its runs by seed. seeds: those asked for.
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
    lines += ["", "Run as", ""]
    for row, records in found.items():
        lines += describe(row, records, seeds)
    return "\n".join(lines)


def cell(
    method: str, paper: Figure | None, records: Mapping[int, Record], seeds: Sequence[int]
) -> str:
    """Ours beside the paper's: of the finished runs, and how many they are if not all."""
    finished = [record for record in records.values() if record.finished(method)]
    ours = "–"
    if finished:
        last, mean = (
            spread([get(record, method) for record in finished])
            for get in (Record.last, Record.mean_last)
        )
        ours = f"{last} / {mean}"
        if len(finished) < len(seeds):
            ours += f", {len(finished)} of {len(seeds)} seeds"
    return ours if paper is None else f"{ours} ({paper[0]:.2f} ± {paper[1]:.2f})"


def spread(values: Sequence[float]) -> str:
    """The mean of fractions, in percent, ± their sample standard deviation if there are more."""
    return percent(fmean(values), stdev(values) if len(values) > 1 else None)


def describe(row: Row, records: Mapping[int, Record], seeds: Sequence[int]) -> list[str]:
    """How far a row's runs are, in what setting, and the commands that made them: list items."""
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
