"""What the wrappers of distributed training ask of those who read or write a model."""

import sys
from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from .vector import Entry, is_layer, whole


def reshard(model: nn.Module) -> None:
    """Have the modules of FSDP2 let go of whole parameters, which they may keep from a forward pass
    to the next, so that the sharded ones are read and written."""
    fsdp = sys.modules.get("torch.distributed.fsdp")  # where it was not imported there is none
    if fsdp is not None:
        for part in model.modules():
            if isinstance(part, fsdp.FSDPModule):
                part.reshard()


def refuse_fsdp1(model: nn.Module) -> None:
    """Raise ValueError if a part of the model is wrapped by FSDP1, whose parameters are the shards
    that a process has."""
    for part in model.modules():
        for kind in type(part).__mro__:  # by name: to import it is slow
            if kind.__name__ == "FullyShardedDataParallel" and kind.__module__.startswith(
                "torch.distributed.fsdp"
            ):
                raise ValueError(
                    "FullyShardedDataParallel (FSDP1) gives each process only shards of the "
                    "weights: use FSDP2's fully_shard, or hand over the unwrapped module with "
                    "whole weights"
                )


@torch.no_grad()
def with_first_buffers(model: nn.Module, found: Mapping[str, Entry]) -> dict[str, Entry]:
    """Return the entries of a model, in which floating-point buffers within
    DistributedDataParallel are copies of the first process's: those of the others differ, such as
    BatchNorm's statistics of other data. All processes have to call this then."""
    found = dict(found)
    if not (dist.is_available() and dist.is_initialized()):
        return found
    for part in model.modules():
        if not isinstance(part, DistributedDataParallel):
            continue
        group = part.process_group
        if dist.get_world_size(group) == 1:
            continue
        first, owners = dist.get_global_rank(group, 0), set(part.modules())
        for name, entry in found.items():
            buffer = not isinstance(entry.tensor, nn.Parameter)
            if buffer and is_layer(entry) and entry.owner in owners:
                value = whole(entry.tensor).clone(memory_format=torch.contiguous_format)
                dist.broadcast(value, src=first, group=group)
                found[name] = entry._replace(tensor=value)
    return found
