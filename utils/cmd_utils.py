"""Correlation Mode Decomposition (CMD), for any model: the suite's face of utils.cmd.

python -m utils.cmd_utils epoch_*.pt --modes 10     # on a series of checkpoints
"""

if __name__ == "__main__":  # before anything large is imported
    from utils.system.interrupts import end_quietly

    end_quietly()

import argparse

from utils import cmd
from utils.cmd import *  # noqa: F403 (its names are these)
from utils.cmd import fit_files
from utils.cmd.errors import InputError
from utils.system.arguments import Parser
from utils.system.command import run_command
from utils.system.errors import UserError
from utils.system.interrupts import leave
from utils.system.ranks import join

__all__ = cmd.__all__
PROGRAM = "python -m utils.cmd_utils"


def main(argv: list[str] | None = None) -> int:
    """Run the command on checkpoints; returns its exit code."""
    args = build_parser().parse_args(argv)

    def work() -> None:
        ranks, device = join(args.device)
        args.device = str(device)
        try:
            fit_files.fit_checkpoints(args, ranks)
        except InputError as error:
            raise UserError(str(error)) from error
        ranks.leave()

    return run_command(PROGRAM, f"--output {args.output}", work, fit_files.INTERRUPTED)


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = Parser(prog=PROGRAM, description=fit_files.__doc__.replace("PROGRAM", PROGRAM))
    fit_files.add_arguments(parser)
    return parser


if __name__ == "__main__":
    leave(main())
