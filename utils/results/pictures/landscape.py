"""Loss and accuracy over the values of two reference weights, which all others follow."""

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter
from torch import Tensor, nn
from torch.nn import functional

from utils.base_utils import get_model
from utils.cmd.model import CMDModel
from utils.cmd.vector import write_vector
from utils.data.datasets import Dataset, Split
from utils.methods.cmd import PostHocCMD
from utils.results.pictures.style import STYLE, caption, save
from utils.results.stored_run import StoredRun
from utils.results.summary import percent
from utils.storage.files import atomic_write
from utils.system.errors import UserError
from utils.training.compute import Compute
from utils.training.epochs import tested

SPLITS = TRAIN, TEST = 0, 1  # positions in a grid's arrays


@dataclass
class Landscape:
    """Losses and accuracies at the points of a grid.

    The axes of arrays are split, y, x and class, of which there are S, P, P and C.

    Attributes:
        x, y: values of the two reference weights, float64 [P].
        own: their values in the last epoch, [2].
        loss, correct: losses and right answers, summed over the images of each class, float64
            [S, P, P, C].
        own_loss, own_correct: the same at `own`, [S, C].
        counts: images of each class, [S, C].
        done: how many rows (values of y) are known.
    """

    x: np.ndarray
    y: np.ndarray
    own: np.ndarray
    loss: np.ndarray
    correct: np.ndarray
    own_loss: np.ndarray
    own_correct: np.ndarray
    counts: np.ndarray
    done: int = 0

    def save(self, path: Path, key: str) -> None:
        with atomic_write(path) as file:
            np.savez(file, key=np.array(key), **vars(self))

    @classmethod
    def load(cls, path: Path, key: str) -> "Landscape | None":
        """Return the grid in a file, None if it is not there, not whole or not the one of `key`."""
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
                if str(stored["key"]) != key:
                    return None
                names = cls.__dataclass_fields__
                grid = cls(**{name: stored[name] for name in names})
        except Exception:  # numpy and zipfile raise many types for what is not whole
            return None
        grid.done = int(grid.done)
        return grid


def draw_landscape(
    run: StoredRun,
    dataset: Dataset,
    device: torch.device,
    path: Path,
    formats: Sequence[str],
    axes: tuple[int, int] = (0, 1),
    points: int = 50,
    span: float = 0.5,
    classes: Sequence[str] = (),
    images: int | None = None,
    progress: Callable[[Iterable], Iterable] = iter,
) -> list[Path]:
    """Draw loss above accuracy for the training set, the test set and single classes of the latter,
    tested as the run's models were.

    The point marked is post-hoc CMD at the last epoch, whose test accuracy is that in metrics.csv
    where it is of all test images. Finished rows of the grid are kept beside the picture, so that
    the same call goes on after the last one if it was stopped.

    Args:
        run: the finished run.
        dataset: the run's.
        device: tests the models.
        path: of the picture, without regard to its ending.
        formats: the endings of the files.
        axes: the modes whose references' values are varied; `check_axes` has to accept them.
        points: how many values of each.
        span: how far they go to either side, as a share of the value, or itself where that is 0.
        classes: those with a panel of their own.
        images: how many of each split to test on, None for all.
        progress: wraps the rows of the grid.

    Returns:
        The files.

    Raises UserError if the run has no post-hoc CMD, or a class has none of the images.
    """
    cmd, settings, whole = run.posthoc, run.settings, dataset
    dataset = whole if images is None else whole.limited(images)
    panels = panels_of(whole, dataset, classes)
    key = {
        "model": settings.model, "test_batch_size": run.tested_at_once(device),
        "precision": settings.precision, "axes": axes, "points": points, "span": span,
        "images": dataset.fingerprint(), "cmd": _digest(cmd),
    }  # fmt: skip
    words = json.dumps(key, sort_keys=True)
    # grids may take hours, so each of other settings keeps a file of its own
    name = f"{path.name}-{hashlib.blake2b(words.encode(), digest_size=4).hexdigest()}.npz"
    grid = evaluate_grid(
        run, dataset, device, axes, points, span, path.with_name(name), words, progress
    )
    names = [f"Reference weight of mode {mode}" for mode in axes]
    with matplotlib.rc_context(STYLE | {"font.size": 9, "axes.grid": False}):
        figure = Figure(figsize=(0.5 + 3.3 * len(panels), 6.2), layout="constrained")
        caption(figure, settings)
        cells = figure.subplots(2, len(panels), sharex=True, sharey=True)
        for column, (title, (split, chosen)) in enumerate(panels.items()):
            count = grid.counts[split, chosen].sum()
            loss = grid.loss[split, ..., chosen].sum(-1) / count
            accuracy = grid.correct[split, ..., chosen].sum(-1) / count
            own = float(grid.own_correct[split, chosen].sum() / count)
            known = None  # the accuracy in the table, if it is of the same images
            if split == TEST and count == len(whole.test):
                known = _in_the_table(run)
            above, below = cells[:, column]
            _draw_panel(figure, above, grid, loss, "Loss", "cividis_r", LogNorm)
            _draw_panel(figure, below, grid, 100 * accuracy, "Accuracy (%)", "cividis", None)
            _mark_points(below, grid, accuracy, own, known)
            above.plot(*grid.own, "o", color="white", mec="black", ms=6)
            above.set_title(title, fontsize=9, parse_math=False)
            below.set_xlabel(names[0])
        for row in (0, 1):
            cells[row, 0].set_ylabel(names[1])
        return save(figure, path, formats)


def check_axes(cmd: CMDModel, axes: tuple[int, int], span: float, points: int) -> None:
    """Raise UserError unless these modes' reference weights can span a grid."""
    first, second = axes
    if cmd.modes < 2:
        raise UserError(
            f"--axes {first} {second}: post-hoc CMD found one mode, and two are needed; it needs a "
            "run with more --modes, --samples or --epochs"
        )
    if first == second or max(axes) >= cmd.modes:
        raise UserError(f"--axes {first} {second}: choose two of the modes 0 … {cmd.modes - 1}")
    for axis in axes:
        with np.errstate(over="ignore"):
            own = float(cmd.reference_history[-1, axis])
            values = _values(own, points, span).astype(np.float32)
        if not np.isfinite(values).all():
            raise UserError(f"--span {span:g}: the reference weights go beyond float32: lower it")
        if len(np.unique(values)) < points:
            raise UserError(
                f"--span {span:g}: {points} values of mode {axis}'s reference weight are not all "
                "different in float32; choose a larger one, or fewer --points"
            )


def panels_of(
    whole: Dataset, dataset: Dataset, classes: Sequence[str]
) -> dict[str, tuple[int, slice]]:
    """Return the split and the classes of each column, by a title that counts the images.

    Args:
        whole: what `dataset` is taken from.
        dataset: the images tested on.
        classes: those with a column of their own.

    Raises UserError if a class has none of the images.
    """
    everything = slice(None)
    wanted = [("training set", TRAIN, everything), ("test set", TEST, everything)]
    for name in classes:
        where = dataset.classes.index(name)
        wanted.append((f"{name} (test)", TEST, slice(where, where + 1)))
    here, there = (
        [torch.bincount(split.labels, minlength=len(whole.classes)) for split in (d.train, d.test)]
        for d in (dataset, whole)
    )
    panels = {}
    for name, split, chosen in wanted:
        count, total = (int(counts[split][chosen].sum()) for counts in (here, there))
        if not count:
            raise UserError(
                f"--classes {whole.classes[chosen.start]}: none of its {total:,} test images is "
                "among --images; choose more, or leave the class out"
            )
        of_all = f"{count:,}" if count == total else f"{count:,} of {total:,}"
        panels[f"{name}, {of_all} images"] = (split, chosen)
    return panels


def evaluate_grid(
    run: StoredRun, dataset: Dataset, device: torch.device, axes: tuple[int, int], points: int,
    span: float, path: Path, key: str, progress: Callable[[Iterable], Iterable] = iter,
) -> Landscape:  # fmt: skip
    """Test every point of the grid on all images; rows are kept in `path`."""
    cmd, transform = run.posthoc, get_model(run.settings.model).transform_of(dataset)
    own = cmd.reference_history[-1].double()
    values = [_values(float(own[axis]), points, span) for axis in axes]
    splits = [dataset.to(device).train, dataset.to(device).test]
    n_classes = len(dataset.classes)
    model, cmd, batch = run.model.to(device), cmd.to(device), run.tested_at_once(device)
    compute = run.compute(device)

    def at(x: float, y: float) -> Tensor:
        """Return summed losses and right answers, float64 [2, S, C], on the device."""
        weights = own.clone()
        weights[axes[0]], weights[axes[1]] = x, y
        write_vector(cmd.reconstruct(weights.float().to(device)), model)
        return torch.stack([of_classes(model, split, transform, batch, n_classes, compute)
                            for split in splits], dim=1)  # fmt: skip

    grid = Landscape.load(path, key)
    if grid is None:
        shape = (len(splits), points, points, n_classes)
        own_loss, own_correct = at(*(float(own[axis]) for axis in axes)).cpu().numpy()
        counts = [torch.bincount(s.labels, minlength=n_classes).cpu().numpy() for s in splits]
        grid = Landscape(
            values[0], values[1], own[list(axes)].numpy(), np.full(shape, np.nan),
            np.full(shape, np.nan), own_loss, own_correct, np.stack(counts),
        )  # fmt: skip
    for row in progress(range(grid.done, points)):
        found = torch.stack([at(x, grid.y[row]) for x in grid.x], dim=2).cpu().numpy()
        grid.loss[:, row], grid.correct[:, row] = found  # each [S, P, C]
        grid.done = row + 1
        grid.save(path, key)
    return grid


@torch.inference_mode()
def of_classes(
    model: nn.Module, split: Split, transform, batch_size: int, n_classes: int, compute: Compute
) -> Tensor:
    """Sum a model's losses and right answers over the images of each class: float64 [2, C]."""
    sums = torch.zeros(2, n_classes, dtype=torch.float64, device=split.images.device)
    for logits, labels in tested(model, split, transform, batch_size, compute):
        losses = functional.cross_entropy(logits, labels, reduction="none").double()
        right = (logits.argmax(1) == labels).double()
        sums.index_add_(1, labels, torch.stack([losses, right]))
    return sums


def _values(own: float, points: int, span: float) -> np.ndarray:
    step = span * abs(own) if own else span
    return np.linspace(own - step, own + step, points)


def _digest(cmd: CMDModel) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for tensor in (cmd.a, cmd.b, cmd.mode, cmd.reference, cmd.reference_history):
        digest.update(tensor.contiguous().numpy().data)
    return digest.hexdigest()


def _draw_panel(
    figure: Figure, axes: Axes, grid: Landscape, values: np.ndarray, label: str, colors: str, norm
) -> None:
    known = np.isfinite(values)
    finite = values[known & (values > 0)]
    use_log = norm is not None and len(finite) > 0 and finite.max() > 3 * finite.min()
    if use_log:
        scale = {"norm": norm(finite.min(), finite.max(), clip=True)}
    else:
        scale = {} if known.any() else {"vmin": 0, "vmax": 1}
    mesh = axes.pcolormesh(
        grid.x, grid.y, np.ma.masked_where(~known, values), cmap=colors, shading="nearest",
        rasterized=True, **scale,
    )  # fmt: skip
    bar = figure.colorbar(mesh, ax=axes, label=label, pad=0.02)
    if use_log:  # a few plain numbers
        bar.ax.yaxis.set_minor_formatter(NullFormatter())
        bar.set_ticks(np.geomspace(finite.min(), finite.max(), 5))
        bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.2g}"))
    axes.locator_params(nbins=4)


def _in_the_table(run: StoredRun) -> float | None:
    """Return post-hoc CMD's test accuracy at the last epoch in metrics.csv, a fraction, if any."""
    name, last, metrics = PostHocCMD.name, run.settings.epochs - 1, run.metrics
    return metrics.get(name, last).test_acc if metrics.has(name, last) else None


def _mark_points(
    axes: Axes, grid: Landscape, accuracy: np.ndarray, own: float, known: float | None
) -> None:
    """Mark post-hoc CMD's point and the best one, with their accuracies in a legend below.

    Args:
        axes: the panel.
        grid: the values of x and y.
        accuracy: fractions, [P, P].
        own: post-hoc CMD's accuracy here.
        known: the same in metrics.csv; another processor may differ from it by rounding.
    """
    # of several best points, the one nearest to post-hoc CMD's is marked
    away = np.hypot(*np.meshgrid(*(
        (values - own_value) / np.ptp(values)
        for values, own_value in zip((grid.x, grid.y), grid.own, strict=True)
    )))  # fmt: skip
    ties = accuracy >= np.nanmax(accuracy)
    best = np.unravel_index(np.where(ties, away, np.inf).argmin(), accuracy.shape)
    label = f"{PostHocCMD.label} (last epoch): {percent(own)} %"
    if known is not None and percent(known) != percent(own):
        label = (
            f"{PostHocCMD.label} (last epoch): {percent(known)} %\n"
            f"on this machine, rounded otherwise: {percent(own)} %"
        )
    axes.plot(*grid.own, "o", color="white", mec="black", ms=6, label=label)
    axes.plot(
        grid.x[best[1]], grid.y[best[0]], "*", color="#E69F00", mec="black", ms=10,
        label=f"the grid's best: {percent(accuracy[best])} %",
    )  # fmt: skip
    axes.legend(
        loc="upper center", bbox_to_anchor=(0.5, -0.2), fontsize=9, handletextpad=0.2
    )  # fmt: skip
