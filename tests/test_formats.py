"""Checkpoints of every kind, as the libraries that write them do."""

import argparse
import collections
import contextlib
import dataclasses
import enum
import functools
import json
import os
import pickle
import shutil
import struct
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from tests.conftest import ROOT
from utils.cmd.callbacks.follower import Follower
from utils.cmd.checkpoints import is_checkpoint, open_checkpoint
from utils.cmd.errors import InputError


def net():
    return nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 3))


def same(stored, tensor):
    """Whether a stored tensor is another, bit by bit."""
    found, tensor = stored.read(), tensor.detach().contiguous().reshape(-1)
    return torch.equal(found.view(torch.uint8), tensor.view(torch.uint8))


def holds(opened, state):
    assert list(opened.tensors) == list(state)
    for name, tensor in state.items():
        stored = opened.tensors[name]
        assert stored.name == name and stored.dtype == tensor.dtype
        assert stored.shape == tensor.shape and same(stored, tensor)
    return True


def refused(path, *words, key=None):
    with pytest.raises(InputError) as raised:
        read_all(path, key)
    message = str(raised.value)
    assert "\n" not in message and str(path) in message
    for word in words:
        assert word in message
    return message


def read_all(path, key=None):
    tensors = open_checkpoint(path, key).tensors.items()
    return {name: stored.read() for name, stored in tensors if stored.parts}


class Colour(enum.Enum):
    RED = 1


@dataclasses.dataclass
class Setup:
    width: int = 3


class Thing:
    def __init__(self):
        self.me = self


class Settings(dict):
    pass


class Mine(torch.Tensor):
    pass


def lightning_form(state):
    return {
        "epoch": 3,
        "pytorch-lightning_version": "2.2.0",
        "state_dict": state,
        "loops": {"fit_loop": {"state_dict": {}, "total": 3}},
        "callbacks": {"ModelCheckpoint{'monitor': None}": {"best_model_score": torch.tensor(0.5)}},
        "optimizer_states": [{"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{}]}],
        "lr_schedulers": [{"last_epoch": 3}],
        "hyper_parameters": {
            "colour": Colour.RED,
            "setup": Setup(),
            "thing": Thing(),
            "root": Path("a") / "b",
            "loss": functools.partial(nn.functional.cross_entropy, label_smoothing=0.1),
            "rate": np.float64(0.1),
            "mean": np.ones(3),
            "seen": {1, 2},
            "kept": frozenset((1, 2)),
            "range": range(3),
            "slice": slice(1, 2),
            "complex": 1j,
            "raw": bytearray(b"abc"),
            "type": nn.Linear,
            "device": torch.device("cpu"),
            "counts": collections.Counter("aab"),
            "lists": collections.defaultdict(list, a=[1]),
            "settings": Settings(a=1),
            "space": argparse.Namespace(lr=0.1),
        },
    }


@pytest.mark.parametrize("protocol", [1, 2, 3, 4, 5])
def test_lightning_with_objects(tmp_path, protocol):
    state, file = net().state_dict(), tmp_path / "last.ckpt"
    torch.save(lightning_form(state), file, pickle_protocol=protocol)
    opened = open_checkpoint(file)
    assert opened.taken == "state_dict" and opened.suffix == ".ckpt" and holds(opened, state)
    assert opened.left_out == [] and is_checkpoint(file)

    new = torch.arange(15.0)
    assert opened.save(tmp_path / "new.ckpt", {"2.weight": lambda: new}) is None
    written = torch.load(tmp_path / "new.ckpt", weights_only=False)
    assert torch.equal(written["state_dict"]["2.weight"].reshape(-1), new)
    assert torch.equal(written["state_dict"]["0.weight"], state["0.weight"])
    assert written["hyper_parameters"]["space"].lr == 0.1 and written["epoch"] == 3
    assert zipfile.ZipFile(tmp_path / "new.ckpt").testzip() is None
    assert sorted(p.name for p in tmp_path.iterdir()) == ["last.ckpt", "new.ckpt"]


def test_timm_form(tmp_path):
    state, file = net().state_dict(), tmp_path / "model_best.pth.tar"
    content = {"arch": "net", "args": argparse.Namespace(lr=1), "state_dict": state,
               "state_dict_ema": {k: v + 1 for k, v in state.items()}, "metric": 0.5,
               "optimizer": torch.optim.Adam(net().parameters()).state_dict(),
               "amp_scaler": {"scale": 1.0}}  # fmt: skip
    torch.save(content, file)
    opened = open_checkpoint(file)
    assert opened.taken == "state_dict" and opened.suffix == ".pth.tar" and holds(opened, state)
    assert holds(open_checkpoint(file, "state_dict_ema"), content["state_dict_ema"])
    refused(file, "--key ema", "state_dict", "state_dict_ema", key="ema")


STATE = {"w": torch.ones(2, 3), "b": torch.zeros(3)}
ADAM = {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 0.1, "params": [0]}]}


@pytest.mark.parametrize(
    ("content", "taken"),
    [
        (STATE, ""),
        ({"model": STATE, "ema": STATE}, "model"),
        ({"model": STATE, "net": STATE}, "model"),
        ({"state": {"model": STATE, "optimizer": ADAM}, "epoch": 1}, "state.model"),
        ({"state": {"module": STATE}, "best": torch.tensor(0.5)}, "state.module"),
        ({"weights": STATE, "best": torch.tensor(0.5)}, "weights"),
        ({"weights": STATE, "optimizer": ADAM, "model_ema": STATE}, "weights"),
        ({"model_ema": STATE}, "model_ema"),
        ({"model": STATE | {"extra": {"a": 1}}, "a": torch.ones(2)}, "model"),
        ({"optimizer_state": {"flat": torch.ones(5)}, "params": STATE}, "params"),
        ((STATE, ADAM), "0"),
        ({"model": {"scale": torch.tensor(1.0)}}, "model"),
        ({"scale": torch.tensor(1.0)}, ""),
        (Settings(model=Settings(STATE)), "model"),
    ],
)
def test_usual_state(tmp_path, content, taken):
    torch.save(content, tmp_path / "x.pt")
    opened = open_checkpoint(tmp_path / "x.pt")
    assert opened.taken == taken
    assert "scale" in opened.tensors or holds(opened, STATE)
    assert is_checkpoint(tmp_path / "x.pt")


@pytest.mark.parametrize(
    "content",
    [
        {"generator": STATE, "discriminator": STATE},
        {"generator": {"model": STATE}, "discriminator": {"model": STATE}},
        {"model": {"encoder": STATE, "decoder": STATE}, "optimizer": ADAM},
    ],
)
def test_several_states_take_a_key(tmp_path, content):
    file = tmp_path / "x.pt"
    torch.save(content, file)
    names = refused(file, "2 states", "--key").partition("--key, ")[2].split(", ")
    assert len(names) == 2 and is_checkpoint(file)
    for name in names:
        opened = open_checkpoint(file, name)
        assert opened.taken == name and holds(opened, STATE)
    message = refused(file, "--key nothing", key="nothing")
    assert all(name in message for name in names)


def test_keys_with_dots(tmp_path):
    torch.save({"a.b": {"c": {"d.e": STATE}}, "model": STATE}, tmp_path / "x.pt")
    assert holds(open_checkpoint(tmp_path / "x.pt", "a.b.c.d.e"), STATE)
    refused(tmp_path / "x.pt", "a.b.c.d.e", key="a.b.c")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("optimizer.pt", ADAM),
        ("optimizer.bin", torch.optim.SGD(net().parameters(), lr=0.1).state_dict()),
        ("scheduler.pt", {"last_epoch": 3, "_last_lr": [0.1]}),
        ("rng_state.pth", {"python": (3, (1, 2), None), "cpu": torch.get_rng_state()}),
        ("training_args.bin", argparse.Namespace(lr=0.1)),
        ("scaler.pt", {"scale": 65536.0, "growth_factor": 2.0, "_growth_tracker": 0}),
        ("zero_pp_rank_0_optim_states.pt", {"optimizer_state_dict": {"state": {"w": STATE["w"]},
                                                                     "param_groups": []}}),
        ("steps.pt", {"steps": torch.arange(3)}),
    ],
)  # fmt: skip
def test_no_weights(tmp_path, name, content):
    torch.save(content, tmp_path / name)
    assert not is_checkpoint(tmp_path / name)
    refused(tmp_path / name)


def test_the_state_of_a_callback_is_no_model(tmp_path):
    model, follower = net(), Follower(warmup=1, modes=2, samples=20)
    follower.begin(model, 0)
    for step in range(4):  # within the warm-up and after it
        state = follower.state()
        for content in (state, {name: state[name] for name in ("cmd", "step")}):
            torch.save(content, tmp_path / "cmd.pt")
            assert not is_checkpoint(tmp_path / "cmd.pt")
            refused(tmp_path / "cmd.pt", "holds CMD's state beside a model, and no model")
        follower.update(model, step + 1, True)
    torch.save({"model": model.state_dict(), **state}, tmp_path / "both.pt")
    assert holds(open_checkpoint(tmp_path / "both.pt"), model.state_dict())


def test_other_files_are_no_checkpoints(tmp_path):
    (tmp_path / "trainer_state.json").write_text('{"epoch": 1}')
    (tmp_path / "README.md").write_text("hello")
    (tmp_path / "data.bin").write_bytes(os.urandom(1000))
    (tmp_path / "nothing").write_bytes(b"")
    (tmp_path / "scheduler.pkl").write_bytes(pickle.dumps({"a": 1}))
    np.savez(tmp_path / "arrays.npz", a=np.ones(3))
    os.mkfifo(tmp_path / "pipe.pt")
    (tmp_path / "folder").mkdir()
    for path in tmp_path.iterdir():
        assert not is_checkpoint(path)
        refused(path)
    refused(tmp_path / "nowhere.pt", "No such file")
    assert not is_checkpoint(tmp_path / "nowhere.pt")


def all_kinds():
    w = torch.randn(6, 5)
    floats = {str(t): torch.randn(5).to(t) for t in (
        torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn,
        torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz)}  # fmt: skip
    numbers = {str(t): torch.arange(5).to(t) for t in (
        torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.uint16, torch.uint32,
        torch.uint64, torch.bool)}  # fmt: skip
    return floats | numbers | {"w": w, "one": torch.tensor(2.0), "none": torch.empty(0, 3),
                               "complex": torch.randn(3, dtype=torch.complex64)}  # fmt: skip


def views():
    w = torch.randn(4, 5, 6)
    return {
        "transposed": w.transpose(0, 2),
        "slice": w[1:3, 2:, ::2],
        "column": w[:, 0, 0],
        "expanded": torch.randn(3, 1).expand(3, 4),
        "channels_last": torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
        "flat": w.view(-1)[7:30],
        "conjugate": torch.randn(3, dtype=torch.complex64).conj(),
    }


def test_types_and_views_of_torch_files(tmp_path):
    state = all_kinds() | views()
    torch.save(state, tmp_path / "x")
    opened = open_checkpoint(tmp_path / "x")
    assert opened.suffix == ".pt" and list(opened.tensors) == list(state)
    for name, tensor in state.items():
        stored = opened.tensors[name]
        assert stored.plain == (not tensor.is_complex())
        flat = tensor.resolve_conj().contiguous().reshape(-1)
        if name == "conjugate":
            continue
        for start in range(0, flat.numel() + 1, 1 + flat.numel() // 12):
            for stop in range(start, flat.numel() + 1, 1 + flat.numel() // 9):
                found = stored.read(start, stop)
                assert found.dtype == tensor.dtype and found.shape == (stop - start,)
                assert torch.equal(found.view(torch.uint8), flat[start:stop].view(torch.uint8))
    with pytest.raises(ValueError, match="elements"):
        opened.tensors["w"].read(0, 31)


def test_types_of_safetensors(tmp_path):
    state = all_kinds()
    save_file(state, tmp_path / "x", {"by": "me"})
    opened = open_checkpoint(tmp_path / "x")
    assert opened.suffix == ".safetensors" and opened.taken == ""
    assert opened.tensors.keys() == state.keys()
    assert all(same(stored, state[name]) for name, stored in opened.tensors.items())
    new = torch.randn(6, 5)
    assert opened.save(tmp_path / "y", {"w": lambda: new, "torch.float16": lambda: new[0]}) is None
    written = load_file(tmp_path / "y")
    assert torch.equal(written["w"], new) and torch.equal(written["torch.float16"], new[0].half())
    assert torch.equal(written["torch.int64"], state["torch.int64"])
    with safe_open(tmp_path / "y", "pt") as file:
        assert file.metadata() == {"by": "me"}
    refused(tmp_path / "x", "--key model", key="model")


def test_unaligned_safetensors(tmp_path):
    header = b'{"a":{"dtype":"I8","shape":[3],"data_offsets":[0,3]},' \
             b'"b":{"dtype":"F32","shape":[2,2],"data_offsets":[3,19]}}'  # fmt: skip
    values = torch.randn(2, 2)
    data = struct.pack("<Q", len(header)) + header + b"abc" + values.numpy().tobytes()
    (tmp_path / "x.safetensors").write_bytes(data)
    assert same(open_checkpoint(tmp_path / "x.safetensors").tensors["b"], values)


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor|TypedStorage|The PyTorch API")
def test_tensors_that_are_not_plain(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        state = {
            "w": torch.ones(2),
            "quantised": torch.quantize_per_tensor(torch.randn(3), 0.1, 0, torch.qint8),
            "sparse": torch.eye(2).to_sparse(),
            "csr": torch.eye(2).to_sparse_csr(),
            "nested": torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
            "jagged": torch.nested.nested_tensor(
                [torch.ones(2), torch.ones(3)], layout=torch.jagged
            ),
            "meta": torch.empty(3, device="meta"),
            "unmade": nn.parameter.UninitializedParameter(),
            "array": np.ones(3),
            "class": torch.ones(3).as_subclass(Mine),
            "buffer": nn.Buffer(torch.ones(3)),
            "parameter": nn.Parameter(torch.ones(3)),
            "huge": torch.ones(1).expand(1 << 40),
            "_extra_state": None,
        }
        torch.save(state, tmp_path / "x.pt")
    opened = open_checkpoint(tmp_path / "x.pt")
    for name in ("quantised", "sparse", "csr"):
        assert not opened.tensors[name].plain
        with pytest.raises(InputError, match=name):
            opened.tensors[name].read()
    assert opened.tensors["sparse"].shape == (2, 2)
    assert opened.tensors["w"].plain and opened.tensors["class"].plain
    assert opened.tensors["parameter"].plain and opened.tensors["buffer"].plain
    left_out = [entry.partition(":")[0] for entry in opened.left_out]
    assert left_out == ["nested", "jagged", "meta", "unmade", "array", "huge"]
    with pytest.raises(ValueError, match="sparse"):
        opened.save(tmp_path / "y.pt", {"sparse": lambda: torch.ones(4)})
    assert opened.save(tmp_path / "y.pt", {"w": lambda: torch.zeros(2)}) is None
    refused(tmp_path / "x.pt", "--key other", key="other")


def test_tied_tensors_stay_tied(tmp_path):
    w = torch.randn(4, 3)
    torch.save({"a": w, "tied": w, "view": w.T, "other": torch.randn(4, 3)}, tmp_path / "x.pt")
    opened = open_checkpoint(tmp_path / "x.pt")
    places = {name: stored.place for name, stored in opened.tensors.items()}
    assert places["a"] == places["tied"] != places["view"] and places["a"] != places["other"]
    new = torch.randn(4, 3)
    assert opened.save(tmp_path / "y.pt", {"a": lambda: new}) is None
    written = torch.load(tmp_path / "y.pt", weights_only=True)
    assert torch.equal(written["tied"], new) and torch.equal(written["view"], new.T)
    assert written["a"].data_ptr() == written["tied"].data_ptr()


def test_views_are_written_back(tmp_path):
    state = views()
    torch.save(state, tmp_path / "x.pt")
    opened = open_checkpoint(tmp_path / "x.pt")
    for name in ("transposed", "slice", "channels_last", "flat"):
        new = torch.randn(state[name].numel())
        assert opened.save(tmp_path / "y.pt", {name: lambda new=new: new}) is None
        written = torch.load(tmp_path / "y.pt", weights_only=True)
        assert torch.equal(written[name].reshape(-1), new)
        assert written[name].stride() == state[name].stride()
        assert torch.equal(written["expanded"], state["expanded"])
    sentence = opened.save(tmp_path / "y.pt", {"expanded": lambda: torch.arange(12.0)})
    assert "expanded" in sentence
    with pytest.raises(ValueError, match="flat"):
        opened.save(tmp_path / "z.pt", {"flat": lambda: torch.ones(1)})
    with pytest.raises(ValueError, match="nothing"):
        opened.save(tmp_path / "z.pt", {"nothing": lambda: torch.ones(1)})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x.pt", "y.pt"]


def hub_model():
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
                        intermediate_size=32, max_position_embeddings=20)  # fmt: skip
    return BertForSequenceClassification(config)


@pytest.mark.parametrize("shards", ["5GB", "10KB"])
def test_folders_of_transformers(tmp_path, shards):
    model, folder = hub_model(), tmp_path / "checkpoint-10"
    model.save_pretrained(folder, max_shard_size=shards)
    assert bool(list(folder.glob("*.index.json"))) == (shards == "10KB")
    torch.save(ADAM, folder / "optimizer.pt")
    torch.save({"cpu": torch.get_rng_state()}, folder / "rng_state.pth")
    torch.save(argparse.Namespace(a=1), folder / "training_args.bin")
    (folder / "trainer_state.json").write_text("{}")
    (folder / "vocab.txt").write_text("a")
    assert is_checkpoint(folder)
    opened, state = open_checkpoint(folder), model.state_dict()
    assert opened.suffix == "" and opened.tensors.keys() == state.keys()
    assert all(same(stored, state[name]) for name, stored in opened.tensors.items())

    new = {name: torch.randn_like(tensor) for name, tensor in state.items()
           if tensor.is_floating_point()}  # fmt: skip
    made = {name: lambda name=name: new[name] for name in new}
    out = tmp_path / "out"
    for _ in range(2):  # the second replaces the first
        assert opened.save(out, made) is None
    kept = {p.name for p in folder.iterdir()} - {"optimizer.pt", "rng_state.pth",
                                                "training_args.bin"}  # fmt: skip
    assert {p.name for p in out.iterdir()} == kept
    written = type(model).from_pretrained(out).state_dict()
    assert all(torch.equal(written[name], new[name]) for name in new)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint-10", "out"]

    if shards == "10KB":
        victim = sorted(folder.glob("*.safetensors"))[1]
        held = victim.read_bytes()
        victim.write_bytes(held[:-1])
        with pytest.raises(InputError, match=victim.name):
            open_checkpoint(folder)
        save_file({"odd": torch.ones(1)}, victim)
        with pytest.raises(InputError, match="has no tensor"):
            open_checkpoint(folder)
        victim.unlink()
        with pytest.raises(InputError, match="is missing"):
            open_checkpoint(folder)
        assert is_checkpoint(folder)


def test_pickled_shards(tmp_path):
    state = {f"layer.{n}.weight": torch.randn(3, n + 1) for n in range(4)}
    names = list(state)
    folder = tmp_path / "in"
    folder.mkdir()
    places = {}
    for number, part in enumerate((names[:2], names[2:]), 1):
        shard = f"pytorch_model-0000{number}-of-00002.bin"
        torch.save({name: state[name] for name in part}, folder / shard)
        places |= dict.fromkeys(part, shard)
    index = folder / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    (folder / "config.json").write_text("{}")
    opened = open_checkpoint(folder)
    assert holds(opened, state) and is_checkpoint(folder)
    assert opened.save(tmp_path / "out", {names[3]: lambda: torch.ones(12)}) is None
    assert {p.name for p in (tmp_path / "out").iterdir()} == {p.name for p in folder.iterdir()}
    again = open_checkpoint(tmp_path / "out")
    assert torch.equal(again.tensors[names[3]].read(), torch.ones(12))
    assert same(again.tensors[names[0]], state[names[0]])
    for damaged in ('{"weight_map": {"a": "../x.bin"}}', '{"weight_map": {"a": 3}}', "[]", "{",
                    '{"weight_map": {}}', "[" * 100000):  # fmt: skip
        index.write_text(damaged)
        with pytest.raises(InputError, match="again"):
            open_checkpoint(folder)


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "pytorch_model.bin", "last.ckpt"])
def test_folders_with_one_file(tmp_path, name):
    folder = tmp_path / "in"
    folder.mkdir()
    save = save_file if name.endswith(".safetensors") else torch.save
    save(STATE, folder / name)
    torch.save(ADAM, folder / "optimizer.pt")
    (folder / "adapter_config.json").write_text("{}")
    opened = open_checkpoint(folder)
    assert opened.suffix == "" and opened.tensors.keys() == STATE.keys()
    opened.save(tmp_path / "out", {"w": lambda: torch.zeros(6)})
    assert {p.name for p in (tmp_path / "out").iterdir()} == {name, "adapter_config.json"}
    assert not open_checkpoint(tmp_path / "out").tensors["w"].read().any()


def test_folder_of_a_series_is_no_checkpoint(tmp_path):
    for epoch in range(3):
        torch.save(STATE, tmp_path / f"epoch_{epoch}.pt")
    assert not is_checkpoint(tmp_path)
    refused(tmp_path, "several", "epoch_0.pt")


@pytest.fixture
def distributed(tmp_path):
    model = net()
    adam = torch.optim.Adam(model.parameters())
    model(torch.randn(4, 6)).sum().backward()
    adam.step()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save({"model": model.state_dict(), "optim": adam.state_dict(), "epoch": 3},
                 checkpoint_id=tmp_path / "step-1", no_dist=True)  # fmt: skip
    return tmp_path / "step-1", model.state_dict()


def test_distributed(distributed, tmp_path):
    folder, state = distributed
    opened = open_checkpoint(folder)
    assert opened.taken == "model" and holds(opened, state) and is_checkpoint(folder)
    new = torch.randn(3, 5)
    assert opened.save(tmp_path / "out", {"2.weight": lambda: new}) is None
    loaded = {"model": net().state_dict(), "epoch": 0}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.load(loaded, checkpoint_id=tmp_path / "out", no_dist=True)
    assert torch.equal(loaded["model"]["2.weight"], new) and loaded["epoch"] == 3
    assert torch.equal(loaded["model"]["0.weight"], state["0.weight"])

    (file,) = folder.glob("*.distcp")
    content = file.read_bytes()
    file.write_bytes(content[:-100])
    with pytest.raises(InputError):
        read_all(folder)
    file.unlink()
    with pytest.raises(InputError, match="is missing"):
        open_checkpoint(folder)


def test_distributed_in_parts(tmp_path):
    from torch.distributed.checkpoint import filesystem, metadata

    whole = torch.randn(6, 7, 2)
    properties = metadata.TensorProperties(dtype=torch.float32)
    chunks, kept = [], {}
    cuts = [((0, 0, 0), (4, 3, 2)), ((0, 3, 0), (4, 4, 2)), ((4, 0, 0), (2, 7, 2))]
    for rank, (lows, sizes) in enumerate(cuts):
        box = whole[tuple(slice(a, a + n) for a, n in zip(lows, sizes, strict=True))]
        with (tmp_path / f"__{rank}_0.distcp").open("wb") as file:
            file.write(b"x" * 13)  # of another tensor
            torch.save(box.clone(), file)
            length = file.tell() - 13
        index = metadata.MetadataIndex("w", torch.Size(lows))
        kept[index] = filesystem._StorageInfo(f"__{rank}_0.distcp", 13, length)
        chunks.append(metadata.ChunkStorageMetadata(torch.Size(lows), torch.Size(sizes)))
    record = metadata.TensorStorageMetadata(properties, whole.shape, chunks)
    described = metadata.Metadata({"w": record}, None, kept)
    (tmp_path / ".metadata").write_bytes(pickle.dumps(described))
    stored = open_checkpoint(tmp_path).tensors["w"]
    assert stored.plain and stored.shape == whole.shape and same(stored, whole)
    for start in range(0, 84, 5):
        for stop in range(start, 85, 3):
            assert torch.equal(stored.read(start, stop), whole.reshape(-1)[start:stop])
    new = torch.randn(84)
    out = tmp_path.with_name("out")
    assert open_checkpoint(tmp_path).save(out, {"w": lambda: new}) is None
    assert torch.equal(open_checkpoint(out).tensors["w"].read(), new)
    described.state_dict_metadata["w"].chunks.pop()
    (tmp_path / ".metadata").write_bytes(pickle.dumps(described))
    refused(tmp_path, "missing")


def test_old_formats(tmp_path):
    torch.save(STATE, tmp_path / "x.pt", _use_new_zipfile_serialization=False)
    refused(tmp_path / "x.pt", "before 1.6", "torch.save")
    assert is_checkpoint(tmp_path / "x.pt")


def test_files_that_something_can_be_done_about(tmp_path):
    file = tmp_path / "x.pt"
    torch.save(net(), file)
    refused(file, "whole model", "state_dict()")
    torch.save({"model": net()}, file)
    refused(file, "whole model", "state_dict()")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(net()), file)
    refused(file, "TorchScript")
    pointer = b"version https://git-lfs.github.com/spec/v1\n"
    for content, words in ((b"", "empty"), (bytes(5000), "empty"), (pointer, "git lfs pull")):
        file.write_bytes(content)
        refused(file, words)
        assert is_checkpoint(file)


def rezipped(source, target, compression=zipfile.ZIP_STORED, **changed):
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", compression) as new:
        for name in old.namelist():
            content = changed.get(name.rpartition("/")[2].replace(".", "_"), old.read(name))
            with new.open(name, "w", force_zip64=True) as record:
                record.write(content)


def test_zips_of_other_writers(tmp_path):
    torch.save(STATE, tmp_path / "x.pt")
    rezipped(tmp_path / "x.pt", tmp_path / "y.pt")
    opened = open_checkpoint(tmp_path / "y.pt")
    assert holds(opened, STATE)
    opened.save(tmp_path / "z.pt", {"w": lambda: torch.zeros(2, 3)})
    assert zipfile.ZipFile(tmp_path / "z.pt").testzip() is None
    assert not torch.load(tmp_path / "z.pt", weights_only=True)["w"].any()
    rezipped(tmp_path / "x.pt", tmp_path / "y.pt", zipfile.ZIP_DEFLATED)
    refused(tmp_path / "y.pt", "compressed", "torch.save")
    rezipped(tmp_path / "x.pt", tmp_path / "y.pt", byteorder=b"big")
    refused(tmp_path / "y.pt", "big-endian")
    with zipfile.ZipFile(tmp_path / "x.pt", "a") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        file.writestr("x/data.pkl", b"N.")
    refused(tmp_path / "x.pt", "damaged")


def test_zip_whose_records_share_bytes(tmp_path):
    torch.save(STATE, tmp_path / "x.pt")
    content = bytearray((tmp_path / "x.pt").read_bytes())
    with zipfile.ZipFile(tmp_path / "x.pt") as file:
        first, second = (file.getinfo(f"x/data/{n}") for n in range(2))
    at = content.index(b"x/data/1", content.index(b"PK\x01\x02"))  # in the table of contents
    content[at - 4 : at] = struct.pack("<L", first.header_offset)
    content[at : at + 8] = b"x/data/0"
    (tmp_path / "y.pt").write_bytes(content)
    assert second.header_offset > first.header_offset
    refused(tmp_path / "y.pt", "damaged")


def test_without_checksums(tmp_path):
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(STATE, tmp_path / "x.pt")
    finally:
        torch.serialization.set_crc32_options(True)
    opened = open_checkpoint(tmp_path / "x.pt")
    assert holds(opened, STATE)
    opened.save(tmp_path / "y.pt", {"w": lambda: torch.zeros(6)})
    assert not torch.load(tmp_path / "y.pt", weights_only=True)["w"].any()


class Calls:
    """A pickle that calls something when it is loaded as pickles usually are."""

    def __init__(self, function, *args):
        self.called = function, args

    def __reduce__(self):
        return self.called


RAN = []


def ran(*args):
    RAN.append(args)
    return dict


class Restored:
    def __setstate__(self, state):
        RAN.append(state)

    def __getstate__(self):
        return {"a": 1}


class Built:
    def __new__(cls, *args, **kwargs):
        RAN.append(args)
        return super().__new__(cls)

    def __getnewargs_ex__(self):
        return (1,), {"a": 2}


class Full(list):
    def append(self, item):
        RAN.append(item)

    extend = append


@pytest.mark.parametrize("protocol", [1, 2, 4])
def test_no_pickled_code_runs(tmp_path, protocol):
    trace = tmp_path / "trace"
    gadgets = [
        Calls(os.system, f"touch {trace}"),
        Calls(eval, f"open({str(trace)!r}, 'w')"),
        Calls(exec, f"open({str(trace)!r}, 'w')"),
        Calls(ran, 1),
        Calls(getattr, Calls(ran, 1), "update"),
        Calls(functools.reduce, ran, [1, 2]),
        Calls(map, ran, [1, 2]),
        Calls(subprocess.Popen, ["touch", str(trace)]),
        Calls(torch.load, str(trace)),
        Restored(),
        Built(),
        Full([1, 2]),
        functools.partial(ran, 1),
        {Calls(ran, 1): Calls(ran, 2)},
        collections.defaultdict(ran, a=1),
    ]
    RAN.clear()
    for gadget in gadgets:
        torch.save({"model": STATE, "code": gadget}, tmp_path / "x.pt", pickle_protocol=protocol)
        RAN.clear()  # of what saving ran
        assert holds(open_checkpoint(tmp_path / "x.pt"), STATE)
        torch.save({"model": STATE | {"code": gadget}}, tmp_path / "y.pt", pickle_protocol=protocol)
        RAN.clear()
        assert "w" in open_checkpoint(tmp_path / "y.pt").tensors
        torch.save(gadget, tmp_path / "z.pt", pickle_protocol=protocol)
        RAN.clear()
        refused(tmp_path / "z.pt")
        assert not RAN and not trace.exists()


DEEP = 100_000
SET = b"N}X\x06\x00\x00\x00updateK\x01s\x86b."  # an attribute of what is on the stack
MAKE = b"\x80\x02ccollections\nOrderedDict\nq\x00"
PICKLES = {
    "global on a builder": b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n" + SET,
    "attributes of a class": b"\x80\x02ccollections\nOrderedDict\n" + SET,
    "deep lists": b"\x80\x02" + b"]" * DEEP + b"a" * (DEEP - 1) + b".",
    "deep tuples": b"\x80\x02)" + b"\x85" * DEEP + b".",
    "deep tuples as a key": b"\x80\x02})" + b"\x85" * DEEP + b"K\x01s.",
    "doubling tuples as a key": b"\x80\x02})" + b"2\x86" * 60 + b"K\x01s.",
    "a list in itself": b"\x80\x02]q\x00h\x00a.",
    "a dictionary in itself": b"\x80\x02}q\x00X\x01\x00\x00\x00ah\x00s.",
    "a huge number": b"\x80\x02\x8b\xff\xff\xff\x7f1.",
    "huge bytes": b"\x80\x05\x8e" + b"\xff" * 7 + b"\x7f.",
    "a huge bytearray": b"\x80\x05\x96" + b"\x00\x00\x00\x00\x00\x40\x00\x00.",
    "huge text": b"\x80\x05\x8d" + b"\xff" * 7 + b"\x7f.",
    "a huge frame": b"\x80\x04\x95" + b"\xff" * 7 + b"\x7f.",
    "a huge memo": b"\x80\x02Nr\xff\xff\xff\x7f.",
    "a huge protocol": b"\x80\xffN.",
    "an extension": b"\x80\x02\x82\x01.",
    "a buffer": b"\x80\x05\x97.",
    "a storage of text": b"\x80\x02Pstorage\n.",
    "no end": b"\x80\x02}",
    "nothing on the stack": b"\x80\x020R.",
    "a call of a number": b"\x80\x02K\x01)R.",
    "a storage that is none": b"\x80\x02X\x01\x00\x00\x00aQ.",
    "many copies of a list": MAKE + b"](" + b"K\x01K\x02\x86" * 3000
    + b"e\x85q\x01" + b"0h\x00h\x01R" * 3000 + b".",
}  # fmt: skip


@pytest.mark.parametrize("name", PICKLES)
def test_hostile_pickles(tmp_path, name):
    torch.save(STATE, tmp_path / "x.pt")
    rezipped(tmp_path / "x.pt", tmp_path / "y.pt", data_pkl=PICKLES[name])
    refused(tmp_path / "y.pt")
    is_checkpoint(tmp_path / "y.pt")


def described(storage="FloatStorage", key="0", count=6, offset=0, size=(2, 3), stride=(3, 1)):
    """A pickle that describes one tensor as it likes."""

    class Pickler(pickle.Pickler):
        def persistent_id(self, value):
            return value.pid if isinstance(value, Pid) else None

        def reducer_override(self, value):
            if isinstance(value, Described):
                return torch._utils._rebuild_tensor_v2, value.args
            return NotImplemented

    class Pid:
        pid = ("storage", getattr(torch, storage), key, "cpu", count)

    class Described:
        args = (Pid(), offset, size, stride, False, collections.OrderedDict())

    import io

    buffer = io.BytesIO()
    Pickler(buffer, 2).dump({"w": Described()})
    return buffer.getvalue()


@pytest.mark.parametrize(
    "changed",
    [
        {"offset": 1},
        {"offset": -1},
        {"count": 1 << 60},
        {"count": -1},
        {"key": "9"},
        {"key": "../version"},
        {"size": (2, 4)},
        {"size": (2, -3)},
        {"size": (2,)},
        {"size": (2.0, 3)},
        {"size": (1 << 70, 0)},
        {"size": (1,) * 100, "stride": (1,) * 100},
        {"stride": (1 << 62, 1)},
        {"stride": (-1, 1)},
        {"size": None},
        {"offset": "a"},
        {"storage": "DoubleStorage"},
        {"storage": "ones"},
    ],
)
def test_tensors_that_leave_their_storage(tmp_path, changed):
    torch.save({"w": torch.arange(6.0)}, tmp_path / "x.pt")
    rezipped(tmp_path / "x.pt", tmp_path / "y.pt", data_pkl=described())
    assert same(open_checkpoint(tmp_path / "y.pt").tensors["w"], torch.arange(6.0))
    rezipped(tmp_path / "x.pt", tmp_path / "y.pt", data_pkl=described(**changed))
    refused(tmp_path / "y.pt")


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A small file of each kind, and what it holds."""
    folder = tmp_path_factory.mktemp("small")
    w = torch.randn(3, 2)
    torch.save({"model": {"w": w, "t": w.T, "b": torch.ones(2).bfloat16()}, "a": {"b": [1, "c"]}},
               folder / "x.pt")  # fmt: skip
    save_file({"w": w, "b": torch.ones(2).bfloat16()}, folder / "x.safetensors")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save({"model": {"w": w}}, checkpoint_id=folder / "x", no_dist=True)
    return folder


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
@pytest.mark.parametrize("name", ["x.pt", "x.safetensors", "x/.metadata", "x/__0_0.distcp"])
def test_damage(small, data, name):
    content = bytearray((small / name).read_bytes())
    expected = read_all(small / name.partition("/")[0])
    if data.draw(st.booleans(), "cut"):
        content = content[: data.draw(st.integers(0, len(content) - 1), "length")]
    for _ in range(data.draw(st.integers(0, 3), "flips")):
        if content:
            at = data.draw(st.integers(0, len(content) - 1), "at")
            content[at] ^= data.draw(st.integers(1, 255), "by")
    folder = small / "damaged"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(small / "x", folder / "x")
    (folder / name).write_bytes(content)
    path = folder / name.partition("/")[0]
    try:
        found = read_all(path)
    except InputError as error:
        assert "\n" not in str(error)
    else:
        if name == "x.pt":  # the others have no checksums of all they hold
            assert found.keys() == expected.keys()
            assert all(torch.equal(found[key], expected[key]) for key in found)
    is_checkpoint(path)


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
@pytest.mark.parametrize("protocol", [2, 4])
def test_damaged_pickles(small, data, protocol):
    """Pickles with steps changed, left out or said twice, under a checksum that is right."""
    state = net().state_dict() | {"t": torch.ones(2, 3).T}
    torch.save(lightning_form(state), small / "y.pt", pickle_protocol=protocol)
    with zipfile.ZipFile(small / "y.pt") as file:
        content = bytearray(file.read("y/data.pkl"))
    for _ in range(data.draw(st.integers(1, 3), "changes")):
        at = data.draw(st.integers(0, len(content) - 1), "at")
        end = at + data.draw(st.integers(0, 20), "length")
        content[at:end] = data.draw(st.binary(max_size=2), "by") + content[at:end] * data.draw(
            st.integers(0, 2), "times"
        )
    rezipped(small / "y.pt", small / "z.pt", data_pkl=bytes(content))
    with contextlib.suppress(InputError):
        read_all(small / "z.pt")


@pytest.mark.parametrize("kind", ["torch", "safetensors"])
def test_memory_of_a_range(tmp_path, kind):
    file, size = tmp_path / "large", 100 << 20
    state = {"w": torch.ones(size // 4), "t": torch.ones(10, 10).T}
    if kind == "torch":
        torch.save(state, file)
    else:
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, file)
    code = f"""
import resource, sys
from pathlib import Path
from utils.cmd.checkpoints import open_checkpoint
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
import os
before, files = peak(), len(os.listdir("/proc/self/fd"))
opened = open_checkpoint(Path({str(file)!r}))
stored = opened.tensors["w"]
assert stored.read(stored.numel() // 2, stored.numel() // 2 + 100).sum() == 100
assert opened.tensors["t"].read(3, 9).sum() == 6
assert peak() - before < {size // 4}, peak() - before
opened.save(Path({str(file)!r} + "2"), {{"t": lambda: stored.read(0, 100)}})
assert peak() - before < {size // 4}, peak() - before
assert len(os.listdir("/proc/self/fd")) == files
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_file_that_changes_meanwhile(tmp_path):
    torch.save(STATE, tmp_path / "x.pt")
    opened = open_checkpoint(tmp_path / "x.pt")
    (tmp_path / "x.pt").write_bytes(b"")
    with pytest.raises(InputError, match="changed"):
        opened.tensors["w"].read()
    with pytest.raises(InputError, match="changed"):
        opened.save(tmp_path / "y.pt", {"w": lambda: torch.ones(6)})
    (tmp_path / "x.pt").unlink()
    with pytest.raises(InputError, match="any more"):
        opened.tensors["w"].read()
    assert not list(tmp_path.iterdir())


def test_replaces_itself(tmp_path):
    torch.save(STATE, tmp_path / "x.pt")
    opened = open_checkpoint(tmp_path / "x.pt")
    opened.save(tmp_path / "x.pt", {"w": lambda: opened.tensors["w"].read() + 1})
    assert torch.equal(
        open_checkpoint(tmp_path / "x.pt").tensors["w"].read(), torch.full((6,), 2.0)
    )


def test_interrupted_folder_stays_as_it_was(tmp_path):
    def interrupted():
        raise KeyboardInterrupt

    folder = tmp_path / "in"
    folder.mkdir()
    save_file(STATE, folder / "model.safetensors")
    opened = open_checkpoint(folder)
    opened.save(tmp_path / "out", {})
    before = (tmp_path / "out" / "model.safetensors").read_bytes()
    with pytest.raises(KeyboardInterrupt):
        opened.save(tmp_path / "out", {"b": lambda: torch.ones(3), "w": interrupted})
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in", "out"]
