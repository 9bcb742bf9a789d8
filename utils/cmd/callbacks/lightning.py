"""Online CMD as a callback of Lightning's Trainer."""

from pathlib import Path
from typing import Any

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
except ImportError:  # the same library under its other name
    try:
        from pytorch_lightning import Callback, LightningModule, Trainer
    except ImportError as missing:
        raise ImportError("Lightning is not installed: pip install lightning") from missing

from torch.nn.parallel import DistributedDataParallel

from .follower import Follower


class CMDCallback(Callback):
    """Online CMD beside a training by Lightning.

    Validation and test take the reconstructed weights, the trainer's checkpoints hold CMD's state
    beside the model's own weights and bring it back, and when training ends the reconstructed model
    is saved as a checkpoint of its own, for `load_from_checkpoint`:

        callback = CMDCallback(warmup=20, memory=10)
        trainer = Trainer(max_epochs=100, callbacks=[callback])
        trainer.fit(model, train_loader, validation_loader)

    Attributes:
        cmd: the OnlineCMD, None before training begins.
    """

    def __init__(
        self,
        update_every: int | None = None,
        evaluate: bool = True,
        save_as: str | None = "cmd.ckpt",
        **settings: Any,
    ) -> None:
        """Prepare to follow the trainer's model.

        Args:
            update_every: optimizer steps from one update to the next, None for an epoch. The
                warm-up, `start` and the memory of CMD count in these updates.
            evaluate: whether validation and test take the reconstructed weights.
            save_as: the file of the reconstructed model, in the trainer's default_root_dir; None
                saves none, nor do fast_dev_run and a training that ends within the warm-up.
                Callbacks beside each other need different ones.
            settings: keyword arguments of OnlineCMD, such as modes, samples, warmup and memory.

        Raises:
            ValueError: update_every < 1.
        """
        self._follower = Follower(update_every, evaluate, **settings)
        self.save_as = save_as

    @property
    def cmd(self):
        return self._follower.cmd

    @property
    def state_key(self) -> str:
        """What tells callbacks beside each other apart in a checkpoint: values that are written
        alike in every process, as objects and functions are not."""
        settings = {
            name: value
            for name, value in self._follower.settings.items()
            if value is None or isinstance(value, int | float | str)
        }
        save_as = self.save_as and Path(self.save_as).name
        return self._generate_state_key(
            save_as=save_as, update_every=self._follower.update_every, **settings
        )

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Take the one state that no callback has the key of, if this is the one without a state;
        other settings than it was saved with are an error when training begins.

        Raises ValueError if it is not clear which state is meant.
        """
        kind = f"{type(self).__qualname__}{{"
        states = {key: state for key, state in checkpoint["callbacks"].items()
                  if str(key).startswith(kind) and state}  # fmt: skip
        keys = [one.state_key for one in trainer.callbacks if one.state_key.startswith(kind)]
        left = [key for key in states if key not in keys]
        if self.state_key in states or not left:  # which Lightning loads, or there is none
            return
        if len(left) > 1 or sum(key not in states for key in keys) > 1:
            raise ValueError(
                f"the checkpoint has CMD's state of {' and of '.join(left)}, none of "
                f"{self.state_key}: give all callbacks the settings that they were saved with"
            )
        self.load_state_dict(states[left[0]])

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._follower.begin(pl_module, trainer.global_step)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # strategies such as FSDP's load a checkpoint after `on_fit_start`
        if self._follower.waits:
            self._follower.begin(pl_module, trainer.global_step)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs, batch, batch_idx: int
    ) -> None:
        # before the validation at an epoch's end, and the checkpoint that may follow it
        wrapped = trainer.strategy.model  # by DDP, whose processes follow the same weights
        model = wrapped if isinstance(wrapped, DistributedDataParallel) else pl_module
        self._follower.update(model, trainer.global_step, trainer.is_last_batch)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.save_as is None or trainer.fast_dev_run or not self._follower.is_worth_saving():
            return
        with self.cmd.applied_to(pl_module):
            path = Path(trainer.default_root_dir) / self.save_as
            trainer.save_checkpoint(path, weights_only=True)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._apply(pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # after the module's own on_validation_epoch_end, and before checkpoints are saved
        self._follower.give_back()

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._apply(pl_module)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._follower.give_back()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        self._follower.give_back()

    def state_dict(self) -> dict[str, Any]:
        return self._follower.state()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._follower.load(state_dict)

    def _apply(self, model: LightningModule) -> None:
        follower = self._follower
        if follower.waits:  # a checkpoint was loaded to be tested
            follower.begin(model, 0)
        if follower.evaluate and follower.cmd is not None:
            follower.apply(model)
