"""The trajectory on disk: snapshots of θ, float32 [T, N], one contiguous row an epoch.

The file is an ordinary `.npy`, so `numpy.load(path, mmap_mode="r")` opens it, also while a run
goes on: a row, and its checksum in a file beside, are written before the header counts the row.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from utils.storage.files import atomic_write, room_for
from utils.storage.sealed import Sums, digest
from utils.system.errors import UserError

MADE_ANEW = "the run's command with --overwrite makes it again"


sync_data = getattr(os, "fdatasync", os.fsync)  # macOS has fsync alone


class TrajectoryError(UserError):
    """The file is not a whole trajectory of the model."""

    def __init__(self, words: str) -> None:
        super().__init__(f"{words}: {MADE_ANEW}")


class Trajectory:
    """An append-only `.npy` of snapshots.

    `len(trajectory)` is the number of whole snapshots, and `trajectory[t]` a copy of snapshot t,
    float32 [N].

    Attributes:
        path: of the file.
        n_weights: N.
        array: all snapshots, memory-mapped.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        n_weights: int,
        before_reading: Callable[[], None] = lambda: None,
        sums: Sums | None = None,
    ) -> None:
        """Open the trajectory at `path`, or create an empty one.

        Args:
            path: the file's.
            n_weights: N.
            before_reading: called first whenever snapshots are read, e.g. to let another thread
                finish writing them.
            sums: the snapshots' checksums. Each snapshot already in the file is checked when it is
                first read. None leaves them unchecked.

        Raises TrajectoryError if the file is something else, of another length N, shorter than
        its header says, or has snapshots without a checksum.
        """
        self.path = Path(path)
        self.n_weights, self._before_reading, self._sums = n_weights, before_reading, sums
        if not self.path.exists():
            with atomic_write(self.path) as file:
                file.write(self._header(0))
        self._length = self._read_length()
        self._unchecked = set(range(self._length)) if sums is not None else set()
        if sums is not None:
            sums.read()  # the checksums of snapshots added since are there
        if sums is not None and self._length > len(sums.digests):
            raise TrajectoryError(
                f"{self.path}: {sums.path} has checksums of {len(sums.digests)} of its "
                f"{self._length} snapshots"
            )

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, epoch: int) -> Tensor:
        self._before_reading()
        if not 0 <= epoch < self._length:
            raise IndexError(f"snapshot {epoch} of {self._length}")
        row = np.fromfile(
            self.path, dtype="<f4", count=self.n_weights, offset=self._row_offset(epoch)
        )
        if row.size != self.n_weights:
            raise TrajectoryError(f"{self.path}: snapshot {epoch} is cut short")
        self._check(epoch, row)
        return torch.from_numpy(row)

    @property
    def array(self) -> np.ndarray:
        """All whole snapshots, float32 [T, N], mapped copy-on-write, so the file cannot change."""
        self._before_reading()
        shape = (self._length, self.n_weights)
        if self._length == 0:
            return np.empty(shape, dtype=np.float32)
        rows = np.memmap(self.path, np.dtype("<f4"), "c", self._row_offset(0), shape)
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(lambda epoch: self._check(epoch, rows[epoch]), sorted(self._unchecked)))
        return rows

    def _check(self, epoch: int, row: np.ndarray) -> None:
        """Raise TrajectoryError if a snapshot is not what was written."""
        if epoch not in self._unchecked:
            return
        if digest(row.data) != self._sums.digests[epoch]:
            raise TrajectoryError(
                f"{self.path}: snapshot {epoch} does not have the checksum in {self._sums.path}"
            )
        self._unchecked.discard(epoch)

    def append(self, vector: Tensor) -> None:
        """Write one snapshot, float [N], with one write, then count it.

        Raises ValueError if the length is not N, UserError if the disk is full; the snapshots
        already there stay whole.
        """
        if vector.shape != (self.n_weights,):
            raise ValueError(f"a snapshot has {self.n_weights} weights, not {list(vector.shape)}")
        self.write(vector)
        self.seal(vector)
        self.count()

    def write(self, values: Tensor, first: int = 0) -> None:
        """Write weights of the next snapshot, float [n], from number `first` on.

        The snapshot is not counted yet, so that each of several processes can write a part.
        """
        row = _as_stored(values)
        with room_for(self.path, row.nbytes), self.path.open("r+b") as file:
            file.seek(self._row_offset(self._length) + 4 * first)
            file.write(row.data)
            file.flush()
            os.fsync(file.fileno())  # the row must be on the disk before the header counts it

    def seal(self, vector: Tensor) -> None:
        """Keep the checksum of the whole next snapshot before it is counted.

        Of several processes, one does this for all.
        """
        if self._sums is not None:
            self._sums.truncate(self._length)
            self._sums.add(_as_stored(vector).data)

    def count(self, in_file: bool = True) -> None:
        """Count a snapshot that was written whole.

        Args:
            in_file: whether to count it in the header, too, which one process does for all.
        """
        if in_file:
            with room_for(self.path, 0), self.path.open("r+b") as file:
                file.write(self._header(self._length + 1))
                file.flush()
                sync_data(file.fileno())  # before a checkpoint that is of this snapshot
        self._length += 1

    def truncate(self, length: int) -> None:
        """Forget the snapshots from `length` on."""
        if length < self._length:
            with self.path.open("r+b") as file:
                file.write(self._header(length))
            os.truncate(self.path, self._row_offset(length))
            self._length = length
            self._unchecked &= set(range(length))

    def _header(self, length: int) -> bytes:
        # numpy pads this header so that its length does not change as the first axis grows
        buffer = BytesIO()
        shape = (length, self.n_weights)
        np.lib.format.write_array_header_1_0(
            buffer, {"descr": "<f4", "fortran_order": False, "shape": shape}
        )
        return buffer.getvalue()

    def _row_offset(self, epoch: int) -> int:
        return len(self._header(0)) + epoch * self.n_weights * 4

    def _read_length(self) -> int:
        try:
            with self.path.open("rb") as file:
                np.lib.format.read_magic(file)
                shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(file)
                data_offset = file.tell()
                file.seek(0)
                header = file.read(data_offset)
        except Exception as error:  # numpy raises many types for what is not its own
            words = " ".join(str(error).split())[:200]
            raise TrajectoryError(f"{self.path} is not a trajectory: {words}") from error
        if dtype != np.dtype("<f4") or fortran_order or len(shape) != 2:
            raise TrajectoryError(f"{self.path} is not a float32 [T, N] array")
        if shape[1] != self.n_weights or data_offset != self._row_offset(0):
            raise TrajectoryError(
                f"{self.path} holds models of {shape[1]:,} weights, not {self.n_weights:,}"
            )
        if header != self._header(shape[0]):
            raise TrajectoryError(f"{self.path} is not a trajectory as it was written")
        if self.path.stat().st_size < self._row_offset(shape[0]):
            raise TrajectoryError(f"{self.path} is cut short: it should hold {shape[0]} snapshots")
        return shape[0]


def _as_stored(values: Tensor) -> np.ndarray:
    return values.detach().to("cpu", torch.float32).contiguous().numpy().astype("<f4", copy=False)
