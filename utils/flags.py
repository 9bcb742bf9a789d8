"""The flags that the commands share, in the groups that --help shows."""

import argparse
from collections.abc import Iterable

from utils.base_utils import MODELS, OPTIMIZERS, SCHEDULERS, WARMUP_EPOCHS, WITH_WARMUP
from utils.data.datasets import DATASETS
from utils.methods.base import Method
from utils.methods.pbfgs import UPDATES
from utils.system.arguments import at_least, memory, memory_or_none, positive, share, truth
from utils.training.precision import PRECISIONS
from utils.training.settings import Settings


def model_table() -> str:
    """The defaults of each model, for the end of --help."""
    rows = "\n".join(
        f"  {name:<10} {entry.optimizer:<5} {entry.lr:<6g} {entry.epochs:>6} {entry.modes:>6} "
        f"{entry.samples:>8}"
        for name, entry in MODELS.items()
    )
    return f"defaults by model:\n  model      optim lr     epochs  modes  samples\n{rows}"


def add_method_flags(parser: argparse.ArgumentParser, methods: Iterable[type[Method]]) -> None:
    """One flag a method, True or False."""
    group = parser.add_argument_group(
        "methods", "each takes '', False, 0 or no to leave it out, True, 1 or yes to have it"
    )
    for method in methods:
        group.add_argument(
            *method.flags, dest=method.name, type=method.value, default=method.default,
            metavar=method.metavar,
            help=f"{method.label}: {method.help} (default: {method.default})",
        )  # fmt: skip


def add_training_flags(parser: argparse.ArgumentParser) -> None:
    """The model, its training, the seed or seeds, and the device."""
    group = parser.add_argument_group("model and training")
    group.add_argument("--model", choices=MODELS, default="res18", help="(default: %(default)s)")
    add_weights_flag(group)
    add_epochs_flag(group)
    group.add_argument("--optimizer", choices=OPTIMIZERS, help="(default: the model's, below)")
    add_rate_flags(group)
    group.add_argument(
        "--scheduler",
        choices=SCHEDULERS,
        help="of the learning rate: constant, cosine to 0, a tenth from 1/2 and 3/4 of the epochs "
        "on, cosine after 5 epochs' linear warm-up (default: none; vit's is warmup_cosine)",
    )
    group.add_argument(
        "--lr_warmup",
        type=at_least(0),
        metavar="EPOCHS",
        help=f"of the schedule {WITH_WARMUP}: epochs of linear warm-up (default: {WARMUP_EPOCHS})",
    )
    group.add_argument(
        "--batch_size",
        type=at_least(1),
        default=128,
        metavar="B",
        help="images in a training batch (default: %(default)s)",
    )
    group.add_argument(
        "--test_batch_size",
        type=at_least(1),
        metavar="B",
        help="images tested at once (default: 128 for res18, whose BatchNorm makes it part of the "
        "result; else what suits the device)",
    )
    one_or_more = group.add_mutually_exclusive_group()
    one_or_more.add_argument(
        "--seed", type=at_least(0), default=0, help="one run, with this seed (default: %(default)s)"
    )
    add_seeds_flag(one_or_more)
    add_device_flag(group)
    add_passes_flags(group)


def add_rate_flags(group: argparse._ActionsContainer) -> None:
    """--lr and --momentum."""
    group.add_argument("--lr", type=positive, help="learning rate (default: the model's, below)")
    group.add_argument("--momentum", type=share, help="of SGD, from 0 to below 1 (default: 0.9)")


def add_weights_flag(group: argparse._ActionsContainer) -> None:
    """--weights, of a pretrained model."""
    group.add_argument(
        "--weights",
        metavar="FILE",
        help="of vit: a state file, or 'none' to train from scratch "
        "(default: torchvision's ImageNet weights, downloaded)",
    )


def add_epochs_flag(group: argparse._ActionsContainer) -> None:
    """--epochs, T."""
    group.add_argument(
        "--epochs",
        type=at_least(1),
        metavar="T",
        help="training epochs (default: the model's, below)",
    )


def add_seeds_flag(group: argparse._ActionsContainer, default: list[int] | None = None) -> None:
    """--seeds, for a run with each."""
    words = "one run" if default is None else " ".join(map(str, default))
    group.add_argument(
        "--seeds",
        type=at_least(0),
        nargs="+",
        default=default,
        metavar="SEED",
        help=f"a run with each of several seeds, and mean ± standard deviation (default: {words})",
    )


def add_device_flag(group: argparse._ActionsContainer) -> None:
    """--device, for `utils.system.devices.choose_device`."""
    group.add_argument(
        "--device",
        default="auto",
        help="cpu, cuda, cuda:1, … (default: cuda where there is one, else cpu)",
    )


def add_passes_flags(group: argparse._ActionsContainer) -> None:
    """--precision, --compile: how the model's passes are computed."""
    group.add_argument(
        "--precision",
        choices=PRECISIONS,
        help="of forward and backward passes; weights, trajectory and CMD are fp32 whatever it is "
        "(default: bf16 on GPUs that have it, else fp32)",
    )
    group.add_argument(
        "--compile",
        type=truth,
        default=False,
        metavar="BOOL",
        help="compile the model (torch.compile; default: %(default)s)",
    )


def add_data_flags(parser: argparse.ArgumentParser) -> None:
    """Which images."""
    group = parser.add_argument_group("data")
    group.add_argument(
        "--dataset",
        choices=DATASETS,
        default="cifar10",
        help="cifar10 (downloaded unless it is there), folder (train/<class>/* and "
        "test/<class>/* in --data_dir), digits (no download) "
        "(default: %(default)s)",
    )
    group.add_argument(
        "--data_dir",
        default="data",
        metavar="DIR",
        help="where the images lie, or are downloaded to (default: %(default)s)",
    )
    group.add_argument(
        "--limit",
        type=at_least(1),
        metavar="N",
        help="only N images of each split, balanced over the classes (default: all)",
    )


def add_cmd_flags(parser: argparse.ArgumentParser) -> None:
    """Settings of post-hoc, online and embedded CMD."""
    group = parser.add_argument_group("CMD")
    group.add_argument(
        "--modes", type=int, metavar="M", help="modes at the most (default: the model's, below)"
    )
    group.add_argument(
        "--samples",
        type=int,
        metavar="K",
        help="weights that are clustered (default: the model's, below)",
    )
    group.add_argument(
        "--start",
        type=at_least(0),
        default=0,
        metavar="EPOCH",
        help="first epoch that CMD is fitted on (default: %(default)s)",
    )
    group.add_argument(
        "--warmup_cmd",
        type=int,
        default=20,
        metavar="EPOCH",
        help="last epoch of online CMD's warm-up, from 1 to epochs − 1 (default: %(default)s)",
    )

    group.add_argument(
        "--memory",
        type=memory,
        default=Settings.memory,
        metavar="H",
        help="of adaptive CMD, in epochs: snapshot s counts (1 − 1/H)^(t − s) at epoch t (default: "
        "%(default)g)",
    )

    group = parser.add_argument_group("embedded CMD")
    group.add_argument(
        "--embed_window",
        type=at_least(1),
        default=10,
        metavar="L",
        help="epochs from one embedding to the next (default: %(default)s)",
    )
    group.add_argument(
        "--embed_perc",
        type=positive,
        default=10,
        metavar="P",
        help="percentage of weights embedded each time (default: %(default)s)",
    )
    group.add_argument(
        "--perc_rel",
        type=truth,
        default=False,
        metavar="BOOL",
        help="whether it is of the weights not yet embedded, not of all (default: %(default)s)",
    )
    group.add_argument(
        "--embed_memory",
        type=memory_or_none,
        metavar="H",
        help="a, b from the recent past, as with --memory (default: from all epochs alike, as in "
        "the paper)",
    )
    group.add_argument(
        "--embed_in_place",
        type=truth,
        default=False,
        metavar="BOOL",
        help="embed a weight where it stands: b follows from its value and its reference's at that "
        "moment (default: %(default)s, b is the fit's)",
    )


def add_comparison_flags(parser: argparse.ArgumentParser) -> None:
    """Settings of the methods that CMD is compared with."""
    group = parser.add_argument_group("P-BFGS")
    group.add_argument(
        "--warmup_pbfgs",
        type=int,
        default=80,
        metavar="EPOCH",
        help="last epoch before P-BFGS, from 1 to epochs − 2 (default: %(default)s)",
    )
    group.add_argument(
        "--pbfgs_num",
        type=at_least(1),
        default=40,
        metavar="D",
        help="dimensions of the subspace (default: %(default)s)",
    )
    group.add_argument(
        "--pbfgs_batch_size",
        type=at_least(1),
        default=1024,
        metavar="B",
        help="images in one of its mini-batches (default: %(default)s)",
    )
    group.add_argument(
        "--accumulate",
        type=at_least(1),
        default=1,
        metavar="A",
        help="mini-batches to a step (default: %(default)s)",
    )
    group.add_argument(
        "--pbfgs_updates",
        choices=UPDATES,
        default=UPDATES[0],
        help="epoch: a pass over the training set an epoch; single: one step an epoch, its "
        "curvature forgotten, as the paper's public code has it (default: %(default)s)",
    )

    group = parser.add_argument_group("averages")
    group.add_argument(
        "--ema_decay",
        type=positive,
        default=0.999,
        metavar="D",
        help="share of the average that stays, a step (default: %(default)s)",
    )
    group.add_argument(
        "--swa_start",
        type=at_least(0),
        metavar="EPOCH",
        help="first epoch that SWA averages (default: 3/4 of the epochs)",
    )
    group.add_argument(
        "--lawa_epochs",
        type=at_least(2),
        metavar="K",
        help=f"epochs that LAWA averages (default: {Settings.lawa_epochs}; `--lawa K` sets it)",
    )


def add_result_flags(
    parser: argparse.ArgumentParser, where: str = "DIR/MODEL, with --seeds to DIR/MODEL_seeds"
) -> None:
    """Where results go, and whether over others."""
    group = parser.add_argument_group("results")
    group.add_argument(
        "--results_dir",
        default="results",
        metavar="DIR",
        help=f"results go to {where} (default: %(default)s)",
    )
    group.add_argument(
        "--overwrite",
        action="store_true",
        help="start afresh, whatever lies there (default: go on with it)",
    )
