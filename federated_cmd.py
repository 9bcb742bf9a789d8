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

import argparse
import json
import shlex
import sys
from dataclasses import asdict
from pathlib import Path

import torch

from utils import flags
from utils.arguments import Parser, at_least, positive, share
from utils.arithmetic import PRECISIONS, choose_precision
from utils.base_utils import MODELS, OPTIMIZERS, get_model
from utils.command import run_command
from utils.devices import choose_device
from utils.errors import UserError

try:
    from utils.federated.client import app as client_app
    from utils.federated.client import images_of
    from utils.federated.flower import Context, Grid, ServerApp, silence
    from utils.federated.partition import PARTITIONS
    from utils.federated.report import plot, summarise, table, write_rounds
    from utils.federated.rounds import Place, Round, run_rounds
    from utils.federated.runners import RUNNERS
    from utils.federated.settings import METHODS, FederatedSettings
except ImportError as missing:
    if not str(missing.name).startswith("flwr"):
        raise
    sys.exit(
        "federated_cmd.py: error: Flower is not installed: "
        "pip install -r requirements-federated.txt"
    )

from utils.files import write_json
from utils.flat import layer_sizes
from utils.lock import FolderLock

CONFIG, SUMMARY, ROUNDS, PLOT = "config.json", "summary.json", "rounds.csv", "federated.png"


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    parser = build_parser()
    args = parser.parse_args(argv)
    args.command = shlex.join(["python", parser.prog, *(sys.argv[1:] if argv is None else argv)])

    def work() -> None:
        settings, place = prepare(args)  # what is wrong is said before anything starts
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

    return run_command(parser.prog, args.results_dir, work)


server_app = ServerApp()


@server_app.main()
def serve(grid: Grid, context: Context) -> None:
    """The server of a deployment, by `flwr run`, its flags in the run's configuration."""
    silence()
    words = str(context.run_config["arguments"])
    args = build_parser().parse_args(shlex.split(words))
    args.command = f"flwr run . --run-config {shlex.quote(f'arguments={json.dumps(words)}')}"
    settings, place = prepare(args)
    compare(args, settings, place, grid)


def prepare(args: argparse.Namespace) -> tuple[FederatedSettings, Place]:
    """The settings and the place of a run.

    Raises UserError if they do not fit together, the images are not there, or other settings'
    results lie there.
    """
    settings = make_settings(args)
    device = choose_device(args.device)
    dataset, _ = images_of(settings, args.data_dir, str(device))
    fingerprint = dataset.to(torch.device("cpu")).fingerprint()
    folder = Path(args.results_dir) / "federated" / f"{args.model}_{args.partition}"
    settings = FederatedSettings(
        **asdict(settings)
        | {"data": fingerprint, "precision": choose_precision(args.precision, device)}
    )
    n_weights = sum(layer_sizes(settings.build(len(dataset.classes))))
    if settings.samples > n_weights or settings.modes > settings.samples:
        raise UserError(
            f"--modes {settings.modes}, --samples {settings.samples} and the model's "
            f"{n_weights:,} weights must not decrease"
        )
    if not args.overwrite and (folder / CONFIG).exists():
        require_same(settings, folder)
    return settings, Place(folder, device, args.data_dir, args.timeout)


def require_same(settings: FederatedSettings, folder: Path) -> None:
    """Raise UserError unless the results in a folder are of these settings."""
    path = folder / CONFIG
    try:
        stored = json.loads(path.read_text())["settings"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged: --overwrite starts afresh") from error
    for name, here in asdict(settings).items():
        if stored.get(name) != here:
            raise UserError(
                f"{folder} holds a run with other settings: --{name} is {here} here and "
                f"{stored.get(name)} there; choose another --results_dir, or --overwrite to start "
                "afresh"
            )


def compare(
    args: argparse.Namespace, settings: FederatedSettings, place: Place, grid: Grid
) -> None:
    """Every method's rounds, one after the other; one table and one plot."""
    place.folder.mkdir(parents=True, exist_ok=True)
    lock = FolderLock(place.folder)
    try:
        if args.overwrite:
            for path in place.folder.glob("*/checkpoint.pt"):
                path.unlink()
        write_json({"settings": asdict(settings), "command": args.command}, place.folder / CONFIG)
        n_weights = sum(layer_sizes(settings.build(10)))
        print(
            f"{settings.model} on {settings.dataset}: {n_weights:,} weights, {settings.clients} "
            f"clients, {settings.partition}, {settings.rounds} rounds, {place.device}, in "
            f"{place.folder}",
            flush=True,
        )
        histories: dict[str, list[Round]] = {}
        for method in args.methods:
            own = Place(place.folder / method, place.device, place.data_dir, place.timeout)
            own.folder.mkdir(exist_ok=True)
            histories[method] = run_rounds(
                grid, settings, method, own, lambda words: print(words, flush=True)
            )
            summary = summarise(settings, histories, n_weights)
            write_json(summary, place.folder / SUMMARY)
            write_rounds(histories, place.folder / ROUNDS)
            plot(settings, histories, place.folder / PLOT)
        print(f"\n{table(summary)}\n\nplot: {place.folder / PLOT}", flush=True)
    finally:
        lock.release()


def make_settings(args: argparse.Namespace) -> FederatedSettings:
    """The settings, the model's own where a flag was left out.

    Raises UserError if they do not fit together.
    """
    entry = get_model(args.model)
    optimizer = args.optimizer or entry.optimizer
    if args.momentum is not None and optimizer != "sgd":
        raise UserError(f"--momentum {args.momentum:g} is SGD's: add --optimizer sgd, or leave it")
    momentum = entry.momentum if args.momentum is None else args.momentum
    if not 0 < args.fraction <= 1:
        raise UserError(f"--fraction {args.fraction:g}: choose a share above 0, up to 1")
    if args.embed_perc > 100:
        raise UserError(f"--embed_perc {args.embed_perc:g}: choose a percentage up to 100")
    if "cmd" in args.methods and args.warmup_cmd + args.embed_window >= args.rounds:
        raise UserError(
            f"--warmup_cmd {args.warmup_cmd} and --embed_window {args.embed_window}: the first "
            f"weights would be embedded at round {args.warmup_cmd + args.embed_window + 1}, which "
            f"leaves none of --rounds {args.rounds}; choose smaller ones"
        )
    if len(set(args.methods)) < len(args.methods):
        raise UserError(f"--methods {' '.join(args.methods)}: give each method once")
    return FederatedSettings(
        model=args.model,
        dataset=args.dataset,
        data="",  # known once the images are loaded
        limit=args.limit,
        seed=args.seed,
        clients=args.clients,
        rounds=args.rounds,
        local_epochs=args.local_epochs,
        fraction=args.fraction,
        partition=args.partition,
        alpha=args.alpha,
        optimizer=optimizer,
        lr=entry.lr if args.lr is None else args.lr,
        momentum=momentum if optimizer == "sgd" else None,
        batch_size=args.batch_size,
        precision="fp32",  # known once the device is chosen
        modes=entry.modes if args.modes is None else args.modes,
        samples=entry.samples if args.samples is None else args.samples,
        warmup_cmd=args.warmup_cmd,
        embed_window=args.embed_window,
        embed_perc=args.embed_perc,
        apf_alpha=args.apf_alpha,
        apf_threshold=args.apf_threshold,
        apf_every=args.apf_every,
    )


def build_parser() -> argparse.ArgumentParser:
    """The command line; a default that depends on the model is None here."""
    parser = Parser(prog="federated_cmd.py", description=__doc__, epilog=flags.model_table())
    group = parser.add_argument_group("federation")
    group.add_argument(
        "--methods",
        nargs="+",
        choices=METHODS,
        default=list(METHODS),
        metavar="METHOD",
        help="(default: fedavg cmd apf a-apf)",
    )
    group.add_argument("--clients", type=at_least(1), default=10, help="(default: %(default)s)")
    group.add_argument("--rounds", type=at_least(1), default=100, help="(default: %(default)s)")
    group.add_argument(
        "--local_epochs",
        type=at_least(1),
        default=1,
        help="of each client in a round (default: %(default)s)",
    )
    group.add_argument(
        "--fraction",
        type=positive,
        default=1.0,
        help="of clients that take part in a round (default: %(default)s)",
    )
    group.add_argument(
        "--partition",
        choices=PARTITIONS,
        default=PARTITIONS[0],
        help="of the images: alike, or classes in shares drawn from Dir(alpha) "
        "(default: %(default)s)",
    )
    group.add_argument(
        "--alpha",
        type=positive,
        default=0.5,
        help="of --partition dirichlet (default: %(default)s)",
    )
    group.add_argument(
        "--runner",
        choices=RUNNERS,
        default="inproc",
        help="in this process, or on Ray (default: %(default)s)",
    )
    group.add_argument(
        "--timeout",
        type=positive,
        default=3600.0,
        metavar="SECONDS",
        help="how long a client may take (default: %(default)s)",
    )

    group = parser.add_argument_group("model and training")
    group.add_argument("--model", choices=MODELS, default="res18", help="(default: %(default)s)")
    group.add_argument(
        "--optimizer",
        choices=OPTIMIZERS,
        help="of clients, afresh every round (default: the model's, below)",
    )
    group.add_argument("--lr", type=positive, help="learning rate (default: the model's, below)")
    group.add_argument("--momentum", type=share, help="of SGD, from 0 to below 1 (default: 0.9)")
    group.add_argument(
        "--batch_size", type=at_least(1), default=128, metavar="B", help="(default: %(default)s)"
    )
    group.add_argument("--seed", type=at_least(0), default=0, help="(default: %(default)s)")
    group.add_argument(
        "--precision", choices=PRECISIONS, help="(default: bf16 on GPUs that have it, else fp32)"
    )
    flags.add_device_flag(group)
    flags.add_data_flags(parser)

    group = parser.add_argument_group("CMD")
    group.add_argument(
        "--modes",
        type=at_least(1),
        metavar="M",
        help="modes at the most (default: the model's, below)",
    )
    group.add_argument(
        "--samples",
        type=at_least(1),
        metavar="K",
        help="weights that are clustered (default: the model's, below)",
    )
    group.add_argument(
        "--warmup_cmd",
        type=at_least(1),
        default=10,
        metavar="ROUND",
        help="last round of the warm-up, from 0 (default: %(default)s)",
    )
    group.add_argument(
        "--embed_window",
        type=at_least(1),
        default=4,
        metavar="L",
        help="rounds from one embedding to the next (default: %(default)s)",
    )
    group.add_argument(
        "--embed_perc",
        type=positive,
        default=10,
        metavar="P",
        help="percentage of all weights embedded each time (default: %(default)s)",
    )

    group = parser.add_argument_group("APF and A-APF")
    group.add_argument(
        "--apf_alpha",
        type=share,
        default=0.99,
        metavar="ALPHA",
        help="share of the averages that stays, a check (default: %(default)s)",
    )
    group.add_argument(
        "--apf_threshold",
        type=positive,
        default=0.05,
        metavar="P",
        help="of effective perturbation, below which a weight is stable (default: %(default)s)",
    )
    group.add_argument(
        "--apf_every",
        type=at_least(1),
        default=5,
        metavar="ROUNDS",
        help="from one check to the next (default: %(default)s)",
    )

    group = parser.add_argument_group("results")
    group.add_argument(
        "--results_dir",
        default="results",
        metavar="DIR",
        help="results go to DIR/federated/MODEL_PARTITION (default: %(default)s)",
    )
    group.add_argument(
        "--overwrite",
        action="store_true",
        help="start afresh, whatever lies there (default: go on with it)",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
