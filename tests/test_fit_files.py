"""The command on the checkpoints that people have: order, formats, alignment, numbers."""

import argparse
import json
import signal
import subprocess
import sys
from dataclasses import replace

import numpy as np
import peft
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn

from tests.conftest import ROOT, exit_code
from utils import cmd_utils
from utils.cmd import CMDModel, fit_cmd, read_vector, sample_weights, write_vector
from utils.cmd.callbacks.follower import Follower
from utils.cmd.checkpoints import open_checkpoint
from utils.cmd.files import write_safe
from utils.results.stored_series import StoredSeries

MOMENTS = 12


def thetas(count, size):
    """[T, N] of weights that move together, the numbers of moment t around t."""
    generator = torch.Generator().manual_seed(0)
    walks = torch.randn(count, 3, generator=generator).cumsum(0)
    mix = torch.randn(3, size, generator=generator)
    return torch.arange(count)[:, None] + walks @ mix / 10


def net():
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))


def states(count=MOMENTS):
    model = net()
    for theta in thetas(count, len(read_vector(model))).abs():
        write_vector(theta, model)
        yield {name: tensor.clone() for name, tensor in model.state_dict().items()}


def run(*arguments, out):
    words = [str(word) for word in (*arguments, "--modes", 3, "--samples", 60, "--output", out)]
    return cmd_utils.main(words)


def described(*arguments, out):
    assert run(*arguments, out=out) == 0
    return CMDModel.load(out / "cmd.safetensors")


def expected(sequence, path=None):
    """The fit of a sequence of states in its order, of tensors in the order of a file."""
    names = sequence[0] if path is None else open_checkpoint(path).tensors
    own = [{name: state[name] for name in names} for state in sequence]
    trajectory = torch.stack([read_vector(state) for state in own])
    sizes = [t.numel() for t in own[-1].values() if t.is_floating_point()]
    return fit_cmd(trajectory, sample_weights(sizes, 60, 0), 3)


def same(one, other):
    return all(
        torch.equal(getattr(one, name), getattr(other, name))
        for name in ("a", "b", "mode", "reference", "reference_history")
    )


def test_the_documented_line_reads_epochs_in_their_order(tmp_path, capsys):
    for epoch, state in enumerate(states()):
        torch.save(state, tmp_path / f"epoch_{epoch}.pt")
    files = sorted(tmp_path.glob("epoch_*.pt"))  # as a shell lists them: 0, 1, 10, 11, 2 …
    sequence = list(states())
    assert same(described(*files, out=tmp_path / "a"), expected(sequence))
    said = capsys.readouterr().out
    assert "epoch_0.pt to " in said and f"{tmp_path / 'epoch_11.pt'} is reconstructed" in said
    assert "not as given" in said
    shell = [0, 1, 10, 11, *range(2, 10)]
    kept = described(*files, "--as_given", out=tmp_path / "b")
    assert same(kept, expected([sequence[epoch] for epoch in shell]))
    assert "against the numbers" in capsys.readouterr().out
    chosen = described(*files, "--from", 2, "--to", 10, "--every", 2, out=tmp_path / "c")
    assert same(chosen, expected(sequence[2:11:2]))
    assert same(described(tmp_path, "--last", 4, out=tmp_path / "d"), expected(sequence[-4:]))
    again = described(tmp_path, "--last", 4, out=tmp_path / "e")  # beside what it wrote before
    assert same(again, expected(sequence[-4:]))


def bert():
    config = transformers.BertConfig(
        vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=8, max_position_embeddings=8,
    )  # fmt: skip
    return transformers.BertForSequenceClassification(config)


@pytest.mark.parametrize("shards", ["5GB", "1KB"])
@pytest.mark.parametrize("how", ["run", "checkpoint-*", "checkpoint-*/model*"])
def test_what_transformers_trainer_leaves(tmp_path, how, shards, capsys):
    folder, model = tmp_path / "run", bert()
    vectors = thetas(MOMENTS, len(read_vector(model)))
    for number, theta in enumerate(vectors):
        write_vector(theta, model)
        place = folder / f"checkpoint-{4 * number + 4}"
        model.save_pretrained(place, max_shard_size=shards)
        optimizer = torch.optim.Adam(model.parameters())
        torch.save(optimizer.state_dict(), place / "optimizer.pt")
        torch.save({"last_epoch": 3}, place / "scheduler.pt")
        torch.save({"cpu": torch.get_rng_state()}, place / "rng_state.pth")
        torch.save(argparse.Namespace(lr=1.0), place / "training_args.bin")
        (place / "trainer_state.json").write_text("{}")
    model.save_pretrained(folder)
    paths = [folder] if how == "run" else sorted(folder.glob(how))
    out = tmp_path / "out"
    cmd = described(*paths, out=out)
    assert f"checkpoint-{4 * MOMENTS}" in capsys.readouterr().out.split(" is reconstructed")[0]
    assert len(cmd.reference_history) == MOMENTS and cmd.n_weights == vectors.shape[1]
    written = out / "reconstructed"
    if not written.is_dir():
        (tmp_path / "again").mkdir()
        (folder / "checkpoint-4/config.json").rename(tmp_path / "again/config.json")
        (out / "reconstructed.safetensors").rename(tmp_path / "again/model.safetensors")
        written = tmp_path / "again"
    loaded = transformers.BertForSequenceClassification.from_pretrained(written)
    # three walks are three modes: moment t is around t, so that this is the last one
    assert (read_vector(loaded) - vectors[-1]).abs().mean() < 0.3


@pytest.mark.parametrize("how", ["run", "checkpoint-*", "checkpoint-*/*"])
def test_the_states_of_callbacks_are_not_the_model(tmp_path, how):
    """Two callbacks' states in a trainer's checkpoints, and a model that the trainer saves so."""
    model, followers = net(), [Follower(warmup=1, modes=3, samples=60) for _ in range(2)]
    sequence = list(states(5))
    for number, state in enumerate(sequence):
        model.load_state_dict(state)
        place = tmp_path / f"run/checkpoint-{4 * number}"
        place.mkdir(parents=True)
        save_file(state, place / "model.safetensors")
        for name, follower in zip(("cmd", "cmd_20"), followers, strict=True):
            follower.begin(model, number)
            follower.update(model, number + 1, True)
            torch.save(follower.state(), place / f"{name}.pt")
    paths = [tmp_path / "run"] if how == "run" else sorted((tmp_path / "run").glob(how))
    cmd = described(*paths, out=tmp_path / "out")
    assert same(cmd, expected(sequence, place / "model.safetensors"))


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
def test_adapters_of_peft(tmp_path):
    config = peft.LoraConfig(target_modules=["query", "value"], r=2, task_type="SEQ_CLS")
    torch.manual_seed(0)
    model = peft.get_peft_model(bert(), config)
    trained = [p for p in model.parameters() if p.requires_grad]
    for step, theta in enumerate(thetas(MOMENTS, sum(p.numel() for p in trained)), start=1):
        with torch.no_grad():
            for parameter, part in zip(
                trained, theta.split([p.numel() for p in trained]), strict=True
            ):
                parameter.copy_(part.view_as(parameter))
        model.save_pretrained(tmp_path / f"run/checkpoint-{10 * step}")
    out = tmp_path / "out"
    cmd = described(tmp_path / "run", out=out)
    assert cmd.n_weights == theta.numel() and len(cmd.reference_history) == MOMENTS
    again = peft.PeftModel.from_pretrained(bert(), out / "reconstructed")
    restored = torch.cat([p.flatten() for name, p in again.named_parameters()
                          if "lora" in name or "modules_to_save" in name])  # fmt: skip
    assert (restored.sort().values - theta.sort().values).abs().mean() < 0.3


class Hyper:
    """An object among hyper-parameters, of a class that nobody else has."""

    def __init__(self):
        self.rate = np.float64(0.1)


def test_objects_beside_the_weights_stay_where_they_are(tmp_path):
    for epoch, state in enumerate(states()):
        content = {
            "state_dict": {f"model.{name}": tensor for name, tensor in state.items()},
            "hyper_parameters": {"net": Hyper(), "args": argparse.Namespace(lr=np.float32(1))},
            "epoch": epoch, "pytorch-lightning_version": "2.6",
        }  # fmt: skip
        torch.save(content, tmp_path / f"epoch={epoch}-step={10 * epoch}.ckpt")
    torch.save(content, tmp_path / "last.ckpt")
    out = tmp_path / "out"
    sequence = list(states())
    assert same(described(tmp_path, out=out), expected(sequence))
    written = torch.load(out / "reconstructed.ckpt", weights_only=False)
    assert written["hyper_parameters"]["net"].rate == 0.1 and written["epoch"] == MOMENTS - 1
    theirs = written["state_dict"]
    fitted = expected(sequence)
    write_vector(fitted.reconstruct(fitted.reference_history[-1]), model := net())
    assert torch.equal(theirs["model.0.weight"], model[0].weight)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "model."])
@pytest.mark.parametrize("where", ["first", "last"])
def test_prefixes_in_part_of_a_series(tmp_path, prefix, where):
    sequence = list(states())
    for epoch, state in enumerate(sequence):
        if (epoch < 5) == (where == "first"):
            state = {prefix + name: tensor for name, tensor in state.items()}
        torch.save(state, tmp_path / f"epoch_{epoch}.pt")
    out = tmp_path / "out"
    assert same(described(tmp_path, out=out), expected(sequence))
    assert ((prefix + "0.weight") in torch.load(out / "reconstructed.pt")) == (where == "last")


@pytest.mark.parametrize("where", ["all", "first", "last"])
@pytest.mark.parametrize("pattern", ["module.0.*", "0.*"])
def test_patterns_match_the_names_with_wrappers_and_without(tmp_path, capsys, where, pattern):
    for epoch, state in enumerate(states()):
        if where == "all" or (epoch < 5) == (where == "first"):
            state = {"module." + name: tensor for name, tensor in state.items()}
        torch.save(state, tmp_path / f"epoch_{epoch}.pt")
    assert run(tmp_path, "--exclude", pattern, out=tmp_path / "out") == 0
    said = capsys.readouterr().out
    assert "0.weight" not in said and "2.weight" in said
    assert run(tmp_path, "--include", pattern, out=tmp_path / "other") == 0
    said = capsys.readouterr().out
    assert "0.weight" in said and "2.weight" not in said


@pytest.mark.parametrize("flag", ["--include", "--exclude"])
def test_patterns_that_match_nothing(tmp_path, capsys, flag):
    for epoch, state in enumerate(states()):
        state = {"module." + name: tensor for name, tensor in state.items()}
        state |= {} if epoch else {"module.early": torch.ones(2)}
        torch.save(state, tmp_path / f"epoch_{epoch}.pt")
    out = tmp_path / "out"
    code = exit_code(lambda: run(tmp_path, flag, "module.0.*", flag, "modul.2.*", out=out))
    error = capsys.readouterr().err
    assert code == 2 and error.count("\n") == 1 and not out.exists()
    assert f"{flag} modul.2.*: no tensor has such a name" in error
    assert "module.0.weight, module.0.bias, module.1.weight" in error
    assert run(tmp_path, "--exclude", "*early", out=out) == 0  # which the last one does not have


def test_a_state_that_is_nested_deeper_and_several(tmp_path, capsys):
    for epoch, state in enumerate(states()):
        other = {name: tensor + 1 for name, tensor in state.items()}
        torch.save({"one": {"model": state}, "two": {"net": other}}, tmp_path / f"e{epoch}.pt")
    assert exit_code(lambda: run(tmp_path, out=tmp_path / "out")) == 2
    error = capsys.readouterr().err
    assert "one.model" in error and "two.net" in error and error.count("\n") == 1
    cmd = described(tmp_path, "--key", "one.model", out=tmp_path / "out")
    assert same(cmd, expected(list(states())))
    assert "of each its one.model" in capsys.readouterr().out


def series_of(folder, change):
    for epoch, state in enumerate(states()):
        change(epoch, state)
        torch.save(state, folder / f"epoch_{epoch}.pt")


@pytest.mark.filterwarnings("ignore:Validating sparse")
def test_kinds_of_tensors(tmp_path, capsys):
    """Fitted, or copied from the last checkpoint."""

    def change(epoch, state):
        state["half"] = torch.full((4,), float(epoch)).half()
        state["float8"] = torch.full((4,), float(epoch)).to(torch.float8_e4m3fn)
        state["double"] = torch.full((3,), epoch / 3, dtype=torch.float64)
        state["tied"] = state["0.weight"]
        state["turned"] = torch.arange(6.0).view(2, 3).T + epoch
        state["mask"] = torch.full((2, 2), -torch.inf).triu(1)
        state["empty"] = torch.empty(0)
        state["one"] = torch.tensor(float(epoch))
        state["counter"] = torch.tensor(epoch)
        state["complex"] = torch.full((2,), epoch + 1j)
        state["sparse"] = torch.eye(2).to_sparse()
        state["odd"] = torch.rand(7) if epoch % 2 else torch.rand(3)
        state["name"] = f"epoch {epoch}"

    series_of(tmp_path, change)
    code = exit_code(lambda: run(tmp_path, out=tmp_path / "out"))
    error = capsys.readouterr().err
    assert code == 2 and "'odd' is [3], in" in error and "--exclude" in error
    assert run(tmp_path, "--exclude", "odd", out=tmp_path / "out") == 0
    said = capsys.readouterr().out
    assert "sparse" in said and "\ntied " not in said and "\nfloat8 " in said
    written = torch.load(tmp_path / "out/reconstructed.pt", weights_only=True)
    last = torch.load(tmp_path / f"epoch_{MOMENTS - 1}.pt", weights_only=True)
    for name in ("mask", "counter", "complex", "odd", "empty"):
        assert torch.equal(written[name], last[name]), name
    assert written["name"] == last["name"]
    assert torch.equal(written["tied"], written["0.weight"])
    assert written["tied"].untyped_storage().data_ptr() == written["0.weight"].data_ptr()
    for name in ("half", "float8", "double", "one", "turned"):
        assert written[name].dtype == last[name].dtype and written[name].shape == last[name].shape
        assert torch.allclose(written[name].float(), last[name].float(), rtol=0.1), name


def test_float64_that_does_not_move_is_exact(tmp_path):
    def change(epoch, state):
        state["0.weight"] = state["0.weight"].double()
        state["0.weight"][0] = 1 / 3
        state["began"] = torch.tensor([[0.1, 1700000001.0]], dtype=torch.float64).T

    series_of(tmp_path, change)
    assert run(tmp_path, out=tmp_path / "out") == 0
    written = torch.load(tmp_path / "out/reconstructed.pt", weights_only=True)
    last = torch.load(tmp_path / f"epoch_{MOMENTS - 1}.pt", weights_only=True)
    assert torch.equal(written["began"], last["began"])
    assert torch.equal(written["0.weight"][0], last["0.weight"][0])
    assert not torch.equal(written["0.weight"], last["0.weight"])


@pytest.mark.parametrize(
    ("value", "words"),
    [(torch.nan, "'0.weight' is not finite"), (1e300, "'0.weight' is beyond float32")],
)
def test_numbers_that_cannot_be_fitted(tmp_path, capsys, value, words):
    def change(epoch, state):
        state["0.weight"] = state["0.weight"].double()
        if epoch == 7:
            state["0.weight"][2, 1] = value

    series_of(tmp_path, change)
    assert exit_code(lambda: run(tmp_path, out=tmp_path / "out")) == 2
    error = capsys.readouterr().err
    assert words in error and "epoch_7.pt" in error and "--modes" not in error
    assert error.count("\n") == 1 and not (tmp_path / "out").exists()
    assert run(tmp_path, "--exclude", "0.*", out=tmp_path / "out") == 0
    assert run(tmp_path, "--include", "2.*", out=tmp_path / "other") == 0
    assert "2.weight" in capsys.readouterr().out.split("0.weight")[-1]


def test_values_beyond_float32_at_every_moment(tmp_path, capsys):
    def change(epoch, state):
        state["0.weight"] = (state["0.weight"].double() + epoch) * 1e300

    series_of(tmp_path, change)
    assert exit_code(lambda: run(tmp_path, out=tmp_path / "out")) == 2
    assert "'0.weight' is beyond float32" in capsys.readouterr().err


def test_large_values(tmp_path, capsys):
    def change(epoch, state):
        state["0.weight"] = state["0.weight"] * 1e30
        state["2.weight"] = torch.full((2, 8), 65504.0).half() * (1 if epoch % 2 else -1)

    series_of(tmp_path, change)
    assert run(tmp_path, out=tmp_path / "out") == 0
    assert "nan" not in capsys.readouterr().out
    written = torch.load(tmp_path / "out/reconstructed.pt")
    assert all(tensor.isfinite().all() for tensor in written.values())


def test_tied_at_the_end_alone(tmp_path, capsys):
    def change(epoch, state):
        state["tied"] = state["0.weight"] if epoch == MOMENTS - 1 else state["0.weight"] + 1

    series_of(tmp_path, change)
    assert exit_code(lambda: run(tmp_path, out=tmp_path / "out")) == 2
    assert "'0.weight' and 'tied' are tied, and not in" in capsys.readouterr().err
    assert run(tmp_path, "--exclude", "tied", out=tmp_path / "out") == 0


def test_results_that_stand_in_the_way(tmp_path, capsys):
    given = tmp_path / "in"
    given.mkdir()
    series_of(given, lambda *_: None)
    out = tmp_path / "out"
    (out / "sampled.safetensors").mkdir(parents=True)
    assert exit_code(lambda: run(given, "--overwrite", out=out)) == 2
    assert "sampled.safetensors" in capsys.readouterr().err
    assert [path.name for path in out.iterdir()] == ["sampled.safetensors"]
    (out / "sampled.safetensors").rmdir()
    assert run(given, out=out) == 0
    (tmp_path / "safe").mkdir()
    for epoch, state in enumerate(states()):
        save_file(state, tmp_path / f"safe/{epoch}.safetensors")
    assert exit_code(lambda: run(tmp_path / "safe", out=out)) == 2
    assert run(tmp_path / "safe", "--overwrite", out=out) == 0
    assert sorted(path.name for path in out.iterdir()) == [
        "cmd.safetensors", "reconstructed.safetensors", "sampled.safetensors",
    ]  # fmt: skip
    assert exit_code(lambda: run(given, out=given / "epoch_0.pt")) == 2
    assert "is a file: choose a folder" in capsys.readouterr().err
    assert exit_code(lambda: run(given, "--from", 5, "--to", 3, out=out)) == 2
    assert "--from 5 is above --to 3" in capsys.readouterr().err


def test_what_others_keep_beside_the_results_stays(tmp_path, capsys):
    given, out = tmp_path / "in", tmp_path / "out"
    given.mkdir()
    series_of(given, lambda *_: None)
    (out / "reconstructed_notes").mkdir(parents=True)
    (out / "reconstructed_eval.csv").write_text("mine")
    for _ in range(2):
        assert run(given, "--overwrite", out=out) == 0
    assert (out / "reconstructed_eval.csv").read_text() == "mine"
    assert (out / "reconstructed_notes").is_dir()
    modes = {path.stat().st_mode for path in out.iterdir() if path.is_file()}
    assert len(modes) == 1  # whoever may read one may read all


@pytest.mark.parametrize(
    ("flag", "value"), [("--seed", 2**64), ("--device", "meta"), ("--seed", -1)]
)
def test_values_that_cannot_be_used(tmp_path, capsys, flag, value):
    (tmp_path / "in").mkdir()
    series_of(tmp_path / "in", lambda *_: None)
    assert exit_code(lambda: run(tmp_path / "in", flag, value, out=tmp_path / "out")) == 2
    error = capsys.readouterr().err
    assert flag in error and error.count("\n") == 1


def test_no_room_for_a_file_of_tensors_is_an_os_error(tmp_path):
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
        with pytest.raises(OSError):
            write_safe({"a": torch.zeros(1000)}, tmp_path / "a.safetensors")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert list(tmp_path.iterdir()) == []


def test_names_with_line_breaks(tmp_path, capsys):
    folder = tmp_path / "a\nb"
    folder.mkdir()
    series_of(folder, lambda *_: None)
    assert run(folder, out=tmp_path / "out") == 0
    assert len(StoredSeries(tmp_path / "out").trajectory.array) == MOMENTS
    assert "a\\nb" in capsys.readouterr().out


def test_the_sample_is_kept(tmp_path):
    sequence = list(states())
    for epoch, state in enumerate(sequence):
        save_file(state, tmp_path / f"{epoch}.safetensors")
    described(tmp_path, out=tmp_path / "out")
    kept = load_file(tmp_path / "out/sampled.safetensors")
    names = open_checkpoint(tmp_path / "0.safetensors").tensors
    own = [{name: state[name] for name in names} for state in sequence]
    trajectory = torch.stack([read_vector(state) for state in own])
    assert torch.equal(kept["trajectory"], trajectory[:, kept["sample"]])


def test_two_processes_are_one(tmp_path):
    masks = {"a": torch.full((40,), -torch.inf), "z": torch.full((3,), torch.nan)}
    for epoch, state in enumerate(states()):  # a mask in the range of each process
        content = {"a": masks["a"], **state, "z": masks["z"]}
        torch.save(content, tmp_path / f"epoch_{epoch}.pt")
    alone = described(tmp_path, out=tmp_path / "alone")
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2",
         "-m", "utils.cmd_utils", tmp_path, "--modes", "3", "--samples", "60", "--output",
         tmp_path / "both"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    both = CMDModel.load(tmp_path / "both/cmd.safetensors")
    assert alone.b[:40].isinf().all() and alone.b[-3:].isnan().all()
    assert same(replace(both, b=both.b.nan_to_num(7)), replace(alone, b=alone.b.nan_to_num(7)))
    written = torch.load(tmp_path / "both/reconstructed.pt")
    assert torch.equal(written["a"], masks["a"]) and written["z"].isnan().all()
    assert done.stdout.count("mean |correlation|") == 1


PATTERNS = ["epoch_{}.pt", "checkpoint-{}/model.safetensors", "{:04d}.ckpt", "run2/step{}.bin",
            "epoch={}-val_loss=0.{}.ckpt"]  # fmt: skip
OTHERS = ["best.pt", "last.ckpt", "optimizer.pt", "notes.txt", "model_final.safetensors", "x.json"]


@settings(max_examples=30, deadline=None)
@given(
    pattern=st.sampled_from(PATTERNS),
    numbers=st.lists(st.integers(0, 300), min_size=3, max_size=7, unique=True),
    others=st.lists(st.sampled_from(OTHERS), unique=True, max_size=3),
    prefixes=st.lists(st.sampled_from(["", "module.", "_orig_mod."]), min_size=7, max_size=7),
    dtypes=st.lists(st.sampled_from(["float32", "float64"]), min_size=7, max_size=7),
    nested=st.booleans(),
    reverse=st.booleans(),
    as_folder=st.booleans(),
)
def test_any_series(
    tmp_path_factory, pattern, numbers, others, prefixes, dtypes, nested, reverse, as_folder
):
    """The moments used are the right ones, whatever names, prefixes, dtypes and files there are."""
    folder = tmp_path_factory.mktemp("any")
    sequence = list(states(len(numbers)))
    paths = []
    for number, state, prefix, dtype in zip(
        sorted(numbers), sequence, prefixes, dtypes, strict=False
    ):
        path = folder / pattern.format(number, number * 7 % 10)
        path.parent.mkdir(exist_ok=True)
        paths.append(path)
        state = {
            prefix + name: t.to(getattr(torch, dtype)) if t.is_floating_point() else t
            for name, t in state.items()
        }
        if path.suffix == ".safetensors":
            # an order by dtype first: keep one dtype
            save_file(
                {name: t.float() if t.is_floating_point() else t for name, t in state.items()}, path
            )
        else:
            torch.save({"model": state, "epoch": number} if nested else state, path)
    for name in others:
        if name.endswith((".txt", ".json")):
            (folder / name).write_text(json.dumps({"a": 1}))
        elif name == "optimizer.pt":
            torch.save(torch.optim.Adam(net().parameters()).state_dict(), folder / name)
        elif name.endswith(".safetensors"):
            save_file(sequence[0], folder / name)
        else:
            torch.save(sequence[0], folder / name)
    given_paths = [folder] if as_folder else [*paths, *(folder / name for name in others)]
    cmd = described(*given_paths[:: -1 if reverse else 1], out=folder / "out")
    safe = pattern.endswith(".safetensors")  # which have an order of their own
    if safe:
        for path, state in zip(paths, sequence, strict=True):
            save_file(state, path)
    assert same(cmd, expected(sequence, paths[-1] if safe else None))
