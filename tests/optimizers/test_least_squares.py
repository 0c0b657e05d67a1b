"""Levenberg-Marquardt against closed forms and SciPy's solver."""

import numpy as np
import pytest
import scipy.optimize
import torch
from torch import nn
from torch.func import functional_call

from secondlook.optimizers.least_squares import damped_step, levenberg_marquardt


def decay(t, y):
    return lambda p: p[0] * torch.exp(-p[1] * t) * torch.cos(p[2] * t) - y


@pytest.fixture
def curve():
    t = torch.linspace(0, 1, 40, dtype=torch.float64)
    noise = torch.randn(40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return t, torch.exp(-3 * t) * torch.cos(8 * t) + 0.01 * noise


def test_it_ends_where_scipy_ends(curve):
    residual = decay(*curve)
    start = torch.tensor([0.5, 1.0, 7.0], dtype=torch.float64)
    ours = levenberg_marquardt(residual, start, gtol=1e-12)
    peer = scipy.optimize.least_squares(
        lambda p: residual(torch.tensor(p)).numpy(), start.numpy(), method="lm", xtol=1e-15, ftol=1e-15, gtol=1e-15
    )
    assert ours.reason == "gradient"
    assert ours.losses[-1] == pytest.approx(peer.cost, rel=1e-12)
    np.testing.assert_allclose(ours.params, peer.x, rtol=1e-6)
    assert start.tolist() == [0.5, 1.0, 7.0]


def test_linear_residuals_take_one_undamped_step():
    g = torch.Generator().manual_seed(1)
    for rows, columns in ((12, 5), (5, 12)):
        A = torch.randn(rows, columns, generator=g, dtype=torch.float64)
        b = torch.randn(rows, generator=g, dtype=torch.float64)
        done = levenberg_marquardt(lambda p, A=A, b=b: A @ p - b, torch.zeros(columns).double(), 1e-9, 2)
        torch.testing.assert_close(done.params, torch.linalg.pinv(A) @ b, rtol=0, atol=1e-7)


def test_both_forms_of_the_step_are_the_damped_normal_equations():
    g = torch.Generator().manual_seed(2)
    for shape in ((9, 4), (4, 9)):
        J = torch.randn(*shape, generator=g, dtype=torch.float64)
        rho = torch.randn(shape[0], generator=g, dtype=torch.float64)
        expected = -torch.linalg.solve(J.mT @ J + 0.3 * torch.eye(shape[1]).double(), J.mT @ rho)
        gram = J @ J.mT if shape[0] < shape[1] else J.mT @ J
        torch.testing.assert_close(damped_step(J, rho, gram, 0.3), expected, rtol=0, atol=1e-12)


def test_the_loss_never_rises_and_damping_answers_the_gain(curve):
    hard = levenberg_marquardt(decay(*curve), torch.tensor([5.0, -3.0, 20.0]).double(), 1e-6, 60)
    assert all(b < a for a, b in zip(hard.losses, hard.losses[1:], strict=False))
    assert hard.evaluations[-1] > hard.jacobians[-1] + 1  # some steps were taken back
    assert max(hard.dampings) > 1e-6 > hard.dampings[-1]


def test_parameters_of_a_module_and_a_jacobian_of_one_s_own(curve):
    t, y = curve
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(1, 20), nn.Tanh(), nn.Linear(20, 1)).double()
    params, seen = dict(net.named_parameters()), []

    def residual(p):
        return functional_call(net, p, (t[:, None],)) - y[:, None]

    before = [p.detach().clone() for p in net.parameters()]
    plain = levenberg_marquardt(residual, params, max_iter=5, callback=lambda i, p, loss: seen.append((i, loss)))
    assert plain.params.keys() == params.keys()
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))
    assert 0.5 * float((residual(plain.params) ** 2).sum()) == pytest.approx(plain.losses[-1], rel=1e-12)
    assert seen == list(enumerate(plain.losses))

    def wrong(flat):
        return torch.zeros(40, len(flat), dtype=flat.dtype)

    assert levenberg_marquardt(residual, params, jacobian=wrong).reason == "gradient"


def test_bad_options_are_named():
    for options, word in (({"lam0": 0.0}, "lam0"), ({"max_iter": 1.5}, "max_iter"), ({"gtol": -1.0}, "gtol")):
        with pytest.raises(ValueError, match=word):
            levenberg_marquardt(lambda p: p, torch.ones(2), **options)
    with pytest.raises(ValueError, match="not finite at the start"):
        levenberg_marquardt(lambda p: p / 0, torch.ones(2))
