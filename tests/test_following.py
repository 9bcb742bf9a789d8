"""OnlineCMD follows what torch's AveragedModel follows, and more, and no fault leaves a trace."""

import copy
import functools
import threading
import warnings

import numpy as np
import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, update_bn

from utils.cmd import CMDModel, OnlineCMD, fit_cmd, read_vector, write_vector
from utils.cmd.files import read_pickled

WARMUP = 4


class Net(nn.Module):
    """Tied weights, statistics, counters, buffers that no state dictionary has, and extra state."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(9, 6)
        self.body = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Tanh())
        self.head = nn.Linear(6, 9, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("shift", torch.zeros(6), persistent=False)
        self.seen = 0

    def forward(self, x):
        self.seen += 1
        if self.training:
            with torch.no_grad():
                self.shift += 0.1
        return self.head(self.body(self.embed(x) + self.shift))

    def get_extra_state(self):
        return {"seen": self.seen}

    def set_extra_state(self, state):
        self.seen = state["seen"]


def net(seed=0):
    torch.manual_seed(seed)
    return Net()


def train(model, steps=1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.2)
    for _ in range(steps):
        x = torch.randint(9, (8,), generator=generator)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), x).backward()
        optimizer.step()


@pytest.fixture
def alone():
    """A process group of one process."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def compiled_in_place(model):
    model.compile(backend="eager")
    return model


WRAPPINGS = {
    "none": lambda model: model,
    "compiled": lambda model: torch.compile(model, backend="eager"),
    "compiled in place": compiled_in_place,
    "DataParallel": DataParallel,
    "DDP": DistributedDataParallel,
    "compiled DDP": lambda model: torch.compile(DistributedDataParallel(model), backend="eager"),
    "a part is compiled": lambda model: (
        setattr(model, "body", torch.compile(model.body, backend="eager")) or model
    ),
    "a part is DataParallel": lambda model: (
        setattr(model, "body", DataParallel(model.body)) or model
    ),
    "checkpointed": lambda model: setattr(model, "body", checkpoint_wrapper(model.body)) or model,
    "FSDP2": lambda model: fully_shard(model, mesh=init_device_mesh("cpu", (1,))),
}


def latest(average, new, count):
    return new


def state(model):
    """All parameters and buffers in their order, whole where they are sharded."""
    tensors = (*model.parameters(), *model.buffers())
    return [getattr(t, "full_tensor", t.detach().clone)() for t in tensors]


@pytest.mark.filterwarnings("ignore:The .grad attribute", "ignore:Dynamo does not know")
@pytest.mark.parametrize("wrapping", WRAPPINGS)
@pytest.mark.parametrize("wrapped_first", [False, True])
def test_wrapped_as_averaged_model(wrapping, wrapped_first, alone):
    """Until the warm-up ends both equal the model, and then CMD is that of the plain model."""
    wrap, averages = WRAPPINGS[wrapping], wrapping != "FSDP2"
    if wrapped_first and not averages:
        pytest.skip("a sharded model cannot be copied: the next test")
    inner = net()
    plain = copy.deepcopy(inner)
    model = wrap(inner) if wrapped_first else inner
    cmd = OnlineCMD(model, modes=3, samples=40, warmup=WARMUP)
    average = AveragedModel(model, avg_fn=latest, use_buffers=True) if averages else None
    expected = OnlineCMD(plain, modes=3, samples=40, warmup=WARMUP)
    if not wrapped_first:
        model = wrap(inner)
    for epoch in range(WARMUP + 4):
        train(model, 2, epoch)
        with torch.no_grad():
            own = (*plain.parameters(), *plain.buffers())
            for ours, theirs in zip(own, state(model), strict=True):
                ours.copy_(theirs)
        plain.seen = inner.seen
        cmd.update_parameters(model)
        expected.update_parameters(plain)
        assert all(map(torch.equal, state(cmd.module), state(expected.module)))
        assert cmd.module.seen == inner.seen
        if epoch < WARMUP:
            assert all(map(torch.equal, state(cmd.module), state(plain)))
            if average is not None:
                average.update_parameters(model)
                assert all(map(torch.equal, state(cmd.module), state(average.module)))
    assert torch.equal(cmd.model.a, expected.model.a)
    assert cmd.module.head.weight is cmd.module.embed.weight
    x = torch.arange(9)
    with cmd.applied_to(model), torch.no_grad():
        assert torch.equal(model.eval()(x), cmd.module.eval()(x))


def test_buffers_that_come_and_grow():
    """Such as a cache, which is in no state dictionary."""
    model = nn.Linear(3, 3)
    model.register_buffer("cache", None, persistent=False)
    model.register_buffer("numbers", torch.arange(2))
    cmd = OnlineCMD(model, 2, 12, 2)
    for epoch in range(5):
        model.cache = torch.rand(epoch + 1)
        model.numbers = torch.arange(epoch)
        with torch.no_grad():
            model.weight += torch.rand(3, 3)
        cmd.update_parameters(model)
        assert torch.equal(cmd.module.cache, model.cache)
        assert torch.equal(cmd.module.numbers, model.numbers)
        again = nn.Linear(3, 3)
        again.register_buffer("cache", None, persistent=False)
        again.register_buffer("numbers", torch.arange(2))
        restored = OnlineCMD(again, 2, 12, 2)
        restored.load_state_dict(cmd.state_dict())
        assert everything(restored) == everything(cmd)


def test_a_sharded_model_with_a_copy_of_ones_own(alone):
    model, own = net(), net()
    plain = copy.deepcopy(model)
    sharded = fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
    with pytest.raises(ValueError, match=r"cannot be copied.*module="):
        OnlineCMD(sharded, 3, 40, WARMUP)
    cmd = OnlineCMD(sharded, 3, 40, WARMUP, module=own)
    expected = OnlineCMD(plain, 3, 40, WARMUP)
    for epoch in range(WARMUP + 3):
        train(sharded, 2, epoch)
        train(plain, 2, epoch)
        cmd.update_parameters(sharded)
        expected.update_parameters(plain)
    assert cmd.module is own
    assert torch.equal(read_vector(own), read_vector(expected.module))


def share_among_two(rank, folder):
    """Follow a model that two processes train, as DDP and as FSDP2."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    found = []
    for wrap in (DistributedDataParallel, lambda model: fully_shard(model, mesh=mesh)):
        model = net()
        cmd = OnlineCMD(model, 3, 40, WARMUP)
        model = wrap(model)
        for epoch in range(WARMUP + 3):
            train(model, 2, epoch)
            cmd.update_parameters(model)
        before = state(model)
        with cmd.applied_to(model), torch.no_grad():
            same = torch.equal(model.eval()(torch.arange(9)), cmd.module.eval()(torch.arange(9)))
        assert same and all(map(torch.equal, before, state(model)))
        found.append(read_vector(cmd.module))
    torch.save(found, f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def test_two_processes(tmp_path):
    torch.multiprocessing.spawn(share_among_two, (tmp_path,), 2)
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)
    ddp, fsdp = found[0]
    assert (ddp - fsdp).abs().max() < 1e-5


def follow_with_data_of_its_own(rank, folder):
    """Follow a DDP model whose BatchNorm sees other data in each of two processes."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2)
    torch.manual_seed(0)
    model = DistributedDataParallel(
        nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Tanh(), nn.Linear(16, 1))
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    cmd = OnlineCMD(model, 3, 100, WARMUP)
    part = OnlineCMD(model, 3, 100, WARMUP, parameters="trainable")
    plain = OnlineCMD(model, 3, 100, WARMUP)
    generator = torch.Generator().manual_seed(rank)
    found = []
    for _ in range(WARMUP + 3):
        for x in (1 + rank) * torch.randn(3, 32, 8, generator=generator):
            optimizer.zero_grad()
            nn.functional.mse_loss(model(x), x[:, :1] * x[:, 1:2]).backward()
            optimizer.step()
        before = state(model)
        cmd.update_parameters(model)
        part.update_parameters(torch.compile(model, backend="eager"))
        plain.update_parameters(model.module)  # each process by itself
        assert all(map(torch.equal, before, state(model)))
        found.append(state(cmd.module) + state(part.module))
    assert rank or everything(cmd) == everything(plain)
    results = {"module": found, "model": vars(cmd.model), "own": state(model)}
    torch.save(results, f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def test_two_processes_with_data_of_their_own(tmp_path):
    """Both follow the first one's buffers, and each keeps its own."""
    torch.multiprocessing.spawn(follow_with_data_of_its_own, (tmp_path,), 2)
    one, other = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert not all(map(torch.equal, one["own"], other["own"]))
    for ours, theirs in zip(one["module"], other["module"], strict=True):
        assert all(map(torch.equal, ours, theirs))
    assert all(torch.equal(one["model"][name], other["model"][name]) for name in one["model"])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("use_orig_params", [False, True])
def test_fsdp1_is_refused(use_orig_params, alone):
    plain = net()
    cmd = OnlineCMD(plain, 3, 40, WARMUP)
    model = FullyShardedDataParallel(
        copy.deepcopy(plain), use_orig_params=use_orig_params, device_id=torch.device("cpu")
    )
    for refused in (model, nn.Sequential(model)):
        with pytest.raises(ValueError, match="fully_shard"):
            OnlineCMD(refused, 3, 40, WARMUP)
        with pytest.raises(ValueError, match="fully_shard"):
            OnlineCMD(plain, 3, 40, WARMUP, module=refused)
        with pytest.raises(ValueError, match=r"update 0: .*fully_shard"):
            cmd.update_parameters(refused)
        with pytest.raises(ValueError, match="fully_shard"), cmd.applied_to(refused):
            pass
    cmd.update_parameters(plain)


def test_a_model_that_has_a_module_named_module():
    class Holder(nn.Module):
        def __init__(self):
            super().__init__()
            self.module = nn.Linear(5, 5)
            self.weight = nn.Parameter(torch.zeros(3))

    model = Holder()
    cmd = OnlineCMD(model, 2, 20, 4)
    assert cmd.layers == ["weight", "module.weight", "module.bias"]
    with torch.no_grad():
        for wrapped in (model, DataParallel(model), torch.compile(model, backend="eager")):
            for parameter in model.parameters():
                parameter += 1
            cmd.update_parameters(wrapped)
    assert torch.equal(cmd.module.module.weight, model.module.weight)


def test_a_module_named_module_beside_a_buffer_that_grows():
    class Holder(nn.Module):
        def __init__(self):
            super().__init__()
            self.module = nn.Linear(5, 5)
            self.register_buffer("cache", torch.zeros(2, dtype=torch.int64))

    model = Holder()
    cmd = OnlineCMD(model, 2, 20, 2)
    for size in range(2, 6):
        model.cache = torch.arange(size)
        with torch.no_grad():
            model.module.weight += 1
        cmd.update_parameters(model)
        assert torch.equal(cmd.module.cache, model.cache)
        assert [name for name, _ in cmd.module.named_buffers()] == ["cache"]


def test_settings_that_are_numpys_are_saved_as_numbers(tmp_path):
    one = np.int64(1)
    cmd = OnlineCMD(net(), 3 * one, 40 * one, 4 * one, seed=one, start=one)
    torch.save(cmd.state_dict(), tmp_path / "cmd.pt")
    cmd.load_state_dict(read_pickled(tmp_path / "cmd.pt"))


class Stubborn(nn.Module):
    """Deepcopy refuses it: a lock, a generator, a cached activation and weight_norm's weight."""

    def __init__(self):
        super().__init__()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.normed = nn.utils.weight_norm(nn.Linear(4, 4))
        self.lock = threading.Lock()
        self.parts = [threading.Lock(), self.normed]
        self.numbers = (number for number in range(3))
        self.register_buffer("scale", torch.tensor(1.0).expand(4))
        self.last = None

    def forward(self, x):
        with self.lock:
            self.last = self.normed(x) * self.scale
        return self.last


def test_what_deepcopy_cannot_copy():
    model = Stubborn()
    x = torch.randn(3, 4)
    model(x)
    with pytest.raises((TypeError, RuntimeError)):
        copy.deepcopy(model)
    cmd = OnlineCMD(model, 2, 10, 1)
    assert cmd.module.parts[1] is cmd.module.normed is not model.normed
    for _ in range(3):
        model(x).square().mean().backward()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter -= 0.1 * parameter.grad
        model(x)
        cmd.update_parameters(model)
        if cmd.n_updates == 1:
            assert torch.equal(cmd(x), model(x))
    kept = model.normed.weight_g.detach().clone()
    with cmd.applied_to(model):
        assert torch.equal(cmd(x), model(x))
    assert torch.equal(kept, model.normed.weight_g)
    assert all(p.grad is None and not p.requires_grad for p in cmd.module.parameters())


def test_a_module_that_refuses_to_be_copied():
    class Single(nn.Linear):
        def __deepcopy__(self, memo):
            raise RuntimeError("there can be only one")

    model = nn.Sequential(Single(3, 3))
    with pytest.raises(ValueError, match=r"only one.*module="):
        OnlineCMD(model, 2, 10, 1)
    cmd = OnlineCMD(model, 2, 10, 1, module=nn.Sequential(nn.Linear(3, 3).double()))
    cmd.update_parameters(model)
    assert torch.equal(cmd.module[0].weight, model[0].weight.double())
    with pytest.raises(
        ValueError, match=r"module=.*0.weight.*\[2, 3\]|0.weight.*\[2, 3\].*module="
    ):
        OnlineCMD(model, 2, 10, 1, module=nn.Sequential(nn.Linear(3, 2)))


def decorated(forward):
    @functools.wraps(forward)
    def wrapped(*args):
        return forward(*args)

    return wrapped


class Both(nn.Linear):
    def forward(self, x):
        return super().forward(x)

    def squared(self, x):
        return super().forward(x) ** 2


@pytest.mark.parametrize("part", [False, True])
@pytest.mark.parametrize(
    "put",
    [
        lambda layer: layer.forward,
        lambda layer: layer.squared,
        lambda layer: decorated(layer.forward),
        lambda layer: decorated(decorated(layer.squared)),
        lambda layer: torch.compile(layer.forward, backend="eager"),
        lambda layer: torch.no_grad()(layer.forward),
        lambda layer: functools.partial(layer.forward),
    ],
)
def test_a_forward_on_the_instance_computes_with_the_copys_weights(put, part):
    torch.manual_seed(0)
    model = nn.Sequential(Both(4, 4), nn.Tanh()) if part else Both(4, 4)
    layer = model[0] if part else model
    layer.forward = put(layer)
    cmd, x = OnlineCMD(model, 2, 20, 1), torch.randn(3, 4)
    stepped(model, cmd)
    assert torch.equal(cmd(x), model(x))
    with torch.no_grad():
        before = cmd(x)
        layer.weight.zero_()
        assert torch.equal(cmd(x), before) and not torch.equal(model(x), before)


@pytest.mark.parametrize("part", [False, True])
def test_a_forward_that_cannot_be_copied(part):
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh())
    layer = model[0] if part else model
    own, kept = copy.deepcopy(model), layer.forward
    layer.forward = lambda x: kept(x)
    with pytest.raises(ValueError, match=r"the forward of '(0|Sequential)'.*module="):
        OnlineCMD(model, 2, 20, 1)
    cmd = OnlineCMD(model, 2, 20, 1, module=own)
    stepped(model, cmd)
    assert torch.equal(cmd(torch.ones(1, 4)), model(torch.ones(1, 4)))


# faults -------------------------------------------------------------------------------------------


def with_nan(model):
    with torch.no_grad():
        model.body[0].weight[2, 3] = torch.nan


def with_infinity_in_statistics(model):
    model.body[1].running_mean[1] = -torch.inf


def with_another_shape(model):
    model.body[0] = nn.Linear(4, 9, bias=False)  # 36 weights, as before


def in_half_precision(model):
    model.body[0].half()


def without_a_bias(model):
    model.body[0].bias = None


def with_one_more(model):
    model.body.register_parameter("extra", nn.Parameter(torch.zeros(2)))


def untied(model):
    model.head.weight = nn.Parameter(model.head.weight.detach().clone())


def tied_more(model):
    model.body[1].bias = model.body[1].weight


FAULTS = {
    with_nan: r"'body.0.weight' is not finite",
    with_infinity_in_statistics: r"'body.1.running_mean' is not finite",
    with_another_shape: r"'body.0.weight' is \[9, 4\].*\[6, 6\]",
    in_half_precision: r"'body.0.(weight|bias)' is torch.float16.*torch.float32",
    without_a_bias: r"'body.0.bias' is missing",
    with_one_more: r"'body.extra' is new",
    untied: r"'head.weight' is no longer tied",
    tied_more: r"'body.1.bias' is tied",
}


def everything(cmd):
    """All that an OnlineCMD holds, as (path, value), without the scratch memory."""

    def flat(value, path):
        if isinstance(value, dict):
            for key, entry in value.items():
                yield from flat(entry, f"{path}/{key}")
        elif isinstance(value, list):
            for number, entry in enumerate(value):
                yield from flat(entry, f"{path}/{number}")
        elif isinstance(value, torch.Tensor):
            # the bits: NaN equals NaN
            yield (
                path,
                (
                    value.dtype,
                    value.shape,
                    value.detach().clone().contiguous().numpy().tobytes()
                    if value.dtype != torch.bfloat16
                    else value.detach().float().numpy().tobytes(),
                ),
            )
        else:
            yield path, copy.deepcopy(value)

    extra = dict((*cmd.module.named_buffers(), *cmd.module.named_parameters()))
    return dict(flat(cmd.state_dict() | {"all": extra}, ""))


@pytest.mark.parametrize("epoch", [0, 2, WARMUP, WARMUP + 2])
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_fault_is_named_and_leaves_no_trace(fault, epoch):
    model, clean = net(), net()
    cmd, expected = (OnlineCMD(m, 3, 40, WARMUP, memory=5) for m in (model, clean))
    for number in range(WARMUP + 4):
        train(model, 1, number)
        train(clean, 1, number)
        if number == epoch:
            faulty = copy.deepcopy(model)
            fault(faulty)
            before = everything(cmd)
            with pytest.raises(ValueError, match=f"update {number}: tensor {FAULTS[fault]}"):
                cmd.update_parameters(faulty)
            assert everything(cmd) == before
        cmd.update_parameters(model)
        expected.update_parameters(clean)
    assert everything(cmd) == everything(expected)


def test_modes_have_to_fit_at_construction():
    with pytest.raises(ValueError, match="5 modes are more than the 4 weights"):
        OnlineCMD(nn.Linear(3, 1), modes=5, samples=10, warmup=3)
    with pytest.raises(ValueError, match="has no shape yet"):
        OnlineCMD(nn.LazyLinear(3), modes=1, samples=10, warmup=3)


@pytest.mark.parametrize("memory", [None, 4])
@pytest.mark.parametrize("with_history", [False, True])
def test_a_mask_of_infinities_is_a_weight_that_never_moves(memory, with_history):
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(6, 6)
            mask = torch.full((6, 6), -torch.inf).triu(1)
            mask[0, 0] = torch.nan
            self.register_buffer("mask", mask)

    class History:
        def __init__(self):
            self.rows = []

        @property
        def array(self):
            return torch.stack(self.rows).numpy()

    model, history = Masked(), History() if with_history else None
    cmd = OnlineCMD(model, 2, 60, 3, memory=memory, history=history)
    plain = OnlineCMD(model.linear, 2, 60, 3, memory=memory)
    for _ in range(7):
        with torch.no_grad():
            model.linear.weight += torch.rand(6, 6)
        if history:
            history.rows.append(read_vector(model))
        cmd.update_parameters(model)
        plain.update_parameters(model.linear)
        assert torch.equal(cmd.module.mask.nan_to_num(), model.mask.nan_to_num())
        assert read_vector(cmd.module.linear).isfinite().all()
    fitted, again = cmd.model, Masked()
    write_vector(fitted.reconstruct(fitted.reference_history[-1]), again)
    assert torch.equal(again.mask.nan_to_num(), model.mask.nan_to_num())
    assert torch.allclose(again.linear.weight, plain.module.weight, atol=1e-6)
    again.mask[5, 5] = torch.nan
    before = everything(cmd)
    with pytest.raises(ValueError, match="update 7: tensor 'mask' is not finite"):
        cmd.update_parameters(again)
    again.mask[5, 5], again.mask[0, 1] = 0, 3
    with pytest.raises(ValueError, match="update 7: tensor 'mask' moves where it was not finite"):
        cmd.update_parameters(again)
    assert everything(cmd) == before
    restored = OnlineCMD(Masked(), 2, 60, 3, memory=memory, history=history)
    restored.load_state_dict(cmd.state_dict())
    assert everything(restored) == before


def test_values_beyond_float32_are_no_infinities():
    model = nn.Linear(3, 3, dtype=torch.float64)
    nn.init.constant_(model.bias, 1e300)
    with pytest.raises(ValueError, match="update 0: tensor 'bias' is not finite in float32"):
        OnlineCMD(model, 2, 12, 2).update_parameters(model)
    cmd = OnlineCMD(model, 2, 9, 2, parameters=lambda name: name == "weight")
    for _ in range(4):
        stepped(model, cmd)
    assert torch.equal(cmd.module.bias, model.bias)


def test_float64_that_does_not_move_is_exact():
    class Clock(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 4, dtype=torch.float64)
            self.register_buffer("began", torch.tensor([1700000001.0, 0.1], dtype=torch.float64))

    torch.manual_seed(0)
    model = Clock()
    with torch.no_grad():
        model.linear.weight[0] = 1 / 3
    cmd = OnlineCMD(model, 2, 20, 2)
    for _ in range(6):
        with torch.no_grad():
            model.linear.weight[1:] += torch.rand(3, 4)
        cmd.update_parameters(model)
        assert torch.equal(cmd.module.began, model.began)
        assert torch.equal(cmd.module.linear.weight[0], model.linear.weight[0])
    assert not torch.equal(cmd.module.linear.weight[1:], model.linear.weight[1:])
    with cmd.applied_to(model):
        assert model.began[0] == 1700000001


def test_what_was_empty_at_construction_may_be_filled_before_the_first_update():
    model = nn.Linear(4, 4)
    nn.init.constant_(model.weight, torch.nan)
    cmd = OnlineCMD(model, 2, 20, 2)
    nn.init.ones_(model.weight)
    for _ in range(4):
        with torch.no_grad():
            model.weight += torch.rand(4, 4)
        cmd.update_parameters(model)
    assert cmd.module.weight.isfinite().all() and cmd.model.a.abs().sum() > 2


# a part of the model, a copy, a device, a block ---------------------------------------------------


def frozen_base():
    model = net()
    model.embed.weight.requires_grad_(False)
    return model


@pytest.mark.parametrize("which", ["trainable", lambda name: name.startswith("body.")])
def test_a_part_is_modelled_and_the_rest_is_copied(which):
    model = frozen_base()
    cmd = OnlineCMD(model, 3, 40, WARMUP, parameters=which)
    assert all(name.startswith("body.") for name in cmd.layers)
    assert ("body.1.running_var" in cmd.layers) == (which != "trainable")
    theta = []
    for epoch in range(WARMUP + 3):
        train(model, 2, epoch)
        with torch.no_grad():
            model.embed.weight += 1  # by hand: it is copied all the same
        cmd.update_parameters(model)
        state = model.state_dict()
        theta.append(torch.cat([state[name].flatten() for name in cmd.layers]))
        assert torch.equal(cmd.module.embed.weight, model.embed.weight)
        if which == "trainable":
            assert torch.equal(cmd.module.body[1].running_var, model.body[1].running_var)
    assert len(cmd.model.a) == len(theta[0])
    trajectory = torch.stack(theta)
    warmup = fit_cmd(trajectory[: WARMUP + 1], cmd.state_dict()["sample"], 3)
    assert torch.equal(cmd.model.reference, warmup.reference)
    expected = cmd.model.reconstruct(theta[-1][cmd.model.reference])
    assert torch.equal(cmd.module.body[0].weight.flatten(), expected[:36])
    other = OnlineCMD(frozen_base(), 3, 40, WARMUP, parameters=lambda name: "running" not in name)
    with pytest.raises(ValueError, match="saved with"):
        other.load_state_dict(cmd.state_dict())


@pytest.mark.parametrize("stop", [2, WARMUP + 2])
def test_a_frozen_base_is_in_no_state(stop, tmp_path):
    def adapted():
        torch.manual_seed(0)
        base = nn.Linear(200, 200).requires_grad_(False)
        return nn.Sequential(base, nn.BatchNorm1d(200), nn.Linear(200, 2), nn.Linear(2, 1))

    def follow(model, generator, *cmds):
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter += torch.randn(parameter.shape, generator=generator) / 10
        model(torch.randn(8, 200, generator=generator))  # BatchNorm's statistics
        for cmd in cmds:
            cmd.update_parameters(model)

    model, generator = adapted(), torch.Generator().manual_seed(0)
    cmd = OnlineCMD(model, 2, 60, WARMUP, parameters="trainable")
    for _ in range(stop):
        follow(model, generator, cmd)
    torch.save(cmd.state_dict(), tmp_path / "cmd.pt")
    assert (tmp_path / "cmd.pt").stat().st_size < 200 * 200 * 4 / 2
    saved = read_pickled(tmp_path / "cmd.pt")
    assert not any(name.startswith("0.") for name in saved["tensors"])
    again = adapted()
    again.load_state_dict(model.state_dict())
    resumed = OnlineCMD(again, 2, 60, WARMUP, parameters="trainable")
    resumed.load_state_dict(saved)
    older = OnlineCMD(adapted(), 2, 60, WARMUP, parameters="trainable")
    tensors = dict(cmd.module.state_dict())  # all of them, as states once were
    del saved["left_out"]
    with pytest.raises(ValueError, match=r"'0\.weight' was saved"):
        older.load_state_dict(saved)
    older.load_state_dict(saved | {"tensors": tensors})
    assert everything(resumed) == everything(older) == everything(cmd)
    for _ in range(WARMUP):
        follow(model, generator, cmd, resumed, older)
    assert everything(resumed) == everything(older) == everything(cmd)
    x = torch.randn(5, 200, generator=generator)
    assert torch.equal(resumed.eval()(x), cmd.eval()(x))


@pytest.mark.parametrize("parameters", ["train", ["weight"], 3])
def test_what_is_followed_is_a_function_or_a_known_word(parameters):
    with pytest.raises(ValueError, match="neither a function of names nor 'trainable'"):
        OnlineCMD(net(), 3, 40, 4, parameters=parameters)


def test_nothing_to_follow():
    with pytest.raises(ValueError, match="no floating-point"):
        OnlineCMD(net(), 3, 40, 4, parameters=lambda name: False)


def test_applied_to_gives_everything_back():
    model = net()
    cmd = OnlineCMD(model, 3, 40, WARMUP)
    loader = [torch.randint(9, (16,)) for _ in range(5)]
    for epoch in range(WARMUP + 3):
        train(model, 2, epoch)
        cmd.update_parameters(model)
        before = copy.deepcopy(model.state_dict())
        del before["_extra_state"]
        own = [id(parameter) for parameter in model.parameters()]
        with pytest.raises(KeyError), cmd.applied_to(model) as applied:
            assert applied is model
            assert torch.equal(read_vector(model), read_vector(cmd.module))
            with pytest.raises(ValueError, match="applied_to"):
                cmd.update_parameters(model)
            update_bn(loader, model)
            assert not torch.equal(model.body[1].running_mean, before["body.1.running_mean"])
            raise KeyError
        after = model.state_dict()
        assert all(torch.equal(before[name], after[name]) for name in before)
        assert own == [id(parameter) for parameter in model.parameters()]
        assert model.body[1].momentum == 0.1
    with pytest.raises(ValueError, match="missing"), cmd.applied_to(nn.Linear(3, 3)):
        pass


def test_statistics_by_update_bn():
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    cmd = OnlineCMD(model, 2, 20, 1)
    loader = torch.randn(6, 20, 4)
    for _ in range(4):
        with torch.no_grad():
            model[0].weight += torch.rand(3, 4)
        cmd.update_parameters(model)
    update_bn(loader, cmd.module)
    with torch.no_grad():
        expected = cmd.module[0](loader)
    assert torch.allclose(cmd.module[1].running_mean, expected.mean((0, 1)), atol=1e-5)
    assert torch.allclose(cmd.module[1].running_var, expected.var(1).mean(0), atol=1e-4)
    assert cmd.module[1].momentum == 0.1 and not cmd.module[1].running_mean.requires_grad


# what else is met --------------------------------------------------------------------------------


def stepped(model, *cmds):
    """Move the floating-point parameters, and update."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += torch.rand_like(parameter) / 10
    for cmd in cmds:
        cmd.update_parameters(model)


def test_a_block_gives_back_buffers_that_were_replaced():
    model = net()
    cmd = OnlineCMD(model, 3, 40, 1)
    for epoch in range(4):
        train(model, 2, epoch)
        cmd.update_parameters(model)
    before, own = state(model), [id(buffer) for buffer in model.buffers()]
    with cmd.applied_to(model):
        model.double().float()
        model.shift = model.shift + 1
    assert all(map(torch.equal, before, state(model)))
    assert own == [id(buffer) for buffer in model.buffers()]


class WithBuffers(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 3)
        with torch.inference_mode():
            self.register_buffer("cached", torch.ones(3), persistent=False)
        self.register_buffer("coo", torch.eye(3).to_sparse(), persistent=False)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.register_buffer("csr", torch.eye(3).to_sparse_csr(), persistent=False)

    def forward(self, x):
        return self.linear(x)


def test_buffers_that_cannot_be_written_in_place():
    model = WithBuffers()
    cmd = OnlineCMD(model, 2, 12, 1, module=WithBuffers())
    for _ in range(3):
        stepped(model, cmd)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    kept = (model.cached, model.coo, model.csr)
    with cmd.applied_to(model):
        assert torch.equal(model.linear.weight, cmd.module.linear.weight)
    assert model.cached is kept[0] and model.coo is kept[1] and model.csr is kept[2]
    assert all(map(torch.equal, before, model.parameters()))


def test_within_inference_mode():
    model = nn.Linear(4, 4)
    cmd, plain = (OnlineCMD(model, 2, 20, 2) for _ in range(2))
    for epoch in range(6):
        stepped(model, plain)
        with torch.inference_mode(epoch % 2 == 0):
            cmd.update_parameters(model)
    assert everything(cmd) == everything(plain)


class Moody(nn.Linear):
    """Its extra state cannot be had, or taken, when it is told so."""

    broken = ""

    def get_extra_state(self):
        if self.broken == "get":
            raise RuntimeError("not now")
        return threading.Lock() if self.broken == "copy" else {"n": 1}

    def set_extra_state(self, value):
        if self.broken == "set":
            raise RuntimeError("not now")


@pytest.mark.parametrize("kind", ["get", "copy", "set"])
@pytest.mark.parametrize("epoch", [1, 3, 5])
def test_extra_states_that_fail_leave_no_trace(kind, epoch):
    torch.manual_seed(0)
    model = Moody(4, 4)
    cmd, clean = (OnlineCMD(model, 2, 20, 3) for _ in range(2))
    for number in range(7):
        stepped(model, clean)
        if number == epoch:
            before = everything(cmd)
            fails = cmd.module if kind == "set" else model
            fails.broken = kind
            with pytest.raises(ValueError, match=f"update {epoch}: the extra state of"):
                cmd.update_parameters(model)
            fails.broken = ""
            assert everything(cmd) == before
        cmd.update_parameters(model)
    assert everything(cmd) == everything(clean)


def test_used_as_torch_uses_an_averaged_model():
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    cmd = OnlineCMD(model, 2, 20, 1)
    for _ in range(3):
        stepped(model, cmd)
    before = cmd.module[1].running_mean.clone()
    assert cmd.eval() is cmd and not cmd.training
    update_bn(torch.randn(5, 16, 4), cmd)
    assert not torch.equal(before, cmd.module[1].running_mean)
    assert next(iter(cmd.parameters())) is cmd.module[0].weight
    with pytest.raises(AttributeError, match="no 'cuda'"):
        cmd.cuda()
    assert torch.equal(copy.deepcopy(cmd).module[0].weight, cmd.module[0].weight)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("part", [False, True])
def test_scripted_modules(part):
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
    if part:
        model[0] = torch.jit.script(model[0])
    else:
        model = torch.jit.script(model)
    cmd = OnlineCMD(model, 2, 20, 4)
    for _ in range(3):
        stepped(model, cmd)
        assert torch.equal(cmd(torch.ones(1, 4)), model(torch.ones(1, 4)))


def renamed(model):
    """Its state dictionary has other names than its modules."""

    def rename(module, state, prefix, _):
        for name in list(state):
            state[f"other.{name}"] = state.pop(name)

    model.register_state_dict_post_hook(rename)
    return model


@pytest.mark.parametrize("wrap", [renamed, checkpoint_wrapper, WRAPPINGS["checkpointed"]])
@pytest.mark.parametrize("stop", [1, 4, 6])
def test_resumes_whatever_the_state_dictionary_is(wrap, stop):
    model = wrap(net())
    cmd = OnlineCMD(model, 3, 40, 4)
    for epoch in range(stop):
        train(model, 1, epoch)
        cmd.update_parameters(model)
    again = OnlineCMD(wrap(net(1)), 3, 40, 4)
    again.load_state_dict(cmd.state_dict())
    for epoch in range(stop, 8):
        train(model, 1, epoch)
        cmd.update_parameters(model)
        again.update_parameters(model)
    assert everything(again) == everything(cmd)


def test_states_that_do_not_fit_change_nothing():
    model, other = net(), net()
    cmd = OnlineCMD(model, 3, 40, 4)
    beside = OnlineCMD(model, 3, 40, 4, memory=5, beside=cmd)
    target = OnlineCMD(other, 3, 40, 4, memory=5)
    for epoch in range(3):
        train(model, 1, epoch)
        cmd.update_parameters(model)
        beside.update_parameters(model)
        target.update_parameters(other)
    before = everything(target)
    with pytest.raises(ValueError, match="beside="):
        target.load_state_dict(beside.state_dict())
    words = [nn.Sequential(nn.Embedding(size, 4), nn.Linear(4, 4)) for size in (10, 12)]
    part, larger = (OnlineCMD(each, 2, 10, 4, parameters=lambda n: n[0] == "1") for each in words)
    before = everything(part)
    with pytest.raises(ValueError, match="another shape"):
        part.load_state_dict(larger.state_dict())
    assert everything(part) == before
    before = everything(target)
    complete = OnlineCMD(model, 3, 40, 4, memory=5).state_dict()
    for name in ("sample", "snapshots", "state", "moments", "n_updates", "tensors"):
        state = {key: value for key, value in complete.items() if key != name}
        with pytest.raises((KeyError, ValueError)):
            target.load_state_dict(state)
    assert everything(target) == before


def test_a_buffer_that_came_late_is_resumed():
    model = nn.Linear(3, 3)
    cmd = OnlineCMD(model, 2, 12, 2)
    model.register_buffer("late", torch.arange(3))
    stepped(model, cmd)
    again = OnlineCMD(nn.Linear(3, 3), 2, 12, 2)
    again.load_state_dict(cmd.state_dict())
    assert torch.equal(again.module.late, model.late)


def test_a_tensor_without_values_is_named():
    with pytest.raises(ValueError, match="'weight' has no values yet"):
        OnlineCMD(nn.Linear(3, 3, device="meta"), 2, 12, 2)
    model = nn.Linear(3, 3)
    cmd = OnlineCMD(model, 2, 12, 2)
    with pytest.raises(ValueError, match="update 0: tensor 'weight' has no values"):
        cmd.update_parameters(nn.Linear(3, 3, device="meta"))
    model = nn.BatchNorm1d(3)
    cmd = OnlineCMD(model, 2, 12, 2)
    model.register_buffer("running_mean", torch.zeros(3), persistent=False)
    with pytest.raises(ValueError, match="'running_mean' is no longer dense"):
        cmd.update_parameters(model)


# drawn at random ----------------------------------------------------------------------------------


class Block(nn.Module):
    """Every kind of state, by what is drawn."""

    def __init__(self, kinds):
        super().__init__()
        for number, kind in enumerate(kinds):
            if kind == "tied":
                one, other = nn.Linear(3, 3), nn.Linear(3, 3)
                other.weight = one.weight
                part = nn.Sequential(one, other)
            elif kind == "frozen":
                part = nn.Linear(3, 2).requires_grad_(False)
            elif kind == "norm":
                part = nn.BatchNorm1d(3)
            elif kind in ("float64", "bfloat16"):
                part = nn.Linear(3, 2, dtype=getattr(torch, kind))
            else:
                part = nn.Linear(3, 2)
            if kind == "scratch":
                part.register_buffer("scratch", torch.zeros(2), persistent=False)
            if kind == "integers":
                part.register_buffer("count", torch.zeros(2, dtype=torch.int64))
            if kind == "mask":
                part.register_buffer("mask", torch.tensor([0.0, -torch.inf]))
            if kind == "state":
                part = Stateful()
            self.add_module(f"{kind}_{number}", part)


class Stateful(nn.Linear):
    def __init__(self):
        super().__init__(3, 2)
        self.count = 0

    def get_extra_state(self):
        return self.count

    def set_extra_state(self, count):
        self.count = count


KINDS = ["tied", "frozen", "norm", "float64", "bfloat16", "plain", "scratch", "integers", "mask",
         "state"]  # fmt: skip


def moved(model, generator):
    """Move all that can be moved, in place."""
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.is_floating_point():
                tensor += torch.rand(tensor.shape, generator=generator).to(tensor.dtype)
            else:
                tensor += 1
    for part in model.modules():
        if isinstance(part, Stateful):
            part.count += 1


def broken(model, names, fault, at):
    """A copy of the model with a fault in one of its layers."""
    faulty = copy.deepcopy(model)
    name = names[at % len(names)]
    owner, _, key = name.rpartition(".")
    owner = faulty.get_submodule(owner)
    tensor = getattr(owner, key)
    with torch.no_grad():
        if fault in ("nan", "inf"):
            tensor.view(-1)[at % tensor.numel()] = float(fault)
        elif fault == "dtype":
            tensor.data = tensor.data.half()
        elif fault == "shape":
            tensor.data = torch.cat([tensor.data, tensor.data])
        elif fault == "gone":
            setattr(owner, key, None)
        else:
            owner.register_buffer("more", torch.zeros(1))
    return faulty


@pytest.mark.filterwarnings("ignore:10 samples are fewer")
@settings(max_examples=40, deadline=None)
@given(
    kinds=st.lists(st.sampled_from(KINDS), min_size=1, max_size=5),
    updates=st.lists(
        st.sampled_from(["none", "none", "nan", "inf", "dtype", "shape", "gone", "new"]),
        min_size=1, max_size=12,
    ),
    at=st.integers(0, 100),
    which=st.sampled_from([None, "trainable", lambda name: "weight" in name]),
    memory=st.sampled_from([None, 2.5]),
)  # fmt: skip
def test_any_module_with_any_faults(kinds, updates, at, which, memory):
    torch.manual_seed(at)
    model = Block(kinds)
    try:
        cmd = OnlineCMD(model, 2, 10, 3, memory=memory, parameters=which)
    except ValueError as error:
        assert "no floating-point" in str(error) and which == "trainable"
        return
    expected = OnlineCMD(model, 2, 10, 3, memory=memory, parameters=which)
    generator = torch.Generator().manual_seed(at)
    for number, fault in enumerate(updates):
        moved(model, generator)
        if fault == "none":
            cmd.update_parameters(model)
            expected.update_parameters(model)
            if cmd.n_updates <= 3:
                ours, theirs = ((*m.parameters(), *m.buffers()) for m in (cmd.module, model))
                for one, other in zip(ours, theirs, strict=True):
                    assert torch.equal(one.nan_to_num(), other.nan_to_num())
                if not any(kind == "norm" for kind in kinds):
                    assert len(cmd.module.state_dict()) == len(model.state_dict())
        else:
            before = everything(cmd)
            faulty = broken(model, cmd.layers, fault, at + number)
            with pytest.raises(ValueError, match=f"update {cmd.n_updates}: tensor '"):
                cmd.update_parameters(faulty)
            assert everything(cmd) == before
    assert everything(cmd) == everything(expected)
    for ours, theirs in zip(cmd.module.modules(), model.modules(), strict=True):
        if isinstance(ours, Stateful) and updates and updates[-1] == "none":
            assert ours.count == theirs.count
    if cmd.model is not None:
        assert isinstance(cmd.model, CMDModel) and len(cmd.model.a) == len(
            read_vector({name: cmd.module.state_dict()[name] for name in cmd.layers})
        )
