"""Run the paper's tables, and print them in Markdown, our figures beside the paper's.

    python reproduce.py table1                            # six models, seeds 0, 1 and 2
    python reproduce.py table1 --models lenet --seeds 0   # a row of it, with one seed
    python reproduce.py table2                            # ResNet18 with four optimizers
    python reproduce.py methods --models lenet            # every method of the suite on a model
    python reproduce.py table1 --results_dir runs --stored    # only print what is stored

Every run is one of train_cmd.py, whose command is printed. What has been run is not run again, so
the same command goes on where it was stopped. `--epochs` other than a model's own scales all
warm-ups.
"""

if __name__ == "__main__":  # before anything large is imported
    from utils.system.interrupts import end_quietly

    end_quietly()

import argparse
import shlex
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import train_cmd
from utils import flags
from utils.base_utils import MODELS, get_model
from utils.methods.identity import undecided
from utils.methods.registry import METHODS
from utils.results.markdown import markdown
from utils.results.paper import TABLES, Table, TableRow, methods_of
from utils.results.stored_run import StoredRun, require_alike
from utils.system.arguments import Parser
from utils.system.command import run_command
from utils.system.errors import UserError
from utils.system.interrupts import leave
from utils.training.folder import seed_folder
from utils.training.optimizers import WARMUP_EPOCHS, WITH_WARMUP
from utils.training.settings import differences

SEEDS = [0, 1, 2]
WARMUP_CMD, WARMUP_PBFGS, PBFGS_NUM, EMBED_WINDOW = 20, 80, 40, 10  # of the paper's runs
SHORTEST = 6  # the fewest epochs that every method of every table can be run in
OF_PBFGS = ("pbfgs_batch_size", "accumulate")
GIVEN = (
    "dataset",
    "limit",
    "weights",
    "precision",
    "epochs",
    *OF_PBFGS,
)  # asked of stored runs where given


def main(argv: list[str] | None = None) -> int:
    """Run the command, and return its exit code."""
    parser = build_parser()
    args = parser.parse_args(argv)
    return run_command(parser.prog, f"--results_dir {args.results_dir}", lambda: reproduce(args))


def reproduce(args: argparse.Namespace) -> int:
    """Run what a table lacks, print the table, and return the exit code of the last run."""
    table, code = TABLES[args.table], 0
    rows = select_rows(table, args.models)
    if not args.stored:
        code = run_missing(args, rows)
        if code == 2:
            return code
    try:
        print(f"\n{report(args, table, rows)}")
    except UserError:
        if code:  # stopped before there was a run
            return code
        raise
    if args.keep is not None:
        keep(args, rows)
    return code


def select_rows(table: Table, models: Sequence[str] | None) -> list[TableRow]:
    """Return the rows of the models asked for, None for all.

    Raises:
        UserError: the table has no row of a model.
    """
    known = list(dict.fromkeys(row.model for row in table.rows))
    for model in models or ():
        if model not in known:
            raise UserError(f"--models {model}: the models of this table are {', '.join(known)}")
    return [row for row in table.rows if models is None or row.model in models]


def run_missing(args: argparse.Namespace, rows: Sequence[TableRow]) -> int:
    """Run what is not there yet, and return the exit code of the last run, 0 where none stopped."""
    commands = [command(args, row) for row in rows]
    for argv in commands:  # wrong settings are refused before anything is run
        parsed = train_cmd.build_parser().parse_args(argv)
        selected = [method for method in METHODS if getattr(parsed, method.name)]
        train_cmd.make_settings(parsed, selected)
    for argv in commands:
        print(f"\n$ python train_cmd.py {shlex.join(argv)}", flush=True)
        code = train_cmd.main(argv)
        if code:
            return code
    return 0


def command(args: argparse.Namespace, row: TableRow) -> list[str]:
    """Return the arguments with which train_cmd.py runs a row."""
    argv = ["--model", row.model, *row.flags]
    needed = methods_of(row)
    for method in METHODS:
        if (method.name in needed) != method.default:
            argv += [method.flags[0], "True" if method.name in needed else ""]
    argv += ["--seeds", *map(str, args.seeds)]
    defaults = train_cmd.build_parser()
    passed_on = (
        "dataset", "data_dir", "limit", "weights", "device", "precision", "compile",
        *OF_PBFGS, "pbfgs_pieces",
    )  # fmt: skip
    for name in passed_on:
        value = getattr(args, name)
        if value != defaults.get_default(name) and (
            name != "weights" or get_model(row.model).pretrained
        ):
            argv += [f"--{name}", str(value)]
    if args.epochs is not None:
        entry = get_model(row.model)
        scheduler = defaults.parse_args(argv).scheduler or entry.scheduler
        argv += of_shorter_runs(args.epochs, entry.epochs, scheduler)
    argv += ["--results_dir", str(results_dir(args, row))]
    return argv + (["--overwrite"] if args.overwrite else [])


def of_shorter_runs(epochs: int, whole: int, scheduler: str = "none") -> list[str]:
    """Return the flags for a run of another length, its warm-ups scaled in proportion.

    Args:
        epochs: the run's.
        whole: the model's own, which the warm-ups of the paper belong to.
        scheduler: the learning rate's, whose own warm-up, if it has one, is scaled too.

    Raises:
        UserError: the epochs are too few for warm-ups.
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


def results_dir(args: argparse.Namespace, row: TableRow) -> Path:
    """Return the --results_dir of a row's runs, which rows of one experiment share."""
    return Path(args.results_dir) / row.experiment


def run_folder(args: argparse.Namespace, row: TableRow, seed: int) -> Path:
    """Return the folder of a row's run with a seed."""
    return seed_folder(results_dir(args, row), row.model, seed)


def records(args: argparse.Namespace, row: TableRow) -> dict[int, StoredRun]:
    """Open the stored runs of a row, by seed.

    Raises:
        UserError: one of them is not a run of that row or of what was asked for, or they are not
            alike.
    """
    folders = {seed: run_folder(args, row, seed) for seed in args.seeds}
    found = {seed: StoredRun(folder) for seed, folder in folders.items() if folder.exists()}
    if found:
        require_alike(list(found.values()))
    for seed, record in found.items():
        different = departures(args, row, record)
        if different:
            raise UserError(
                f"{record.folder} (there) is no run of this table: {'; '.join(different)}; choose "
                "another --results_dir"
            )
        if record.settings.seed != seed:
            raise UserError(f"{record.folder} holds a run with --seed {record.settings.seed}")
    return found


def departures(args: argparse.Namespace, row: TableRow, record: StoredRun) -> list[str]:
    """Say in which settings a stored run is not of a row, among those that the row depends on.

    What is told of each run, as its images and its epochs, is asked for only where it was given.
    """
    parser = train_cmd.build_parser()
    given = {name for name in GIVEN if getattr(args, name) != parser.get_default(name)}
    epochs = record.settings.epochs
    if "epochs" not in given and epochs != get_model(row.model).epochs:
        args = argparse.Namespace(**vars(args) | {"epochs": max(epochs, SHORTEST)})
    asked = train_cmd.make_settings(parser.parse_args(command(args, row)), METHODS[:1])
    shown = [m for m in METHODS if m.name in methods_of(row) and record.metrics.of(m.name)]
    free = undecided(record.settings, shown, tested=True) | {"seed", "data", *GIVEN}
    return differences(asked, asdict(record.settings), free - given)


def report(args: argparse.Namespace, table: Table, rows: Sequence[TableRow]) -> str:
    """Return the table in Markdown, with what was run for it."""
    found = {row: records(args, row) for row in rows}
    if not any(found.values()):
        raise UserError(
            f"--results_dir {args.results_dir}: it holds no run of this table; leave out "
            "--stored to run it"
        )
    return markdown(table, found, args.seeds)


def keep(args: argparse.Namespace, rows: Sequence[TableRow]) -> None:
    """Copy the small files of the runs to another folder."""
    for row in rows:
        for seed, record in records(args, row).items():
            kept = Path(args.keep) / row.experiment
            record.copy_to(seed_folder(kept, row.model, seed))
    print(f"\nthe configuration, metrics and summary of each run are in {args.keep}")


def build_parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    parser = Parser(
        prog="reproduce.py",
        description=__doc__,
        epilog=flags.model_table(),
    )
    parser.add_argument("table", choices=TABLES, help="the table to run")
    parser.add_argument(
        "--models", nargs="+", choices=MODELS, metavar="MODEL", help="rows to run (default: all)"
    )
    flags.add_seeds_flag(parser, SEEDS)
    flags.add_setting(parser, "epochs", "weights", "precision")
    flags.add_compute_flags(parser)
    flags.add_setting(flags.group(parser, "P-BFGS"), *OF_PBFGS)
    flags.add_pieces_flag(parser)
    flags.add_data_flags(parser)
    group = parser.add_argument_group("results")
    group.add_argument(
        "--results_dir",
        default="results",
        metavar="DIR",
        help="the runs are in DIR/EXPERIMENT/MODEL_seeds/seed_SEED (default: %(default)s)",
    )
    group.add_argument(
        "--stored", action="store_true", help="run nothing, only print what is stored"
    )
    group.add_argument(
        "--keep", metavar="DIR", help="also copy the runs' small files (not the weights) to DIR"
    )
    group.add_argument("--overwrite", action="store_true", help="start every run afresh")
    return parser


if __name__ == "__main__":
    leave(main())
