"""Run the tests that need a device, as long as the time allows."""

import re
import sys
from collections import Counter
from pathlib import Path

from benchmarks.deadline import command_within
from benchmarks.report import Table

ROOT = Path(__file__).resolve().parent.parent
NONE_SELECTED = 5  # pytest's exit code
DONE = re.compile(r"^(\S+?\.py::.+?) (PASSED|FAILED|ERROR|SKIPPED|XFAIL|XPASS)\b", re.MULTILINE)
NOT_COLLECTED = re.compile(r"^ERROR (\S+\.py)\b(?!::)", re.MULTILINE)
BAD = ("FAILED", "ERROR")
COMMAND = ["-m", "pytest", "-v", "-m", "device", "--color=no", "--tb=short", "-o", "addopts="]
COMMAND += ["--continue-on-collection-errors"]  # of what needs packages that are not there


def device_tests(seconds: float, log: Path) -> Table:
    """Run the tests marked `device`, and make a table of their results.

    Args:
        seconds: the time for all.
        log: the file that gets all that pytest prints.
    """
    problem = command_within(seconds, [sys.executable, *COMMAND, str(ROOT / "tests")], log)
    told = log.read_text(errors="replace")
    results, missing = DONE.findall(told), NOT_COLLECTED.findall(told)
    counts = Counter(result.lower() for _, result in results)
    if problem.startswith(f"exit code {NONE_SELECTED}:"):
        problem = "no test is marked device"
    elif problem.startswith("exit code 1:") and (missing or counts.keys() & {"failed", "error"}):
        problem = ""  # the rows say it
    elif problem.startswith("cut") and not counts:
        problem += ", before the first test ended"
    rows = [[result, f"{count}"] for result, count in sorted(counts.items())]
    rows += [[f"{name} {result.lower()}", ""] for name, result in results if result in BAD]
    rows += [[f"{name} could not be imported", ""] for name in missing]
    notes = [problem] if problem else []
    return Table("tests", "Tests of the device", ["result", "tests"], rows, notes, [dict(counts)])
