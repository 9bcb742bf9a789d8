"""Checkpoints of any kind: opened without running any code of theirs, read in ranges, written back.

`open_checkpoint` takes a file or folder and finds the model's state in it; its tensors are read
through a memory map, where and when they are needed.
"""

from .opened import Opened, is_checkpoint, open_checkpoint
from .stored import Stored

__all__ = ["Opened", "Stored", "is_checkpoint", "open_checkpoint"]
