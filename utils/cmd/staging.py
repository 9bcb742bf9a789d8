"""Pieces of a large array in host memory, brought to a GPU while the piece before is worked on."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor


def stage(
    rows: Tensor, columns: Sequence[slice], device: torch.device
) -> Iterator[tuple[slice, Tensor]]:
    """Copy `rows[:, part]` to the device for each part of `columns`, in their order.

    On CUDA the copies run beside the device's work: the host gathers the next part into a pinned
    buffer, which a stream of its own sends.

    Args:
        rows: [T, N] in host memory, such as a memory map.

    Yields (part, its columns [T, n]), each valid until the next one is asked for.
    """
    if device.type != "cuda":
        for part in columns:
            yield part, rows[:, part].to(device)
        return

    widest = max(part.stop - part.start for part in columns)
    pinned, on_device = (
        [torch.empty(len(rows) * widest, dtype=rows.dtype, **where) for _ in range(2)]
        for where in ({"pin_memory": True}, {"device": device})
    )
    copying = torch.cuda.Stream(device)
    arrived = [torch.cuda.Event(), torch.cuda.Event()]
    used = [torch.cuda.Event(), torch.cuda.Event()]

    def send(turn: int) -> Tensor:
        slot, part = turn % 2, columns[turn]
        shape = (len(rows), part.stop - part.start)
        source, target = (
            buffers[slot][: shape[0] * shape[1]].view(shape) for buffers in (pinned, on_device)
        )
        arrived[slot].synchronize()  # the buffer's last copy has left it
        source.copy_(rows[:, part])
        with torch.cuda.stream(copying):
            copying.wait_event(used[slot])  # the device has finished with the buffer
            target.copy_(source, non_blocking=True)
            arrived[slot].record(copying)
        return target

    current = torch.cuda.current_stream(device)
    copying.wait_stream(current)  # which may still be working in what the buffers' memory was
    try:
        ready = send(0)
        for turn, part in enumerate(columns):
            target = ready
            if turn + 1 < len(columns):
                ready = send(turn + 1)
            current.wait_event(arrived[turn % 2])
            yield part, target
            used[turn % 2].record(current)
    finally:
        current.wait_stream(copying)  # a copy on its way must not arrive in another's memory
