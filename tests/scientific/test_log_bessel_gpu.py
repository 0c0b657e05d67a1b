"""Oracles of log I and log K: many digits, closed forms, identities, SciPy, finite differences; and the vMF fits."""

import math
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mpmath import mp
from numpy.testing import assert_allclose
from scipy import special
from torch.utils._python_dispatch import TorchDispatchMode

from secondlook.scientific.log_bessel_gpu import VonMisesFisher, bessel_ratio, log_iv, log_kv, method, regimes
from secondlook.scientific.log_bessel_gpu.reference import log_iv_reference, log_kv_reference

ORDERS = [0.0, 1e-3, 0.5, 3.7, 12.69, 12.71, 55.5, 900.0, 2e4]
ARGUMENTS = [1e-8, 1e-2, 0.7, 8.0, 29.9, 30.1, 400.0, 2e4]
V, X = (a.ravel() for a in np.meshgrid(ORDERS, ARGUMENTS))


@pytest.mark.parametrize(("ours", "reference"), [(log_iv, log_iv_reference), (log_kv, log_kv_reference)])
def test_machine_precision_in_every_regime_and_at_their_borders(ours, reference):
    found = ours(V, X)
    for v, x, a in zip(V.tolist(), X.tolist(), found.tolist(), strict=True):
        exact = reference(v, x)
        assert abs(a - exact) / max(abs(exact), 1) < 5e-15, (v, x)


@pytest.mark.parametrize(("v", "x"), [(0.0, 0.01), (3.3, 2.2), (12.0, 900.0), (1000.0, 0.5), (1e4, 10.0)])
def test_the_reference_agrees_with_mpmath(v, x):
    with mp.workdps(50):
        assert abs(log_iv_reference(v, x) - mp.log(mp.besseli(v, x, maxterms=10**6))) < 1e-20
        assert abs(log_kv_reference(v, x) - mp.log(mp.besselk(v, x))) < 1e-20


def test_half_integer_closed_forms():
    x = np.geomspace(1e-3, 700, 300)
    assert_allclose(log_iv(0.5, x), 0.5 * np.log(2 / (np.pi * x)) + np.log(np.sinh(x)), rtol=2e-15, atol=2e-15)
    assert_allclose(log_kv(0.5, x), 0.5 * np.log(np.pi / (2 * x)) - x, rtol=2e-15, atol=2e-15)
    assert_allclose(log_kv(1.5, x), log_kv(0.5, x) + np.log1p(1 / x), rtol=2e-15, atol=2e-15)


def test_recurrence_and_wronskian_in_log_form():
    v, x = V + 1, X
    low, mid, high = log_iv(v - 1, x), log_iv(v, x), log_iv(v + 1, x)
    # I_(v-1) = I_(v+1) + 2v/x I_v
    scale = np.maximum(np.abs(low), 1)
    assert_allclose((np.logaddexp(high, mid + np.log(2 * v / x)) - low) / scale, 0, atol=1e-13)
    low, mid, high = log_kv(v - 1, x), log_kv(v, x), log_kv(v + 1, x)
    assert_allclose((np.logaddexp(low, mid + np.log(2 * v / x)) - high) / np.maximum(np.abs(high), 1), 0, atol=1e-13)
    i, i1, k, k1 = log_iv(V, X), log_iv(V + 1, X), log_kv(V, X), log_kv(V + 1, X)
    size = np.maximum.reduce([np.abs(i), np.abs(k1), np.ones_like(i)])
    assert_allclose((np.logaddexp(i + k1, i1 + k) + np.log(X)) / size, 0, atol=1e-13)


def test_agrees_with_scipy_where_that_is_finite():
    with np.errstate(divide="ignore"):
        i, k = np.log(special.ive(V, X)) + X, np.log(special.kve(V, X)) - X
    for ours, theirs in ((log_iv, i), (log_kv, k)):
        good = np.isfinite(theirs)
        assert 10 < good.sum() < good.size
        assert_allclose(ours(V, X)[good], theirs[good], rtol=1e-12, atol=1e-12)


def test_the_log_keeps_its_digits_where_it_passes_through_zero():
    v = np.geomspace(13, 3e4, 12)
    x = regimes.ROOT * v * (1 + 1 / v)
    for ours, reference in ((log_iv, log_iv_reference), (log_kv, log_kv_reference)):
        errors = [abs(a - reference(b, c)) for a, b, c in zip(ours(v, x), v.tolist(), x.tolist(), strict=True)]
        assert max(errors) < 1e-14


def test_the_phase_joins_smoothly_at_the_edge_of_its_window():
    v = torch.full((4,), 100.0, dtype=torch.float64)
    for edge in (0.5, 1.5):
        x = regimes.ROOT * v * edge * torch.tensor([1 - 1e-9, 1 - 1e-12, 1 + 1e-12, 1 + 1e-9], dtype=torch.float64)
        h = torch.hypot(v, x)
        plain = h - v * torch.asinh(v / x)
        assert_allclose(regimes.phase(v, x, h), plain, rtol=1e-14)


def test_extreme_arguments_give_no_nan():
    v = np.array([0, 0, 5, 12.7, 1e6, 1e6, 1e300, 0.0])
    x = np.array([5e-324, 1e300, 1e-300, 5e-324, 1e-320, 1e306, 1e-300, 1e-300])
    assert np.isfinite(log_iv(v, x)).all()
    assert np.isfinite(log_kv(v, x)).all()
    assert_allclose(log_kv(0.0, 1e-300), np.log(-np.log(0.5e-300) - np.euler_gamma), rtol=1e-14)
    assert_allclose(log_kv(0.0, 5e-324), np.log(np.log(2) - np.log(5e-324) - np.euler_gamma), rtol=1e-14)
    assert_allclose(log_iv(2.0, 1e-300), 2 * np.log(0.5e-300) - np.log(2), rtol=1e-14)


@pytest.mark.parametrize("function", [log_iv, log_kv, bessel_ratio])
@pytest.mark.parametrize("copies", [1, method.FEW])
def test_a_nan_stays_one_and_spoils_no_other(function, copies):
    v, x = np.array([1.0, math.nan, 50.0, 2.0]), np.array([math.nan, 1.0, math.nan, 3.0])
    found = function(np.tile(v, copies), np.tile(x, copies)).reshape(copies, 4)
    assert np.isnan(found[:, :3]).all()
    assert_allclose(found[:, 3], function(2.0, 3.0), rtol=1e-15)


@pytest.mark.parametrize("function", [log_iv, log_kv, bessel_ratio])
def test_many_points_in_bands_agree_with_each_alone(function):
    many = method.FEW // len(V) + 2  # more than FEW go into bands, and fill more than one chunk
    found = function(np.tile(V, many), np.tile(X, many)).reshape(many, -1)
    alone = np.array([function(v, x) for v, x in zip(V, X, strict=True)])
    assert_allclose(found, np.broadcast_to(alone, found.shape), rtol=5e-14 if function is bessel_ratio else 5e-15)


@pytest.mark.parametrize(("function", "limit"), [(log_iv, 150), (log_kv, 160)])
def test_a_call_on_a_thousand_points_is_few_kernels(function, limit):
    """The fixed cost of a call: where there are few points, the number of kernels is the time."""
    counted = Counter()

    class Count(TorchDispatchMode):
        def __torch_dispatch__(self, kernel, types, args=(), kwargs=None):
            counted[str(kernel)] += 1
            return kernel(*args, **(kwargs or {}))

    v, x = np.exp(np.random.default_rng(0).uniform(math.log(0.01), math.log(3e4), (2, 1000)))
    function(v, x)  # what is computed once and kept
    with Count():
        function(v, x)
    assert counted["aten.log.default"] > 0
    assert counted.total() < limit


def test_debye_polynomials_match_the_printed_ones():
    u1, u2 = regimes.debye_polynomials(3)[1:]
    assert [float(c * 24) for c in u1] == [3, -5]
    assert [float(c * 1152) for c in u2] == [81, -462, 385]


@pytest.mark.parametrize("function", [log_iv, log_kv])
def test_gradients(function):
    v = torch.tensor([0.0, 0.3, 5.0, 12.6, 14.0, 80.0, 3.0, 1.0], dtype=torch.float64)
    x = torch.tensor([0.5, 7.0, 20.0, 3.0, 9.0, 60.0, 45.0, 200.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: function(v, x), x)
    assert torch.autograd.gradgradcheck(lambda x: function(v, x), x)
    (slope,) = torch.autograd.grad(function(1e4, x).sum(), x)
    step = 1e-4 * x.detach()
    there = (function(1e4, x.detach() + step) - function(1e4, x.detach() - step)) / (2 * step)
    assert_allclose(slope, there, rtol=1e-7)


def test_ratio_against_many_digits_and_its_gradient():
    v, x = np.array([0.0, 2.5, 12.6, 30.0, 3.0, 16383.0]), np.array([1e-5, 8.0, 29.0, 70.0, 500.0, 32768.0])
    exact = [float(mp.exp(log_iv_reference(a + 1, b) - log_iv_reference(a, b))) for a, b in zip(v, x, strict=True)]
    assert_allclose(bessel_ratio(v, x), exact, rtol=3e-15)
    at = torch.tensor([0.5, 7.0, 45.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: bessel_ratio(2.0, x), at)


@settings(max_examples=60, deadline=None)
@given(st.floats(0, 1e4), st.floats(1e-6, 1e4), st.floats(1.001, 3))
def test_monotone_in_argument_and_order(v, x, factor):
    assert log_iv(v, x * factor) > log_iv(v, x)
    assert log_kv(v, x * factor) < log_kv(v, x)
    assert log_iv(v * factor + 0.01, x) < log_iv(v, x)
    assert log_kv(v * factor + 0.01, x) > log_kv(v, x) or v < 0.01  # K is flat in v at v = 0
    assert 0 < bessel_ratio(v, x) < 1


@settings(max_examples=30, deadline=None)
@given(st.floats(0, 300), st.floats(1e-3, 300))
def test_log_convexity_in_the_order(v, x):
    """Turan: I_(v+1)^2 > I_v I_(v+2) and K_(v+1)^2 < K_v K_(v+2)."""
    i, k = log_iv(v + np.arange(3.0), x), log_kv(v + np.arange(3.0), x)
    slack = 1e-13 * np.abs(i).max() + 1e-13
    assert 2 * i[1] - i[0] - i[2] > -slack
    assert 2 * k[1] - k[0] - k[2] < slack


def test_shapes_types_and_order_of_elements():
    v, x = np.array([[0.2], [50.0], [7.0]]), np.array([0.1, 5.0, 90.0, 3.0])
    whole = log_iv(v, x)
    assert isinstance(whole, np.ndarray)
    assert whole.shape == (3, 4)
    assert_allclose(whole, [[log_iv(a, b) for b in x] for a in v[:, 0]], rtol=1e-15)
    tensor = log_kv(torch.tensor([1, 2]), torch.tensor([0.5, 2.0]))
    assert tensor.dtype == torch.float64  # integers and float32 are promoted
    assert_allclose(tensor, log_kv([1, 2], np.array([0.5, 2.0], dtype=np.float32)))
    assert log_iv(np.empty(0), np.empty(0)).shape == (0,)
    single = log_iv(3.0, torch.tensor(2.0), dtype=torch.float32)
    assert single.dtype == torch.float32
    assert_allclose(single, log_iv(3.0, 2.0), rtol=1e-5)


@pytest.mark.parametrize("function", [log_iv, log_kv, bessel_ratio])
def test_bad_input_is_refused(function):
    for v, x in ((-0.5, 1.0), (math.inf, 1.0), (1.0, 0.0), (1.0, -3.0), (1.0, math.inf)):
        with pytest.raises(ValueError, match="must be finite"):
            function(v, x)
    for v, x in ((1.0, 1j), (True, 1.0), ("a", 1.0)):
        with pytest.raises(TypeError, match="real"):
            function(v, x)
    with pytest.raises(ValueError, match="detach"):
        function(torch.ones((), requires_grad=True), torch.ones(()))


# ------------------------------------------------------------------------------- von Mises-Fisher


def test_normalizer_in_three_dimensions_is_the_closed_form():
    k = torch.tensor([0.1, 2.0, 50.0], dtype=torch.float64)
    assert_allclose(VonMisesFisher(3).log_normalizer(k), torch.log(k / (4 * math.pi * torch.sinh(k))), rtol=1e-14)


def test_density_on_the_circle_integrates_to_one_and_matches_scipy():
    angle = torch.linspace(0, 2 * math.pi, 2001, dtype=torch.float64)[:-1]
    X, mu = torch.stack([angle.cos(), angle.sin()], 1), torch.tensor([1.0, 0.0], dtype=torch.float64)
    density = VonMisesFisher(2).log_prob(X, mu, 3.0)
    assert_allclose(density.exp().mean() * 2 * math.pi, 1, rtol=1e-12)
    stats = pytest.importorskip("scipy.stats")
    assert_allclose(density, stats.vonmises_fisher(mu.numpy(), 3.0).logpdf(X.numpy()), rtol=1e-10)


@pytest.mark.parametrize("d", [2, 3, 64, 2048, 32768])
def test_the_concentration_solves_the_likelihood_equation(d):
    vmf = VonMisesFisher(d)
    for ratio in (0.01, 1.0, 20.0):
        rbar = float(vmf.mean_resultant(ratio * d))
        assert_allclose(vmf.concentration(rbar), ratio * d, rtol=1e-9)


@pytest.mark.parametrize("d", [2, 5, 2048])
def test_samples_have_the_right_mean_and_are_fitted_again(d):
    g = torch.Generator().manual_seed(0)
    vmf, mu = VonMisesFisher(d), torch.eye(d, dtype=torch.float64)[0]
    X = vmf.sample(mu, 2.0 * d, 2000, g)
    assert_allclose(X.norm(dim=1), 1, atol=1e-12)
    spread = float((X @ mu).std()) / math.sqrt(len(X))
    assert abs(float((X @ mu).mean() - vmf.mean_resultant(2.0 * d))) < 4 * spread
    fitted = vmf.fit(X)
    assert abs(fitted.kappa / (2 * d) - 1) < 0.1
    assert fitted.mu @ mu > 0.98
    assert_allclose(fitted.loglik, vmf.log_prob(X, fitted.mu, fitted.kappa).mean(), rtol=1e-9)
    for other in (0.9, 1.1):
        assert vmf.log_prob(X, fitted.mu, other * fitted.kappa).mean() < fitted.loglik
    assert torch.equal(X, vmf.sample(mu, 2.0 * d, 2000, torch.Generator().manual_seed(0)))


def test_fit_does_not_depend_on_the_axes():
    g = torch.Generator().manual_seed(1)
    X = VonMisesFisher(6).sample(torch.eye(6, dtype=torch.float64)[2], 9.0, 300, g)
    turn = torch.linalg.qr(torch.randn(6, 6, generator=g, dtype=torch.float64))[0]
    a, b = VonMisesFisher(6).fit(X), VonMisesFisher(6).fit(X.numpy() @ turn.numpy())
    assert_allclose([a.kappa, a.loglik], [b.kappa, b.loglik], rtol=1e-10)
    assert_allclose(a.mu @ turn, b.mu, atol=1e-12)


def test_vmf_refuses_bad_input():
    vmf, e = VonMisesFisher(3), torch.eye(3, dtype=torch.float64)
    with pytest.raises(ValueError, match="at least 2"):
        VonMisesFisher(1)
    with pytest.raises(ValueError, match="must be"):
        vmf.fit(torch.ones(4, 2))
    with pytest.raises(ValueError, match="length 1"):
        vmf.fit(torch.ones(4, 3))
    with pytest.raises(ValueError, match="same direction"):
        vmf.fit(e[:1].repeat(4, 1))
    with pytest.raises(ValueError, match="uniform"):
        vmf.fit(torch.cat([e, -e]))
    with pytest.raises(ValueError, match="kappa"):
        vmf.sample(e[0], -1.0, 5)
    with pytest.raises(ValueError, match="length 1"):
        vmf.sample(2 * e[0], 1.0, 5)
