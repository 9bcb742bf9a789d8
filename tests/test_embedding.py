"""Which weights are embedded next, against a slow and plain choice."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.cmd.embedding import steadiest


def slow(change, embedded, reference, count):
    left = [
        index
        for index, value in enumerate(change)
        if not embedded[index] and index not in reference and math.isfinite(value)
    ]
    chosen = []
    while left and len(chosen) < count:
        best = left[0]
        for index in left:
            if change[index] < change[best]:
                best = index
        left.remove(best)
        chosen.append(best)
    return chosen


CHANGES = st.one_of(
    st.sampled_from([0.0, 0.25, 1.0]),  # many ties
    st.floats(0, 2.0**100, width=32),
    st.sampled_from([math.inf, math.nan]),
)


@settings(deadline=None)
@given(data=st.data(), dtype=st.sampled_from([torch.float32, torch.float64]))
def test_the_steadiest_are_chosen(data, dtype):
    change = data.draw(st.lists(CHANGES, min_size=1, max_size=40))
    n_weights = len(change)
    embedded = data.draw(st.lists(st.booleans(), min_size=n_weights, max_size=n_weights))
    reference = data.draw(st.lists(st.integers(0, n_weights - 1), unique=True, max_size=5))
    count = data.draw(st.integers(0, n_weights + 3))
    given_ = (
        torch.tensor(change, dtype=dtype),
        torch.tensor(embedded),
        torch.tensor(reference, dtype=torch.int64),
    )
    before = [tensor.clone() for tensor in given_]
    found = steadiest(*given_, count)
    assert found.dtype == torch.int64
    assert found.tolist() == slow(change, embedded, reference, count)
    for tensor, copy in zip(given_, before, strict=True):
        torch.testing.assert_close(tensor, copy, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(
    ("count", "expected"), [(0, []), (1, [2]), (2, [2, 3]), (4, [2, 3, 5, 1]), (9, [2, 3, 5, 1])]
)
def test_a_reference_is_never_chosen_and_ties_are_in_order(count, expected):
    change = torch.tensor([0.0, 4.0, 1.0, 1.0, 0.0, 2.0])
    embedded = torch.tensor([False, False, False, False, True, False])
    assert steadiest(change, embedded, torch.tensor([0]), count).tolist() == expected


def test_ties_of_many_weights_are_in_order():
    """More of them than a sort that is only by chance stable leaves as they are."""
    n_weights = 100_000
    change = torch.arange(n_weights).remainder(3).double()
    none = torch.zeros(n_weights, dtype=torch.bool)
    found = steadiest(change, none, torch.tensor([0, 3]), 50_000)
    expected = [*range(6, n_weights, 3), *range(1, n_weights, 3)][:50_000]
    assert found.tolist() == expected
