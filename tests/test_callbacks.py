"""Online CMD in Lightning and in transformers' Trainer: both train real, small models."""

import copy
import itertools
import json
import os
from unittest.mock import patch

import lightning.pytorch as lightning
import peft
import pytest
import torch
import transformers
from lightning.pytorch.strategies import SingleDeviceStrategy
from safetensors.torch import load_file
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset

from utils.cmd import OnlineCMD, read_vector
from utils.cmd.callbacks import lightning as for_lightning
from utils.cmd.callbacks import transformers as for_transformers
from utils.cmd.files import read_pickled

pytestmark = pytest.mark.filterwarnings("ignore")  # of the libraries' own
EPOCHS, STEPS = 6, 4
CMD = {"modes": 3, "samples": 60, "warmup": 2, "memory": 3}


def images():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(STEPS * 8, 6, generator=generator)
    return x, (x[:, 0] > 0).long()


class Lit(lightning.LightningModule):
    def __init__(self, fail_at=None):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 12), nn.BatchNorm1d(12), nn.Tanh(), nn.Linear(12, 2))
        self.validated, self.trained, self.fail_at = [], [], fail_at

    def training_step(self, batch, number):
        x, y = batch
        return nn.functional.cross_entropy(self.net(x), y)

    def on_validation_epoch_start(self):
        self.trained.append(None)

    def validation_step(self, batch, number):
        if self.fail_at == self.current_epoch and not self.trainer.sanity_checking:
            raise RuntimeError("validation broke")
        if number == 0:
            self.validated.append(read_vector(self).clone())

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.02)


def fit(folder, epochs=EPOCHS, resume=None, model=None, **options):
    lightning.seed_everything(1, verbose=False)
    model = model or Lit()
    callback = for_lightning.CMDCallback(**(CMD | options))
    trainer = lightning.Trainer(
        max_epochs=epochs, callbacks=[callback], default_root_dir=folder, logger=False,
        accelerator="cpu", enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=True, log_every_n_steps=1, num_sanity_val_steps=1,
    )  # fmt: skip
    loader = DataLoader(TensorDataset(*images()), 8)
    trainer.fit(model, loader, DataLoader(TensorDataset(*images()), 16), ckpt_path=resume)
    return trainer, model, callback


def same(one, other):
    assert torch.equal(one.model.a, other.model.a) and torch.equal(one.model.b, other.model.b)
    assert torch.equal(one.model.reference_history, other.model.reference_history)
    assert torch.equal(read_vector(one.module), read_vector(other.module))


def test_lightning_stopped_and_gone_on_with(tmp_path):
    trainer, model, whole = fit(tmp_path / "whole")
    assert whole.cmd.n_updates == EPOCHS
    first, _, _ = fit(tmp_path / "half", epochs=3)
    checkpoint = first.checkpoint_callback.best_model_path
    _, resumed, second = fit(tmp_path / "half", resume=checkpoint)
    same(whole.cmd, second.cmd)
    assert torch.equal(read_vector(model), read_vector(resumed))

    # the last validation had the reconstructed weights, training and checkpoints have their own
    assert torch.equal(model.validated[-1], read_vector(whole.cmd.module))
    assert not torch.equal(read_vector(model), read_vector(whole.cmd.module))
    kept = torch.load(trainer.checkpoint_callback.best_model_path, weights_only=True)
    assert torch.equal(kept["state_dict"]["net.0.weight"], model.net[0].weight)
    saved = Lit.load_from_checkpoint(tmp_path / "whole/cmd.ckpt")
    assert torch.equal(read_vector(saved), read_vector(whole.cmd.module))

    # a checkpoint tested by a trainer of its own
    again = Lit()
    callback = for_lightning.CMDCallback(**CMD)
    tester = lightning.Trainer(
        callbacks=[callback], logger=False, accelerator="cpu", enable_progress_bar=False
    )
    loader = DataLoader(TensorDataset(*images()), 16)
    tester.validate(again, loader, trainer.checkpoint_callback.best_model_path, verbose=False)
    assert torch.equal(again.validated[-1], read_vector(whole.cmd.module))
    assert torch.equal(read_vector(again), read_vector(model))


def test_lightning_by_steps_without_evaluation(tmp_path):
    _, model, callback = fit(tmp_path, update_every=3, evaluate=False, save_as=None, warmup=4)
    assert callback.cmd.n_updates == EPOCHS * STEPS // 3
    assert torch.equal(model.validated[-1], read_vector(model))
    assert not (tmp_path / "cmd.ckpt").exists()
    lightning.seed_everything(1, verbose=False)
    again = Lit()
    expected = OnlineCMD(again, **(CMD | {"warmup": 4}))
    optimizer = again.configure_optimizers()
    for step in range(EPOCHS * STEPS):
        part = slice(step % STEPS * 8, step % STEPS * 8 + 8)
        optimizer.zero_grad()
        again.training_step([each[part] for each in images()], 0).backward()
        optimizer.step()
        if step % 3 == 2:
            expected.update_parameters(again)
    same(callback.cmd, expected)


def test_lightning_gives_the_weights_back_after_an_error(tmp_path):
    model = Lit(fail_at=4)
    callback = for_lightning.CMDCallback(**CMD)
    trainer = lightning.Trainer(
        max_epochs=6, callbacks=[callback], default_root_dir=tmp_path, logger=False,
        accelerator="cpu", enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    loader = DataLoader(TensorDataset(*images()), 8)
    with pytest.raises(RuntimeError, match="validation broke"):
        trainer.fit(model, loader, loader)
    assert not torch.equal(read_vector(model), read_vector(callback.cmd.module))
    callback.cmd.update_parameters(model)


def test_the_modules_own_hooks_see_the_reconstructed_weights(tmp_path):
    class Hooked(Lit):
        def on_validation_epoch_end(self):
            if self.validated:
                assert torch.equal(read_vector(self), self.validated[-1])

    _, model, callback = fit(tmp_path, model=Hooked())
    assert torch.equal(model.validated[-1], read_vector(callback.cmd.module))
    assert not torch.equal(read_vector(model), model.validated[-1])
    kept = next(tmp_path.rglob("epoch=*.ckpt"))
    assert torch.equal(read_vector(Lit.load_from_checkpoint(kept)), read_vector(model))


def test_lightning_one_callback_in_two_trainings(tmp_path):
    callback = for_lightning.CMDCallback(**CMD)
    loader = DataLoader(TensorDataset(*images()), 8)
    found = []
    for number in range(2):
        lightning.seed_everything(1, verbose=False)
        model = Lit()
        trainer = lightning.Trainer(
            max_epochs=4, callbacks=[callback], default_root_dir=tmp_path / str(number),
            logger=False, accelerator="cpu", enable_progress_bar=False,
            enable_model_summary=False,
        )  # fmt: skip
        trainer.fit(model, loader)
        found.append(callback.cmd)
    assert found[0].n_updates == found[1].n_updates == 4
    same(*found)
    trainer.fit_loop.max_epochs = 6  # the same training goes on
    trainer.fit(model, loader)
    assert callback.cmd is found[1] and callback.cmd.n_updates == 6


def test_lightning_that_ends_within_the_warmup(tmp_path):
    fit(tmp_path)
    saved = (tmp_path / "cmd.ckpt").read_bytes()
    for epochs in (1, CMD["warmup"]):
        words = f"after {epochs} of the 3 updates that CMD takes with warmup=2.*smaller warmup or"
        with pytest.warns(UserWarning, match=words):
            fit(tmp_path, epochs=epochs)
    trainer = lightning.Trainer(
        max_steps=2, callbacks=[for_lightning.CMDCallback(**CMD)], default_root_dir=tmp_path,
        logger=False, accelerator="cpu", enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    with pytest.warns(UserWarning, match="after 0 of the 3 updates"):
        trainer.fit(Lit(), DataLoader(TensorDataset(*images()), 8))
    assert (tmp_path / "cmd.ckpt").read_bytes() == saved
    fit(tmp_path, epochs=CMD["warmup"] + 1)
    assert (tmp_path / "cmd.ckpt").read_bytes() != saved


def test_lightning_saves_nothing_of_a_fast_dev_run(tmp_path, recwarn):
    fit(tmp_path)
    saved = (tmp_path / "cmd.ckpt").read_bytes()
    for steps in (1, STEPS):
        callback = for_lightning.CMDCallback(**CMD | {"warmup": 1}, update_every=1)
        trainer = lightning.Trainer(
            fast_dev_run=steps, callbacks=[callback], default_root_dir=tmp_path,
            accelerator="cpu", enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
        trainer.fit(Lit(), DataLoader(TensorDataset(*images()), 8))
        assert callback.cmd.n_updates == steps
    assert (tmp_path / "cmd.ckpt").read_bytes() == saved
    assert not [warning for warning in recwarn if "reconstructed" in str(warning.message)]


class Late(SingleDeviceStrategy):
    """Loads checkpoints after `on_fit_start`, as FSDP's, ModelParallel's and DeepSpeed's do."""

    @property
    def restore_checkpoint_after_setup(self):
        return True


@pytest.mark.parametrize("validate", [False, True])
def test_lightning_that_loads_checkpoints_late(tmp_path, validate):
    loader = DataLoader(TensorDataset(*images()), 8)

    def trained(strategy, epochs, resume=None):
        lightning.seed_everything(1, verbose=False)
        callback = for_lightning.CMDCallback(**CMD)
        trainer = lightning.Trainer(
            max_epochs=epochs, callbacks=[callback], default_root_dir=tmp_path, logger=False,
            strategy=strategy, enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
        trainer.fit(Lit(), loader, loader if validate else None, ckpt_path=resume)
        return callback.cmd, trainer.checkpoint_callback.best_model_path

    whole, _ = trained(SingleDeviceStrategy("cpu"), 7)
    for strategy in (SingleDeviceStrategy("cpu"), Late("cpu")):
        _, checkpoint = trained(strategy, 4)
        resumed, _ = trained(strategy, 7, checkpoint)
        assert resumed.n_updates == 7
        same(resumed, whole)


class Of:
    """A choice of parameters, written with its place in memory."""

    def __init__(self, *parts):
        self.parts = parts

    def __call__(self, name):
        return name.startswith(self.parts)


def test_lightning_gone_on_with_by_an_equal_callable(tmp_path):
    first, _, _ = fit(tmp_path, epochs=3, parameters=Of("net.0", "net.3"))
    checkpoint = first.checkpoint_callback.best_model_path
    for options in ({}, {"modes": 3.0, "device": "cpu"}, {"save_as": "other.ckpt"}):
        parameters = Of("net.0", "net.3")
        _, _, callback = fit(tmp_path, resume=checkpoint, parameters=parameters, **options)
        assert callback.cmd.n_updates == EPOCHS
    with pytest.raises(ValueError, match="saved with"):  # as many weights are not the same ones
        fit(tmp_path, resume=checkpoint, parameters=Of("net.0"))


@pytest.mark.parametrize("options", [{"memory": 4}, {"warmup": 1}, {"modes": 2},
                                     {"update_every": 2}])  # fmt: skip
def test_other_settings_are_an_error(tmp_path, options):
    first, _, _ = fit(tmp_path / "lightning", epochs=3)
    with pytest.raises(ValueError, match=f"saved with .*{next(iter(options))}"):
        fit(tmp_path, resume=first.checkpoint_callback.best_model_path, **options)
    hf(tmp_path / "hf", epochs=3)
    with pytest.raises(ValueError, match=f"saved with .*{next(iter(options))}"):
        hf(tmp_path / "hf", resume=str(tmp_path / f"hf/checkpoint-{3 * STEPS}"), **options)


def test_lightning_gone_on_with_by_other_callbacks(tmp_path):
    loader = DataLoader(TensorDataset(*images()), 8)

    def trained(epochs, *memories, resume=None):
        lightning.seed_everything(1, verbose=False)
        callbacks = [for_lightning.CMDCallback(**CMD | {"memory": memory}, save_as=None)
                     for memory in memories]  # fmt: skip
        trainer = lightning.Trainer(
            max_epochs=epochs, callbacks=[*callbacks], default_root_dir=tmp_path, logger=False,
            accelerator="cpu", enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
        trainer.fit(Lit(), loader, ckpt_path=resume)
        return [callback.cmd.n_updates for callback in callbacks], trainer

    _, trainer = trained(4, None, 4)
    last = trainer.checkpoint_callback.best_model_path
    assert trained(6, 4, None, resume=last)[0] == [6, 6]  # in another order
    assert trained(6, 4, resume=last)[0] == [6]  # one of them alone
    assert trained(6, 4, None, 3, resume=last)[0] == [6, 6, 2]  # one more
    with pytest.raises(ValueError, match=r"saved with .*'memory': 4.0"):
        trained(6, None, 3, resume=last)
    with pytest.raises(ValueError, match=r"'memory': None.* and of .*'memory': 4.*all callbacks"):
        trained(6, 3, resume=last)


class Several(Lit):
    """Three optimizers: the trainer's steps are counted in threes."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, number):
        for optimizer in self.optimizers():
            optimizer.zero_grad()
            self.manual_backward(super().training_step(batch, number))
            optimizer.step()

    def configure_optimizers(self):
        return [torch.optim.Adam(self.parameters(), lr=0.01) for _ in range(3)]


def test_lightning_with_several_optimizers(tmp_path):
    _, _, callback = fit(tmp_path, model=Several(), update_every=10, save_as=None)
    assert callback.cmd.n_updates == EPOCHS * STEPS * 3 // 10


def test_two_callbacks_in_one_lightning_trainer(tmp_path):
    lightning.seed_everything(1, verbose=False)
    one, two = (
        for_lightning.CMDCallback(**(CMD | {"memory": memory}), evaluate=memory is None)
        for memory in (None, 4)
    )
    loader = DataLoader(TensorDataset(*images()), 8)

    def trained(callbacks, epochs, resume=None):
        trainer = lightning.Trainer(
            max_epochs=epochs, callbacks=[*callbacks], default_root_dir=tmp_path, logger=False,
            accelerator="cpu", enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
        trainer.fit(Lit(), loader, loader, ckpt_path=resume)
        return trainer

    last = trained([one, two], 4).checkpoint_callback.best_model_path
    assert one.cmd.memory is None and two.cmd.memory == 4
    again = [for_lightning.CMDCallback(**(CMD | {"memory": memory}), evaluate=memory is None)
             for memory in (None, 4)]  # fmt: skip
    trained(again, 6, last)
    assert [callback.cmd.n_updates for callback in again] == [6, 6]
    two = for_lightning.CMDCallback(**(CMD | {"memory": 4}))
    with pytest.raises(ValueError, match="evaluate=False to one"):
        trained([for_lightning.CMDCallback(**CMD), two], 4)


def test_steps_are_counted_from_one():
    for module in (for_lightning, for_transformers):
        with pytest.raises(ValueError, match="update_every"):
            module.CMDCallback(update_every=0)


# transformers -------------------------------------------------------------------------------------


class Rows(torch.utils.data.Dataset):
    def __init__(self, count=STEPS * 8):
        generator = torch.Generator().manual_seed(0)
        self.ids = torch.randint(20, (count, 5), generator=generator)

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, index):
        return {"input_ids": self.ids[index], "labels": int(self.ids[index, 0] > 9)}


def bert():
    torch.manual_seed(3)
    config = transformers.BertConfig(
        vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=8, max_position_embeddings=8, hidden_dropout_prob=0.1,
    )  # fmt: skip
    return transformers.BertForSequenceClassification(config)


class Seen(transformers.TrainerCallback):
    """What each evaluation saw."""

    def __init__(self):
        self.weights = []

    def on_prediction_step(self, args, state, control, model=None, **_):
        self.weights.append(read_vector(model).clone())


def hf(folder, epochs=EPOCHS, resume=None, model=None, arguments=None, data=None, **options):
    model = model or bert()
    callback, seen = for_transformers.CMDCallback(**(CMD | options)), Seen()
    args = transformers.TrainingArguments(**({
        "output_dir": str(folder), "num_train_epochs": EPOCHS, "per_device_train_batch_size": 8,
        "eval_strategy": "epoch", "save_strategy": "epoch", "logging_strategy": "no",
        "report_to": [], "use_cpu": True, "disable_tqdm": True, "learning_rate": 0.01,
        "dataloader_pin_memory": False,
    } | (arguments or {})))  # fmt: skip
    stop = Stop(epochs)
    trainer = transformers.Trainer(
        model, args, train_dataset=Rows(), eval_dataset=data or Rows(8),
        callbacks=[callback, seen, stop],
    )  # fmt: skip
    trainer.train(resume_from_checkpoint=resume)
    return trainer, model, callback, seen


class Stop(transformers.TrainerCallback):
    def __init__(self, epochs):
        self.epochs = epochs

    def on_step_end(self, args, state, control, **_):
        control.should_training_stop |= state.epoch >= self.epochs


@pytest.mark.parametrize("strategy", ["epoch", "steps"])
def test_trainer_stopped_and_gone_on_with(tmp_path, strategy):
    steps = {"save_strategy": strategy, "save_steps": STEPS, "eval_strategy": strategy,
             "eval_steps": STEPS}  # fmt: skip
    _, model, whole, seen = hf(tmp_path / "whole", arguments=steps)
    assert whole.cmd.n_updates == EPOCHS
    hf(tmp_path / "half", epochs=3, arguments=steps)
    checkpoint = tmp_path / f"half/checkpoint-{3 * STEPS}"
    assert json.loads((checkpoint / "trainer_state.json").read_text())["epoch"] == 3
    _, resumed, second, _ = hf(tmp_path / "half", resume=str(checkpoint), arguments=steps)
    same(whole.cmd, second.cmd)
    assert torch.equal(read_vector(model), read_vector(resumed))

    reconstructed = read_vector(whole.cmd.module)
    assert torch.equal(seen.weights[-1], reconstructed)
    assert not torch.equal(read_vector(model), reconstructed)
    saved = transformers.BertForSequenceClassification.from_pretrained(tmp_path / "whole/cmd")
    assert torch.equal(read_vector(saved), reconstructed)
    last = tmp_path / f"whole/checkpoint-{EPOCHS * STEPS}"
    kept = transformers.BertForSequenceClassification.from_pretrained(last)
    assert torch.equal(read_vector(kept), read_vector(model))


def test_evaluations_within_the_warmup_are_of_the_model_itself(tmp_path):
    steps = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "no"}
    _, _, callback, seen = hf(tmp_path, arguments=steps)
    warmup = (CMD["warmup"] + 1) * STEPS
    assert len(seen.weights) == EPOCHS * STEPS and callback.cmd.n_updates == EPOCHS
    within = seen.weights[: warmup - 1]
    assert all(not torch.equal(one, next_) for one, next_ in itertools.pairwise(within))
    after = seen.weights[warmup - 1 :]  # reconstructed once an epoch
    assert all(torch.equal(after[0], same) for same in after[1:STEPS])


def test_trainer_resumed_and_evaluated_at_the_start(tmp_path):
    hf(tmp_path, epochs=4)
    arguments = {"eval_on_start": True}
    checkpoint = tmp_path / f"checkpoint-{4 * STEPS}"
    before = OnlineCMD(bert(), **CMD)
    before.load_state_dict(read_pickled(checkpoint / "cmd.pt")["cmd"])
    _, _, _, seen = hf(tmp_path, resume=str(checkpoint), arguments=arguments)
    assert torch.equal(seen.weights[0], read_vector(before.module))


def test_two_callbacks_in_one_trainer(tmp_path):
    beside = for_transformers.CMDCallback(**CMD | {"memory": 2}, evaluate=False, save_as="short")
    model = bert()

    def train(epochs, resume=None):
        args = transformers.TrainingArguments(
            output_dir=str(tmp_path), num_train_epochs=EPOCHS, per_device_train_batch_size=8,
            eval_strategy="no", save_strategy="epoch", logging_strategy="no", report_to=[],
            use_cpu=True, disable_tqdm=True,
        )  # fmt: skip
        callbacks = [for_transformers.CMDCallback(**CMD), beside, Stop(epochs)]
        trainer = transformers.Trainer(model, args, train_dataset=Rows(), callbacks=callbacks)
        trainer.train(resume_from_checkpoint=resume)
        return callbacks[0]

    train(4)
    first = train(EPOCHS, str(tmp_path / f"checkpoint-{4 * STEPS}"))
    assert (first.cmd.memory, beside.cmd.memory) == (3, 2)
    assert first.cmd.n_updates == beside.cmd.n_updates == EPOCHS
    assert (tmp_path / "cmd").is_dir() and (tmp_path / "short").is_dir()


def test_trainer_resumed_from_another_place(tmp_path):
    hf(tmp_path / "first", epochs=3)
    checkpoint = tmp_path / f"first/checkpoint-{3 * STEPS}"
    with pytest.raises(ValueError, match="resume_from"):
        hf(tmp_path / "second", resume=str(checkpoint))
    _, _, callback, _ = hf(tmp_path / "second", resume=str(checkpoint), resume_from=checkpoint)
    assert callback.cmd.n_updates == EPOCHS


def test_trainer_by_steps_with_accumulation(tmp_path):
    arguments = {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 4,
                 "eval_strategy": "no", "save_strategy": "no"}  # fmt: skip
    _, _, callback, _ = hf(tmp_path, arguments=arguments, update_every=2, save_as=None)
    assert callback.cmd.n_updates == EPOCHS * STEPS // 2
    assert not (tmp_path / "cmd").exists()


def test_trainer_with_several_evaluation_sets(tmp_path):
    data = {"one": Rows(8), "other": Rows(16)}
    with pytest.raises(ValueError, match="evaluate=False"):
        hf(tmp_path, data=data)
    trainer, model, callback, seen = hf(tmp_path, data=data, evaluate=False)
    with callback.cmd.applied_to(model):
        trainer.evaluate()
    assert torch.equal(seen.weights[-1], read_vector(callback.cmd.module))


def test_trainer_with_lora(tmp_path):
    """The sample, the modes and the memory go to what moves; the base is shared by none of them."""
    base = bert()
    before = copy.deepcopy(base.state_dict())
    config = peft.LoraConfig(target_modules=["query", "value"], r=2, task_type="SEQ_CLS")
    model = peft.get_peft_model(base, config)
    _, model, callback, seen = hf(tmp_path, model=model, parameters="trainable", modes=2)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert set(callback.cmd.layers) == trained
    assert len(callback.cmd.model.a) == sum(
        p.numel() for p in model.parameters() if p.requires_grad
    )
    for name, value in before.items():
        if "embeddings" in name:
            assert torch.equal(callback.cmd.module.base_model.model.state_dict()[name], value)
    assert torch.equal(seen.weights[-1], read_vector(callback.cmd.module))
    again = peft.PeftModel.from_pretrained(bert(), tmp_path / "cmd")
    x = Rows(8).ids
    with torch.no_grad():
        assert torch.equal(again.eval()(x).logits, callback.cmd.module.eval()(x).logits)


def test_trainer_with_a_plain_module(tmp_path):
    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(20, 4)
            self.head = nn.Linear(4, 2)

        def forward(self, input_ids, labels=None):
            logits = self.head(self.embed(input_ids).mean(1))
            return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}

    _, _, callback, _ = hf(tmp_path, model=Plain())
    saved = load_file(tmp_path / "cmd/model.safetensors")
    assert torch.equal(saved["embed.weight"], callback.cmd.module.embed.weight)


def test_trainer_one_callback_in_two_trainings(tmp_path):
    trainer, _, callback, _ = hf(tmp_path / "first")
    first = callback.cmd
    trainer.train()
    assert callback.cmd is not first and callback.cmd.n_updates == EPOCHS


class Breaks(transformers.TrainerCallback):
    """An error in the evaluation of one epoch."""

    def __init__(self, at):
        self.at = at

    def on_prediction_step(self, args, state, control, **_):
        if state.epoch == self.at:
            self.at = None
            raise RuntimeError("evaluation broke")


@pytest.mark.parametrize("resume", [False, True])
def test_trainer_after_an_error_in_an_evaluation(tmp_path, resume):
    model, callback = bert(), for_transformers.CMDCallback(**CMD)
    args = transformers.TrainingArguments(
        output_dir=str(tmp_path / "whole"), num_train_epochs=EPOCHS, report_to=[], use_cpu=True,
        per_device_train_batch_size=8, eval_strategy="epoch", save_strategy="epoch",
        disable_tqdm=True, learning_rate=0.01,
    )  # fmt: skip
    trainer = transformers.Trainer(
        model, args, train_dataset=Rows(), eval_dataset=Rows(8), callbacks=[callback, Breaks(4)]
    )
    with pytest.raises(RuntimeError, match="evaluation broke"):
        trainer.train()
    trainer.train(resume_from_checkpoint=resume or None)
    assert callback.cmd.n_updates == EPOCHS
    if resume:
        _, expected, whole, _ = hf(tmp_path / "other", arguments={"learning_rate": 0.01})
        same(callback.cmd, whole.cmd)
        assert torch.equal(read_vector(model), read_vector(expected))


@pytest.mark.parametrize(("epochs", "updates"), [(0.5, 0), (1, 1), (2, 2)])
def test_trainer_that_ends_within_the_warmup(tmp_path, epochs, updates):
    words = f"after {updates} of the 3 updates that CMD takes with warmup=2.*smaller warmup or"
    with pytest.warns(UserWarning, match=words):
        hf(tmp_path, arguments={"num_train_epochs": epochs, "save_strategy": "no"})
    assert not (tmp_path / "cmd").exists()


def test_lightning_follows_what_ddp_wraps(tmp_path, monkeypatch):
    """For its processes to follow the same weights: here there is one."""
    followed, update = [], OnlineCMD.update_parameters

    def noted(self, model):
        followed.append(type(model))
        update(self, model)

    monkeypatch.setattr(OnlineCMD, "update_parameters", noted)
    callback = for_lightning.CMDCallback(**CMD)
    trainer = lightning.Trainer(
        max_epochs=EPOCHS, callbacks=[callback], default_root_dir=tmp_path, logger=False,
        accelerator="cpu", enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=False, strategy="ddp", devices=1,
    )  # fmt: skip
    with patch.dict(os.environ):  # which is told of the group
        try:
            trainer.fit(Lit(), DataLoader(TensorDataset(*images()), 8))
        finally:
            if torch.distributed.is_initialized():
                torch.distributed.destroy_process_group()
    assert followed == [DistributedDataParallel] * EPOCHS
    saved = Lit.load_from_checkpoint(tmp_path / "cmd.ckpt")
    assert torch.equal(read_vector(saved), read_vector(callback.cmd.module))
