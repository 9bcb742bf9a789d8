"""How a command ends: its exit code, and one line if it could not do what was asked."""

import contextlib
import io
import os
import shlex
import signal
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from utils.system.arguments import one_line
from utils.system.errors import NoRoomError, UserError
from utils.system.interrupts import handled
from utils.system.ranks import OtherRankFailedError, is_another, is_of_others

INTERRUPTED = "interrupted; what was finished is kept, and the same command goes on with it"
OVERWRITING = INTERRUPTED.replace("command", "command without --overwrite")
BROKEN_PIPE = 128 + signal.SIGPIPE  # as shells report it


class Terminated(BaseException):
    """The process was asked to end by SIGTERM."""


def run_command(
    program: str,
    where: str,
    work: Callable[[], int | None],
    interrupted: str = INTERRUPTED,
    smaller: str = "try --device cpu",
) -> int:
    """Do the work and return the exit code; to be called in the main thread.

    Of several processes on one run only the first one prints.

    Args:
        program: the name that messages begin with.
        where: the flag, with its value, that says where results go.
        work: returns an exit code, or None for 0.
        interrupted: the message when SIGINT or SIGTERM ends the work.
        smaller: what to do where memory runs out.

    Returns:
        The work's own code; 2 for what the user can mend, 130 after SIGINT, 143 after SIGTERM.
    """
    warnings.formatwarning = lambda message, *_, **__: f"note: {message}\n"
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # file names need not be UTF-8
    interruptible = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: _terminate}
    try:
        with (
            handled(interruptible),
            contextlib.redirect_stdout(io.StringIO() if is_another() else sys.stdout),
        ):
            return work() or 0
    except UserError as error:
        return _stop(program, f"error: {error}", 2, own=isinstance(error, NoRoomError))
    except BrokenPipeError:  # whoever read the output has gone
        sys.stdout = None  # else Python tries again as it ends, and complains
        return BROKEN_PIPE
    except FileNotFoundError as error:
        return _stop(program, f"error: {_missing(error)}", 2)
    except OSError as error:
        hint = f"is there room in {where}, and may it be read and written to?"
        return _stop(program, f"error: {error}; {hint}", 2, own=True)
    except (MemoryError, RuntimeError) as error:
        reason = _out_of_memory(error)
        if reason is not None:
            return _stop(program, f"error: {reason}: {smaller}", 2, own=True)
        if is_of_others(error):
            return _stop(program, "error: another process ended, and says why", 2)
        raise
    except OtherRankFailedError:
        return 2
    except Terminated:
        return _stop(program, interrupted, 143)
    except KeyboardInterrupt:
        return _stop(program, interrupted, 130)


def command_to_go_on(program: str, argv: Sequence[str] | None) -> str:
    """The command that goes on with what this one does: itself, without --overwrite.

    Args:
        argv: its arguments, None for those of the process.
    """
    words = (word for word in (sys.argv[1:] if argv is None else argv) if word != "--overwrite")
    return shlex.join(["python", program, *words])


def _missing(error: FileNotFoundError) -> str:
    """Return the message that a file, or the first missing one of its folders, is not there."""
    if not isinstance(error.filename, (str, bytes)):
        return str(error)
    path = Path(os.fsdecode(error.filename))
    whole = (*reversed(path.parents), path)
    return f"{next((part for part in whole if not part.exists()), path)} is not there"


def _out_of_memory(error: BaseException) -> str | None:
    """Return what was asked for where the memory of the device or the host ran out, else None."""
    words = " ".join(str(error).split()) or "no more memory"
    if isinstance(error, torch.OutOfMemoryError):  # an explanation for programmers follows
        return ". ".join(words.split(". ")[:2])
    if isinstance(error, MemoryError) or "can't allocate memory" in words:
        return f"out of memory ({words})"
    return None


def _terminate(*_) -> None:
    raise Terminated


def _stop(program: str, message: str, code: int, own: bool = False) -> int:
    """Print why the command ends, and return its exit code.

    Args:
        own: whether it may be this process alone that has met it; else all of them do, and the
            first one prints.
    """
    if not is_another():
        print(f"{program}: {one_line(message)}", file=sys.stderr)
    elif own:
        print(f"{program}, rank {os.environ['RANK']}: {one_line(message)}", file=sys.stderr)
    return code
