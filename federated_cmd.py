"""Train by many clients with fewer bytes on the wire: FedAvg, CMD, APF, top-k side by side.

    python federated_cmd.py --model lenet                              # 10 clients, 100 rounds
    python federated_cmd.py --model lenet --partition dirichlet --alpha 0.5
    python federated_cmd.py --model lenet --dataset digits --rounds 20 --clients 5   # no download
    python federated_cmd.py --model lenet --methods fedavg cmd --transport fp32 bf16
    python federated_cmd.py --model lenet --seeds 0 1 2              # mean ± standard deviation
    python federated_cmd.py --model lenet --methods fedavg cmd --runner ray          # on Ray

"Enhancing Neural Training via a Correlated Dynamics Model", ICLR 2024: a weight whose a, b have
settled need not be sent, as server and clients compute it from its reference weight. Results go to
RESULTS_DIR/federated/MODEL_PARTITION; the same command goes on where it was stopped. Needs
`pip install -r requirements-federated.txt`.
"""

if __name__ == "__main__":  # before anything large is imported
    from utils.system.interrupts import end_quietly

    end_quietly()

import argparse
import json
import shlex
import sys
from collections.abc import Collection, Sequence
from dataclasses import asdict
from functools import partial

from utils import flags
from utils.system.arguments import Parser
from utils.system.command import INTERRUPTED, OVERWRITING, command_to_go_on, run_command

try:
    from utils.federated import flags as own_flags
    from utils.federated.client import app as client_app
    from utils.federated.contenders import NAMES, Contender
    from utils.federated.flower import Context, Grid, ServerApp, silence
    from utils.federated.picture import Histories, plot
    from utils.federated.prepare import Prepared, folder_of_seeds, prepare_all, reopened, selected
    from utils.federated.report import over_seeds, summarise, write_rounds
    from utils.federated.rounds import (
        Place,
        Round,
        checkpoint_of,
        describe,
        run_rounds,
        stored_history,
    )
    from utils.federated.runners import RUNNERS, leave
    from utils.federated.settings import FederatedSettings
    from utils.federated.tables import tables
except ImportError as missing:
    if not str(missing.name).startswith("flwr"):
        raise
    print(
        "federated_cmd.py: error: Flower is not installed: "
        "pip install -r requirements-federated.txt",
        file=sys.stderr,
    )
    sys.exit(2)

from utils.results.curves import Curves, clear_curves
from utils.storage.files import remove_drafts, write_json
from utils.storage.lock import FolderLock
from utils.storage.store import CONFIG

SUMMARY, ROUNDS, PLOT = "summary.json", "rounds.csv", "federated.png"


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    parser = build_parser()
    args = parser.parse_args(argv)
    args.command = command_to_go_on(parser.prog, argv)

    def work() -> None:
        prepared = prepare_all(args)  # errors come before anything starts
        failures: list[BaseException] = []
        server = ServerApp()

        @server.main()
        def rounds(grid: Grid, context: Context) -> None:
            try:
                compare(args, prepared, grid)
            except BaseException as error:
                failures.append(error)

        RUNNERS[args.runner](server, client_app, args.clients)
        if failures:
            raise failures[0]

    smaller = "start with a smaller --batch_size in another --results_dir"
    interrupted = OVERWRITING if args.overwrite else INTERRUPTED
    where = f"--results_dir {args.results_dir}"
    return run_command(parser.prog, where, work, interrupted, smaller)


server_app = ServerApp()


@server_app.main()
def serve(grid: Grid, context: Context) -> None:
    """Serve a deployment, started by `flwr run`; its flags are in the run's configuration."""
    silence()
    words = str(context.run_config["arguments"])
    args = build_parser().parse_args(shlex.split(words))
    args.command = f"flwr run . --run-config {shlex.quote(f'arguments={json.dumps(words)}')}"
    compare(args, prepare_all(args), grid)


def compare(args: argparse.Namespace, prepared: Sequence[Prepared], grid: Grid) -> None:
    """Play the rounds of each run; print the tables and draw the plot of all."""
    runs, summaries = [], []
    if args.overwrite and args.seeds is not None:
        for name in (SUMMARY, PLOT):
            (folder_of_seeds(args) / name).unlink(missing_ok=True)
    for number, (settings, place) in enumerate(prepared, start=1):
        which = f"seed {settings.seed} ({number} of {len(prepared)}), " if args.seeds else ""
        runs.append(compare_on_run(args, settings, place, grid, which))
        summaries.append(summarise(settings, runs[-1], place.n_weights))
    folder = place.store.folder
    if args.seeds is not None:
        folder = folder_of_seeds(args)
        write_json(over_seeds(args.seeds, summaries), folder / SUMMARY)
        plot(settings, runs, folder / PLOT)
    print(f"\n{tables(summaries)}\n\nplot: {folder / PLOT}", flush=True)


def compare_on_run(
    args: argparse.Namespace, settings: FederatedSettings, place: Place, grid: Grid, which: str
) -> Histories:
    """Play every contender's rounds, one after the other, and report them in the run's folder.

    Returns the rounds of all who have finished there, now or earlier.
    """
    folder = place.store.folder
    folder.mkdir(parents=True, exist_ok=True)
    lock, curves = FolderLock(folder), None
    try:
        checkpoints = [checkpoint_of(name) for name in NAMES]
        remove_drafts(folder, (CONFIG, *checkpoints, SUMMARY, ROUNDS, PLOT))
        if args.overwrite:
            for name in (*checkpoints, SUMMARY, ROUNDS, PLOT):
                (folder / name).unlink(missing_ok=True)
            clear_curves(folder)
        else:
            place = reopened(settings, place)
        histories = finished_before(settings, place, selected(args))
        place.store.write_config({"settings": asdict(settings), "command": args.command})
        print(
            f"{settings.model} on {settings.dataset}: {place.n_weights:,} weights, "
            f"{settings.clients} clients, {settings.partition}, {settings.rounds} rounds, "
            f"{which}{place.device}, in {folder}",
            flush=True,
        )
        curves = Curves(folder, "round") if args.tensorboard else None

        def draw(contender: Contender, history: list[Round]) -> None:
            if curves is not None:
                curves.add(contender.label, history)

        def tell(contender: Contender, history: list[Round]) -> None:
            print(describe(contender, history[-1], settings.rounds), flush=True)
            draw(contender, history)

        for name, history in histories.items():
            draw(Contender.named(name), history)
        for contender in selected(args):
            name = contender.name
            histories[name] = run_rounds(grid, settings, name, place, partial(tell, contender))
            draw(contender, histories[name])
            histories = {name: histories[name] for name in NAMES if name in histories}
            write_json(summarise(settings, histories, place.n_weights), folder / SUMMARY)
            write_rounds(histories, folder / ROUNDS)
            plot(settings, [histories], folder / PLOT)
        return histories
    finally:
        if curves is not None:
            curves.close()
        lock.release()


def finished_before(
    settings: FederatedSettings, place: Place, without: Collection[Contender]
) -> dict[str, list[Round]]:
    """Read the rounds of contenders of earlier commands that have finished in a run's folder.

    Raises:
        UserError: a checkpoint is damaged.
    """
    histories, others = {}, {contender.name for contender in without}
    for name in NAMES:
        if name not in others and (place.store.folder / checkpoint_of(name)).exists():
            history = stored_history(place.store, name)
            if len(history) == settings.rounds:
                histories[name] = history
    return histories


def build_parser() -> argparse.ArgumentParser:
    """Build the command line's parser; a default that depends on the model is None here."""
    parser = Parser(prog="federated_cmd.py", description=__doc__, epilog=flags.model_table())
    own_flags.add_flags(parser)
    return parser


if __name__ == "__main__":
    leave(main())
