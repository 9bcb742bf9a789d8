"""The flags of federated_cmd.py that train_cmd.py does not have, or means otherwise."""

import argparse

from utils.base_utils import MODELS
from utils.federated.methods import METHODS
from utils.federated.partition import PARTITIONS
from utils.federated.runners import RUNNERS
from utils.flags import add_device_flag, add_setting
from utils.system.arguments import at_least, fraction, positive
from utils.training.optimizers import OPTIMIZERS
from utils.training.precision import PRECISIONS


def add_federation_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of methods, clients and rounds."""
    group = parser.add_argument_group("federation")
    group.add_argument(
        "--methods",
        nargs="+",
        choices=METHODS,
        default=list(METHODS),
        metavar="METHOD",
        help=f"(default: {' '.join(METHODS)})",
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


def add_client_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of what clients train, and how."""
    group = parser.add_argument_group("model and training")
    group.add_argument("--model", choices=MODELS, default="res18", help="(default: %(default)s)")
    group.add_argument(
        "--optimizer",
        choices=OPTIMIZERS,
        help="of clients, afresh every round (default: the model's, below)",
    )
    add_setting(group, "lr", "momentum")
    group.add_argument(
        "--batch_size", type=at_least(1), default=128, metavar="B", help="(default: %(default)s)"
    )
    group.add_argument("--seed", type=at_least(0), default=0, help="(default: %(default)s)")
    group.add_argument(
        "--precision", choices=PRECISIONS, help="(default: bf16 on GPUs that have it, else fp32)"
    )
    add_device_flag(group)


def add_embedding_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of embedded CMD, which count in rounds."""
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
    group.add_argument(
        "--embed_max",
        type=positive,
        default=55,
        metavar="P",
        help="percentage of all weights that are ever embedded (default: %(default)s)",
    )


def add_freezing_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of APF and A-APF."""
    group = parser.add_argument_group("APF and A-APF")
    group.add_argument(
        "--apf_alpha",
        type=fraction,
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
