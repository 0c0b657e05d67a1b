from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from secondlook.solvers.sinkhorn_newton_sparse import (
    dual_hessian,
    dual_value,
    largest,
    newton_direction,
    sinkhorn,
    sns,
    transport_plan,
)


def problem(n=40, m=None, seed=0, uniform=False):
    """A random cost in [0, 1] with marginals of mass one, float64."""
    g = torch.Generator().manual_seed(seed)
    m = n if m is None else m
    C = torch.rand(n, m, generator=g, dtype=torch.float64)
    if uniform:
        return C, torch.full((n,), 1 / n, dtype=C.dtype), torch.full((m,), 1 / m, dtype=C.dtype)
    r, c = (torch.rand(k, generator=g, dtype=torch.float64) + 0.2 for k in (n, m))
    return C, r / r.sum(), c / c.sum()


def test_gradient_and_hessian_agree_with_autograd():
    C, r, c = problem(6, 5)
    eta = 8.0
    g = torch.Generator().manual_seed(1)
    z = 0.3 * torch.rand(11, generator=g, dtype=torch.float64)

    def f(z):
        return dual_value(C, r, c, z[:6], z[6:], eta)

    P = transport_plan(C, z[:6], z[6:], eta)
    gradient = torch.cat([r - P.sum(1), c - P.sum(0)])
    torch.testing.assert_close(torch.func.grad(f)(z), gradient, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(torch.func.hessian(f)(z), dual_hessian(P, eta), rtol=1e-10, atol=1e-12)
    null = torch.cat([torch.ones(6), -torch.ones(5)]).double()
    assert float((dual_hessian(P, eta) @ null).abs().max()) < 1e-14


def test_one_sweep_is_the_log_domain_update():
    C, r, c = problem(12, 9)
    eta = 30.0
    x, y = torch.zeros(12).double(), torch.zeros(9).double()
    for _ in range(7):
        x = x + (r.log() - transport_plan(C, x, y, eta).sum(1).log()) / eta
        y = y + (c.log() - transport_plan(C, x, y, eta).sum(0).log()) / eta
    P = transport_plan(C, x, y, eta)
    result = sinkhorn(C, r, c, eta, max_iter=7, tol=1e-300)
    torch.testing.assert_close(result.plan, P, rtol=1e-12, atol=1e-17)
    assert result.n_iter == 7
    error = float((P.sum(1) - r).abs().sum() + (P.sum(0) - c).abs().sum())
    assert result.errors[-1] == pytest.approx(error, rel=1e-9)


@pytest.mark.parametrize("uniform", [True, False])
def test_reaches_the_marginals_and_the_same_plan_as_sinkhorn(uniform):
    C, r, c = problem(60, uniform=uniform, seed=3)
    ours, reference = sns(C, r, c, 80.0), sinkhorn(C, r, c, 80.0)
    assert ours.converged
    assert reference.converged
    assert ours.n_iter < reference.n_iter
    torch.testing.assert_close(ours.plan, reference.plan, rtol=1e-7, atol=1e-12)
    torch.testing.assert_close(ours.plan, transport_plan(C, ours.x, ours.y, 80.0), rtol=1e-9, atol=1e-16)
    shift = (ours.x - reference.x).mean()
    torch.testing.assert_close(ours.x - shift, reference.x, rtol=0, atol=1e-8)
    torch.testing.assert_close(ours.y + shift, reference.y, rtol=0, atol=1e-8)


def test_absorption_and_truncation_leave_the_answer_alone():
    # Costs up to 3 at eta = 1200 move the scalings over hundreds of decades, so the kernel is absorbed and sparse.
    C, r, c = problem(30, seed=5)
    fast = sinkhorn(3 * C, r, c, 1200.0, max_iter=400, tol=1e-300)
    x, y = torch.zeros(30).double(), torch.zeros(30).double()
    for _ in range(400):
        x = (r.log() + 1 - torch.logsumexp(1200 * (y - 3 * C), dim=1)) / 1200
        y = (c.log() + 1 - torch.logsumexp(1200 * (x[:, None] - 3 * C), dim=0)) / 1200
    torch.testing.assert_close(fast.plan, transport_plan(3 * C, x, y, 1200.0), rtol=1e-9, atol=1e-15)


def test_full_sparsity_is_dense_newton():
    C, r, c = problem(15, 11)
    eta = 60.0
    start = sinkhorn(C, r, c, eta, max_iter=5)
    gradient = torch.cat([r - start.plan.sum(1), c - start.plan.sum(0)])
    expected = torch.linalg.pinv(-dual_hessian(start.plan, eta), hermitian=True) @ gradient
    step = newton_direction(start.plan, gradient, eta, keep=15 * 11)
    shift = torch.cat([torch.ones(15), -torch.ones(11)]).double()
    expected += ((step - expected) @ shift) / 26 * shift
    torch.testing.assert_close(step, expected, rtol=1e-8, atol=1e-12)
    # CG on everything but the smallest entry is the same to that entry's size.
    nearly = newton_direction(start.plan, gradient, eta, keep=15 * 11 - 1)
    nearly += ((expected - nearly) @ shift) / 26 * shift
    torch.testing.assert_close(nearly, expected, rtol=1e-4, atol=1e-6)


def test_full_newton_survives_a_plan_that_falls_apart():
    P = torch.block_diag(torch.full((2, 2), 0.125), torch.full((2, 2), 0.125)).double()
    gradient = torch.tensor([1.0, -1.0, 2.0, -2.0, 0.5, -0.5, 1.0, -1.0]).double()
    step = newton_direction(P, gradient, 2.0, keep=16)
    torch.testing.assert_close(-dual_hessian(P, 2.0) @ step, gradient, rtol=1e-9, atol=1e-12)


def test_newton_stage_is_superlinear_on_the_random_assignment():
    C, r, c = problem(200, uniform=True, seed=0)
    result = sns(C, r, c, 1200.0)
    assert result.converged
    assert result.n_sinkhorn == 20
    assert result.n_iter <= 80
    random = sns(
        C,
        r,
        c,
        1200.0,
        n_newton=result.n_iter,
        select=lambda P, k: torch.randperm(P.numel(), generator=torch.Generator().manual_seed(0))[:k],
    )
    assert not random.converged
    assert random.errors[-1] > 1e6 * result.errors[-1]


def test_the_dual_never_decreases():
    C, r, c = problem(50, uniform=True, seed=2)
    points = []
    for steps in range(1, 12):
        result = sns(C, r, c, 300.0, n_sinkhorn=3, n_newton=steps, tol=1e-300)
        points.append(float(dual_value(C, r, c, result.x, result.y, 300.0)))
    assert all(b >= a - 1e-13 for a, b in pairwise(points))


def test_invariances():
    C, r, c = problem(20, 14, seed=7)
    base = sns(C, r, c, 100.0)
    torch.testing.assert_close(sns(C + 5.0, r, c, 100.0).plan, base.plan, rtol=1e-8, atol=1e-13)
    torch.testing.assert_close(sns(C.mT, c, r, 100.0).plan.mT, base.plan, rtol=1e-8, atol=1e-13)
    torch.testing.assert_close(sns(10 * C, r, c, 10.0).plan, base.plan, rtol=1e-8, atol=1e-13)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(sns(C[order], r[order], c, 100.0).plan, base.plan[order], rtol=1e-8, atol=1e-13)


@settings(max_examples=20, deadline=None)
@given(
    n=st.integers(1, 25),
    m=st.integers(1, 25),
    eta=st.floats(0.5, 300.0),
    sparsity=st.sampled_from([None, 0.05, 0.3, 1.0]),
    seed=st.integers(0, 10**6),
)
def test_any_problem_ends_in_its_marginals(n, m, eta, sparsity, seed):
    C, r, c = problem(n, m, seed)
    result = sns(C, r, c, eta, sparsity=sparsity, n_newton=200, tol=1e-10)
    error = float((result.plan.sum(1) - r).abs().sum() + (result.plan.sum(0) - c).abs().sum())
    assert error <= result.errors[-1] + 1e-13
    assert result.converged == (result.errors[-1] < 1e-10)
    assert bool((result.plan >= 0).all())
    if sparsity == 1.0:
        assert result.converged


def test_largest_picks_the_largest():
    P = torch.tensor([[0.1, 0.5], [0.3, 0.2]])
    assert sorted(largest(P, 2).tolist()) == [1, 2]


def test_float32_works_to_its_own_precision():
    C, r, c = problem(20)
    result = sns(C, r, c, 30.0, dtype=torch.float32, tol=1e-5)
    assert result.plan.dtype == torch.float32
    assert result.converged


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"r": torch.full((5,), -1.0)}, "not positive"),
        ({"r": torch.full((5,), 1.0)}, "differ in mass"),
        ({"r": torch.full((4,), 0.25)}, "need C"),
        ({"C": torch.full((5, 5), float("nan"))}, "not finite"),
        ({"eta": 0.0}, "eta must be positive"),
        ({"sparsity": 1.5}, "sparsity"),
        ({"n_sinkhorn": 0, "n_newton": 0}, "iterations"),
    ],
)
def test_bad_input_is_named(change, message):
    C, r, c = problem(5)
    arguments = {"C": C, "r": r, "c": c, "eta": 10.0} | change
    with pytest.raises(ValueError, match=message):
        sns(**arguments)


def test_agrees_with_pot():
    ot = pytest.importorskip("ot")
    C, r, c = problem(100, uniform=True, seed=4)
    theirs = ot.sinkhorn(r, c, C, reg=1 / 50, method="sinkhorn_log", stopThr=1e-12, numItermax=20_000)
    torch.testing.assert_close(sns(C, r, c, 50.0).plan, theirs, rtol=0, atol=1e-10)
    C, r, c = problem(30, 20, seed=4)
    swept = sinkhorn(C, r, c, 50.0, max_iter=20, tol=1e-300).plan
    theirs = ot.bregman.sinkhorn_log(c, r, C.mT, 1 / 50, numItermax=20, warn=False).mT
    torch.testing.assert_close(swept, theirs, rtol=0, atol=1e-15)
