import itertools

import pytest
import torch
import torchvision
from torch import nn

from models.preresnet import PreResNet
from models.wide_resnet import WideResNet
from utils.base_utils import MODELS, get_model
from utils.system.errors import UserError
from utils.training.optimizers import make_optimizer, make_scheduler

PARAMETERS = {
    "res18": 11_173_962,
    "preres164": 2_605_466,
    "wideres": 36_489_290,
    "lenet": 548_878,
    "googlenet": 6_166_250,
    "vit": 85_806_346,
}


def build(name, num_classes=10):
    entry = get_model(name)
    return entry.build(num_classes)


@pytest.mark.parametrize("name", MODELS)
def test_parameter_count(name):
    with torch.device("meta"):
        assert sum(p.numel() for p in build(name).parameters()) == PARAMETERS[name]


def test_lenet_is_tanh_then_pooling():
    model = get_model("lenet").build(num_classes=10)
    images = torch.randn(8, 3, 32, 32)
    features = images
    for convolution in (model.features[0], model.features[3]):
        features = torch.nn.functional.max_pool2d(convolution(features).tanh(), 2)
    expected = model.classifier(features.flatten(1))
    assert torch.equal(model(images), expected)
    with torch.inference_mode():
        torch.testing.assert_close(model(images), expected)


@pytest.mark.parametrize("name", ["lenet", "res18", "preres164", "googlenet"])
def test_logits_have_one_value_a_class_and_gradients_reach_every_weight(name):
    net = build(name, num_classes=7)
    logits = net(torch.randn(4, 3, 32, 32))
    assert logits.shape == (4, 7)
    nn.functional.cross_entropy(logits, torch.arange(4)).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


@pytest.mark.parametrize("name", ["lenet", "res18", "preres164", "googlenet", "wideres"])
@pytest.mark.parametrize("shape", [(2, 3, 28, 28), (2, 1, 32, 32), (2, 3, 36, 36), (3, 32, 32)])
def test_another_image_size_is_named(name, shape):
    with torch.device("meta"):
        net = build(name)
        with pytest.raises(ValueError, match=r"takes images \[batch, 3, 32, 32\]"):
            net(torch.empty(shape))


def test_resnet_has_no_running_statistics_and_the_layers_own_initialisation():
    net = build("res18")
    norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) == 20 and all(m.running_var is None for m in norms)
    assert not list(net.buffers())
    for m in net.modules():
        if isinstance(m, nn.Conv2d):  # uniform in ± 1/√fan_in
            bound = (m.in_channels * m.kernel_size[0] ** 2) ** -0.5
            assert 0.9 * bound < m.weight.abs().max() <= bound


def test_wide_resnet_28_10():
    with torch.device("meta"):
        net = WideResNet()
    convolutions = [m for m in net.modules() if isinstance(m, nn.Conv2d)]
    assert len(convolutions) == 25 + 3 and all(m.bias is not None for m in convolutions)
    assert {m.p for m in net.modules() if isinstance(m, nn.Dropout)} == {0.3}
    assert WideResNet(depth=10, widen=1)(torch.randn(2, 3, 32, 32)).shape == (2, 10)
    with pytest.raises(ValueError, match="6n \\+ 4"):
        WideResNet(depth=20)


def test_preresnet_has_164_layers_of_basic_blocks():
    with torch.device("meta"):
        net = PreResNet()
    three = [m for m in net.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]
    assert len(three) + 1 == 164  # and the head
    with pytest.raises(ValueError, match="6n \\+ 2"):
        PreResNet(depth=165)


@pytest.fixture
def small_vit(monkeypatch):
    """torchvision's builder, with two small blocks in place of twelve."""

    def build_small(num_classes):
        return torchvision.models.VisionTransformer(
            image_size=32, patch_size=16, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=32,
            num_classes=num_classes,
        )  # fmt: skip

    monkeypatch.setattr("torchvision.models.vit_b_16", build_small)
    return build_small


def test_vit_reads_weights_and_replaces_the_head(small_vit, tmp_path):
    pretrained = small_vit(num_classes=1000)
    torch.save(pretrained.state_dict(), tmp_path / "vit.pth")
    net = get_model("vit").build(10, str(tmp_path / "vit.pth"))
    assert net.heads.head.out_features == 10
    for name, tensor in net.state_dict().items():
        if "heads" not in name:
            assert torch.equal(tensor, pretrained.state_dict()[name])


def test_vit_whose_download_is_cut_short(small_vit, monkeypatch):
    def cut_short(*_, **__):
        raise RuntimeError('invalid hash value (expected "c867db91", got "0")')

    monkeypatch.setattr("torchvision.models.ViT_B_16_Weights.get_state_dict", cut_short)
    with pytest.raises(UserError, match=r"^--weights imagenet: torchvision's download: invalid"):
        get_model("vit").build(10, "imagenet")


@pytest.mark.parametrize(
    "content", [{"heads.head.weight": 3}, b"nonsense", {"weight": torch.zeros(3)}, [1, 2]]
)
def test_vit_refuses_other_files(small_vit, tmp_path, content):
    path = tmp_path / "vit.pth"
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    with pytest.raises(UserError, match="vit"):
        get_model("vit").build(10, str(path))
    with pytest.raises(UserError, match=r"missing\.pth"):
        get_model("vit").build(10, str(tmp_path / "missing.pth"))


def test_table_is_the_papers():
    table = {
        "res18": ("sgd", 0.05, 150, 10, 1000),
        "wideres": ("sgd", 0.1, 120, 5, 1000),
        "preres164": ("sgd", 0.1, 150, 2, 10_000),
        "lenet": ("adam", 0.001, 150, 10, 1000),
        "googlenet": ("adam", 0.001, 120, 7, 5000),
        "vit": ("sgd", 0.03, 90, 10, 1000),
    }
    for name, expected in table.items():
        entry = get_model(name)
        assert (entry.optimizer, entry.lr, entry.epochs, entry.modes, entry.samples) == expected
        optimizer = make_optimizer(entry.optimizer, nn.Linear(2, 2), entry.lr, entry.momentum)
        assert type(optimizer).__name__.lower() == entry.optimizer
        group = optimizer.param_groups[0]
        assert group["weight_decay"] == 0 and group["lr"] == entry.lr
        assert group.get("momentum", 0.9) == 0.9
    with pytest.raises(UserError, match="--model lenet6"):
        get_model("lenet6")


def test_vit_rate_rises_for_five_epochs_to_its_peak_and_falls_to_zero():
    entry, steps = get_model("vit"), 391
    optimizer = make_optimizer(entry.optimizer, nn.Linear(2, 2), entry.lr, entry.momentum)
    scheduler = make_scheduler(entry.scheduler, optimizer, 90, steps)
    rates = []
    for _ in range(90 * steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates[0] == 0
    assert rates[5 * steps] == max(rates) == 0.03
    assert rates[5 * steps // 2] == pytest.approx(0.015, rel=1e-2)
    assert rates[(5 + 90) * steps // 2] == pytest.approx(0.015, rel=1e-2)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0, abs=1e-12)
    assert make_scheduler(get_model("res18").scheduler, optimizer, 150, steps) is None


@pytest.mark.parametrize("warmup", [0, 2, 7])
def test_a_warmup_of_another_length(warmup):
    """Linearly up to the rate over so many epochs, then along the cosine to 0."""
    steps, epochs = 4, 9
    optimizer = make_optimizer("sgd", nn.Linear(1, 1), 0.5, 0.9)
    scheduler = make_scheduler("warmup_cosine", optimizer, epochs, steps, warmup)
    rates = []
    for _ in range(epochs * steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    rise = warmup * steps
    assert rates[:rise] == pytest.approx([0.5 * step / rise for step in range(rise)])
    assert max(rates) == rates[rise] == pytest.approx(0.5)
    assert all(before > after for before, after in itertools.pairwise(rates[rise:]))
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0, abs=1e-12)
