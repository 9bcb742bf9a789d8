"""The processes of one run: this one alone, or those that torchrun started.

Every process (rank) holds the whole model and all images. In training it takes its share of every
batch, in testing its share of the batches; of θ's N weights it fits, updates and reconstructs a
range of its own. Rank 0 writes the results; every rank writes its columns of the trajectory.
"""

import contextlib
import os
from collections.abc import Callable, Iterator
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from utils.system.devices import choose_device
from utils.system.errors import UserError

PATIENCE = timedelta(hours=2)  # while one rank fits or downloads; if one dies, torchrun ends all


class OtherRankFailedError(Exception):
    """Another rank could not do its part, and has reported why."""


class Ranks:
    """A rank among several, and what they do together; where there is one, nothing is sent.

    All ranks must call the methods that send, in the same order.

    Attributes:
        rank: this rank's number, from 0.
        size: how many ranks there are.
    """

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank, self.size = rank, size
        self._writers = dist.new_group(backend="gloo", timeout=PATIENCE) if size > 1 else None

    @property
    def first(self) -> bool:
        """Whether this is rank 0, which prints and writes."""
        return self.rank == 0

    def share(self, count: int) -> slice:
        """Return this rank's part of `count` things in a row; only the last may be smaller."""
        each = -(-count // self.size)
        return slice(min(self.rank * each, count), min((self.rank + 1) * each, count))

    def batch_share(self, count: int) -> tuple[slice, int]:
        """Return this rank's part of a batch of `count` images, and how many of them count.

        A rank for which a small batch leaves nothing gets one image that does not count, because
        models are called on all ranks alike.
        """
        share = self.share(count)
        n_images = share.stop - share.start
        return (share if n_images else slice(0, 1)), n_images

    def sum(self, values: Tensor) -> Tensor:
        """Sum over ranks, in place."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def gather(self, part: Tensor, count: int) -> Tensor:
        """Return all `count` numbers on every rank; each rank gives its share as `part`."""
        if self.size == 1:
            return part
        each = -(-count // self.size)
        padded = part.new_zeros(each)
        padded[: len(part)] = part
        whole = part.new_empty(self.size * each)
        # as bytes: the backends do not know every type of number
        dist.all_gather_into_tensor(whole.view(torch.uint8), padded.view(torch.uint8))
        return whole[:count]

    def from_first(self, values: Tensor) -> Tensor:
        """Copy rank 0's values, in place, to the other ranks' tensors of the same shape."""
        if self.size > 1:
            dist.broadcast(values, src=0)
        return values

    def object_from_first(self, make: Callable):
        """Call `make` on rank 0 only; return its numbers, text or small tensors on every rank."""
        if self.size == 1:
            return make()
        box = [make() if self.first else None]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def align_buffers(self, module: nn.Module) -> None:
        """Give every rank the buffers (running statistics) of rank 0."""
        if self.size > 1:
            for buffer in module.buffers():
                dist.broadcast(buffer, src=0)

    def mean_buffers(self, module: nn.Module) -> None:
        """Give every rank the mean of all ranks' floating-point buffers."""
        if self.size > 1:
            for buffer in module.buffers():
                if buffer.is_floating_point():
                    self.sum(buffer).div_(self.size)

    def parallel(self, module: nn.Module) -> nn.Module:
        """Return the module to call in training, which averages each gradient over ranks; buffers
        are each rank's own until they are aligned."""
        if self.size == 1:
            return module
        device = next(module.parameters()).device
        ids = [device.index] if device.type == "cuda" else None
        return DistributedDataParallel(
            module, device_ids=ids, gradient_as_bucket_view=True, broadcast_buffers=False
        )

    def synchronised(self, model: nn.Module) -> nn.Module:
        """Return the model with BatchNorm over all ranks' images where torch has it, on GPUs."""
        if self.size == 1 or next(model.parameters()).device.type != "cuda":
            return model
        return nn.SyncBatchNorm.convert_sync_batchnorm(model)

    def wait(self) -> None:
        """Wait until every rank is here."""
        if self.size > 1:
            dist.barrier()

    def wait_in_background(self) -> None:
        """Wait in a writing thread until every rank's is here, beside what else the ranks send."""
        if self.size > 1:
            dist.barrier(group=self._writers)

    @contextlib.contextmanager
    def first_goes_first(self) -> Iterator[None]:
        """Run a block on rank 0 before it runs on the others.

        Raises OtherRankFailedError on the others if rank 0 failed.
        """
        if self.size == 1:
            yield
            return
        done = torch.zeros(1)
        if self.first:
            try:
                yield
                done += 1
            finally:
                dist.broadcast(done, src=0)
        else:
            dist.broadcast(done, src=0)
            if not done:
                raise OtherRankFailedError
            yield
        self.wait()

    def leave(self) -> None:
        """End the group, once there is nothing more to send."""
        if self.size > 1:
            dist.destroy_process_group()


ALONE = Ranks()


def is_of_others(error: RuntimeError) -> bool:
    """Whether torch raised an error because another process of this run has ended."""
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    return several and (isinstance(error, dist.DistError) or "gloo" in str(error))


def is_another() -> bool:
    """Whether this process is one of several and not the first, which alone prints."""
    return int(os.environ.get("RANK", "0")) > 0


def join(device_name: str) -> tuple[Ranks, torch.device]:
    """Return the ranks that torchrun started, or this process alone, and this process's device.

    Raises UserError if the device is not available.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return ALONE, choose_device(device_name)
    rank, local = int(os.environ["RANK"]), int(os.environ["LOCAL_RANK"])
    on_gpu = device_name == "cuda" or (device_name == "auto" and torch.cuda.is_available())
    if device_name not in ("auto", "cpu", "cuda"):
        raise UserError(f"--device {device_name}: under torchrun each process takes a GPU of its "
                        "own; choose cuda or cpu")  # fmt: skip
    here, n_gpus = int(os.environ["LOCAL_WORLD_SIZE"]), torch.cuda.device_count()
    if on_gpu and here > n_gpus:
        raise UserError(
            f"--device {device_name}: {here} processes for {n_gpus} GPUs; choose torchrun "
            f"--nproc_per_node={n_gpus}, or --device cpu"
        )
    device = choose_device(f"cuda:{local}" if on_gpu else "cpu")
    if on_gpu:
        torch.cuda.set_device(device)
    backend = "cpu:gloo,cuda:nccl" if on_gpu else "gloo"
    bound = device if on_gpu else None
    dist.init_process_group(backend, timeout=PATIENCE, device_id=bound)
    return Ranks(rank, size), device
