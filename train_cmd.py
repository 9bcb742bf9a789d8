"""Train a model and compare SGD, post-hoc CMD and online CMD side by side.

    python train_cmd.py                           # ResNet18 on CIFAR-10, as in the paper
    python train_cmd.py --cmd_PostHoc ''          # without post-hoc CMD
    python train_cmd.py --p_bfgs True --cmd_embed True --ema True --swa True    # with all others
    python train_cmd.py --seeds 0 1 2             # mean ± standard deviation over three runs
    python train_cmd.py --dataset digits --model lenet --epochs 30     # no download, a minute
    python train_cmd.py --dataset folder --data_dir photos --model wideres

"Enhancing Neural Training via a Correlated Dynamics Model", ICLR 2024. What a flag leaves out
comes from the model's line in `get_model()` (utils/base_utils.py). Results go to
RESULTS_DIR/MODEL; a run that was interrupted goes on when the same command is given again.
"""

if __name__ == "__main__":  # before anything large is imported
    from utils.system.interrupts import end_quietly

    end_quietly()

import argparse
import shlex
import sys
from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

from utils import flags
from utils.base_utils import WARMUP_EPOCHS, WITH_WARMUP, get_model
from utils.methods.identity import identify_weights
from utils.methods.registry import METHODS, Method
from utils.results.pictures.accuracy import plot_test_accuracy
from utils.results.summary import over_seeds, summarise, table
from utils.storage.files import write_json
from utils.storage.metrics import Row
from utils.system.arguments import Parser
from utils.system.command import run_command
from utils.system.errors import UserError
from utils.system.interrupts import leave
from utils.system.ranks import join
from utils.training.precision import choose_precision
from utils.training.run import PLOT, SUMMARY, Run
from utils.training.settings import Settings


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    parser = build_parser()
    args = parser.parse_args(argv)
    args.command = shlex.join(["python", parser.prog, *(sys.argv[1:] if argv is None else argv)])
    return run_command(parser.prog, f"--results_dir {args.results_dir}", lambda: compare(args))


def compare(args: argparse.Namespace) -> None:
    """One run for each seed, every selected method on it, one table and one plot."""
    selected = [method for method in METHODS if getattr(args, method.name)]
    settings = make_settings(args, selected)
    ranks, device = join(args.device)
    with ranks.first_goes_first():  # it may have to download
        dataset = get_model(args.model).load_dataset(args.dataset, args.data_dir, args.limit)
    precision = choose_precision(args.precision, device)
    settings = replace(settings, data=dataset.fingerprint(), precision=precision)

    folder = Path(args.results_dir) / args.model
    folders = {args.seed: folder}
    if args.seeds is not None:
        folder = seeds_folder(Path(args.results_dir), args.model)
        folders = {seed: seed_folder(args.results_dir, args.model, seed) for seed in args.seeds}
    summaries = []
    for number, (seed, place) in enumerate(folders.items(), start=1):
        own = replace(settings, seed=seed)
        which = "" if args.seeds is None else f"seed {seed} ({number} of {len(folders)}), "
        with Run(
            place,
            own,
            dataset,
            device,
            args.command,
            args.overwrite,
            batch_progress if ranks.first else lambda batches, _: batches,
            ranks,
            args.compile,
            args.test_batch_size,
            args.weights,
            args.data_dir,
        ) as run:
            print(
                f"{args.model} on {args.dataset}: {run.n_weights:,} weights, {own.epochs} epochs, "
                f"{len(dataset.train):,} + {len(dataset.test):,} images, {which}{device}, in "
                f"{place}",
                flush=True,
            )
            summaries.append(complete(run, selected))

    ranks.leave()
    if not ranks.first:
        return
    summary, plot = summaries[0], folder / PLOT
    if args.seeds is not None:
        summary = over_seeds(args.seeds, summaries)
        write_json(summary, folder / SUMMARY)
        first = replace(settings, seed=args.seeds[0])
        plot_test_accuracy(selected, first, list(folders.values()), plot)
    print(f"\n{table(summary)}\n\nplot: {plot}")


def complete(run: Run, selected: list[type[Method]]) -> dict:
    """Do what is left of a run and of the methods on it; returns its summary."""
    remaining, settings = run.remaining(selected), run.settings
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
    run.wait()
    for method in (make(run) for make in remaining if make.after_run):
        method.prepare()
        for epoch in range(settings.epochs):
            rows = run.follow([method], epoch, run.at(epoch))
            if epoch >= method.departs(settings):  # before, it is the run's own model
                print_epoch(run, epoch, rows)
        method.finish()

    run.wait()
    if not run.ranks.first:
        return {}
    summary = summarise(selected, run.metrics, settings, run.n_weights, run.folder)
    write_json(summary, run.folder / SUMMARY)
    plot_test_accuracy(selected, settings, [run.folder], run.folder / PLOT)
    return summary


def seeds_folder(results_dir: Path, model: str) -> Path:
    """Where a model's runs with several seeds lie, each in a folder of its own."""
    return results_dir / f"{model}_seeds"


def seed_folder(results_dir: Path | str, model: str, seed: int) -> Path:
    """Where a model's run with one of several seeds lies."""
    return seeds_folder(Path(results_dir), model) / f"seed_{seed}"


def make_settings(args: argparse.Namespace, selected: list[type[Method]]) -> Settings:
    """The run's settings, the model's own where a flag was left out.

    Raises UserError if they do not fit together or no method is selected.
    """
    entry = get_model(args.model)
    if args.weights is not None and not entry.pretrained:
        raise UserError(f"--weights {args.weights}: --model {args.model} is trained from scratch")
    scheduler = args.scheduler or entry.scheduler
    if args.lr_warmup is not None and scheduler != WITH_WARMUP:
        raise UserError(
            f"--lr_warmup {args.lr_warmup} is of the schedule {WITH_WARMUP}: add --scheduler "
            f"{WITH_WARMUP}, or leave it"
        )
    epochs = entry.epochs if args.epochs is None else args.epochs
    optimizer, lr, momentum = entry.training(args.optimizer, args.lr, args.momentum)
    settings = Settings(
        model=args.model,
        dataset=args.dataset,
        data="",  # known once the images are loaded
        limit=args.limit,
        weights=identify_weights(args.weights) if entry.pretrained else None,
        seed=args.seed,
        epochs=epochs,
        optimizer=optimizer,
        lr=lr,
        momentum=momentum,
        scheduler=scheduler,
        lr_warmup=WARMUP_EPOCHS if args.lr_warmup is None else args.lr_warmup,
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
        lawa_epochs=lawa_epochs(args),
        memory=args.memory,
        embed_memory=args.embed_memory,
        embed_in_place=args.embed_in_place,
        test_batch_size=entry.test_batch_size and (args.test_batch_size or entry.test_batch_size),
    )
    if not selected:
        names = ", ".join(method.flags[0] for method in METHODS)
        raise UserError(f"no method is left to compare: turn one on ({names})")
    if args.seeds is not None and len(set(args.seeds)) < len(args.seeds):
        raise UserError(f"--seeds {' '.join(map(str, args.seeds))}: give each seed once")
    for method in selected:
        method.check(settings)
    return settings


def lawa_epochs(args: argparse.Namespace) -> int:
    """How many epochs LAWA averages: by --lawa K or --lawa_epochs K.

    Raises UserError if they differ.
    """
    by_method = args.lawa if args.lawa > 1 else None  # True is 1
    given = [value for value in (by_method, args.lawa_epochs) if value is not None]
    if len(set(given)) > 1:
        raise UserError(
            f"--lawa {by_method} and --lawa_epochs {args.lawa_epochs}: give one of them"
        )
    return given[0] if given else Settings.lawa_epochs


def build_parser() -> argparse.ArgumentParser:
    """The command line; a default that depends on the model is None here."""
    parser = Parser(
        prog="train_cmd.py",
        description=__doc__,
        epilog=flags.model_table(),
    )
    flags.add_method_flags(parser, METHODS)
    flags.add_training_flags(parser)
    flags.add_data_flags(parser)
    flags.add_cmd_flags(parser)
    flags.add_comparison_flags(parser)
    flags.add_result_flags(parser)
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


if __name__ == "__main__":
    leave(main())
