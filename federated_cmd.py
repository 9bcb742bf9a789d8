"""Train by many clients with fewer weights on the wire: FedAvg, CMD, APF and A-APF side by side.

    python federated_cmd.py --model lenet                              # 10 clients, 100 rounds
    python federated_cmd.py --model lenet --partition dirichlet --alpha 0.5
    python federated_cmd.py --model lenet --dataset digits --rounds 20 --clients 5   # no download
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
from dataclasses import asdict
from functools import partial

from utils import flags
from utils.system.arguments import Parser
from utils.system.command import run_command

try:
    from utils.federated import flags as own_flags
    from utils.federated.client import app as client_app
    from utils.federated.flower import Context, Grid, ServerApp, silence
    from utils.federated.methods import METHODS
    from utils.federated.prepare import prepare
    from utils.federated.report import plot, summarise, table, write_rounds
    from utils.federated.rounds import Place, Round, checkpoint_of, describe, run_rounds
    from utils.federated.runners import RUNNERS, leave
    from utils.federated.settings import FederatedSettings
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
    args.command = shlex.join(["python", parser.prog, *(sys.argv[1:] if argv is None else argv)])

    def work() -> None:
        settings, place = prepare(args)  # errors come before anything starts
        failures: list[BaseException] = []
        server = ServerApp()

        @server.main()
        def rounds(grid: Grid, context: Context) -> None:
            try:
                compare(args, settings, place, grid)
            except BaseException as error:
                failures.append(error)

        RUNNERS[args.runner](server, client_app, args.clients)
        if failures:
            raise failures[0]

    smaller = "start with a smaller --batch_size in another --results_dir"
    return run_command(parser.prog, f"--results_dir {args.results_dir}", work, smaller=smaller)


server_app = ServerApp()


@server_app.main()
def serve(grid: Grid, context: Context) -> None:
    """Serve a deployment, started by `flwr run`; its flags are in the run's configuration."""
    silence()
    words = str(context.run_config["arguments"])
    args = build_parser().parse_args(shlex.split(words))
    args.command = f"flwr run . --run-config {shlex.quote(f'arguments={json.dumps(words)}')}"
    settings, place = prepare(args)
    compare(args, settings, place, grid)


def compare(
    args: argparse.Namespace, settings: FederatedSettings, place: Place, grid: Grid
) -> None:
    """Play every method's rounds, one after the other; print one table and draw one plot."""
    folder = place.store.folder
    folder.mkdir(parents=True, exist_ok=True)
    lock, curves = FolderLock(folder), None
    try:
        remove_drafts(folder, (CONFIG, *map(checkpoint_of, METHODS), SUMMARY, ROUNDS, PLOT))
        if args.overwrite:
            for method in METHODS:
                (folder / checkpoint_of(method)).unlink(missing_ok=True)
            clear_curves(folder)
        place.store.write_config({"settings": asdict(settings), "command": args.command})
        print(
            f"{settings.model} on {settings.dataset}: {place.n_weights:,} weights, "
            f"{settings.clients} clients, {settings.partition}, {settings.rounds} rounds, "
            f"{place.device}, in {folder}",
            flush=True,
        )
        curves = Curves(folder, "round") if args.tensorboard else None
        histories: dict[str, list[Round]] = {}

        def tell(method: str, history: list[Round]) -> None:
            print(describe(method, history[-1], settings.rounds), flush=True)
            if curves is not None:
                curves.add(METHODS[method].label, history)

        for method in args.methods:
            histories[method] = run_rounds(grid, settings, method, place, partial(tell, method))
            if curves is not None:
                curves.add(METHODS[method].label, histories[method])
            summary = summarise(settings, histories, place.n_weights)
            write_json(summary, folder / SUMMARY)
            write_rounds(histories, folder / ROUNDS)
            plot(settings, histories, folder / PLOT)
        print(f"\n{table(summary)}\n\nplot: {folder / PLOT}", flush=True)
    finally:
        if curves is not None:
            curves.close()
        lock.release()


def build_parser() -> argparse.ArgumentParser:
    """Build the command line's parser; a default that depends on the model is None here."""
    parser = Parser(prog="federated_cmd.py", description=__doc__, epilog=flags.model_table())
    own_flags.add_flags(parser)
    return parser


if __name__ == "__main__":
    leave(main())
