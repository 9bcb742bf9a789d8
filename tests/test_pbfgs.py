import io
import itertools

import pytest
import torch
from torch import nn
from torch.nn import functional

from utils.pbfgs_utils import TRIALS, SubspaceBFGS

N, D = 40, 5


class Point(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Parameter(torch.randn(4, 5))
        self.second = nn.Parameter(torch.randn(20))

    @property
    def theta(self):
        return torch.cat([self.first.reshape(-1), self.second])


@pytest.fixture
def problem(device):
    """A convex quadratic and a random subspace: (module, P, the loss, its minimum there)."""
    torch.manual_seed(1)
    module, factor, centre = Point().to(device), torch.randn(N, N), torch.randn(N).to(device)
    curvature = (factor @ factor.T / N + torch.eye(N)).to(device)
    directions = torch.linalg.qr(torch.randn(N, D)).Q.T.contiguous().to(device)

    def loss():
        away = module.theta - centre
        return 0.5 * away @ curvature @ away

    start = module.theta.detach()
    inside = directions @ curvature @ directions.T
    x = torch.linalg.solve(inside, directions @ curvature @ (centre - start))
    return module, directions, loss, start + directions.T @ x


def test_reaches_the_minimum_without_leaving_the_subspace(problem):
    module, directions, loss, minimum = problem
    bfgs = SubspaceBFGS(module, directions)
    start = module.theta.detach()
    losses = [bfgs.step([loss]) for _ in range(30)]
    assert all(later <= earlier + 1e-4 for earlier, later in itertools.pairwise(losses))
    torch.testing.assert_close(module.theta.detach(), minimum, rtol=1e-3, atol=1e-3)
    away = module.theta.detach() - start
    torch.testing.assert_close(directions.T @ (directions @ away), away, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(directions @ away, bfgs.x.float(), rtol=1e-4, atol=1e-5)


def test_secant_equation_and_positive_definiteness(problem):
    module, directions, loss, _ = problem
    bfgs = SubspaceBFGS(module, directions)
    learned = 0
    for _ in range(12):
        before, step = bfgs.gradient, bfgs.last_step
        bfgs.step([loss])
        inverse = bfgs.inverse_hessian
        torch.testing.assert_close(inverse, inverse.T, rtol=1e-6, atol=1e-9)
        assert torch.linalg.eigvalsh(inverse).min() > 0
        if before is not None and (bfgs.gradient - before) @ step > 1e-20:
            learned += 1
            torch.testing.assert_close(
                inverse @ (bfgs.gradient - before), step, rtol=1e-5, atol=1e-9
            )
    assert learned >= 5


def test_curvature_is_forgotten_on_demand(problem):
    module, directions, loss, _ = problem
    bfgs = SubspaceBFGS(module, directions, keep_curvature=False)
    for _ in range(6):
        bfgs.step([loss])
    # the identity, updated once: all but two eigenvalues are 1
    values = torch.linalg.eigvalsh(bfgs.inverse_hessian)
    assert int(((values - 1).abs() < 1e-9).sum()) >= D - 2


def test_a_line_search_that_finds_nothing_does_not_move(problem):
    module, directions, loss, _ = problem
    bfgs = SubspaceBFGS(module, directions)
    before = {name: p.detach().clone() for name, p in module.state_dict().items()}
    calls = []

    def rising():
        """A loss that is higher at every call, wherever it is looked at."""
        calls.append(1)
        return loss() + 1e6 * len(calls)

    bfgs.step([rising])
    assert len(calls) == 1 + TRIALS
    assert not bfgs.x.any() and not bfgs.last_step.any()
    assert all(torch.equal(p, before[name]) for name, p in module.state_dict().items())


def classifier():
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3))


def data(n=32):
    generator = torch.Generator().manual_seed(4)
    return torch.randn(n, 6, generator=generator), torch.randint(3, (n,), generator=generator)


def directions_for(module, d=4):
    n = sum(p.numel() for p in module.parameters())
    generator = torch.Generator().manual_seed(5)
    return torch.linalg.qr(torch.randn(n, d, generator=generator)).Q.T.contiguous()


def test_line_search_repeats_dropout_and_leaves_running_statistics_alone():
    module, (x, y) = classifier(), data()
    alone = classifier()
    masks, modes = [], []

    def record(layer, given, out):
        masks.append((out == 0) & (given[0] != 0))
        modes.append(torch.is_inference_mode_enabled())

    module[2].register_forward_hook(record)
    bfgs = SubspaceBFGS(module, directions_for(module))
    torch.manual_seed(7)
    bfgs.step([lambda: functional.cross_entropy(module(x), y)])
    assert len(masks) >= 2 and modes == [False] + [True] * (len(masks) - 1)
    assert all(torch.equal(mask, masks[0]) for mask in masks)
    torch.manual_seed(7)
    alone(x)  # the one forward pass that is differentiated
    for name, buffer in alone.named_buffers():
        assert torch.equal(buffer, dict(module.named_buffers())[name])


def test_accumulated_shares_are_one_batch():
    def net():
        torch.manual_seed(3)
        return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))

    x, y = data()
    whole, parts = net(), net()
    one = SubspaceBFGS(whole, directions_for(whole))
    two = SubspaceBFGS(parts, directions_for(parts))

    def share(here):
        return lambda: functional.cross_entropy(parts(x[here]), y[here], reduction="sum") / len(x)

    for _ in range(5):
        first = one.step([lambda: functional.cross_entropy(whole(x), y)])
        second = two.step([share(slice(0, 10)), share(slice(10, 32))])
        assert first == pytest.approx(second, rel=1e-4)
    torch.testing.assert_close(one.x, two.x, rtol=1e-3, atol=1e-5)


def test_goes_on_from_its_state(problem):
    module, directions, loss, _ = problem
    begin = {name: p.detach().clone() for name, p in module.state_dict().items()}
    bfgs = SubspaceBFGS(module, directions)
    for _ in range(3):
        bfgs.step([loss])
    bfgs.settle()
    file = io.BytesIO()
    torch.save(bfgs.state_dict(), file)
    expected = [bfgs.step([loss]) for _ in range(3)]
    module.load_state_dict(begin)
    again = SubspaceBFGS(module, directions)
    file.seek(0)
    again.load_state_dict(torch.load(file, weights_only=True))
    assert [again.step([loss]) for _ in range(3)] == expected


def test_directions_must_fit():
    with pytest.raises(ValueError, match="39"):
        SubspaceBFGS(Point(), torch.zeros(2, 39))
