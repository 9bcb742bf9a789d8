"""A folder that one process works in at a time."""

import contextlib
import fcntl
import os
import socket
from pathlib import Path

from utils.system.errors import UserError

HOLDER = ".running"  # names the process that works there, only while the lock is held


class FolderLock:
    """Holds a folder for this process until `release`, or until the process ends in any way.

    The folder itself is locked (flock), so that nothing left behind can keep other processes out.
    """

    def __init__(self, folder: Path) -> None:
        """Take the lock.

        Raises UserError, naming the process that has the lock, if it is taken.
        """
        self._holder = folder / HOLDER
        self._folder: int | None = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(self._folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._close()
            who = "another process"
            with contextlib.suppress(OSError, ValueError):
                who = self._holder.read_text().strip()[:200] or who
            raise UserError(
                f"{folder} is in use by {who}: wait for it or stop it, or choose another "
                "--results_dir"
            ) from error
        except OSError:
            pass  # a file system without locks: go on as if there were no other
        with contextlib.suppress(OSError):
            self._holder.write_text(f"process {os.getpid()} on {socket.gethostname()}\n")

    def release(self) -> None:
        """Give the folder to other processes."""
        if self._folder is not None:
            self._holder.unlink(missing_ok=True)
            self._close()

    def _close(self) -> None:
        os.close(self._folder)
        self._folder = None

    def __del__(self) -> None:
        with contextlib.suppress(Exception):  # modules may be gone as the interpreter ends
            self.release()
