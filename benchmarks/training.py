"""Measure epochs; each function is to be run in a process of its own."""

import contextlib
import copy
import io
import itertools
import statistics
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

import train_cmd
from benchmarks import public_code
from benchmarks.measure import clock
from benchmarks.rates import matrix_rate
from utils.base_utils import get_model
from utils.data.datasets import Dataset
from utils.methods.comparison import Comparison, watchers
from utils.methods.registry import METHODS, Method
from utils.system.devices import choose_device
from utils.training.compute import Compute
from utils.training.precision import Arithmetic, choose_precision
from utils.training.run import Run

WARMUP = 1  # last epoch of CMD's warm-up, so early that few epochs show every cost
FIRST = WARMUP + 2  # the first epoch whose time counts
TIMES = 5  # repeats of short measurements


@dataclass(frozen=True)
class Training:
    """A model to train, on which images, where and how.

    Attributes:
        model: its name.
        dataset: the data set's name.
        data_dir: the folder of the images.
        limit: the most images of a split, None for all.
        device: the device's name, or auto.
        precision: one of PRECISIONS, None for the device's.
        compiled: whether the model is compiled.
        epochs: how many are measured.
    """

    model: str
    dataset: str
    data_dir: str
    limit: int | None
    device: str
    precision: str | None
    compiled: bool
    epochs: int

    def images(self) -> Dataset:
        return get_model(self.model).load_dataset(self.dataset, self.data_dir, self.limit)

    def sizes(self) -> tuple[int, int]:
        """Count the images trained and tested on."""
        dataset = self.images()
        return len(dataset.train), len(dataset.test)


@dataclass(frozen=True)
class Epochs:
    """The cost of an epoch; seconds are medians.

    Attributes:
        training: seconds of an epoch's training.
        test: seconds of one test.
        compared: seconds of an epoch's training that every method follows.
        n_train: the number of images trained on.
        n_test: the number of images tested on.
        methods: seconds of each method after an epoch, with its test, by name.
        share: the training's share of the device's rate in matrix products.
    """

    training: float
    test: float
    compared: float
    n_train: int
    n_test: int
    methods: dict[str, float]
    share: float


def our_epochs(case: Training, names: tuple[str, ...]) -> Epochs:
    """Measure two runs of this suite, one without methods and one with those named.

    An epoch of each is run in turn.
    """
    device, dataset = choose_device(case.device), case.images()
    methods = [method for method in METHODS if method.name in names]
    seconds: dict[str, list[float]] = {name: [] for name in ("training", "test", "compared")}
    with tempfile.TemporaryDirectory() as folder:
        runs = [
            start_run(case, dataset, device, Path(folder) / name) for name in ("alone", "compared")
        ]
        with runs[0] as alone, runs[1] as compared:
            comparison = Comparison(compared, methods)
            followers = [
                make(compared, comparison.metrics) for make in methods if not make.after_run
            ]
            for follower in followers:
                follower.prepare()
            training, with_methods = alone.epochs(), compared.epochs()
            for epoch in range(FIRST + case.epochs):
                start = clock(device)
                next(training)
                trained = clock(device)
                _, module = next(with_methods)
                comparison.follow(followers, epoch, module)
                followed = clock(device)
                compared.test(module)
                tested = clock(device)
                if epoch >= FIRST:
                    seconds["training"].append(trained - start)
                    seconds["compared"].append(followed - trained)
                    seconds["test"].append(tested - followed)
            each = {method.name: _after_epoch(comparison, method) for method in methods}
            each |= _after_run(comparison, [make for make in methods if make.after_run])
            share = _work(compared) / matrix_rate(device, compared.settings.precision)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    images = len(dataset.train), len(dataset.test)
    return Epochs(**medians, n_train=images[0], n_test=images[1], methods=each,
                  share=share * images[0] / medians["training"])  # fmt: skip


def public_epochs(case: Training, official: str) -> tuple[float, float]:
    """Measure the public script's own loops, with its loaders and transforms, on the same images.

    Returns:
        The median seconds of an epoch's training, and of one test.
    """
    device = choose_device(case.device)
    public = public_code.load_training(official, case.images())
    vit = "_vit" if case.model == "vit" else ""
    with public_code.quietly():
        train_loader, test_loader = getattr(public, f"get_cifar10_loaders{vit}")(128)
        net, optimizer, *_ = public.get_model(case.model, str(device))
        criterion = torch.nn.CrossEntropyLoss()
        training, testing = [], []
        for epoch in range(case.epochs + 1):  # the first one warms up
            start = clock(device)
            public.train(net, epoch, train_loader, str(device), criterion, optimizer)
            trained = clock(device)
            public.test(net, str(device), test_loader, criterion)
            training.append(trained - start)
            testing.append(clock(device) - trained)
    return statistics.median(training[1:]), statistics.median(testing[1:])


def public_bookkeeping(case: Training, official: str) -> tuple[float, float, float, float]:
    """Measure what the public script does with snapshots.

    Returns:
        The seconds a snapshot of copying the network's state, of saving all copies, of gathering
        them in one matrix, and of loading a column of it into the network.
    """
    device = choose_device(case.device)
    public = public_code.load_training(official, case.images())
    with public_code.quietly():
        net = public.get_model(case.model, str(device))[0]
    times = [clock(device)]
    states = [copy.deepcopy(net.state_dict()) for _ in range(TIMES)]
    times.append(clock(device))
    with tempfile.TemporaryDirectory() as folder:
        torch.save(states, Path(folder) / "Theta.pt")
        times.append(clock(device))
    matrix = public.matricize_list_of_model_params(states, convert_to_numpy=True)
    times.append(clock(device))
    for epoch in range(TIMES):
        column = matrix[:, epoch]
        net.load_state_dict(public.assign_vectorized_params_to_state_dict(net.state_dict(), column))
    times.append(clock(device))
    return tuple((later - earlier) / TIMES for earlier, later in itertools.pairwise(times))


def start_run(case: Training, dataset: Dataset, device: torch.device, folder: Path) -> Run:
    """Start the case's run on some images in a new folder."""
    flags = ["--model", case.model, "--epochs", str(FIRST + case.epochs)]
    flags += ["--warmup_cmd", str(WARMUP), "--swa_start", "0", "--dataset", case.dataset]
    flags += ["--limit", str(case.limit)] if case.limit else []
    flags += ["--weights", "none"] if case.model == "vit" else []
    args = train_cmd.build_parser().parse_args(flags)
    settings = train_cmd.make_settings(args, METHODS[:1])
    settings = replace(settings, precision=choose_precision(case.precision, device))
    compute = Compute(device, Arithmetic(settings.precision, case.compiled))
    with contextlib.redirect_stderr(io.StringIO()):
        return Run(folder, settings, dataset, compute, watchers(settings), weights=args.weights)


def _after_epoch(comparison: Comparison, method: type[Method]) -> float:
    rows = [row for row in comparison.metrics.of(method.name) if row.epoch >= FIRST]
    trained = [comparison.run.train_history[row.epoch][2] if method.trains else 0 for row in rows]
    return float(np.median([row.seconds for row in rows]) - np.median(trained)) if rows else 0.0


def _after_run(comparison: Comparison, methods: list[type[Method]]) -> dict[str, float]:
    """Measure the seconds an epoch of the methods that are shown the finished run."""
    run = comparison.run
    for method in (make(run, comparison.metrics) for make in methods):
        method.prepare()
        for epoch in range(run.settings.epochs):
            comparison.follow([method], epoch, run.at(epoch))
    return {method.name: _after_epoch(comparison, method) for method in methods}


def _work(run: Run) -> float:
    """Count the floating-point operations of training on one image."""
    model, transform = run.model.train(), run.transform
    few = run.dataset.train.images[:4]
    model.zero_grad()
    with FlopCounterMode(display=False) as counter:
        model(transform.test(few)).sum().backward()
    model.zero_grad()
    return counter.get_total_flops() / len(few)
