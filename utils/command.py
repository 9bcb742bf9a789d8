"""How a command ends: its exit code, and one line if it could not do what it was asked to."""

import contextlib
import io
import signal
import sys
import warnings
from collections.abc import Callable

from utils.errors import UserError
from utils.ranks import OtherRankFailedError, is_another

INTERRUPTED = "interrupted; what was finished is kept, and the same command goes on with it"


class Terminated(BaseException):
    """The process was asked to end by SIGTERM."""


def run_command(program: str, results_dir: str, work: Callable[[], None]) -> int:
    """Do the work; returns the exit code: 0, 2 for what the user can mend, 130 and 143 when
    interrupted.

    Of several processes on one run the first one speaks for all.
    """
    warnings.formatwarning = lambda message, *_, **__: f"note: {message}\n"
    signal.signal(signal.SIGTERM, _terminate)
    try:
        with contextlib.redirect_stdout(io.StringIO() if is_another() else sys.stdout):
            work()
    except UserError as error:
        return _stop(program, f"error: {error}", 2)
    except OSError as error:
        hint = f"is there room in --results_dir {results_dir}, and may it be written to?"
        return _stop(program, f"error: {error}; {hint}", 2)
    except OtherRankFailedError:
        return 2
    except Terminated:
        return _stop(program, INTERRUPTED, 143)
    except KeyboardInterrupt:
        return _stop(program, INTERRUPTED, 130)
    return 0


def _terminate(*_) -> None:
    raise Terminated


def _stop(program: str, message: str, code: int) -> int:
    if not is_another():  # all processes stop for the same reason
        print(f"{program}: {message}", file=sys.stderr)
    return code
