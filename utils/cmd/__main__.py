"""The command on checkpoints: one line for what the user can mend, and exit code 2."""

import argparse
import signal
import sys

from . import fit_files
from .errors import InputError


class Parser(argparse.ArgumentParser):
    """argparse, with errors on one line."""

    def error(self, message: str):
        words = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in message)
        self.exit(2, f"{self.prog}: error: {words}\n")


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    parser = Parser(formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.description = fit_files.__doc__.replace("PROGRAM", parser.prog)
    fit_files.add_arguments(parser)
    args = parser.parse_args(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        fit_files.fit_checkpoints(args)
    except InputError as error:
        parser.error(str(error))
    except OSError as error:
        parser.error(f"{error}; is there room in --output {args.output}?")
    except KeyboardInterrupt:
        print(f"{parser.prog}: {fit_files.INTERRUPTED}", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
