"""Train a model and compare SGD, post-hoc CMD and online CMD side by side.

    python train_cmd.py                           # ResNet18 on CIFAR-10, as in the paper
    python train_cmd.py --cmd_PostHoc ''          # without post-hoc CMD
    python train_cmd.py --p_bfgs True --cmd_adaptive True --ema True --swa True     # with others
    python train_cmd.py --seeds 0 1 2             # mean ± standard deviation over three runs
    python train_cmd.py --dataset digits --model lenet --epochs 40     # no download, half a minute
    python train_cmd.py --dataset folder --data_dir photos --model wideres

"Enhancing Neural Training via a Correlated Dynamics Model", ICLR 2024. What a flag leaves out
comes from the model's line in `get_model()` (utils/base_utils.py). Results go to
RESULTS_DIR/MODEL; a run that was interrupted goes on when the same command is given again.
"""

if __name__ == "__main__":  # before anything large is imported
    from utils.system.interrupts import end_quietly

    end_quietly()

import argparse
import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

from utils import flags
from utils.base_utils import get_model
from utils.data.datasets import Dataset
from utils.methods.comparison import Comparison, Progress, watchers
from utils.methods.draws import with_draws
from utils.methods.registry import METHODS, Method, Settings
from utils.results.curves import Curves, clear_curves, require_tensorboard
from utils.results.pictures.accuracy import plot_test_accuracy
from utils.results.summary import over_seeds, summarise, table
from utils.storage.files import write_json
from utils.system.arguments import Parser
from utils.system.command import INTERRUPTED, OVERWRITING, command_to_go_on, run_command
from utils.system.errors import UserError
from utils.system.interrupts import leave
from utils.system.ranks import join
from utils.training.compute import Compute
from utils.training.folder import PLOT, SUMMARY, seed_folder, seeds_folder
from utils.training.precision import Arithmetic, choose_precision
from utils.training.run import Run
from utils.training.settings import TrainingSettings

SMALLER = (
    "lower --test_batch_size or --pbfgs_pieces, and the run goes on, or start one with a smaller "
    "--batch_size in another --results_dir"
)


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    parser = build_parser()
    args = parser.parse_args(argv)
    args.command = command_to_go_on(parser.prog, argv)
    where = f"--results_dir {args.results_dir}"
    interrupted = OVERWRITING if args.overwrite else INTERRUPTED
    return run_command(parser.prog, where, lambda: compare(args), interrupted, SMALLER)


def compare(args: argparse.Namespace) -> None:
    """One run for each seed, every selected method on it, one table and one plot."""
    if args.tensorboard:
        require_tensorboard()
    selected = [method for method in METHODS if getattr(args, method.name)]
    settings = make_settings(args, selected)
    if idle := flags.idle(args, settings, selected):
        print(f"note: no method that is on depends on {', '.join(idle)}", flush=True)
    ranks, device = join(args.device)
    with ranks.first_goes_first():  # it may have to download
        dataset = get_model(args.model).load_dataset(args.dataset, args.data_dir, args.limit)
    precision = choose_precision(args.precision, device)
    settings = replace(settings, data=dataset.fingerprint(), precision=precision)
    progress = batch_progress if ranks.first else lambda batches, _: batches
    arithmetic = Arithmetic(precision, args.compile)
    compute = Compute(device, arithmetic, ranks, args.pbfgs_pieces, progress)

    folder = Path(args.results_dir) / args.model
    folders = {args.seed: folder}
    if args.seeds is not None:
        folder = seeds_folder(Path(args.results_dir), args.model)
        folders = {seed: seed_folder(args.results_dir, args.model, seed) for seed in args.seeds}
        if args.overwrite and ranks.first:
            for name in (SUMMARY, PLOT):  # of runs that will be gone
                (folder / name).unlink(missing_ok=True)
    summaries = []
    for number, (seed, place) in enumerate(folders.items(), start=1):
        which = "" if args.seeds is None else f"seed {seed} ({number} of {len(folders)}), "
        own = replace(settings, seed=seed)
        summaries.append(compare_on_run(args, place, own, dataset, compute, selected, which))

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


def compare_on_run(
    args: argparse.Namespace,
    folder: Path,
    settings: Settings,
    dataset: Dataset,
    compute: Compute,
    selected: list[type[Method]],
    which: str,
) -> dict:
    """Train one run, or what is left of it, with the methods on it; returns its summary."""
    with Run(
        folder,
        settings,
        dataset,
        compute,
        watchers(settings),
        overwrite=args.overwrite,
        weights=args.weights,
        test_batch_size=args.test_batch_size,
    ) as run:
        print(
            f"{settings.model} on {settings.dataset}: {run.n_weights:,} weights, "
            f"{settings.epochs} epochs, {len(dataset.train):,} + {len(dataset.test):,} images, "
            f"{which}{compute.device}, in {folder}",
            flush=True,
        )
        comparison = Comparison(run, with_draws(selected, args.cmd_draws))
        run.record(args.command, args.data_dir)
        training, tests = comparison.ahead()
        print(f"ahead: {training} epochs of training, {tests} tests", flush=True)
        if args.overwrite and compute.ranks.first:
            clear_curves(folder)
        with drawn_live(args, folder, comparison) as draw:
            for done in comparison.complete():
                print(describe(done, settings.epochs), flush=True)
                draw()
        if not compute.ranks.first:
            return {}
        summary = summarise(selected, comparison.metrics, settings, run.n_weights, folder)
        write_json(summary, folder / SUMMARY)
        plot_test_accuracy(selected, settings, [folder], folder / PLOT)
        return summary


@contextlib.contextmanager
def drawn_live(
    args: argparse.Namespace, folder: Path, comparison: Comparison
) -> Iterator[Callable[[], None]]:
    """Yield what writes the comparison's new rows for TensorBoard, if that is asked for."""
    if not (args.tensorboard and comparison.run.ranks.first):
        yield lambda: None
        return
    curves = Curves(folder, "epoch")

    def draw() -> None:
        for method in comparison.methods:
            curves.add(method.label, comparison.metrics.of(method.name))

    try:
        draw()
        yield draw
    finally:
        curves.close()


def make_settings(args: argparse.Namespace, selected: list[type[Method]]) -> Settings:
    """The run's settings, the model's own where a flag was left out.

    Raises UserError if they do not fit together or no method is selected.
    """
    settings = Settings.of(vars(args))
    if not selected:
        names = ", ".join(method.flags[0] for method in METHODS)
        raise UserError(f"no method is left to compare: turn one on ({names})")
    flags.require_once("--seeds", args.seeds or ())
    if args.cmd_draws > 1 and with_draws(selected, 2) == selected:
        raise UserError(
            f"--cmd_draws {args.cmd_draws} is of online and adaptive CMD: add --cmd_online True, "
            "or leave it"
        )
    for method in selected:
        method.check(settings)
    return settings


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = Parser(prog="train_cmd.py", description=__doc__, epilog=flags.model_table())
    flags.add_method_flags(parser)
    declared = (TrainingSettings, *(method.Settings for method in METHODS))
    flags.add_settings(parser, *declared, without=("seed",))
    flags.add_seed_flags(flags.group(parser, "model and training"))
    flags.add_compute_flags(flags.group(parser, "model and training"))
    flags.add_pieces_flag(parser)
    flags.add_draws_flag(parser)
    flags.add_data_dir_flag(flags.group(parser, "data"))
    flags.add_result_flags(parser)
    return parser


def batch_progress(batches, epoch: int):
    """The batches of an epoch behind a progress bar, where there is a terminal."""
    return tqdm(batches, f"epoch {epoch}", unit="batch", leave=False, disable=None)


def describe(done: Progress, epochs: int) -> str:
    """What is printed of an epoch: its training, and the accuracy of each method tested."""
    words = [f"epoch {done.epoch:>{len(str(epochs - 1))}} of 0 … {epochs - 1}"]
    if done.trained is not None:
        loss, accuracy, seconds = done.trained
        words.append(f"train: loss {loss:.4f}, {100 * accuracy:.2f} %, {seconds:.1f} s")
    labels = {method.name: method.label for method in METHODS}
    tested = [
        f"{labels[row.method]} {100 * row.test_acc:.2f} %"
        for row in done.rows
        if row.method in labels
    ]
    if len(tested) < len(done.rows):
        tested.append(f"further draws: {len(done.rows) - len(tested)}")
    if tested:
        words.append("test: " + ", ".join(tested))
    return " | ".join(words)


if __name__ == "__main__":
    leave(main())
