"""The command on checkpoints: one line for what the user can mend, and exit code 2."""

import argparse
import io
import os
import signal
import sys
from pathlib import Path
from typing import NoReturn

from . import fit_files
from .errors import InputError


class Parser(argparse.ArgumentParser):
    """argparse, with errors on one line."""

    def parse_known_args(self, args=None, namespace=None):
        for word in sys.argv[1:] if args is None else args:
            if word.startswith("-") and word.endswith("=--"):  # argparse would make [] of it
                self.error(f"argument {word[:-3]}: -- is no value")
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        words = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in message)
        self.exit(2, f"{self.prog}: error: {words}\n")


class Terminated(BaseException):
    """SIGTERM came."""


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit code: 2 for what the user can mend, and 130 after SIGINT,
    143 after SIGTERM and 141 after SIGPIPE, as shells report them."""
    name = Path(sys.argv[0]).name
    parser = Parser(
        prog=f"python -m {__package__}" if name == "__main__.py" else name,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.description = fit_files.__doc__.replace("PROGRAM", parser.prog)
    fit_files.add_arguments(parser)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names and rules need not be ASCII
    args = parser.parse_args(argv)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        parser.error("this command is one process's: start it without torchrun")
    signal.signal(signal.SIGTERM, _terminate)
    try:
        fit_files.fit_checkpoints(args)
        sys.stdout.flush()
    except InputError as error:
        parser.error(str(error))
    except BrokenPipeError:  # the reader of the output has gone
        sys.stdout = None  # else Python writes to it once more as it ends
        return 128 + signal.SIGPIPE
    except (MemoryError, RuntimeError) as error:
        words = " ".join(str(error).split())
        if not (isinstance(error, MemoryError) or "allocate" in words):
            raise
        parser.error(f"out of memory ({words}): lower --samples {args.samples}")
    except OSError as error:
        parser.error(f"{error}; is there room in --output {args.output}?")
    except (KeyboardInterrupt, Terminated) as error:
        print(f"{parser.prog}: {fit_files.INTERRUPTED}", file=sys.stderr)
        return 128 + (signal.SIGTERM if isinstance(error, Terminated) else signal.SIGINT)
    return 0


def _terminate(*_) -> NoReturn:
    raise Terminated


if __name__ == "__main__":
    sys.exit(main())
