"""Kill real runs at random moments, start them again, and compare the end with a run left alone.

    python tests/torture.py --kills 100

A run has every method on, on the handwritten digits. A killed run is started again at once, and
killed again, until it finishes; then its metrics (all but the seconds) and CMD's parameters have to
be those of the run left alone, and the next run begins. Signals come as soon as Python itself has
started, and until the process has ended. SIGTERM and SIGINT have to end it within 5 s with exit
code 143 or 130 and one line, or let it finish; SIGKILL may come in the middle of anything.
"""

import sys
from pathlib import Path

if __name__ == "__main__":  # the project's own packages, from wherever this is started
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import argparse
import contextlib
import random
import signal
import subprocess
import tempfile
import time
from collections import Counter

import torch

from utils.storage.sealed import load_tensors
from utils.system.tables import format_table

ROOT = Path(__file__).resolve().parent.parent
RUN = ["--dataset", "digits", "--model", "lenet", "--limit", "256", "--epochs", "10"]
RUN += ["--warmup_cmd", "3", "--warmup_pbfgs", "5", "--pbfgs_num", "4", "--pbfgs_batch_size", "64"]
RUN += ["--embed_window", "2", "--p_bfgs", "1", "--pbfgs_equal", "1", "--cmd_embed", "1"]
RUN += ["--ema", "1", "--swa", "1", "--cmd_adaptive", "1", "--lawa", "3"]
SHORT = ["--limit", "64", "--batch_size", "32", "--pbfgs_batch_size", "32", "--samples", "200"]
SHORT += ["--epochs", "7"]
CODES = {signal.SIGKILL: -9, signal.SIGTERM: 143, signal.SIGINT: 130}
PATIENCE = 5.0  # seconds for an orderly end


def start(results: Path, flags: list[str]) -> subprocess.Popen:
    """The run as a process of its own, which has begun with its first statement."""
    process = subprocess.Popen(
        [sys.executable, ROOT / "train_cmd.py", *RUN, *flags, "--results_dir", results],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, cwd=ROOT,
    )  # fmt: skip
    while process.poll() is None and not handles_sigterm(process.pid):
        time.sleep(0.001)
    return process


def handles_sigterm(process: int) -> bool:
    """Whether a process would not just die of it (Linux)."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{process}/status").read_text().splitlines():
            if line.startswith("SigCgt:"):
                return bool(int(line.split()[1], 16) >> signal.SIGTERM - 1 & 1)
    return False


def outcome(results: Path) -> tuple[list[str], dict]:
    """What has to be the same: the rows without their seconds, and CMD's parameters."""
    folder = results / "lenet"
    rows = [line.rsplit(",", 1)[0] for line in (folder / "metrics.csv").read_text().splitlines()]
    return sorted(rows), {path.name: load_tensors(path) for path in folder.glob("cmd_*.pt")}


def same(one: tuple, other: tuple) -> bool:
    """Whether two outcomes are equal, to the last bit."""
    (rows, states), (other_rows, other_states) = one, other
    return rows == other_rows and states.keys() == other_states.keys() and all(
        state.keys() == other_states[name].keys()
        and all(torch.equal(value, other_states[name][key]) for key, value in state.items())
        for name, state in states.items()
    )  # fmt: skip


def interrupt(process: subprocess.Popen, sent: signal.Signals) -> str | None:
    """Send a signal; returns what is wrong with how the process ended, if anything is."""
    process.send_signal(sent)
    begin = time.perf_counter()
    try:
        _, error = process.communicate(timeout=60)
    except subprocess.TimeoutExpired:
        process.kill()
        return f"{sent.name}: did not end"
    seconds, code = time.perf_counter() - begin, process.returncode
    if code == 0:
        return None  # it was finished already
    if code != CODES[sent]:
        return f"{sent.name}: exit code {code}: {error[-300:]}"
    if sent != signal.SIGKILL:
        lines = [line for line in error.splitlines() if line and not line.startswith("note: ")]
        if seconds > PATIENCE:
            return f"{sent.name}: took {seconds:.1f} s to end"
        if len(lines) != 1 or "interrupted" not in lines[0]:
            return f"{sent.name}: said {lines}"
    return None


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns 0 if nothing was lost."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=100, help="(default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: 0)")
    parser.add_argument("--short", action="store_true", help="fewer images and epochs")
    args = parser.parse_args(argv)
    flags = SHORT if args.short else []
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored by jobs in the background
    draw, wrong, sent = random.Random(args.seed), [], Counter()
    finished = 0
    with tempfile.TemporaryDirectory() as scratch:
        left_alone = start(Path(scratch) / "alone", flags)
        begin = time.perf_counter()
        _, error = left_alone.communicate()
        if left_alone.returncode:
            print(error, file=sys.stderr)
            return 1
        whole = time.perf_counter() - begin
        expected = outcome(Path(scratch) / "alone")
        print(f"left alone: {whole:.1f} s", flush=True)
        while sum(sent.values()) < args.kills or not finished:
            results = Path(scratch) / f"run_{finished}"
            for attempt in range(1000):
                process = start(results, flags)
                if sum(sent.values()) >= args.kills or attempt > 30:
                    _, error = process.communicate()
                else:
                    chosen = draw.choice(list(CODES))
                    try:
                        process.wait(draw.random() * whole)
                    except subprocess.TimeoutExpired:
                        problem = interrupt(process, chosen)
                        sent[chosen] += 1
                        if problem:
                            wrong.append(problem)
                        continue
                    _, error = process.communicate()
                if process.returncode:
                    wrong.append(f"started again, it ended with {process.returncode}: {error}")
                break
            if not same(outcome(results), expected):
                wrong.append(f"run {finished} ended with other numbers")
            finished += 1
            print(f"{sum(sent.values())} kills, {finished} runs finished, {len(wrong)} wrong",
                  flush=True)  # fmt: skip
    rows = [[name.name, str(sent[name])] for name in CODES]
    rows += [["runs finished with the same numbers", str(finished)], ["wrong", str(len(wrong))]]
    print("\n" + format_table(["", "times"], rows))
    for problem in wrong:
        print(problem)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
