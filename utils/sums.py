"""Checksums of a file that grows, in a file beside it: a line for each piece."""

from pathlib import Path

from utils.files import append, digest, write_text


class Sums:
    """The checksums of the pieces of a file, in the order they were added.

    digests: of each piece, by `utils.files.digest`. The first line of the file names the run that
    it belongs to.
    """

    def __init__(self, path: Path, run: str, writable: bool = True) -> None:
        """Open the checksums, or begin with none; a last line cut short by a kill is dropped.

        writable: whether the file is to be made or mended so that lines can be added.

        Raises ValueError if they are of another run.
        """
        self.path, self._run = path, run
        if not self.read() and writable:
            self._write()

    def read(self) -> bool:
        """Read the file, as far as it has grown; returns whether it is there and whole.

        Whoever reads beside a run that goes on reads the pieces first and then their checksums,
        which are written before them.

        Raises ValueError if they are of another run.
        """
        text = self.path.read_text(errors="replace") if self.path.exists() else ""
        whole = text[: text.rfind("\n") + 1]
        first, *self.digests = whole.splitlines() or [self._run]
        if first != self._run:
            raise ValueError(f"{self.path} belongs to another run, or is damaged")
        return bool(whole) and whole == text

    def add(self, data: bytes | memoryview) -> None:
        """Add a piece's checksum, which is on the disk when this returns."""
        self.digests.append(digest(data))
        append(self.path, self.digests[-1] + "\n")

    def truncate(self, count: int) -> None:
        """Forget all but the first `count`."""
        if count < len(self.digests):
            del self.digests[count:]
            self._write()

    def _write(self) -> None:
        write_text("".join(f"{line}\n" for line in (self._run, *self.digests)), self.path)
