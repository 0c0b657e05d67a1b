"""The judge's instruments, proved on data whose truth is known."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from secondlook.suite.statistics import correlation, estimate, holm, loglog_slope

TRIALS = 2000


@pytest.mark.parametrize("n", [3, 5, 10])
def test_intervals_cover_95_percent(n):
    draws = np.random.default_rng(1).normal(0.7, 2.0, (TRIALS, n))
    inside = sum(e.low <= 0.7 <= e.high for e in map(estimate, draws))
    # 95% with a Monte-Carlo error of four standard deviations
    assert inside / TRIALS == pytest.approx(0.95, abs=4 * np.sqrt(0.95 * 0.05 / TRIALS))


@pytest.mark.parametrize("effect", [0.5, 1.0, 2.0])
def test_power_matches_the_noncentral_t(effect):
    n = 5
    draws = np.random.default_rng(2).normal(effect, 1.0, (TRIALS, n))
    found = np.mean([estimate(d).p_above(0) < 0.05 for d in draws])
    theory = stats.nct.sf(stats.t.ppf(0.95, n - 1), n - 1, effect * np.sqrt(n))
    assert found == pytest.approx(theory, abs=4 * np.sqrt(theory * (1 - theory) / TRIALS) + 1e-3)


def test_p_is_scipy_s():
    v = np.random.default_rng(3).normal(0.3, 1, 8)
    assert estimate(v).p_above(0.1) == pytest.approx(stats.ttest_1samp(v, 0.1, alternative="greater").pvalue, rel=1e-12)
    assert estimate(v).p_below(0.1) == pytest.approx(stats.ttest_1samp(v, 0.1, alternative="less").pvalue, rel=1e-12)


def test_equal_pairs_count_as_a_sign_test_and_one_pair_as_nothing():
    assert estimate([2.0] * 5).p_above(1) == 2**-5
    assert estimate([2.0] * 5).p_below(1) == 1
    assert estimate([2.0]).p_above(1) == 1
    assert np.isnan(estimate([2.0]).low)
    assert np.isnan(estimate([]).mean)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_is_monotone_never_below_p_nor_above_bonferroni(p):
    adjusted = holm(p)
    assert all(a >= q - 1e-15 and a <= min(1, len(p) * q) + 1e-12 for a, q in zip(adjusted, p, strict=True))
    order = np.argsort(p, kind="stable")
    assert (np.diff(np.array(adjusted)[order]) >= 0).all()


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])


def test_slope_and_correlation():
    x = np.array([1.0, 2, 4, 8])
    assert loglog_slope(x, 3 * x**-0.5) == pytest.approx(-0.5)
    assert correlation(x, x**3, "spearman") == pytest.approx(1)
    assert correlation(x, np.ones(4), "pearson") == 0
    u, v = np.random.default_rng(4).integers(0, 5, (2, 30)).astype(float)  # with ties
    assert correlation(u, v, "spearman") == pytest.approx(stats.spearmanr(u, v).statistic)
    assert correlation(u, v, "pearson") == pytest.approx(stats.pearsonr(u, v).statistic)
    for bad in (([1, 1], [2, 3]), ([0, 1], [2, 3]), ([1, 2], [-1, 3])):
        with pytest.raises(ValueError):
            loglog_slope(*map(np.array, bad))
    with pytest.raises(ValueError, match="at least three"):
        correlation(x[:2], x[:2], "pearson")
