"""Measure how much online and adaptive CMD depend on the sample, by following finished runs.

    python benchmarks/samples.py --results_dir results --model lenet --draws 10
    python benchmarks/samples.py --model lenet --seeds 0 1 2 --memory 5 10 20 40 --lawa 10 40

Each draw samples the weights with a seed of its own, from 0 on; a run with seed 0 has the sample of
the first draw. All memories follow the run side by side, and a draw fits the warm-up once for all
of them. A figure is the test accuracy as a mean over the last ten epochs, then over the draws, ±
their standard deviation. The table also has the methods that the runs have finished and, with
--lawa, means of the latest K epochs' weights.
"""

import sys
from pathlib import Path

if __name__ == "__main__":  # the project's own packages, from wherever this is started
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from collections import defaultdict
from collections.abc import Sequence
from statistics import fmean, stdev

from torch import nn
from tqdm import tqdm

from benchmarks.measure import environment
from utils.base_utils import MODELS, get_model
from utils.cmd.online import OnlineCMD
from utils.cmd.vector import write_vector
from utils.data.datasets import Dataset
from utils.flags import add_seeds_flag
from utils.methods.averages import has_statistics
from utils.methods.registry import METHODS
from utils.results.stored_run import StoredRun
from utils.results.summary import LAST
from utils.system.arguments import Parser, at_least, memory
from utils.system.errors import UserError
from utils.system.tables import format_table
from utils.training.compute import CPU
from utils.training.epochs import evaluate
from utils.training.folder import seed_folder

WITH_SAMPLES = ("cmd_online", "cmd_adaptive")  # methods that depend on the sample, and are run here


def by_sample(
    run: StoredRun, dataset: Dataset, seed: int, memories: Sequence[float | None]
) -> list[float]:
    """Return the accuracy, a fraction, of online CMD with each memory.

    Args:
        run: the finished run that is followed.
        dataset: the run's.
        seed: draws the sample.
        memories: adaptive CMD's, in epochs; None for online CMD.
    """
    settings = run.settings
    shared = (settings.modes, settings.samples, settings.warmup_cmd, seed, settings.start)
    first = OnlineCMD(run.model, *shared, run.trajectory, memory=memories[0])
    others = [
        OnlineCMD(run.model, *shared, run.trajectory, memory=each, beside=first)
        for each in memories[1:]
    ]
    found = defaultdict(list)
    for epoch in range(settings.epochs):
        write_vector(run.trajectory[epoch], run.model)
        for number, online in enumerate([first, *others]):
            online.update_parameters(run.model)
            if epoch >= settings.epochs - LAST:
                found[number].append(accuracy(run, dataset, online.module))
    return [fmean(found[number]) for number in range(len(memories))]


def of_latest(run: StoredRun, dataset: Dataset, count: int) -> float:
    """Return the accuracy, a fraction, of the mean of the latest epochs' weights.

    Raises:
        UserError: the model has statistics, which would have to be counted for the mean of weights.
    """
    if has_statistics(run.model):
        raise UserError(
            f"--lawa {count}: only train_cmd.py --lawa {count} counts the model's statistics for "
            "averaged weights"
        )
    found = []
    for epoch in range(max(0, run.settings.epochs - LAST), run.settings.epochs):
        latest = [
            run.trajectory[each].double() for each in range(max(0, epoch + 1 - count), epoch + 1)
        ]
        write_vector((sum(latest) / len(latest)).float(), run.model)
        found.append(accuracy(run, dataset, run.model))
    return fmean(found)


def accuracy(run: StoredRun, dataset: Dataset, module: nn.Module) -> float:
    """Return the test accuracy of a module, a fraction, tested as the run's models were."""
    transform = get_model(run.settings.model).transform_of(dataset)
    batch = run.tested_at_once(CPU)
    return evaluate(module, dataset.test, transform, batch, run.compute(CPU))[1]


def of_run(
    folder: Path, data_dir: str | None, memories: Sequence[float | None], draws: int,
    latest: Sequence[int],
) -> dict[str, list[float]]:  # fmt: skip
    """Return each method's accuracies on a run, in percent, by the method's label.

    Args:
        folder: the run's.
        data_dir: the folder of the images, None for the one that the run used.
        memories: adaptive CMD's, in epochs; None for online CMD.
        draws: how many samples are drawn; methods without a sample have one accuracy.
        latest: for each mean of weights, the number of epochs that it is over.
    """
    run = StoredRun(folder)
    dataset = run.dataset(data_dir)
    found = {
        method.label: [100 * run.mean_last(method.name)]
        for method in METHODS
        if method.name not in WITH_SAMPLES and run.finished(method.name)
    }
    progress = tqdm(range(draws), str(folder), unit="draw", leave=False, disable=None)
    each = list(zip(*(by_sample(run, dataset, seed, memories) for seed in progress), strict=True))
    for length, accuracies in zip(memories, each, strict=True):
        name = "Online CMD" if length is None else f"Adaptive CMD, H = {length:g}"
        found[name] = [100 * one for one in accuracies]
    for count in latest:
        found[f"mean of the latest {count} epochs"] = [100 * of_latest(run, dataset, count)]
    return found


def cell(accuracies: Sequence[float], of_sgd: float | None) -> str:
    """Format the mean ± the standard deviation, and the mean's difference to SGD."""
    words = f"{fmean(accuracies):.2f}"
    if len(accuracies) > 1:
        words += f" ± {stdev(accuracies):.2f}"
    return words if of_sgd is None else f"{words} ({fmean(accuracies) - of_sgd:+.2f})"


def main(argv: list[str] | None = None) -> int:
    """Run the command, and return its exit code."""
    parser = Parser(prog="benchmarks/samples.py", description=__doc__)
    parser.add_argument(
        "--model", choices=MODELS, default="lenet", help="the runs' model (default: %(default)s)"
    )
    parser.add_argument(
        "--results_dir", default="results", help="where the runs are (default: %(default)s)"
    )
    add_seeds_flag(parser)
    parser.add_argument(
        "--data_dir", metavar="DIR", help="where the images are (default: where the run had them)"
    )
    parser.add_argument(
        "--draws", type=at_least(1), default=10, help="number of samples (default: %(default)s)"
    )
    parser.add_argument(
        "--memory", type=memory, nargs="*", default=[], metavar="H",
        help="memories of adaptive CMD, in epochs, to measure beside online CMD",
    )  # fmt: skip
    parser.add_argument(
        "--lawa", type=at_least(2), nargs="*", default=[], metavar="K",
        help="also test the mean of the latest K epochs' weights",
    )  # fmt: skip
    args = parser.parse_args(argv)
    folders = {"": Path(args.results_dir) / args.model}
    if args.seeds is not None:
        folders = {
            f"seed {seed}": seed_folder(args.results_dir, args.model, seed) for seed in args.seeds
        }
    try:
        found = {
            name: of_run(folder, args.data_dir, [None, *args.memory], args.draws, args.lawa)
            for name, folder in folders.items()
        }
    except UserError as error:
        parser.error(str(error))
    labels = dict.fromkeys(label for methods in found.values() for label in methods)
    rows = []
    for label in labels:
        cells = []
        for methods in found.values():
            sgd = None if label == "SGD" else methods.get("SGD", [None])[0]
            cells.append(cell(methods[label], sgd) if label in methods else "")
        rows.append([label, *cells])
    header = ["%, mean of the last ten epochs", *found]
    print(f"{', '.join(map(str, folders.values()))}: {args.draws} draws, {environment('cpu')}\n")
    print(format_table(header, rows))
    if args.draws > 1:
        print("\n±: standard deviation over draws of the sample; in brackets: difference to SGD")
    return 0


if __name__ == "__main__":
    sys.exit(main())
