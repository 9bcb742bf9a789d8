"""The paper's tables: what was run, and the test accuracies on CIFAR-10 that it reports, in %."""

from dataclasses import dataclass, field

from utils.methods.registry import METHODS

Figure = tuple[float, float]  # mean, standard deviation over its seeds


@dataclass(frozen=True, eq=False)
class TableRow:
    """A row of a table: one experiment, run with each seed, and the methods compared on it.

    Rows are compared by identity.

    Attributes:
        label: the row's heading.
        model: its name.
        paper: the paper's figure of each method, None where it has none.
        experiment: the same in rows of several tables that share a run.
        flags: what the experiment adds to the command line.
    """

    label: str
    model: str
    paper: dict[str, Figure | None]
    experiment: str = "default"
    flags: tuple[str, ...] = field(default=())


@dataclass(frozen=True)
class Table:
    """A table of the paper.

    Attributes:
        title: its heading.
        columns: (method's name, heading) each.
        rows: from the first to the last.
    """

    title: str
    columns: tuple[tuple[str, str], ...]
    rows: tuple[TableRow, ...]


# The order of a row's figures. The warm-up of "equal" is online CMD's, that of "long" 80 epochs.
TABLE1_COLUMNS = (
    ("sgd", "SGD"),
    ("cmd_online", "Online CMD"),
    ("pbfgs_equal", "P-BFGS (equal)"),
    ("pbfgs", "P-BFGS (long)"),
)
TABLE2_COLUMNS = (("sgd", "SGD"), ("ema", "EMA"), ("swa", "SWA"), ("cmd_online", "Online CMD"))


def _row(label: str, model: str, columns: tuple, *figures: Figure, **options) -> TableRow:
    names = [name for name, _ in columns]
    return TableRow(label, model, dict(zip(names, figures, strict=False)), **options)


# fmt: off
TABLE1 = Table("Table 1: test accuracy of six models", TABLE1_COLUMNS, tuple(
    _row(label, model, TABLE1_COLUMNS, *figures)
    for label, model, *figures in (
        ("ResNet18",  "res18",     (90.91, 0.52), (92.43, 0.34), (89.34, 0.54), (91.03, 0.38)),
        ("WideRes",   "wideres",   (92.70, 0.48), (93.21, 0.50), (88.65, 0.77), (92.78, 0.25)),
        ("PreRes164", "preres164", (90.64, 0.98), (91.34, 1.20), (90.76, 1.14), (90.91, 0.77)),
        ("LeNet-5",   "lenet",     (75.36, 0.57), (76.77, 0.60), (74.67, 0.35), (76.44, 0.37)),
        ("GoogleNet", "googlenet", (92.05, 0.48), (93.07, 0.49), (92.01, 1.05), (92.41, 0.38)),
        ("ViT-b-16",  "vit",       (97.86, 0.11), (97.99, 0.28), (95.05, 0.69)),
    )
))

SGD = ("--optimizer", "sgd")
TABLE2 = Table("Table 2: test accuracy of ResNet18, by optimizer", TABLE2_COLUMNS, (
    _row("SGD", "res18", TABLE2_COLUMNS,
         (90.68, 0.29), (92.02, 0.16), (92.09, 0.10), (92.26, 0.12),
         experiment="plain_sgd", flags=(*SGD, "--momentum", "0")),
    _row("SGD + Mom", "res18", TABLE2_COLUMNS,
         (90.91, 0.52), (92.22, 0.43), (92.28, 0.44), (92.43, 0.34)),
    _row("SGD + Mom + SCH", "res18", TABLE2_COLUMNS,
         (91.29, 0.23), (91.28, 0.23), (91.29, 0.24), (91.68, 0.21),
         experiment="scheduler", flags=("--scheduler", "cosine")),
    _row("Adam", "res18", TABLE2_COLUMNS,
         (89.59, 0.43), (91.43, 0.39), (91.65, 0.43), (91.70, 0.51),
         experiment="adam", flags=("--optimizer", "adam", "--lr", "0.001")),
))
# fmt: on

# Beyond the paper: every method of the suite on each model, with the figures of table 1.
EVERYTHING = Table(
    "Every method",
    tuple((method.name, method.label) for method in METHODS),
    tuple(
        TableRow(
            row.label, row.model, {method.name: row.paper.get(method.name) for method in METHODS}
        )
        for row in TABLE1.rows
    ),
)

TABLES = {"table1": TABLE1, "table2": TABLE2, "methods": EVERYTHING}


def methods_of(row: TableRow) -> list[str]:
    """Return the methods that a row's run needs.

    These are its own, and those of rows with the same run that have to watch every step of the
    training, and so cannot be added to it later.
    """
    sharing = {
        name
        for table in TABLES.values()
        for other in table.rows
        if (other.experiment, other.model) == (row.experiment, row.model)
        for name in other.paper
    }
    return [
        method.name
        for method in METHODS
        if method.name in row.paper or (method.watches_steps and method.name in sharing)
    ]
