"""The closed-form risk against its equations, its limits, random-matrix theory and regression itself."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq

from secondlook.spectra import (
    fitting_ratio_curve,
    interpolation_noise,
    kernel_path,
    krr_risk,
    optimal_fitting_ratio,
    optimal_ridge,
    rf_risk,
    ridge_at_fitting_ratio,
    ridge_path,
    solve_rf_framework,
)
from secondlook.spectra.features import powerlaw, relu_features, relu_kernel
from secondlook.spectra.more_is_better.experiment import simulate

LAMBDA, V2 = powerlaw(300, 1.5), powerlaw(300, 1.5)
SIZES = [(64, 200), (200, 64), (100, 100), (1000, 64), (64, 1000), (1000, 2000), (64, math.inf)]


def residuals(eigvals, n, k, ridge):
    kappa, gamma = solve_rf_framework(eigvals, n, k, ridge)
    S = (eigvals / (eigvals + gamma)).sum()
    by_features = S / k + kappa / gamma - 1 if math.isfinite(k) else kappa / gamma - 1
    return float(abs((S + ridge / kappa) / n - 1)), float(abs(by_features))


@pytest.mark.parametrize(("n", "k"), SIZES)
@pytest.mark.parametrize("ridge", [1e-4, 0.1, 30.0])
def test_both_equations_hold_also_beyond_the_number_of_modes(n, k, ridge):
    assert max(residuals(LAMBDA, n, k, ridge)) < 1e-10


@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 40), st.floats(-6, 3), st.floats(0.1, 3))
@settings(max_examples=25, deadline=None)
def test_equations_hold_for_any_sizes(n, k, modes, log_ridge, exponent):
    assert max(residuals(powerlaw(modes, exponent), n, k, 10**log_ridge)) < 1e-9


def test_same_constant_as_a_root_finder():
    def excess(log_gamma):
        gamma = math.exp(log_gamma)
        S = float((LAMBDA / (LAMBDA + gamma)).sum())
        return (64 - S) * (200 - S) * gamma - 200 * 0.1

    start = brentq(lambda t: float((LAMBDA / (LAMBDA + math.exp(t))).sum()) - 64, -30, 10)
    gamma = math.exp(brentq(excess, start, 10, xtol=1e-14))
    assert float(solve_rf_framework(LAMBDA, 64, 200, 0.1)[1]) == pytest.approx(gamma, rel=1e-11)


def test_many_features_are_kernel_regression():
    ridges = torch.tensor([1e-3, 0.1, 10.0])
    kernel = krr_risk(LAMBDA, V2, 64, ridges, 0.5)
    torch.testing.assert_close(rf_risk(LAMBDA, V2, 64, 1e10, ridges, 0.5), kernel.test, rtol=1e-8, atol=0)
    torch.testing.assert_close(rf_risk(LAMBDA, V2, 64, math.inf, ridges, 0.5), kernel.test, rtol=1e-11, atol=0)


def test_isotropic_ridge_regression_of_random_matrix_theory():
    """With M equal eigenvalues: kappa by the Marchenko-Pastur quadratic, and the classical ridgeless risks."""
    M, n, ridge, noise = 400, 100, 20.0, 0.3
    one, v2 = torch.ones(M).double(), torch.ones(M).double() / M
    b = M + ridge - n  # n kappa^2 - b kappa - ridge = 0
    kappa = (b + math.sqrt(b * b + 4 * n * ridge)) / (2 * n)
    L = 1 / (1 + kappa)
    expected = ((1 - L) ** 2 + noise) / (1 - M * L * L / n)
    assert float(krr_risk(one, v2, n, ridge, noise).test) == pytest.approx(expected, rel=1e-11)
    over = (1 - n / M) + noise * M / (M - n)  # ridgeless, fewer samples than modes: sum of bias and variance
    assert float(krr_risk(one, v2, n, 0.0, noise).test) == pytest.approx(over, rel=1e-10)
    under = noise * 1000 / (1000 - M)  # ridgeless, more samples than modes
    assert float(krr_risk(one, v2, 1000, 1e-9, noise).test) == pytest.approx(under, rel=1e-6)


@pytest.mark.parametrize(("n", "k"), [(20, 60), (60, 20)])
def test_risk_is_that_of_simulated_regression(n, k):
    eigvals = coeffs2 = powerlaw(120, 1.5)
    ridges = torch.tensor([0.01, 0.3]).double()
    fixed, size, which = (n, k, 0) if n < k else (k, n, 1)
    draws = torch.stack(
        [
            simulate(eigvals, coeffs2, 0.5, fixed, [size], ridges, torch.Generator().manual_seed(s))[which, 0]
            for s in range(120)
        ]
    )
    error = draws.std(0) / math.sqrt(len(draws))
    assert ((rf_risk(eigvals, coeffs2, n, k, ridges, 0.5) - draws.mean(0)).abs() < 3.5 * error + 0.04).all()
    assert ((krr_risk(eigvals, coeffs2, n, ridges, 0.5).test - draws.mean(0)).abs() > 5 * error)[0]


def test_best_ridge_beats_every_ridge_of_a_grid_and_has_its_risk():
    for n, k in SIZES:
        ridge, risk = optimal_ridge(LAMBDA, V2, n, k, 0.5)
        grid = rf_risk(LAMBDA, V2, n, k, torch.logspace(-4, 3, 60), 0.5)
        assert risk <= grid.min() * (1 + 1e-12)
        assert risk > grid.min() * (1 - 5e-3)
        assert float(rf_risk(LAMBDA, V2, n, k, ridge, 0.5)) == pytest.approx(float(risk), rel=1e-8)
    sizes = torch.tensor([8.0, 64.0, 512.0])
    together = optimal_ridge(LAMBDA, V2, sizes, 64.0, 0.5)[1]
    assert (together.diff() < 0).all()
    torch.testing.assert_close(together[1], optimal_ridge(LAMBDA, V2, 64, 64, 0.5)[1])


def test_fitting_ratio_and_its_ridge():
    ratios = torch.tensor([0.0, 0.01, 0.25, 0.64])
    ridges = ridge_at_fitting_ratio(LAMBDA, 64, ratios)
    errors = krr_risk(LAMBDA, V2, 64, ridges, 0.5)
    torch.testing.assert_close(errors.train / errors.test, ratios.double(), rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize(("alpha", "beta"), [(1.5, 2.0), (1.5, 2.5), (2.0, 3.0)])
def test_the_largest_noise_in_the_limit_and_in_the_finite_framework(alpha, beta):
    ratios = torch.linspace(0, 0.7, 8).double().square()
    most = interpolation_noise(alpha, beta)
    eigvals, coeffs2 = powerlaw(6000, alpha), powerlaw(6000, beta)
    ridges = ridge_at_fitting_ratio(eigvals, 100, ratios)
    ridgeless = float(krr_risk(eigvals, coeffs2, 100, 0.0).test)
    for factor, interpolate in {0.5: True, 0.95: True, 1.05: False, 3.0: False}.items():
        curve = fitting_ratio_curve(alpha, beta, factor * most, ratios)
        assert (optimal_fitting_ratio(alpha, beta, factor * most) == 0) == interpolate
        best = math.sqrt(optimal_fitting_ratio(alpha, beta, factor * most))
        assert math.sqrt(ratios[curve.argmin()]) == pytest.approx(best, abs=0.051)
        risk = krr_risk(eigvals, coeffs2, 100, ridges, factor * most * ridgeless).test
        torch.testing.assert_close(risk / risk[0], curve, rtol=0.2, atol=0)
        if factor in (0.5, 3.0):
            assert (int(risk.argmin()) == 0) == interpolate


def test_regression_by_either_gram_matrix_is_least_squares():
    g = torch.Generator().manual_seed(0)
    ridges = torch.tensor([0.0, 0.5]).double()
    for n, k in ((8, 5), (5, 8)):
        A, y = (torch.randn(n, c, dtype=torch.float64, generator=g) for c in (k, 2))
        w = ridge_path(A, y, ridges)
        assert torch.equal(w, A.T @ kernel_path(A @ A.T, y, ridges)) == (n < k)
        torch.testing.assert_close(w[0], torch.linalg.pinv(A) @ y)
        torch.testing.assert_close(w[1], torch.linalg.solve(A.T @ A + 0.5 * torch.eye(k).double(), A.T @ y))


def test_relu_kernel_is_the_mean_of_its_features_and_has_its_closed_form():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(4, 3, dtype=torch.float64, generator=g)
    features = relu_features(x, 200_000, g)
    torch.testing.assert_close(features @ features.T, relu_kernel(x), rtol=0, atol=0.05)
    torch.testing.assert_close(relu_kernel(x).diagonal(), x.square().sum(1) / 3)
    assert relu_kernel(x, -x).diagonal().abs().max() < 1e-12


def test_bad_input():
    for message, call in {
        "eigenvalues": lambda: rf_risk(-LAMBDA, V2, 10, 10, 0.1),
        "finite": lambda: krr_risk(LAMBDA, V2, math.inf, 0.1),
        "at least 0": lambda: rf_risk(LAMBDA, V2, 10, 10, -0.1),
        "positive ridge": lambda: krr_risk(LAMBDA, V2, 300, 0.0),
        "fitting ratio": lambda: ridge_at_fitting_ratio(LAMBDA, 10, 1.0),
        "power laws": lambda: interpolation_noise(0.9, 1.5),
        "at least one mode": lambda: powerlaw(0, 1.5),
    }.items():
        with pytest.raises(ValueError, match=message):
            call()
