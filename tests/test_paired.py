"""Differences paired by seed, and their intervals."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from utils.results.paired import half_width, paired_difference
from utils.results.pictures.accuracy import trailing_mean
from utils.results.summary import over_seeds, table

FRACTION = st.floats(0, 1, width=32)


@given(st.lists(st.tuples(FRACTION, FRACTION), min_size=2, max_size=9))
def test_the_interval_is_scipy_s(pairs):
    ours, theirs = map(list, zip(*pairs, strict=True))
    found = paired_difference(ours, theirs)
    assert found.n_runs == len(pairs)
    assert found.mean == pytest.approx(np.mean(ours) - np.mean(theirs), abs=1e-12)
    differences = np.subtract(ours, theirs)
    if np.ptp(differences) > 1e-6:  # else scipy warns of lost precision
        expected = stats.ttest_rel(ours, theirs).confidence_interval(0.95)
        assert found.interval == pytest.approx((expected.low, expected.high), rel=1e-6, abs=1e-9)
    else:
        assert found.interval == pytest.approx((found.mean, found.mean), abs=1e-5)


def test_one_run_has_a_difference_and_no_interval():
    found = paired_difference([0.75], [0.74])
    assert (found.mean, found.n_runs, found.interval) == (pytest.approx(0.01), 1, None)
    assert found.points() == "+1.00"
    with pytest.raises(ValueError, match="no runs"):
        paired_difference([], [])
    with pytest.raises(ValueError, match="argument 2 is"):
        paired_difference([0.5], [0.5, 0.6])


def test_it_is_said_in_points():
    assert paired_difference([0.75, 0.74], [0.74, 0.74]).points() == "+0.50 (−5.85 … +6.85)"
    assert paired_difference([0.5], [0.51]).points() == "−1.00"
    assert paired_difference([0.1 + 0.2], [0.3 + 1e-6]).points() == "+0.00"


def test_the_band_is_the_interval_at_every_epoch():
    curves = np.random.default_rng(0).normal(size=(4, 7))
    low, high = stats.t.interval(0.95, 3, curves.mean(0), stats.sem(curves))
    np.testing.assert_allclose(curves.mean(0) - half_width(curves), low)
    np.testing.assert_allclose(curves.mean(0) + half_width(curves), high)


def run_of(seed, **accuracies):
    methods = {
        name: {"label": name.upper(), "last": value, "mean_last_10": value - 0.01, "best": value,
               "best_epoch": 3, "parameters": 10, "seconds": 1.0}
        for name, value in accuracies.items()
    }  # fmt: skip
    return {"settings": {"seed": seed, "epochs": 20}, "n_weights": 5, "methods": methods}


def test_summaries_and_tables_have_them():
    runs = [run_of(0, sgd=0.70, ema=0.73), run_of(1, sgd=0.72, ema=0.74)]
    summary = json.loads(json.dumps(over_seeds([0, 1], runs)))
    ema = summary["methods"]["ema"]
    expected = stats.ttest_rel([0.73, 0.74], [0.70, 0.72]).confidence_interval(0.95)
    for key in ("last", "mean_last_10"):
        assert ema[f"{key}_minus_sgd"] == pytest.approx(0.025)
        assert ema[f"{key}_minus_sgd_interval"] == pytest.approx([expected.low, expected.high])
    assert not any("minus" in key for key in summary["methods"]["sgd"])
    lines = table(summary).splitlines()
    assert any(line.startswith("minus SGD, points (95 % interval, 2 seeds)") for line in lines)
    assert "EMA" in lines[-1] and lines[-1].count("+2.50 (−3.85 … +8.85)") == 2

    one = over_seeds([0], runs[:1])
    assert "last_minus_sgd" in one["methods"]["ema"]
    assert not any(key.endswith("interval") for key in one["methods"]["ema"])
    assert "interval" not in table(one) and "+3.00" in table(one)
    without = over_seeds([0], [run_of(0, ema=0.73)])
    assert not any("minus" in key for key in without["methods"]["ema"])
    assert "minus" not in table(without)


def test_the_mean_of_the_last_epochs():
    curves = np.random.default_rng(1).normal(size=(2, 9))
    found = trailing_mean(curves, 4)
    for t in range(9):
        np.testing.assert_allclose(found[:, t], curves[:, max(0, t - 3) : t + 1].mean(1))
