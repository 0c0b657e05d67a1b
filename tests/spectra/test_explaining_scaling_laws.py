"""The losses against direct minimisation, their duality and limits, and the fits on curves of known exponent."""

import pytest
import torch

from secondlook.spectra import (
    TeacherStudent,
    fit_exponent,
    kernel_spectrum_exponent,
    rf_loss,
    rf_loss_infinite_data,
    rf_loss_infinite_width,
)
from secondlook.spectra.features import powerlaw


def randn(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def cov():
    B = randn(12, 30, seed=5)
    return B @ B.T / 30


def test_infinite_data_is_least_squares_over_a_huge_sample(cov):
    proj = randn(4, 12, seed=1)
    X = randn(20_000, 12, seed=3) @ torch.linalg.cholesky(cov).T
    theta = torch.linalg.lstsq(X @ proj.T, X).solution  # the twelve unit teachers average to any teacher's mean
    direct = (X - X @ proj.T @ theta).square().sum(1).mean() / 24
    assert float(rf_loss_infinite_data(cov, proj)) == pytest.approx(float(direct), rel=0.02)
    assert float(rf_loss(cov, proj, X)) == pytest.approx(float(rf_loss_infinite_data(cov, proj)), rel=0.01)


def test_infinite_width_is_kernel_interpolation(cov):
    X, fresh = randn(5, 12, seed=1), torch.linalg.cholesky(cov).T * 12**0.5  # fresh points whose second moment is cov
    K, cross = X @ X.T / 12, X @ fresh.T / 12
    direct = (fresh.square().sum(1) / 12 - (cross * torch.linalg.solve(K, cross)).sum(0)).mean() / 2
    torch.testing.assert_close(rf_loss_infinite_width(cov, X), direct, rtol=1e-12, atol=0)


def test_random_points_and_random_projections_are_dual(cov):
    Z = randn(5, 12, seed=1)
    values, vectors = torch.linalg.eigh(cov)
    root = vectors * values.sqrt() @ vectors.T
    torch.testing.assert_close(rf_loss_infinite_width(cov, Z @ root), rf_loss_infinite_data(cov, Z))


def test_finite_loss_by_pseudo_inverse_and_its_limits(cov):
    for D, P in ((5, 9), (9, 5), (40, 5), (5, 40)):
        proj, X = randn(P, 12, seed=1), randn(D, 12, seed=2)
        R = torch.eye(12).double() - proj.T @ torch.linalg.pinv(X @ proj.T) @ X
        torch.testing.assert_close(rf_loss(cov, proj, X), (R.T @ cov @ R).trace() / 24, rtol=1e-9, atol=0)
    X = randn(5, 12, seed=2)
    many = rf_loss(cov, randn(200_000, 12, seed=3), X)
    torch.testing.assert_close(many, rf_loss_infinite_width(cov, X), rtol=1e-2, atol=0)


def test_all_features_leave_nothing_and_the_best_leave_the_tail():
    values = powerlaw(40, 1.5)
    full = rf_loss_infinite_data(values, randn(40, 40))
    assert abs(float(full)) < 1e-10
    for cov in (values, torch.diag(values)):
        best = rf_loss_infinite_data(cov, torch.eye(40).double()[:7])
        torch.testing.assert_close(best, values[7:].sum() / 80, rtol=1e-12, atol=0)
        assert rf_loss_infinite_data(cov, randn(7, 40)) > best
    losses = [rf_loss(c, randn(5, 40), randn(9, 40, seed=1)) for c in (values, torch.diag(values))]
    torch.testing.assert_close(*losses)


def test_excess_over_the_limit_is_that_of_ordinary_least_squares():
    """Gaussian features: the residual is noise, so E[L(D, P)] = L(P) (1 + P / (D - P - 1))."""
    values, P, D = powerlaw(30, 1.5), 5, 25
    proj = randn(P, 30, seed=9)
    limit = rf_loss_infinite_data(values, proj)
    ratios = torch.stack([rf_loss(values, proj, randn(D, 30, seed=s) * values.sqrt()) / limit for s in range(600)])
    error = ratios.std() / len(ratios) ** 0.5
    assert (ratios.mean() - 1 - P / (D - P - 1)).abs() < 4 * error < 0.03


def test_fit_recovers_exponent_offset_and_window():
    sizes = torch.tensor([10.0, 20, 40, 80, 160])
    alpha, stderr = fit_exponent(sizes, 3 * sizes**-0.7)
    assert alpha == pytest.approx(0.7)
    assert stderr < 1e-6
    assert fit_exponent(sizes, 2 + sizes**-1.0, offset=2).alpha == pytest.approx(1, abs=1e-5)
    bent = torch.where(sizes > 15, sizes**-0.7, 5.0)
    assert fit_exponent(sizes, bent, window=(20, 160)).alpha == pytest.approx(0.7, abs=1e-6)
    assert fit_exponent(sizes, bent).stderr > 0.1
    Q = torch.linalg.qr(randn(200, 200))[0]
    K = Q * powerlaw(200, 1.8) @ Q.T
    assert kernel_spectrum_exponent(K, (4, 64)) == pytest.approx(0.8, abs=1e-6)


def test_teacher_and_student():
    pair = TeacherStudent(2, 16, members=3, teacher_width=8, generator=torch.Generator().manual_seed(0))
    x, y = pair.points(64)
    assert x.shape == (3, 64, 2)
    assert x.abs().max() <= 0.5
    assert y.std() == pytest.approx(1, abs=0.3)
    before = pair.losses(x, y)
    after = pair.fit(x, y, 150, 0.01)
    assert (after < 0.2 * before).all()
    again = TeacherStudent(2, 16, members=3, teacher_width=8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(again.points(64)[1], y)
    alone = pair._forward([w[1:2] for w in pair.student], x[1:2])  # members do not meet
    torch.testing.assert_close(alone, pair._forward(pair.student, x)[1:2])


def test_bad_input():
    values = powerlaw(10, 1.5)
    for message, call in {
        "positive definite": lambda: rf_loss_infinite_width(values, torch.ones(3, 10).double()),
        "cov is": lambda: rf_loss(values, randn(3, 9), randn(3, 9)),
        "three sizes": lambda: fit_exponent([1, 2], [2, 1]),
        "above the offset": lambda: fit_exponent([1, 2, 3], [3, 2, 1], offset=1),
        "window of ranks": lambda: kernel_spectrum_exponent(torch.eye(5), (0, 3)),
        "must be positive": lambda: TeacherStudent(0, 4),
    }.items():
        with pytest.raises(ValueError, match=message):
            call()
