"""The flags of federated_cmd.py: those of its settings, and those of its machinery."""

import argparse

from utils import flags
from utils.federated.methods import METHODS
from utils.federated.runners import RUNNERS
from utils.federated.settings import FederatedSettings
from utils.federated.transport import FP32, TRANSPORTS
from utils.system.arguments import positive
from utils.system.options import options_of

WHERE = "DIR/federated/MODEL_PARTITION, with --seeds to DIR/federated/MODEL_PARTITION_seeds"


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add all flags; a default that depends on the model is None here."""
    federation = flags.group(parser, "federation")
    federation.add_argument(
        "--methods",
        nargs="+",
        choices=METHODS,
        default=list(METHODS),
        metavar="METHOD",
        help=f"(default: {' '.join(METHODS)})",
    )
    federation.add_argument(
        "--transport",
        nargs="+",
        choices=TRANSPORTS,
        default=[FP32],
        metavar="TRANSPORT",
        help="how messages write weights, each of "
        f"{', '.join(TRANSPORTS)}; with several, each method at each (default: {FP32})",
    )
    flags.add_settings(parser, FederatedSettings, without=("seed",))
    training = flags.group(parser, "model and training")
    flags.add_seed_flags(training, options_of(FederatedSettings))
    federation.add_argument(
        "--runner",
        choices=RUNNERS,
        default="inproc",
        help="in this process, or on Ray (default: %(default)s)",
    )
    federation.add_argument(
        "--timeout",
        type=positive,
        default=3600.0,
        metavar="SECONDS",
        help="how long a client may take (default: %(default)s)",
    )
    flags.add_device_flag(training)
    flags.add_data_dir_flag(flags.group(parser, "data"))
    flags.add_result_flags(parser, WHERE)
