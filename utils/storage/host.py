"""What is to be written, copied where it is and brought to the host at once."""

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

ALIGNED = 64  # bytes, at whose multiples tensors begin


class Host:
    """Brings one tensor after another to the host, each into the memory of the one before."""

    def __init__(self) -> None:
        self._memory: Tensor | None = None

    def bring(self, tensor: Tensor) -> Tensor:
        """Return the tensor on the host, there until the next is brought.

        Of a GPU's work only the current stream is waited for.
        """
        if not tensor.is_cuda:
            return tensor.cpu()  # itself, where it is there
        if self._memory is None or self._memory.shape != tensor.shape:
            self._memory = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        self._memory.copy_(tensor, non_blocking=True)
        torch.cuda.current_stream(tensor.device).synchronize()
        return self._memory


class StateCopy:
    """A copy of a nested state, whose tensors lie one after another in memory of the device, and
    take one copy to the host. The next state is copied into the same memory."""

    def __init__(self, device: torch.device) -> None:
        self._memory = torch.empty(0, dtype=torch.uint8, device=device)
        self._host, self._state, self._places = Host(), None, []

    @torch.no_grad()
    def take(self, state: Any) -> None:
        """Copy a state, which may change from now on."""
        kind = self._memory.device.type
        there = {
            id(each): each
            for each in _tensors(state)
            if each.device.type == kind and each.numel()  # others are copied one by one
        }
        self._places = [torch.empty_like(each, device="meta") for each in there.values()]
        needed = sum(map(_room, self._places))
        if len(self._memory) != needed:
            self._memory = self._memory.new_empty(needed)
        copies = map(_laid_out, self._pieces(self._memory), self._places)
        pairs = list(zip(copies, there.values(), strict=True))
        for dtype in {each.dtype for each in there.values()}:  # a GPU copies all of one together
            alike = [pair for pair in pairs if pair[1].dtype == dtype]
            torch._foreach_copy_(*zip(*alike, strict=True))
        self._state = copy.deepcopy(state, dict(zip(there, self._places, strict=True)))

    def on_host(self) -> Any:
        """Return the state on the host, there until the next is taken."""
        pieces = self._pieces(self._host.bring(self._memory))
        # numpy's views have storages of their own, of which torch.save writes each as it is
        alone = (torch.from_numpy(piece.numpy()) for piece in pieces)
        tensors = map(_laid_out, alone, self._places)
        return copy.deepcopy(self._state, dict(zip(map(id, self._places), tensors, strict=True)))

    def _pieces(self, memory: Tensor) -> Iterator[Tensor]:
        """View the bytes of each tensor in some memory."""
        for place, piece in zip(
            self._places, memory.split(list(map(_room, self._places))), strict=True
        ):
            yield piece[: place.nbytes]


def _laid_out(piece: Tensor, like: Tensor) -> Tensor:
    return piece.view(like.dtype).as_strided(like.shape, like.stride())


def _room(tensor: Tensor) -> int:
    return -(-tensor.nbytes // ALIGNED) * ALIGNED


def _tensors(state: Any) -> Iterator[Tensor]:
    if isinstance(state, Tensor):
        yield state
    elif isinstance(state, (dict, list, tuple)):
        for each in state.values() if isinstance(state, dict) else state:
            yield from _tensors(each)
