import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import pdist

from tests import reference, trajectories
from utils.cmd import clustering
from utils.cmd.clustering import cluster, correlation, row_distances, sample_weights


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def per_layer(sample, sizes):
    edges = np.cumsum([0, *sizes])
    return np.histogram(sample.numpy(), bins=edges)[0] if len(sizes) else np.zeros(0)


sizes_and_k = (
    st.lists(st.integers(0, 400), min_size=1, max_size=12)
    .filter(sum)
    .flatmap(lambda sizes: st.tuples(st.just(sizes), st.integers(1, sum(sizes) + 5)))
)


@pytest.mark.filterwarnings("ignore:.*samples are fewer")
@given(sizes_and_k, st.integers(0, 5))
@settings(deadline=None, max_examples=200)
def test_sample_is_exact_distinct_and_reproducible(sizes_and_k, seed):
    sizes, k = sizes_and_k
    sample = sample_weights(sizes, k, generator(seed))
    assert sample.dtype == torch.int64
    assert len(sample) == len(set(sample.tolist())) == min(k, sum(sizes))
    assert sample.min() >= 0 and sample.max() < sum(sizes)
    assert torch.equal(sample, sample_weights(sizes, k, generator(seed)))


@given(sizes_and_k)
@settings(deadline=None, max_examples=200)
def test_sample_is_balanced_over_layers(sizes_and_k):
    sizes, k = sizes_and_k
    n_layers = sum(size > 0 for size in sizes)
    if k >= sum(sizes) or k < 2 * n_layers:
        return
    counts = per_layer(sample_weights(sizes, k, generator()), sizes)
    # Layers may fill up, which raises the others' shares and never lowers them.
    for size, count in zip(sizes, counts, strict=True):
        equal, proportional = (k // 2) // n_layers, (k - k // 2) * size // sum(sizes)
        assert count >= min(size, equal + proportional)
        assert count <= size
    # Of two layers the larger gives no fewer.
    ordered = counts[np.argsort(sizes, kind="stable")]
    assert (np.diff(ordered) >= -2).all()  # rounding of the two halves aside


def test_small_layers_pass_their_share_on_by_each_halfs_own_rule():
    # The equal half, 500: the layers of 10 and 20 are full, the others share 470 equally. The
    # other half goes to those two in proportion.
    sizes = [10, 90_000, 20, 10_000]
    counts = per_layer(sample_weights(sizes, 1000, generator()), sizes)
    assert counts.tolist() == [10, 235 + 450, 20, 235 + 50]


def test_sample_of_a_real_layout_is_half_equal_half_proportional():
    sizes = [100_000, 500, 300_000, 500]
    counts = per_layer(sample_weights(sizes, 1000, generator()), sizes)
    exact = [125 + 500 * size / sum(sizes) for size in sizes]
    assert np.abs(counts - exact).max() <= 1


def test_small_sample_is_uniform_and_says_so():
    with pytest.warns(UserWarning, match="uniformly"):
        sample = sample_weights([1, 1, 1, 10_000], 7, generator())
    assert len(sample) == 7


def test_sample_of_everything():
    assert sample_weights([3, 2], 5).tolist() == sample_weights([3, 2], 99).tolist() == [*range(5)]


@pytest.mark.parametrize(("sizes", "k"), [([5], 0), ([], 3), ([0], 3), ([4, -1], 2)])
def test_sample_refuses(sizes, k):
    with pytest.raises(ValueError, match=r"samples must|layer_sizes"):
        sample_weights(sizes, k)


@pytest.mark.parametrize("make", [trajectories.drifting, trajectories.offset])
def test_correlation_equals_reference(make):
    x = make(20, 200)
    ours = correlation(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(ours, reference.correlations(x, x), atol=1e-9)
    assert (ours[0] == 0).all()  # weight 0 never moves: not even correlated with itself
    assert ours[1, 1] == 1


def test_blocked_distances_equal_scipys(monkeypatch):
    monkeypatch.setattr(clustering, "DIRECT_ROWS", 10)
    monkeypatch.setattr(clustering, "BLOCK_ROWS", 64)
    rows = correlation(torch.from_numpy(trajectories.drifting(30, 300)))
    rows[7] = rows[3]  # rounding must not give them a distance
    blocked = row_distances(rows).numpy()
    np.testing.assert_allclose(blocked, pdist(rows.numpy()), rtol=1e-9, atol=1e-6)
    assert blocked[3 * 300 - 3 * 4 // 2 + (7 - 3 - 1)] == 0
    monkeypatch.undo()
    np.testing.assert_allclose(row_distances(rows).numpy(), pdist(rows.numpy()), rtol=1e-12)


def test_modes_are_ordered_by_size_and_references_are_their_centres():
    groups = torch.tensor([0] * 5 + [1] * 9 + [2] * 3)
    base = torch.randn(40, 3, dtype=torch.float64)
    x = base[:, groups] + 0.3 * torch.randn(40, len(groups), dtype=torch.float64)
    labels, references = cluster(correlation(x), 3)
    assert labels.tolist() == [1] * 5 + [0] * 9 + [2] * 3
    c = correlation(x)
    for mode, centre in enumerate(references):
        members = (labels == mode).nonzero().flatten()
        assert centre in members
        means = c[members][:, members].mean(1)
        assert means.max() == c[centre, members].mean()


def test_fewer_clusters_than_asked_for():
    alike = torch.randn(10, 1) * torch.linspace(1, 2, 8)  # all perfectly correlated
    labels, references = cluster(correlation(alike), 5)
    assert labels.tolist() == [0] * 8
    assert references.tolist() == [0]


def test_one_weight_is_one_mode():
    labels, references = cluster(torch.ones(1, 1, dtype=torch.float64), 1)
    assert labels.tolist() == references.tolist() == [0]
