"""Small finished runs of odd settings, and what their pictures say."""

import contextlib
import csv
import functools
import io
import re
import warnings
from dataclasses import replace
from pathlib import Path
from statistics import fmean, stdev

from hypothesis import strategies as st
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from torch import nn

import train_cmd
import visualize
from tests.conftest import NarrowLeNet
from utils.base_utils import MODELS, ModelEntry
from utils.methods.pbfgs import PBFGS
from utils.methods.registry import METHODS
from utils.results.stored_run import KEPT
from utils.system.errors import UserError
from utils.training.folder import PLOT, seed_folder

TINY = "tiny"
FIGURE = re.compile(r"(.+): (\d+\.\d\d(?: ± \d+\.\d\d)?) %")

# what a setting usually is, and what train_cmd.py also takes, at least without some method
USUAL = {
    "epochs": [3, 5, 8], "limit": [40, 80, 120], "modes": [2, 3], "samples": [60, 300],
    "start": [0, 1], "warmup_cmd": [2], "embed_window": [1, 2], "embed_perc": [10, 50],
    "warmup_pbfgs": [1, 2], "pbfgs_num": [1], "swa_start": [1, 2], "batch_size": [16, 128],
    "lr": [0.01], "precision": ["fp32", "bf16"],
}  # fmt: skip
ODD = {
    "epochs": [1, 2, 3, 9], "limit": [8, 41], "modes": [1, 10, 60, 61, 0, -1],
    "samples": [0, 1, 2, 3, 20, 1000], "start": [2, 3, 7, 8, 9], "warmup_cmd": [-1, 0, 1, 7, 8, 20],
    "embed_window": [5], "embed_perc": [1, 100], "lr": [1e-50, 1e-30, 1e-7, 1.0],
}  # fmt: skip


class Tiny(nn.Module):
    """A few hundred weights, with a BatchNorm that makes the test batch part of the result."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.AvgPool2d(8),
            nn.BatchNorm2d(3, track_running_stats=False),
            nn.Flatten(),
            nn.Linear(48, 8),
            nn.Tanh(),
            nn.Linear(8, num_classes),
        )

    def forward(self, images):
        return self.layers(images)


def prepare(patch) -> None:
    """Make the small model known and LeNet narrow, and load images once."""
    entry = ModelEntry(Tiny, "sgd", 0.05, 5, 3, 40, test_batch_size=16)
    patch.setitem(MODELS, TINY, entry)
    patch.setitem(MODELS, "lenet", replace(MODELS["lenet"], constructor=NarrowLeNet))
    patch.setattr(ModelEntry, "load_dataset", functools.cache(ModelEntry.load_dataset))


@st.composite
def runs(draw, models=(TINY, TINY, "lenet")):
    """Arguments of train_cmd.py that it takes, up to two settings odd."""
    odd = draw(st.sets(st.sampled_from(sorted(ODD)), max_size=2))
    argv = ["--dataset", "digits", "--model", draw(st.sampled_from(models))]
    for name, usual in USUAL.items():
        argv += [f"--{name}", str(draw(st.sampled_from(ODD[name] if name in odd else usual)))]
    seeds = draw(st.sampled_from([[], [], [], ["--seeds", "3", "0"]]))
    wanted = [method for method in METHODS if draw(st.booleans())]
    if float(argv[argv.index("--lr") + 1]) < 1e-5:  # in no direction may anything move
        wanted = [method for method in wanted if not issubclass(method, PBFGS)]
    return [*argv, *seeds, *turned_on(argv, wanted)]


def turned_on(argv, wanted) -> list[str]:
    """Flags for those methods that can be run with the settings, and at least one."""
    parser = train_cmd.build_parser()
    settings = train_cmd.make_settings(parser.parse_args(argv), METHODS[:1])
    able = []
    for method in wanted:
        with contextlib.suppress(UserError):
            method.check(settings)
            able.append(method)
    able = able or METHODS[:1]
    return [word for m in METHODS for word in (m.flags[0], "1" if m in able else "")]


def train(argv, results) -> Path:
    """Run train_cmd.py; returns the folder of the run, of the first seed's where it has several."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")  # of few samples
        assert train_cmd.main([*argv, "--results_dir", str(results)]) == 0
    model = argv[argv.index("--model") + 1]
    if "--seeds" not in argv:
        return results / model
    return seed_folder(results, model, argv[argv.index("--seeds") + 1])


def keep_small_files(results) -> None:
    """Leave of every run what `reproduce.py --keep` copies."""
    for path in results.rglob("*"):
        if path.is_file() and path.name not in KEPT:
            path.unlink()


class Drawn(dict):
    """By a picture's name, its texts; files are of no use. panels: (title, legend) of its axes."""

    def __init__(self, patch) -> None:
        super().__init__()
        self.panels: dict[str, list[tuple[str, list[str]]]] = {}

        def savefig(figure, target, format, **options):
            if format != "png":
                return
            name = re.fullmatch(r"\.(.+)\.png\.\d+", Path(target.name).name)[1]
            if name != Path(PLOT).stem:  # for warnings, which train() ignores
                figure.set_dpi(25)
                FigureCanvasAgg(figure).draw()
            self[name] = [text.get_text() for text in figure.findobj(Text) if text.get_text()]
            self.panels[name] = [(axes.get_title(), legend(axes)) for axes in figure.axes]

        patch.setattr(Figure, "savefig", savefig)


def legend(axes) -> list[str]:
    """The lines of an axes' legend."""
    found = axes.get_legend()
    texts = [] if found is None else [text.get_text() for text in found.get_texts()]
    return [line for text in texts for line in text.splitlines()]


def percentages(texts) -> dict[str, str]:
    """The percentages in lines, by what stands before them."""
    lines = [line for text in texts for line in text.splitlines()]
    return {match[1]: match[2] for line in lines if (match := FIGURE.fullmatch(line))}


def draw(argv, results, *more) -> tuple[int, list[str], str]:
    """Run visualize.py for the runs of `argv`: exit code, lines of stdout, stderr."""
    where = ["--model", argv[argv.index("--model") + 1], "--results_dir", str(results)]
    if "--seeds" in argv:
        first = argv.index("--seeds")
        where += argv[first : first + 3]
    out, error = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
        code = visualize.main([*more, *where])
    return code, out.getvalue().splitlines(), error.getvalue()


def table_of(folder) -> dict[str, str]:
    """By method, the last test accuracy in metrics.csv, in percent, over the runs in a folder."""
    last: dict[str, dict[Path, float]] = {}
    for path in folder.rglob("metrics.csv"):
        with path.open() as file:
            for row in sorted(csv.DictReader(file), key=lambda row: int(row["epoch"])):
                last.setdefault(row["method"], {})[path] = float(row["test_acc"])
    figures = {}
    for method, by_run in last.items():
        values = list(by_run.values())
        spread = f" ± {100 * stdev(values):.2f}" if len(values) > 1 else ""
        figures[method] = f"{100 * fmean(values):.2f}{spread}"
    return figures
