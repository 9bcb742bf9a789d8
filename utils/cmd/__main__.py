"""The command on checkpoints: one line for what the user can mend, and exit code 2."""

import argparse
import signal
import sys

from .errors import InputError
from .fit_files import INTERRUPTED, __doc__, add_arguments, fit_checkpoints


class Parser(argparse.ArgumentParser):
    """argparse, with errors on one line."""

    def error(self, message: str):
        words = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in message)
        self.exit(2, f"{self.prog}: error: {words}\n")


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    parser = Parser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.description = __doc__.replace("PROGRAM", parser.prog)
    add_arguments(parser)
    args = parser.parse_args(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        fit_checkpoints(args)
    except InputError as error:
        parser.error(str(error))
    except OSError as error:
        parser.error(f"{error}; is there room in --output {args.output}?")
    except KeyboardInterrupt:
        print(f"{parser.prog}: {INTERRUPTED}", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
