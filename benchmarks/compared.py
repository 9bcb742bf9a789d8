"""Go on with the default comparison of ResNet18, as long as the time allows."""

import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median

from benchmarks.deadline import command_within
from benchmarks.report import Table
from utils.methods.registry import METHODS
from utils.storage.metrics import Metrics, Row
from utils.system.errors import UserError
from utils.training.folder import METRICS

ROOT = Path(__file__).resolve().parent.parent
MODEL = "res18"
TITLE = "The default comparison of ResNet18: test accuracy, %"
SHOWN = 15  # epochs in the table, about


def compared(
    seconds: float, data_dir: str, results_dir: Path, device: str, p_bfgs: bool, log: Path
) -> Table:
    """Run the comparison, and make a table of the accuracies so far.

    Args:
        seconds: the time for all.
        data_dir: the folder of the images, or a packed data set.
        results_dir: where the run is kept; it goes on with what is there.
        device: the device's name.
        p_bfgs: whether P-BFGS is compared, too.
        log: the file that gets all that the command prints; all rows go beside it.
    """
    words = ["--dataset", "folder", "--data_dir", data_dir, "--results_dir", str(results_dir)]
    words += ["--device", device, *(["--p_bfgs", "True"] if p_bfgs else [])]
    problem = command_within(seconds, [sys.executable, str(ROOT / "train_cmd.py"), *words], log)
    if problem.startswith("cut"):
        problem += "; the same command goes on from there"
    notes = [problem] if problem else []
    kept = results_dir / MODEL / METRICS
    try:
        metrics = Metrics.stored(kept)
    except UserError as error:
        return Table("comparison", TITLE, notes=[*notes, f"no epoch is finished ({error})"])
    shutil.copy(kept, log.with_name(METRICS))
    found = {method.label: metrics.of(method.name) for method in METHODS}
    return accuracies({label: rows for label, rows in found.items() if rows}, notes)


def accuracies(found: dict[str, list[Row]], notes: Sequence[str]) -> Table:
    """Make a table of some of the rows, those of an epoch beside each other."""
    by_epoch: dict[int, dict[str, Row]] = {}
    for label, rows in found.items():
        for row in rows:
            by_epoch.setdefault(row.epoch, {})[label] = row
    last = max(by_epoch, default=0)
    step = max(1, round(last / SHOWN))
    cells = []
    for epoch in sorted(by_epoch):
        if epoch % step == 0 or epoch == last:
            here = by_epoch[epoch]
            tested = [f"{100 * here[x].test_acc:.2f}" if x in here else "" for x in found]
            cells.append([f"{epoch}", *tested])
    done = f"{len(by_epoch)} epochs are tested, all rows are in {METRICS}"
    if by_epoch:
        each = median(sum(row.seconds for row in rows.values()) for rows in by_epoch.values())
        done += f"; the median epoch took {each:.2f} s with its tests"
    numbers = [asdict(row) for rows in found.values() for row in rows]
    return Table("comparison", TITLE, ["epoch", *found], cells, [done, *notes], numbers)
