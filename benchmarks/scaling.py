"""Measure and plot how the cost of a fit grows with N and with T."""

import argparse
from pathlib import Path

import numpy as np

from benchmarks.cases import case_of, trajectory_file
from benchmarks.fitting import our_fit
from benchmarks.measure import alone

STEPS = 5


def sweep(args: argparse.Namespace) -> dict[str, list]:
    """Measure fits at a growing N, at two fifths of the largest T, and the other way about.

    Returns:
        (N, T, figures) of each fit, under "N" and "T".
    """
    n_weights, n_epochs = (
        [round(largest * step / STEPS) for step in range(1, STEPS + 1)]
        for largest in (args.weights, args.epochs)
    )
    sizes = {
        "N": [(n, n_epochs[1]) for n in n_weights],
        "T": [(n_weights[1], t) for t in n_epochs],
    }
    measured = {"N": [], "T": []}
    for over, pairs in sizes.items():
        for n, t in pairs:
            case = case_of(args, n, t)
            with trajectory_file(case, args.keep):
                figures = alone(our_fit, case, None)
            measured[over].append((n, t, figures))
            print(
                f"{case}: {figures.seconds:.2f} s, of it clustering {figures.clustering:.2f} s, "
                f"{figures.peak / 1e6:,.0f} MB",
                flush=True,
            )
    return measured


def plot_sweep(measured: dict[str, list], path: Path, caption: str) -> None:
    """Plot the seconds and the memory over N and over T, in four panels."""
    import matplotlib.pyplot as plt  # not in every measured process

    over_n, over_t = measured["N"], measured["T"]
    figure, axes = plt.subplots(2, 2, figsize=(8, 5.2), sharey="row", layout="constrained")
    panels = (
        (over_n, [n / 1e6 for n, _, _ in over_n], "weights N / 10⁶", f"T = {over_n[0][1]}"),
        (over_t, [t for _, t, _ in over_t], "snapshots T", f"N = {over_t[0][0]:,}"),
    )
    for column, (points, x, label, title) in enumerate(panels):
        seconds = [figures.seconds - figures.clustering for _, _, figures in points]
        # the results, a, b (float32) and mode (int8), grow with N, however the fit works
        chunks = [(figures.peak - 9 * n) / 1e6 for n, _, figures in points]
        results = [9 * n / 1e6 for n, _, _ in points]
        line = np.polyval(np.polyfit(x, seconds, 1), x)
        axes[0, column].plot(x, line, color="#bbbbbb", lw=1, label="straight line")
        axes[0, column].plot(x, seconds, "o-", color="#0072B2", label="fit, without clustering")
        axes[1, column].plot(x, chunks, "o-", color="#D55E00", label="working memory")
        axes[1, column].plot(x, results, "s--", color="#999999", label="the results: a, b, mode")
        axes[0, column].set_title(title, fontsize=10)
        axes[1, column].set_xlabel(label)
        for row in (0, 1):
            axes[row, column].set_xlim(left=0)
            axes[row, column].set_ylim(bottom=0)
            axes[row, column].grid(alpha=0.25)
    axes[0, 0].set_ylabel("seconds")
    axes[1, 0].set_ylabel("MB, anonymous")
    axes[0, 0].legend(frameon=False, fontsize=9)
    axes[1, 0].legend(frameon=False, fontsize=9)
    figure.supxlabel(caption, fontsize=8, color="#555555")
    figure.savefig(path, dpi=150)
    plt.close(figure)
