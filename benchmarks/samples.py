"""How much online CMD depends on the sample: a finished run, followed anew with other samples.

    python benchmarks/samples.py --results_dir results --model lenet --draws 10

Each draw samples with a seed of its own, 0 being that of a run with seed 0, and is tested at four
of the last ten epochs; the table shows their mean.
"""

import sys
from pathlib import Path

if __name__ == "__main__":  # the project's own packages, from wherever this is started
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from statistics import fmean, stdev

import torch
from tqdm import tqdm

from benchmarks.measure import environment
from utils.arguments import Parser, at_least
from utils.base_utils import MODELS, evaluate, get_model
from utils.data import Dataset
from utils.errors import UserError
from utils.finished import FinishedRun
from utils.flat import write_vector
from utils.online import OnlineCMD
from utils.tables import format_table

TESTED = (1, 4, 7, 10)  # epochs from the end


def tested(run: FinishedRun, dataset: Dataset, seed: int) -> float:
    """Online CMD's test accuracy, a fraction, with a sample drawn by a seed."""
    settings, model = run.settings, run.model
    online = OnlineCMD(
        model, settings.modes, settings.samples, settings.warmup_cmd, seed, settings.start,
        run.trajectory,
    )  # fmt: skip
    accuracies = []
    for epoch in range(settings.epochs):
        write_vector(run.trajectory[epoch], model)
        online.update_parameters(model)
        if settings.epochs - epoch in TESTED:
            transform = get_model(settings.model).transform
            batch = run.tested_at_once(torch.device("cpu"))
            accuracies.append(
                evaluate(online.module, dataset.test, transform, batch, run.arithmetic)[1]
            )
    return fmean(accuracies)


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    parser = Parser(prog="benchmarks/samples.py", description=__doc__)
    parser.add_argument("--model", choices=MODELS, default="lenet", help="(default: %(default)s)")
    parser.add_argument("--results_dir", default="results", help="(default: %(default)s)")
    parser.add_argument("--draws", type=at_least(1), default=10, help="(default: %(default)s)")
    args = parser.parse_args(argv)
    try:
        run = FinishedRun(Path(args.results_dir) / args.model)
        dataset = run.dataset()
        draws = tqdm(range(args.draws), unit="draw", leave=False, disable=None)
        accuracies = [100 * tested(run, dataset, seed) for seed in draws]
    except UserError as error:
        parser.error(str(error))
    rows = [[str(seed), f"{accuracy:.2f} %"] for seed, accuracy in enumerate(accuracies)]
    spread = f" ± {stdev(accuracies):.2f}" if len(accuracies) > 1 else ""
    print(f"{run.folder}, {environment('cpu')}\n\n{format_table(['draw', 'online CMD'], rows)}")
    print(f"\nmean: {fmean(accuracies):.2f}{spread} %, from {min(accuracies):.2f} to "
          f"{max(accuracies):.2f} %")  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
