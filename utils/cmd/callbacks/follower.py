"""What the callbacks share: an OnlineCMD that is made when training begins."""

import contextlib
import warnings
import weakref
from typing import Any

import torch
from torch import nn

from ..online import OnlineCMD

_APPLIED: "weakref.WeakSet[nn.Module]" = weakref.WeakSet()  # models with reconstructed weights


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

    def begin(self, model: nn.Module, step: int) -> None:
        """Follow this model from now on, with a state that was loaded, or from the beginning; a
        training that merely goes on is followed on.

        Args:
            step: how many optimizer steps there were.
        """
        if self._saved is not None:
            cmd = OnlineCMD(model, **self.settings)
            cmd.load_state_dict(self._saved["cmd"])
            self.cmd, self._step, self._saved = cmd, self._saved["step"], None
        elif self.cmd is None or step == 0:
            self.cmd, self._step = OnlineCMD(model, **self.settings), step

    def update(self, model: nn.Module, step: int, epoch_ends: bool) -> None:
        """Take in the weights after an optimizer step, if it is time to.

        Args:
            step: how many optimizer steps there were.
            epoch_ends: whether an epoch ends with this one.
        """
        every = self.update_every
        due = epoch_ends if every is None else step // every > self._step // every
        if due and step > self._step:
            self.cmd.update_parameters(model)
            self._step = step

    @property
    def fitted(self) -> bool:
        """Whether the warm-up is over, so that there are reconstructed weights."""
        return self.cmd.n_updates > self.cmd.warmup

    def is_worth_saving(self) -> bool:
        """Whether there are reconstructed weights; warn if there are none."""
        if not self.fitted:
            warnings.warn(
                f"training ended after {self.cmd.n_updates} of the {self.cmd.warmup + 1} updates "
                f"that CMD takes with warmup={self.cmd.warmup}, and no reconstructed model is "
                "saved: choose a smaller warmup or update_every",
                stacklevel=2,
            )
        return self.fitted

    @property
    def waits(self) -> bool:
        """Whether a state was loaded that no model has taken yet."""
        return self._saved is not None

    def apply(self, model: nn.Module) -> None:
        """Give the model the reconstructed weights until `give_back`; during the warm-up there are
        none, and it keeps its own.

        Raises:
            ValueError: another callback has done so.
        """
        if not self.fitted:
            return
        if model in _APPLIED:
            raise ValueError("two CMDCallbacks evaluate one model: give evaluate=False to one")
        self._block.enter_context(self.cmd.applied_to(model))
        self._block.callback(_APPLIED.discard, model)
        _APPLIED.add(model)
        self.applied = True

    def give_back(self) -> None:
        """Give the model its own weights, if it does not have them."""
        self.applied = False
        self._block.close()

    def give_back_before_training(self, model: nn.Module, resumed: bool) -> None:
        """Undo what an earlier training left, which an error ended within an evaluation.

        Args:
            resumed: whether the model was loaded since, and keeps what it has.
        """
        if not self.applied:
            return
        tensors = (*model.parameters(), *model.buffers())
        loaded = [tensor.detach().clone() for tensor in tensors] if resumed else []
        self.give_back()
        with torch.no_grad():
            for tensor, value in zip(tensors, loaded, strict=False):
                tensor.copy_(value)

    def state(self) -> dict[str, Any]:
        """What `load` needs; empty before training begins."""
        if self.cmd is None:
            return {}
        every = {"update_every": self.update_every}
        return {"cmd": self.cmd.state_dict(), "step": self._step} | every

    def load(self, state: dict[str, Any]) -> None:
        """Go on from a state, as soon as there is a model.

        Raises ValueError if it was saved with another update_every.
        """
        saved = state.get("update_every", self.update_every)  # states once had none
        if saved != self.update_every:
            raise ValueError(f"saved with update_every={saved}, this one has {self.update_every}")
        self._saved = state or None
