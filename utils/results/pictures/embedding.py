"""The weights that embedded CMD has taken out of training, over the epochs, per layer."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from utils.methods.embedded import EmbeddedCMD
from utils.results.pictures.style import STYLE, caption, label_layers, layer_height, save
from utils.results.stored_run import StoredRun


def draw_embedding(run: StoredRun, path: Path, formats: Sequence[str]) -> list[Path]:
    """Draw the share of all weights embedded after each epoch, and below it that of each layer's.

    Returns the files.

    Raises UserError if the run has no embedded CMD, or its file is damaged.
    """
    result = run.store.load(run.require(EmbeddedCMD.files()[0], EmbeddedCMD).name)
    counts, sizes = result["embedded_counts"].numpy(), result["layer_sizes"].numpy()
    n_epochs, names = len(counts), [name for name, _ in run.layers]
    mean = 100 * counts.sum(1).mean() / sizes.sum()
    with matplotlib.rc_context(STYLE):
        height = layer_height(len(names))
        figure = Figure(figsize=(6.4, 2.8 + height), layout="constrained")
        caption(figure, run.settings)
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=(2, height))
        share = 100 * counts.sum(1) / sizes.sum()
        above.plot(share, color=EmbeddedCMD.color, drawstyle="steps-post", linewidth=2)
        above.axhline(mean, color="#999999", linewidth=1, linestyle=(0, (4, 3)))
        above.annotate(
            f"mean over the run: {mean:.1f} %", (0, mean), xytext=(4, 3),
            textcoords="offset points", fontsize=9, color="#777777",
        )  # fmt: skip
        above.set_ylim(0, 105)
        above.set_ylabel("Embedded (%)")
        image = below.imshow(
            100 * (counts / sizes).T, aspect="auto", cmap="cividis", vmin=0, vmax=100,
            extent=(-0.5, n_epochs - 0.5, len(names) - 0.5, -0.5), interpolation="nearest",
        )  # fmt: skip
        label_layers(below, names)
        below.set_xlabel("Epoch")
        below.xaxis.set_major_locator(MaxNLocator(integer=True))
        below.grid(False)
        figure.colorbar(image, ax=below, label="Embedded (% of layer)", pad=0.01)
        return save(figure, path, formats)
