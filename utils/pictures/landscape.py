"""Loss and accuracy over the values of two reference weights, all others following them."""

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
from utils.data import Dataset, Split
from utils.files import atomic_write
from utils.finished import FinishedRun
from utils.fitting import CMDModel
from utils.flat import write_vector
from utils.style import STYLE, save

SPLITS = {"train": "training set", "test": "test set"}


@dataclass
class Grid:
    """Losses and accuracies at the points of a grid.

    x, y: values of the two reference weights, float64 [P]. own: theirs in the run, [2].
    loss, correct: summed over the images of each class, float64 [S, P, P, C] for the S splits,
        the axes being split, y, x, class. own_loss, own_correct: the same at `own`, [S, C].
    counts: images of each class, [S, C]. done: rows (values of y) that are known.
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
    def load(cls, path: Path, key: str) -> "Grid | None":
        """The grid in a file, None if it is not there, not whole or not the one meant."""
        try:
            with np.load(path, allow_pickle=False) as stored:
                if str(stored["key"]) != key:
                    return None
                names = cls.__dataclass_fields__
                grid = cls(**{name: stored[name] for name in names})
        except (OSError, ValueError, KeyError, EOFError):
            return None
        grid.done = int(grid.done)
        return grid


def draw_landscape(
    run: FinishedRun,
    dataset: Dataset,
    device: torch.device,
    path: Path,
    formats: Sequence[str],
    axes: tuple[int, int] = (0, 1),
    points: int = 50,
    span: float = 0.5,
    classes: Sequence[str] = (),
    progress: Callable[[Iterable], Iterable] = iter,
) -> list[Path]:
    """Loss above accuracy for the training set, the test set and single classes of the latter.

    axes: the modes whose references' values are varied, by `span` of the value to either side (by
    `span` itself where it is 0), `points` of them. Stopped, the same call goes on after the last
    finished row, kept beside the picture. Returns the files.
    """
    cmd = run.posthoc
    key = {
        "model": run.settings.model, "batch_size": run.settings.batch_size, "axes": axes,
        "points": points, "span": span, "images": dataset.fingerprint(), "cmd": _digest(cmd),
    }  # fmt: skip
    words = json.dumps(key, sort_keys=True)
    # a grid of other settings, which may have taken hours, keeps its own file
    name = f"{path.name}-{hashlib.blake2b(words.encode(), digest_size=4).hexdigest()}.npz"
    grid = evaluate_grid(
        run.model, cmd, dataset, run.settings, device, axes, points, span,
        path.with_name(name), words, progress,
    )  # fmt: skip
    panels = {title: (number, slice(None)) for number, title in enumerate(SPLITS.values())}
    for name in classes:
        where = dataset.classes.index(name)
        panels[f"{name} (test)"] = (1, slice(where, where + 1))
    names = [f"Reference weight of mode {mode}" for mode in axes]
    with matplotlib.rc_context(STYLE | {"font.size": 9, "axes.grid": False}):
        figure = Figure(figsize=(0.5 + 3.3 * len(panels), 6), layout="constrained")
        cells = figure.subplots(2, len(panels), sharex=True, sharey=True)
        for column, (title, (split, chosen)) in enumerate(panels.items()):
            count = max(1, grid.counts[split, chosen].sum())
            loss = grid.loss[split, ..., chosen].sum(-1) / count
            accuracy = 100 * grid.correct[split, ..., chosen].sum(-1) / count
            own = 100 * grid.own_correct[split, chosen].sum() / count
            above, below = cells[:, column]
            _draw_panel(figure, above, grid, loss, "Loss", "cividis_r", LogNorm)
            _draw_panel(figure, below, grid, accuracy, "Accuracy (%)", "cividis", None)
            _mark_points(below, grid, accuracy, own)
            above.plot(*grid.own, "o", color="white", mec="black", ms=6)
            above.set_title(title, fontsize=9)
            below.set_xlabel(names[0])
        for row in (0, 1):
            cells[row, 0].set_ylabel(names[1])
        return save(figure, path, formats)


def evaluate_grid(
    model: nn.Module, cmd: CMDModel, dataset: Dataset, settings, device: torch.device,
    axes: tuple[int, int], points: int, span: float, path: Path, key: str,
    progress: Callable[[Iterable], Iterable] = iter,
) -> Grid:  # fmt: skip
    """Every point of the grid, from one pass over the images each; rows are kept in `path`."""
    own = cmd.reference_history[-1].double()
    values = [_values(float(own[axis]), points, span) for axis in axes]
    splits = [dataset.to(device).train, dataset.to(device).test]
    n_classes = len(dataset.classes)
    model, cmd = model.to(device), cmd.to(device)
    transform, batch = get_model(settings.model).transform, settings.batch_size

    def at(x: float, y: float) -> Tensor:
        """Summed losses and right answers, float64 [2, S, C], left on the device."""
        weights = own.clone()
        weights[axes[0]], weights[axes[1]] = x, y
        write_vector(cmd.reconstruct(weights.float().to(device)), model)
        return torch.stack([of_classes(model, split, transform, batch, n_classes)
                            for split in splits], dim=1)  # fmt: skip

    grid = Grid.load(path, key)
    if grid is None:
        shape = (len(splits), points, points, n_classes)
        own_loss, own_correct = at(*(float(own[axis]) for axis in axes)).cpu().numpy()
        counts = [torch.bincount(s.labels, minlength=n_classes).cpu().numpy() for s in splits]
        grid = Grid(
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
    model: nn.Module, split: Split, transform, batch_size: int, n_classes: int
) -> Tensor:
    """Loss and right answers of a model, summed over the images of each class: float64 [2, C]."""
    sums = torch.zeros(2, n_classes, dtype=torch.float64, device=split.images.device)
    batches = zip(split.images.split(batch_size), split.labels.split(batch_size), strict=True)
    for images, labels in batches:
        logits = model(transform.test(images))
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
    figure: Figure, axes: Axes, grid: Grid, values: np.ndarray, label: str, colors: str, norm
) -> None:
    finite = values[np.isfinite(values) & (values > 0)]
    use_log = norm is not None and len(finite) > 0 and finite.max() > 3 * finite.min()
    mesh = axes.pcolormesh(
        grid.x, grid.y, values, cmap=colors, shading="nearest", rasterized=True,
        norm=norm(finite.min(), finite.max()) if use_log else None,
    )  # fmt: skip
    bar = figure.colorbar(mesh, ax=axes, label=label, pad=0.02)
    if use_log:  # few, plain numbers
        bar.ax.yaxis.set_minor_formatter(NullFormatter())
        bar.set_ticks(np.geomspace(finite.min(), finite.max(), 5))
        bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.2g}"))
    axes.locator_params(nbins=4)


def _mark_points(axes: Axes, grid: Grid, accuracy: np.ndarray, own: float) -> None:
    """The run's own point and the best one, with what they reach in a legend below."""
    # of several that are best, the one nearest to the run's
    away = np.hypot(*np.meshgrid(*(
        (values - own_value) / np.ptp(values)
        for values, own_value in zip((grid.x, grid.y), grid.own, strict=True)
    )))  # fmt: skip
    ties = accuracy >= np.nanmax(accuracy)
    best = np.unravel_index(np.where(ties, away, np.inf).argmin(), accuracy.shape)
    axes.plot(*grid.own, "o", color="white", mec="black", ms=6, label=f"the run: {own:.2f} %")
    axes.plot(
        grid.x[best[1]], grid.y[best[0]], "*", color="#E69F00", mec="black", ms=10,
        label=f"the best: {accuracy[best]:.2f} %",
    )  # fmt: skip
    axes.legend(
        loc="upper center", bbox_to_anchor=(0.5, -0.2), fontsize=9, handletextpad=0.2
    )  # fmt: skip
