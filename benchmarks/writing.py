"""Measure what a run writes after an epoch: the snapshot with its checksum, and the checkpoint.

    python benchmarks/writing.py --model res18
    python benchmarks/writing.py --model lenet --repeats 20 --folder DIR

A run of one batch an epoch is trained in a folder that is removed at the end. Its writing is waited
for before the next epoch, so "the writer" has the machine for itself; "the training waits" is what
an epoch takes after its last step before the next may begin. Plainly written are as many bytes
from memory, to one file, with one fsync. Seconds are the least of the --repeats epochs.
"""

import contextlib
import io
import os
import sys
import tempfile
from pathlib import Path

if __name__ == "__main__":  # the project's own packages, from wherever this is started
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import train_cmd
from benchmarks.measure import alone, clock, environment
from utils import flags
from utils.base_utils import MODELS, get_model
from utils.methods.registry import METHODS
from utils.system.arguments import Parser, at_least
from utils.system.devices import choose_device
from utils.system.errors import UserError
from utils.system.tables import format_table
from utils.training.compute import Compute
from utils.training.folder import CHECKPOINT
from utils.training.run import Run

IMAGES = 32  # of a batch, and of a run


class TimedRun(Run):
    """A run that notes when its parts begin and end.

    Attributes:
        trained: when the latest epoch's training ended.
        stored: seconds that the writer took after each epoch.
    """

    def train(self, *given) -> tuple[float, float]:
        result = super().train(*given)
        self.trained = clock(self.device)
        return result

    def _store(self, *given) -> None:
        start = clock(self.device)
        super()._store(*given)
        self.stored = [*getattr(self, "stored", []), clock(self.device) - start]


def writing(model: str, device_name: str, repeats: int, folder: Path) -> tuple[list[float], int]:
    """Return the least seconds of the writer, of the training's wait and of the plain writing, and
    the bytes of an epoch."""
    device, waits = choose_device(device_name), []
    words = ["--model", model, "--epochs", str(repeats + 1), "--batch_size", str(IMAGES)]
    words += ["--dataset", "digits", "--limit", str(IMAGES), "--warmup_cmd", "1"]
    words += ["--weights", "none"] if model == "vit" else []
    settings = train_cmd.make_settings(train_cmd.build_parser().parse_args(words), METHODS[:1])
    dataset = get_model(model).load_dataset("digits", "data", IMAGES)
    with (
        contextlib.redirect_stderr(io.StringIO()),
        TimedRun(folder / "run", settings, dataset, Compute(device)) as run,
    ):
        for _ in run.epochs():
            waits.append(clock(device) - run.trained)
            run.wait()
        written = 4 * run.n_weights + (run.folder / CHECKPOINT).stat().st_size
    data, plain = os.urandom(written), []
    for _ in range(repeats):
        start = clock(device)
        with (folder / "plain").open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        plain.append(clock(device) - start)
    return [min(run.stored[1:]), min(waits[1:]), min(plain)], written


def main(argv: list[str] | None = None) -> int:
    """Run the command, and return its exit code."""
    parser = Parser(prog="benchmarks/writing.py", description=__doc__)
    parser.add_argument("--model", choices=MODELS, default="res18", metavar="MODEL",
                        help="whose run is measured (default: %(default)s)")  # fmt: skip
    flags.add_device_flag(parser)
    parser.add_argument("--repeats", type=at_least(1), default=10, metavar="TIMES",
                        help="measured epochs (default: %(default)s)")  # fmt: skip
    parser.add_argument("--folder", type=Path, help="where the run is made for a while")
    args = parser.parse_args(argv)
    try:
        if args.folder is not None and not args.folder.is_dir():
            raise UserError(f"--folder {args.folder} is not a folder: make it, or choose another")
        record = environment(args.device)
        with tempfile.TemporaryDirectory(dir=args.folder) as folder:
            seconds, written = alone(writing, args.model, args.device, args.repeats, Path(folder))
    except UserError as error:
        parser.error(str(error))
    print(f"{args.model}: {written / 1e6:,.1f} MB an epoch\n{record}\n")
    names = ["the writer", "the training waits", "plain write and fsync"]
    rows = [
        [name, f"{1000 * each:,.1f}", f"{each / seconds[-1]:.2f}"]
        for name, each in zip(names, seconds, strict=True)
    ]
    print(format_table(["", "ms an epoch", "× plain"], rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
