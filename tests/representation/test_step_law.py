"""The fitter against planted laws and scikit-learn; the released table where it is at hand."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LinearRegression

from secondlook.problems import datasets, fetching
from secondlook.representation import StepLaw, bowl, fit_step_law, loss_gap
from secondlook.representation.step_law import near_best

SEQ = 2048


def planted(law: StepLaw, noise: float = 0.0, fine: int = 41) -> pd.DataFrame:
    """Losses on a grid of lr and batch in nine settings, a quadratic bowl around the law's optimum."""
    rows = []
    rng = np.random.default_rng(0)
    for n in (1e8, 3e8, 1e9):
        for d in (4e9, 2e10, 1e11):
            lr, batch = law.predict(n, d)
            for u in np.linspace(-1.5, 1.5, fine):
                for v in np.linspace(-1.5, 1.5, fine):
                    loss = 2.5 + 0.02 * u * u + 0.01 * u * v + 0.015 * v * v + noise * rng.normal()
                    rows.append((n, d, lr * np.exp(u), batch * np.exp(v) / SEQ, loss))
    return pd.DataFrame(rows, columns=["N", "D", "lr", "bs", "loss"])


@settings(max_examples=10, deadline=None)
@given(st.floats(-1, -0.2), st.floats(0.1, 0.6), st.floats(0.2, 0.9))
def test_a_planted_law_is_found(a, b, c):
    fitted = fit_step_law(planted(StepLaw((2.0, a, b), (0.6, c), np.empty((0, 5))), fine=15), n_boot=0)
    np.testing.assert_allclose([*fitted.lr[1:], fitted.bs[1]], [a, b, c], atol=0.01)
    np.testing.assert_allclose([fitted.lr[0], fitted.bs[0]], [2.0, 0.6], rtol=0.05)


def test_the_fit_is_scikit_learn_s():
    table = planted(StepLaw((2.0, -0.7, 0.3), (0.6, 0.5), np.empty((0, 5))), noise=0.002)
    kept = near_best(table)
    mine = fit_step_law(table, n_boot=0).boot[0]
    nd = np.log(kept[["N", "D"]].to_numpy())
    of_lr = LinearRegression().fit(nd, np.log(kept["lr"]))
    of_batch = LinearRegression().fit(nd[:, 1:], np.log(kept["bs"] * SEQ))
    theirs = [of_lr.intercept_, *of_lr.coef_, of_batch.intercept_, *of_batch.coef_]
    np.testing.assert_allclose(mine, theirs, rtol=1e-10)


def test_the_bootstrap_is_seeded_and_centred():
    table = planted(StepLaw((2.0, -0.7, 0.3), (0.6, 0.5), np.empty((0, 5))), noise=0.002, fine=15)
    one, two, other = (fit_step_law(table, n_boot=200, seed=s) for s in (0, 0, 1))
    np.testing.assert_array_equal(one.boot, two.boot)
    assert not np.array_equal(one.boot, other.boot)
    assert one.lr[0] == pytest.approx(np.exp(one.boot[:, 0].mean()))  # exp of the mean, not mean of the exp


def test_the_bowl_is_exact_on_a_quadratic():
    law = StepLaw((2.0, -0.7, 0.3), (0.6, 0.5), np.empty((0, 5)))
    table = planted(law)
    for (n, d), group in table.groupby(["N", "D"]):
        fitted = bowl(group)
        np.testing.assert_allclose(fitted.hessian, [[0.04, 0.01], [0.01, 0.03]], rtol=1e-6)
        np.testing.assert_allclose(fitted.vertex, law.predict(n, d), rtol=1e-6)
        assert fitted.r2 == pytest.approx(1)
        assert fitted.convex


def test_the_gap_of_the_true_law_is_zero_and_of_a_wrong_one_is_not():
    law = StepLaw((2.0, -0.7, 0.3), (0.6, 0.5), np.empty((0, 5)))
    table = planted(law)
    assert loss_gap(table, law).max() == pytest.approx(0, abs=1e-12)
    wrong = StepLaw((2.0 * np.e, -0.7, 0.3), (0.6, 0.5), np.empty((0, 5)))
    np.testing.assert_allclose(loss_gap(table, wrong), 100 * 0.02 / 2.5, rtol=0.06)


def test_bad_tables_are_refused():
    table = planted(StepLaw((2.0, -0.7, 0.3), (0.6, 0.5), np.empty((0, 5))), fine=5)
    with pytest.raises(ValueError, match="no column loss"):
        fit_step_law(table.drop(columns="loss"))
    with pytest.raises(ValueError, match="positive"):
        fit_step_law(table.assign(lr=0))
    with pytest.raises(ValueError, match="two model sizes"):
        fit_step_law(table[table["N"] == 1e8])
    with pytest.raises(ValueError, match="widen"):
        bowl(table[(table["N"] == 1e8) & (table["D"] == 4e9)].head(5))


@pytest.mark.skipif(not fetching.is_present("step-law"), reason="the released tables are not on this machine")
def test_the_released_tables():
    from secondlook.representation.step_law.experiment import bootstrap_rows, released

    folder = datasets.fetch("step-law")
    assert len(near_best(released(folder))) == 129  # as the released rule keeps
    mean = bootstrap_rows(folder).mean(0)
    np.testing.assert_allclose(mean[[1, 2, 4]], [-0.713, 0.307, 0.571], atol=0.0005)
