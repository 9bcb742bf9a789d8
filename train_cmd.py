"""Train a model and compare SGD, post-hoc CMD and online CMD side by side.

    python train_cmd.py                           # ResNet18 on CIFAR-10, as in the paper
    python train_cmd.py --cmd_PostHoc ''          # without post-hoc CMD
    python train_cmd.py --dataset digits --model lenet --epochs 30     # no download, a minute
    python train_cmd.py --dataset folder --data_dir photos --model wideres

"Enhancing Neural Training via a Correlated Dynamics Model", ICLR 2024. What a flag leaves out
comes from the model's line in `get_model()` (utils/base_utils.py). Results go to
RESULTS_DIR/MODEL; a run that was interrupted goes on when the same command is given again.
"""

import argparse
import signal
import sys
import warnings
from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

from utils.arguments import Parser, at_least, positive, share, truth
from utils.base_utils import MODELS, OPTIMIZERS, SCHEDULERS, get_model
from utils.data import DATASETS, load_dataset
from utils.devices import choose_device
from utils.errors import UserError
from utils.files import write_json
from utils.method_embedded import EmbeddedCMD, embedded_share
from utils.method_pbfgs import UPDATES
from utils.methods import METHODS, Method, OnlineCMDMethod
from utils.metrics import Row
from utils.plots import plot_test_accuracy
from utils.report import summarise, table
from utils.run import PLOT, SUMMARY, Run
from utils.settings import Settings

INTERRUPTED = "interrupted; what was finished is kept, and the same command goes on with it"


class Terminated(BaseException):
    """The process was asked to end by SIGTERM."""


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    parser = build_parser()
    args = parser.parse_args(argv)
    warnings.formatwarning = lambda message, *_, **__: f"note: {message}\n"
    signal.signal(signal.SIGTERM, _terminate)
    try:
        compare(args)
    except UserError as error:
        return _stop(parser.prog, f"error: {error}", 2)
    except OSError as error:
        hint = f"is there room in --results_dir {args.results_dir}, and may it be written to?"
        return _stop(parser.prog, f"error: {error}; {hint}", 2)
    except Terminated:
        return _stop(parser.prog, INTERRUPTED, 143)
    except KeyboardInterrupt:
        return _stop(parser.prog, INTERRUPTED, 130)
    return 0


def compare(args: argparse.Namespace) -> None:
    """One run, every selected method on it, one table and one plot."""
    selected = [method for method in METHODS if getattr(args, method.name)]
    settings = make_settings(args, selected)
    device = choose_device(args.device)
    transform = get_model(args.model).transform

    dataset = load_dataset(args.dataset, args.data_dir, transform.size, transform.resizes)
    if args.limit is not None:
        dataset = dataset.limited(args.limit)
    settings = replace(settings, data=dataset.fingerprint())
    folder = Path(args.results_dir) / args.model
    run = Run(folder, settings, dataset, device, args.overwrite, batch_progress)
    print(
        f"{args.model} on {args.dataset}: {run.n_weights:,} weights, {settings.epochs} epochs, "
        f"{len(dataset.train):,} + {len(dataset.test):,} images, {device}, in {folder}",
        flush=True,
    )
    remaining = run.remaining(selected)
    training, tests = run.ahead(remaining)
    print(f"ahead: {training} epochs of training, {tests} tests", flush=True)

    alongside = [method(run) for method in remaining if not method.after_run]
    for method in alongside:
        method.prepare()
    if alongside or run.epochs_done < settings.epochs:
        for epoch, module in run.epochs():
            just_trained = module is run.model
            print_epoch(run, epoch, run.follow(alongside, epoch, module), just_trained)
    for method in alongside:
        method.finish()
    for method in (make(run) for make in remaining if make.after_run):
        method.prepare()
        for epoch in range(settings.epochs):
            rows = run.follow([method], epoch, run.at(epoch))
            if epoch >= method.departs(settings):  # before, it is the run's own model
                print_epoch(run, epoch, rows)
        method.finish()

    summary = summarise(selected, run.metrics, settings, run.n_weights, folder)
    write_json(summary, folder / SUMMARY)
    warmup = settings.warmup_cmd if OnlineCMDMethod in selected else None
    embedded = embedded_share(folder) if EmbeddedCMD in selected else None
    plot_test_accuracy(selected, run.metrics, warmup, folder / PLOT, embedded)
    print(f"\n{table(summary)}\n\nplot: {folder / PLOT}")


def make_settings(args: argparse.Namespace, selected: list[type[Method]]) -> Settings:
    """The run's settings, the model's own where a flag was left out.

    Raises UserError if they do not fit together or no method is selected.
    """
    entry = get_model(args.model)
    if args.weights is not None and not entry.pretrained:
        raise UserError(f"--weights {args.weights}: --model {args.model} is trained from scratch")
    epochs = entry.epochs if args.epochs is None else args.epochs
    optimizer = args.optimizer or entry.optimizer
    if args.momentum is not None and optimizer != "sgd":
        raise UserError(f"--momentum {args.momentum:g} is SGD's: add --optimizer sgd, or leave it")
    momentum = entry.momentum if args.momentum is None else args.momentum
    settings = Settings(
        model=args.model,
        dataset=args.dataset,
        data="",  # known once the images are loaded
        limit=args.limit,
        weights=(args.weights or "imagenet") if entry.pretrained else None,
        seed=args.seed,
        epochs=epochs,
        optimizer=optimizer,
        lr=entry.lr if args.lr is None else args.lr,
        momentum=momentum if optimizer == "sgd" else None,
        scheduler=args.scheduler or entry.scheduler,
        batch_size=args.batch_size,
        modes=entry.modes if args.modes is None else args.modes,
        samples=entry.samples if args.samples is None else args.samples,
        start=args.start,
        warmup_cmd=args.warmup_cmd,
        embed_window=args.embed_window,
        embed_perc=args.embed_perc,
        perc_rel=args.perc_rel,
        warmup_pbfgs=args.warmup_pbfgs,
        pbfgs_num=args.pbfgs_num,
        pbfgs_batch_size=args.pbfgs_batch_size,
        accumulate=args.accumulate,
        pbfgs_updates=args.pbfgs_updates,
        ema_decay=args.ema_decay,
        swa_start=epochs * 3 // 4 if args.swa_start is None else args.swa_start,
    )
    if not selected:
        flags = ", ".join(method.flags[0] for method in METHODS)
        raise UserError(f"no method is left to compare: turn one on ({flags})")
    for method in selected:
        method.check(settings)
    return settings


def build_parser() -> argparse.ArgumentParser:
    """The command line; a default that depends on the model is None here."""
    rows = "\n".join(
        f"  {name:<10} {entry.optimizer:<5} {entry.lr:<6g} {entry.epochs:>6} {entry.modes:>6} "
        f"{entry.samples:>8}"
        for name, entry in MODELS.items()
    )
    parser = Parser(
        prog="train_cmd.py",
        description="Train a model and compare SGD, post-hoc CMD and online CMD side by side.",
        epilog=f"defaults by model:\n  model      optim lr     epochs  modes  samples\n{rows}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    group = parser.add_argument_group(
        "methods", "each takes '', False, 0 or no to leave it out, True, 1 or yes to have it"
    )
    for method in METHODS:
        group.add_argument(
            *method.flags, dest=method.name, type=truth, default=method.default, metavar="BOOL",
            help=f"{method.label}: {method.help} (default: {method.default})",
        )  # fmt: skip

    group = parser.add_argument_group("model and training")
    group.add_argument("--model", choices=MODELS, default="res18", help="(default: %(default)s)")
    group.add_argument(
        "--weights",
        metavar="FILE",
        help="of vit: a state file, or 'none' to train from scratch "
        "(default: torchvision's ImageNet weights, downloaded)",
    )
    group.add_argument(
        "--epochs",
        type=at_least(1),
        metavar="T",
        help="training epochs (default: the model's, below)",
    )
    group.add_argument("--optimizer", choices=OPTIMIZERS, help="(default: the model's, below)")
    group.add_argument("--lr", type=positive, help="learning rate (default: the model's, below)")
    group.add_argument("--momentum", type=share, help="of SGD, from 0 to below 1 (default: 0.9)")
    group.add_argument(
        "--scheduler",
        choices=SCHEDULERS,
        help="of the learning rate: constant, cosine to 0, a tenth from 1/2 and 3/4 of the epochs "
        "on, cosine after 5 epochs' linear warm-up (default: none; vit's is warmup_cosine)",
    )
    group.add_argument(
        "--batch_size",
        type=at_least(1),
        default=128,
        metavar="B",
        help="images in a training or test batch (default: %(default)s)",
    )
    group.add_argument("--seed", type=at_least(0), default=0, help="(default: %(default)s)")
    group.add_argument(
        "--device",
        default="auto",
        help="cpu, cuda, cuda:1, … (default: cuda where there is one, else cpu)",
    )

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

    group = parser.add_argument_group("results")
    group.add_argument(
        "--results_dir",
        default="results",
        metavar="DIR",
        help="results go to DIR/MODEL (default: %(default)s)",
    )
    group.add_argument(
        "--overwrite",
        action="store_true",
        help="start afresh, whatever lies there (default: go on with it)",
    )
    return parser


def batch_progress(batches, epoch: int):
    """The batches of an epoch behind a progress bar, where there is a terminal."""
    return tqdm(batches, f"epoch {epoch}", unit="batch", leave=False, disable=None)


def print_epoch(run: Run, epoch: int, rows: list[Row], just_trained: bool = False) -> None:
    """One line on an epoch, if it was trained or anything was tested in it."""
    if not rows and not just_trained:
        return
    last = run.settings.epochs - 1
    words = [f"epoch {epoch:>{len(str(last))}} of 0 … {last}"]
    if just_trained:
        loss, accuracy, seconds = run.train_history[epoch]
        words.append(f"train: loss {loss:.4f}, {100 * accuracy:.2f} %, {seconds:.1f} s")
    labels = {method.name: method.label for method in METHODS}
    if rows:
        tested = (f"{labels[row.method]} {100 * row.test_acc:.2f} %" for row in rows)
        words.append("test: " + ", ".join(tested))
    print(" | ".join(words), flush=True)


def _terminate(*_) -> None:
    raise Terminated


def _stop(program: str, message: str, code: int) -> int:
    print(f"{program}: {message}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
