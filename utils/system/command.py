"""How a command ends: its exit code, and one line if it could not do what it was asked to."""

import contextlib
import io
import os
import signal
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

from utils.system.arguments import one_line
from utils.system.errors import UserError
from utils.system.interrupts import handled
from utils.system.ranks import OtherRankFailedError, is_another

INTERRUPTED = "interrupted; what was finished is kept, and the same command goes on with it"
BROKEN_PIPE = 128 + signal.SIGPIPE  # as the shell has it


class Terminated(BaseException):
    """The process was asked to end by SIGTERM."""


def run_command(
    program: str, where: str, work: Callable[[], int | None], interrupted: str = INTERRUPTED
) -> int:
    """Do the work; returns the exit code: the work's own or 0, 2 for what the user can mend, 130
    and 143 when interrupted. Must be called in the main thread.

    where: the flag and its value that say where results go. interrupted: what is said then.
    Of several processes on one run the first one speaks for all.
    """
    warnings.formatwarning = lambda message, *_, **__: f"note: {message}\n"
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files may be no UTF-8
    interruptible = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: _terminate}
    try:
        with (
            handled(interruptible),
            contextlib.redirect_stdout(io.StringIO() if is_another() else sys.stdout),
        ):
            return work() or 0
    except UserError as error:
        return _stop(program, f"error: {error}", 2)
    except BrokenPipeError:  # who was told has gone
        sys.stdout = None  # or Python tries again, and complains, as it ends
        return BROKEN_PIPE
    except FileNotFoundError as error:
        return _stop(program, f"error: {_missing(error)}", 2)
    except OSError as error:
        hint = f"is there room in {where}, and may it be read and written to?"
        return _stop(program, f"error: {error}; {hint}", 2)
    except OtherRankFailedError:
        return 2
    except Terminated:
        return _stop(program, interrupted, 143)
    except KeyboardInterrupt:
        return _stop(program, interrupted, 130)


def _missing(error: FileNotFoundError) -> str:
    """That a file is not there, or the first of its folders that is not."""
    if not isinstance(error.filename, (str, bytes)):
        return str(error)
    path = Path(os.fsdecode(error.filename))
    whole = (*reversed(path.parents), path)
    return f"{next((part for part in whole if not part.exists()), path)} is not there"


def _terminate(*_) -> None:
    raise Terminated


def _stop(program: str, message: str, code: int) -> int:
    if not is_another():  # all processes stop for the same reason
        print(f"{program}: {one_line(message)}", file=sys.stderr)
    return code
