"""What the callbacks share: an OnlineCMD that is made when training begins."""

import contextlib
from typing import Any

from torch import nn

from ..online import OnlineCMD


class Follower:
    """Online CMD of a trainer's model, updated once an epoch or every so many optimizer steps.

    Attributes:
        cmd: the OnlineCMD, None before training begins.
        applied: whether the model has the reconstructed weights.
    """

    def __init__(
        self, update_every: int | None = None, evaluate: bool = True, **settings: Any
    ) -> None:
        """Prepare to follow a model.

        Args:
            update_every: optimizer steps from one update to the next, None for an epoch. The
                warm-up, `start` and the memory of CMD count in these updates.
            evaluate: whether evaluations during training take the reconstructed weights.
            settings: keyword arguments of OnlineCMD, such as modes, samples, warmup and memory.

        Raises:
            ValueError: update_every < 1.
        """
        if update_every is not None and update_every < 1:
            raise ValueError(f"update_every is a number of steps from 1 on, not {update_every}")
        self.update_every, self.evaluate, self.settings = update_every, evaluate, settings
        self.cmd: OnlineCMD | None = None
        self._saved: dict | None = None  # a state that waits for the model
        self._step = 0  # the optimizer step of the latest update
        self._block = contextlib.ExitStack()  # an open `applied_to`
        self.applied = False

    def begin(self, model: nn.Module) -> None:
        """Follow this model from now on, or go on with a state that was loaded."""
        self.cmd = OnlineCMD(model, **self.settings)
        if self._saved is not None:
            self.cmd.load_state_dict(self._saved["cmd"])
            self._step, self._saved = self._saved["step"], None

    def update(self, model: nn.Module, step: int, epoch_ends: bool) -> None:
        """Take in the weights after an optimizer step, if it is time to.

        Args:
            step: how many optimizer steps there were.
            epoch_ends: whether an epoch ends with this one.
        """
        due = epoch_ends if self.update_every is None else step % self.update_every == 0
        if due and step > self._step:
            self.cmd.update_parameters(model)
            self._step = step

    @property
    def waits(self) -> bool:
        """Whether a state was loaded that no model has taken yet."""
        return self._saved is not None

    def apply(self, model: nn.Module) -> None:
        """Give the model the reconstructed weights until `give_back`."""
        self._block.enter_context(self.cmd.applied_to(model))
        self.applied = True

    def give_back(self) -> None:
        """Give the model its own weights, if it does not have them."""
        self._block.close()
        self.applied = False

    def state(self) -> dict[str, Any]:
        """What `load` needs; empty before training begins."""
        return {} if self.cmd is None else {"cmd": self.cmd.state_dict(), "step": self._step}

    def load(self, state: dict[str, Any]) -> None:
        """Go on from a state, as soon as there is a model."""
        self._saved = state or None
