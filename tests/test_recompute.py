"""P-BFGS in pieces, and passes whose activations are computed again."""

import copy

import pytest
import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional

from utils.base_utils import MODELS
from utils.methods.pbfgs import _PartialLoss
from utils.pbfgs_utils import SubspaceBFGS
from utils.training.epochs import Batch, in_pieces
from utils.training.recompute import normalises_batches, recomputed

SIZE = 12


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.norm, self.dropout = nn.BatchNorm2d(4, momentum=0.3), nn.Dropout(0.3)

    def forward(self, x):
        return x + self.dropout(self.norm(self.conv(x)).relu())


def normalised():
    blocks = nn.Sequential(*(Block() for _ in range(3)))
    return nn.Sequential(nn.Conv2d(3, 4, 3), blocks, nn.Flatten(), nn.Linear(4 * 36, 5))


def plain():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(4 * 36, 5))


def batch():
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(SIZE, 3, 8, 8, generator=generator)
    return Batch(images, torch.randint(5, (SIZE,), generator=generator), SIZE, SIZE)


def steps(model, pieces, count=4):
    """x after some steps of P-BFGS, and the losses."""
    torch.manual_seed(2)
    n_weights = sum(p.numel() for p in model.parameters())
    directions = torch.linalg.qr(torch.randn(n_weights, 3)).Q.T.contiguous()
    bfgs, losses = SubspaceBFGS(model.train(), directions), []
    for _ in range(count):
        shares = [_PartialLoss(model, piece, SIZE) for piece in in_pieces(batch(), pieces)]
        losses.append(bfgs.step(shares))
        assert sum(share.n_correct for share in shares) <= SIZE
    return bfgs.x, losses


@pytest.mark.parametrize("pieces", [1, 5, 12, 100])
def test_pieces_make_the_same_steps(pieces):
    torch.manual_seed(0)
    model = plain()
    whole, expected = steps(copy.deepcopy(model), SIZE)
    found, losses = steps(model, pieces)
    torch.testing.assert_close(found, whole, rtol=1e-3, atol=1e-5)
    assert losses == pytest.approx(expected, rel=1e-5)
    assert losses[-1] < losses[0]


def test_pieces_cover_a_batch_and_a_rank_s_idle_image_is_one():
    pieces = list(in_pieces(batch(), 5))
    assert [len(piece.labels) for piece in pieces] == [5, 5, 2]
    assert [piece.n_images for piece in pieces] == [5, 5, 2]
    assert {piece.total for piece in pieces} == {SIZE}
    assert torch.equal(torch.cat([piece.images for piece in pieces]), batch().images)
    idle = Batch(batch().images[:1], batch().labels[:1], 0, SIZE)
    assert list(in_pieces(idle, 5)) == [idle]


def test_computed_again_a_pass_is_the_same_to_the_bit():
    torch.manual_seed(0)
    model = normalised()
    other = copy.deepcopy(model)

    def gradients(module):
        torch.manual_seed(3)
        loss = functional.cross_entropy(module(batch().images), batch().labels)
        loss.backward()
        return [loss, *(p.grad for p in module.parameters()), *module.buffers()]

    expected = gradients(model)
    with recomputed(other):
        found = gradients(other)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert "forward" not in vars(other[1][0]), "the blocks are as they were"
    assert all(torch.equal(a, b) for a, b in zip(gradients(other), gradients(model), strict=True))


def test_the_line_search_of_a_model_with_batch_norm_is_the_same():
    torch.manual_seed(0)
    model = normalised()
    other = copy.deepcopy(model)
    expected = steps(model, SIZE)
    with recomputed(other):
        found = steps(other, SIZE)
    assert torch.equal(found[0], expected[0]) and found[1] == expected[1]
    assert all(torch.equal(a, b) for a, b in zip(other.buffers(), model.buffers(), strict=True))


def test_an_error_within_leaves_the_model_as_it_was():
    model = normalised()
    with pytest.raises(ZeroDivisionError), recomputed(model):
        _ = 1 / 0
    assert not any("forward" in vars(module) for module in model.modules())


@pytest.mark.parametrize("name", ["res18", "preres164", "wideres", "googlenet"])
def test_most_activations_of_the_models_are_in_blocks(name):
    """What is kept outside of blocks, inputs of blocks included, is a small part of all."""
    entry = MODELS[name]
    model = entry.build(num_classes=10).train()
    assert normalises_batches(model)
    images = torch.randn(2, 3, entry.transform.size, entry.transform.size)

    def kept():
        held = {}

        def pack(tensor):
            storage = tensor.untyped_storage()
            held[storage.data_ptr()] = storage.nbytes()
            return tensor

        with saved_tensors_hooks(pack, lambda tensor: tensor):
            model(images).sum()
        return sum(held.values())

    whole = kept()
    with recomputed(model):
        assert kept() < whole / 2
        blocks = [module for module in model.modules() if "forward" in vars(module)]
    assert len(blocks) >= 8  # of which one at a time is computed again


def test_models_without_batch_norm_come_in_pieces():
    for name in ("lenet", "vit"):
        assert not normalises_batches(MODELS[name].constructor(num_classes=10))
    assert MODELS["vit"].pieces == 128
