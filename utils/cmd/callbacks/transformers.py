"""Online CMD as a callback of the Trainer of Hugging Face's transformers."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_model
from torch import nn

try:
    from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
except ImportError as missing:
    raise ImportError("transformers is not installed: pip install transformers") from missing

from ..files import read_pickled, whole
from .follower import Follower

WEIGHTS = "model.safetensors"


class CMDCallback(TrainerCallback):
    """Online CMD beside a training by transformers' Trainer.

    Evaluations during training take the reconstructed weights, the trainer's checkpoints get a file
    with CMD's state, from which a resumed training goes on, and when training ends the
    reconstructed model is saved as the trainer saves models, for `from_pretrained`:

        callback = CMDCallback(warmup=20, memory=10, parameters="trainable")
        trainer = Trainer(model, args, train_dataset=data, callbacks=[callback])
        trainer.train()

    Attributes:
        cmd: the OnlineCMD, None before training begins.
    """

    def __init__(
        self,
        update_every: int | None = None,
        evaluate: bool = True,
        save_as: str | None = "cmd",
        resume_from: str | Path | None = None,
        **settings: Any,
    ) -> None:
        """Prepare to follow the trainer's model.

        Args:
            update_every: optimizer steps from one update to the next, None for an epoch. The
                warm-up, `start` and the memory of CMD count in these updates.
            evaluate: whether evaluations during training take the reconstructed weights.
            save_as: the folder of the reconstructed model, in the trainer's output_dir; None saves
                none, nor does a training that ends within the warm-up. The file with CMD's state
                has the same name, or cmd.pt, so callbacks beside each other need different ones.
            resume_from: the checkpoint that a training is resumed from, where it is not in the
                output_dir.
            settings: keyword arguments of OnlineCMD, such as modes, samples, warmup and memory.

        Raises:
            ValueError: update_every < 1.
        """
        self._follower = Follower(update_every, evaluate, **settings)
        self.save_as, self.resume_from = save_as, resume_from
        self._awaited = self._evaluated = False  # an evaluation that takes reconstructed weights

    @property
    def cmd(self):
        return self._follower.cmd

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._awaited = self._evaluated = False
        self._follower.give_back_before_training(kwargs["model"], resumed=state.global_step > 0)
        if state.global_step:
            path = self._checkpoint(args, state) / self._state_file
            if not path.exists():
                raise ValueError(
                    f"{path} is not there: CMD goes on from the checkpoint that training is "
                    "resumed from; name its folder by CMDCallback(resume_from=…)"
                )
            self._follower.load(read_pickled(path))
        self._follower.begin(kwargs["model"], state.global_step)
        if args.eval_on_start:  # no step comes before it
            self._apply(kwargs["model"])

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self._evaluated = False

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        # a checkpoint by steps at an epoch's end is saved before `on_epoch_end`
        self._follower.update(kwargs["model"], state.global_step, state.epoch == int(state.epoch))
        if control.should_evaluate:
            self._apply(kwargs["model"])

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        # data without a length: the epoch is over unless training was stopped within it
        over = not (control.should_training_stop or control.should_epoch_stop)
        self._follower.update(kwargs["model"], state.global_step, over)
        if control.should_evaluate:
            self._apply(kwargs["model"])

    def on_evaluate(self, *_: Any, **__: Any) -> None:
        self._evaluated, self._awaited = self._awaited, False  # also in the warm-up, to say so soon
        self._follower.give_back()

    def on_prediction_step(self, *_: Any, **__: Any) -> None:
        if self._evaluated:
            raise ValueError(
                "of several evaluation sets only the first would take the reconstructed weights: "
                "choose CMDCallback(evaluate=False), and evaluate within cmd.applied_to(model)"
            )

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if args.should_save and not state.is_hyper_param_search:  # whose trials are not resumed
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            with whole(folder / self._state_file) as draft:
                torch.save(self._follower.state(), str(draft))

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._follower.give_back()
        self._evaluated = False
        if self.save_as is not None and args.should_save and self._follower.is_worth_saving():
            folder = Path(args.output_dir) / self.save_as
            save_as_trainer(self.cmd.module, folder)
            if kwargs.get("processing_class") is not None:
                kwargs["processing_class"].save_pretrained(folder)

    @property
    def _state_file(self) -> str:
        return f"{Path(self.save_as or 'cmd').name}.pt"

    def _checkpoint(self, args: TrainingArguments, state: TrainerState) -> Path:
        if self.resume_from is not None:
            return Path(self.resume_from)
        return Path(args.output_dir) / f"checkpoint-{state.global_step}"

    def _apply(self, model: nn.Module) -> None:
        if self._follower.evaluate and not self._follower.applied:
            self._awaited = True
            self._follower.apply(model)


def save_as_trainer(model: nn.Module, folder: Path) -> None:
    """Save a model as Trainer.save_model does: by its own `save_pretrained`, or its weights."""
    if hasattr(model, "save_pretrained"):
        model.save_pretrained(folder)
    else:
        folder.mkdir(parents=True, exist_ok=True)
        save_model(model, str(folder / WEIGHTS))
