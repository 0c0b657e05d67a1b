"""FISMO against its formulas in NumPy, Muon, the duality of the problem it solves, and factors known in advance."""

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import nn

from draws import seeded
from secondlook.optimizers import FISMO, Muon
from secondlook.optimizers.fismo import kron_fisher_update, polar_factor
from secondlook.optimizers.fismo.experiment import log_condition, unit_gap
from secondlook.optimizers.fismo.matrices import Regression, factorisation, spread_spectrum
from secondlook.optimizers.fismo.method import inverse_root
from secondlook.optimizers.fismo.setting import Shadow, made

SHAPES = [(6, 9), (9, 6), (6, 9), (4, 2, 3, 3)]


def normal(*shape, seed=0):
    return torch.randn(shape, generator=seeded(seed), dtype=torch.float64)


def positive(n, seed=0):
    a = normal(n, 2 * n, seed=seed)
    a = a @ a.T / n
    return n * a / a.trace()


def spectral(a):
    return torch.linalg.matrix_norm(a, 2).item()


def taken(make, steps=12, shapes=SHAPES, scale=1.0):
    """Weights after some steps on gradients that are handed in."""
    params = [normal(*shape, seed=i).requires_grad_() for i, shape in enumerate(shapes)]
    opt = make(params)
    for step in range(steps):
        for i, p in enumerate(params):
            p.grad = scale * normal(*p.shape, seed=100 * step + i)
        opt.step()
    return [p.detach() for p in params]


def farthest(a, b):
    return max((p - q).abs().max().item() for p, q in zip(a, b, strict=True))


# Oracle 1: the formulas, written out in NumPy and SciPy for one matrix.


def printed(w, grads, *, lr, beta, gamma, mu, every=1, decay=0.0, relative=False):
    shape, w = w.shape, w.reshape(len(w), -1)
    m, n = w.shape
    P, Q, M = np.eye(m), np.eye(n), np.zeros((m, n))
    for t, g in enumerate(grads):
        g = g.reshape(m, n)
        L = g @ np.linalg.inv(Q) @ g.T / n
        L = m * L / np.trace(L) if relative else L
        P = gamma * P + (1 - gamma) * (L + mu * np.trace(P) / m * np.eye(m))
        P = m * P / np.trace(P)
        R = g.T @ np.linalg.inv(P) @ g / m
        R = n * R / np.trace(R) if relative else R
        Q = gamma * Q + (1 - gamma) * (R + mu * np.trace(Q) / n * np.eye(n))
        Q = n * Q / np.trace(Q)
        if t % every == 0:
            left, right = (np.linalg.inv(scipy.linalg.sqrtm(a)) for a in (P, Q))
        M = beta * M + (1 - beta) * left @ g @ right
        w = (1 - lr * decay) * w - lr * left @ scipy.linalg.polar(M)[0] @ right
    return w.reshape(shape)


@pytest.mark.parametrize(
    "options", [{}, {"every": 3}, {"decay": 0.2}, {"relative": True}, {"gamma": 0.5, "mu": 0.3, "beta": 0.0}], ids=str
)
def test_trajectory_is_that_of_the_formulas(options):
    at = {"lr": 0.1, "beta": 0.9, "gamma": 0.8, "mu": 0.02, **options}
    names = {"mu": "damping", "decay": "weight_decay"}
    ours = taken(lambda p: FISMO(p, **{names.get(k, k): v for k, v in at.items()}))
    theirs = []
    for i, shape in enumerate(SHAPES):
        grads = [normal(*shape, seed=100 * step + i).numpy() for step in range(12)]
        theirs.append(torch.from_numpy(printed(normal(*shape, seed=i).numpy(), grads, **at)))
    assert farthest(ours, theirs) < 1e-11


# Oracle 2: Muon, where the factors stay at the identity.


@pytest.mark.parametrize("method", ["svd", "ns5"])
def test_with_frozen_factors_it_is_the_polar_factor_of_the_momentum(method):
    w = normal(5, 8).requires_grad_()
    start, M = w.detach().clone(), torch.zeros(5, 8).double()
    opt = FISMO([w], 0.1, beta=0.9, damping=1e12, polar=method)
    for step in range(5):
        w.grad = normal(5, 8, seed=step)
        M = 0.9 * M + 0.1 * w.grad
        opt.step()
        start -= 0.1 * polar_factor(M, method)
    torch.testing.assert_close(w.detach(), start, rtol=0, atol=1e-9)


def test_with_tiny_gradients_it_is_muon_without_its_blend():
    options = {"shapes": SHAPES[:1], "steps": 1}
    ours = taken(lambda p: FISMO(p, 0.1, beta=0.0, polar="ns5"), scale=1e-4, **options)
    muon = taken(lambda p: Muon(p, 0.1, momentum=0.0), scale=1e-4, **options)
    assert farthest(ours, muon) < 1e-5
    apart = taken(lambda p: FISMO(p, 0.1, beta=0.0, polar="ns5"), scale=10.0, **options)
    assert farthest(apart, muon) > 1e-2


def test_only_relative_factors_forget_the_gradients_scale():
    for relative in (False, True):
        small, large = (taken(lambda p: FISMO(p, 0.1, relative=relative), scale=s) for s in (0.01, 100.0))  # noqa: B023
        assert (farthest(small, large) < 1e-9) is relative


# Oracle 3: duality. The step solves max <G, D> over |P^(1/2) D Q^(1/2)|_2 <= 1.


def test_no_feasible_step_does_better():
    G = normal(5, 7)
    w = torch.zeros(5, 7, dtype=torch.float64, requires_grad=True)
    opt = FISMO([w], 1.0, beta=0.0, gamma=0.5)
    for step in range(4):
        w.grad = normal(5, 7, seed=step)
        opt.step()
    w.data.zero_()
    w.grad = G
    opt.step()
    state, D = opt.state[w], -w.detach()
    left, right = inverse_root(state["P"]), inverse_root(state["Q"])
    left_back, right_back = torch.linalg.inv(left), torch.linalg.inv(right)
    assert spectral(left_back @ D @ right_back) == pytest.approx(1, abs=1e-12)
    nuclear = torch.linalg.svdvals(left @ G @ right).sum().item()
    assert (G * D).sum().item() == pytest.approx(nuclear, rel=1e-12)
    for seed in range(300):
        other = D + 0.3 * normal(5, 7, seed=seed)
        assert (G * other).sum().item() / spectral(left_back @ other @ right_back) < nuclear


# Oracle 4: the factors.


def test_factors_keep_the_trace_and_stay_positive():
    P, Q = positive(6), positive(4, seed=1)
    for step, scale in enumerate([1.0, 1e-12, 1e6, 0.0, 1e3]):
        for relative in (False, True):
            P, Q = kron_fisher_update(P, Q, scale * normal(6, 4, seed=step), 0.9, 1e-2, relative=relative)
            for A in (P, Q):
                assert A.trace().item() == pytest.approx(len(A), rel=1e-12)
                assert torch.equal(A, A.T)
                assert torch.linalg.eigvalsh(A)[0] > 0


@pytest.mark.parametrize(("gamma", "last", "averaged"), [(0.99, 0.10, 0.05)])
def test_factors_find_those_of_the_gradients(gamma, last, averaged):
    P0, Q0 = positive(8), positive(5, seed=1)
    chol = [torch.linalg.cholesky(A) for A in (P0, Q0)]
    Z = chol[0] @ normal(2000, 8, 5, seed=2) @ chol[1].T
    P, Q = torch.eye(8).double(), torch.eye(5).double()
    sums = [torch.zeros(8, 8).double(), torch.zeros(5, 5).double()]
    for t, G in enumerate(Z):
        P, Q = kron_fisher_update(P, Q, G, gamma, 0.0)
        if t >= 1000:
            sums = [a + b / 1000 for a, b in zip(sums, (P, Q), strict=True)]
    for end, mean, true in zip((P, Q), sums, (P0, Q0), strict=True):
        assert (end - true).norm() < last * true.norm()
        assert (mean - true).norm() < averaged * true.norm()
        assert (torch.eye(len(true)) - true).norm() > 2 * last * true.norm()


def test_small_gradients_hardly_count():
    """The weight of a new term of mean diagonal s is (1 - gamma) s / (gamma + (1 - gamma) s)."""
    G = 1e-3 * normal(6, 6)
    P, _ = kron_fisher_update(torch.eye(6).double(), torch.eye(6).double(), G, 0.9, 0.0)
    new = G @ G.T / 6
    s = new.trace() / 6
    weight = 0.1 * s / (0.9 + 0.1 * s)
    torch.testing.assert_close(P, (1 - weight) * torch.eye(6).double() + weight * new / s, rtol=0, atol=1e-14)
    assert weight < 1e-6


# The polar factor and its edges.


@pytest.mark.parametrize("shape", [(5, 5), (4, 9), (9, 4)])
def test_polar_factor_is_scipys(shape):
    M = normal(*shape)
    torch.testing.assert_close(polar_factor(M), torch.from_numpy(scipy.linalg.polar(M.numpy())[0]), rtol=0, atol=1e-12)


def test_polar_factor_leaves_null_directions_out():
    M = normal(6, 2) @ normal(2, 5, seed=1)
    found = torch.linalg.svdvals(polar_factor(M))
    torch.testing.assert_close(found, torch.tensor([1.0, 1, 0, 0, 0]).double(), rtol=0, atol=1e-12)
    for method in ("svd", "ns5"):
        assert torch.equal(polar_factor(torch.zeros(3, 4), method), torch.zeros(3, 4))
    with pytest.raises(ValueError, match="svd, ns5"):
        polar_factor(M, "qr")


def test_equal_shapes_in_a_batch_step_as_each_alone():
    both = taken(lambda p: FISMO(p, 0.1), shapes=SHAPES[:1] * 2)
    torch.testing.assert_close(both[0], taken(lambda p: FISMO(p, 0.1), shapes=SHAPES[:1])[0], rtol=0, atol=1e-12)
    assert farthest(both[:1], both[1:]) > 0.1


def test_huge_gradients_leave_float32_finite():
    w = torch.zeros(8, 8, requires_grad=True)
    opt = FISMO([w], 1e-3)
    for step in range(30):
        w.grad = 1e4 * torch.outer(torch.ones(8), normal(8, seed=step).float())  # rank one: the rest fades
        opt.step()
    assert w.isfinite().all()


def test_vectors_step_along_their_averaged_gradient():
    b = torch.zeros(3, requires_grad=True)
    b.grad = torch.ones(3)
    FISMO([b], 0.5, beta=0.9).step()
    torch.testing.assert_close(b.detach(), torch.full((3,), -0.05))


def test_what_it_cannot_train_is_refused():
    with pytest.raises(ValueError, match="float32 or float64"):
        FISMO([torch.zeros(2, 2, dtype=torch.bfloat16, requires_grad=True)])
    table = nn.Embedding(4, 2, sparse=True)
    table(torch.tensor([1])).sum().backward()
    with pytest.raises(RuntimeError, match="sparse=False"):
        FISMO(table.parameters()).step()


# The experiment's own instruments.


def test_the_regressions_gradients_have_its_curvature_for_their_covariance():
    """At the solution a gradient is noise, of covariance X times S over the batch: Fisher's matrix."""
    drawn = Regression.draw("muon", [0], 3, 2, 100.0, 4)
    G = torch.stack([drawn.gradients(drawn.target)[0].flatten() for _ in range(3000)])
    S, X = (root[0] @ root[0] for root in (drawn.S_root, drawn.X_root))
    assert torch.linalg.cond(S).item() == pytest.approx(100.0)
    fisher = torch.kron(S, X) / 4
    assert (G.T @ G / len(G) - fisher).norm() < 0.15 * fisher.norm()
    W = normal(1, 3, 2)
    found = torch.stack([drawn.gradients(W)[0] for _ in range(3000)]).mean(0)
    exact = torch.func.grad(lambda w: drawn.loss(w).sum())(W)[0]
    assert (found - exact).norm() < 0.05 * exact.norm()


def test_arms_of_a_seed_share_their_problem_and_copies_do_not():
    ends = [
        Regression.draw(arm, [0, 1], 4, 4, 10.0, 8).train(lambda p: made("muon", p, 0.03), 5)[-1]
        for arm in ("fismo", "muon", "muon-copy")
    ]
    assert torch.equal(ends[0], ends[1])
    assert not torch.equal(ends[0], ends[2])


def test_the_factorisations_norms_are_those_of_autograd():
    steps = []

    class Watch(torch.optim.SGD):
        def step(self):
            steps.append([p.detach().clone() for p in self.param_groups[0]["params"]])
            super().step()

    norms = factorisation(lambda p: Watch(p, lr=0.01), [3], (4, 2, 5), 0.0, 3)
    g = seeded(3)
    Y = [torch.randn(size, generator=g, dtype=torch.float64) for size in ((4, 2), (2, 5))]
    for norm, (U, V) in zip(norms, steps, strict=True):
        grads = torch.func.grad(lambda uv: (uv[0] @ uv[1] - Y[0] @ Y[1] / 2).square().sum() / 2)((U, V))
        assert norm.item() == pytest.approx(sum(a.square().sum().item() for a in grads))


def test_spectra_and_directions_are_measured_right():
    A = spread_spectrum(5, 1e3, seeded())
    assert log_condition(A).item() == pytest.approx(3)
    assert unit_gap(A, 7 * A).item() == pytest.approx(0, abs=1e-14)
    assert unit_gap(A, -A).item() == pytest.approx(2)


@pytest.mark.parametrize("polar", ["ns5", "svd"])
def test_a_shadow_takes_no_part(polar):
    """Its updates add up to FISMO's own run, also where they are asked for with another polar factor."""
    w = normal(4, 4).requires_grad_()
    before, shadow, updates = w.detach().clone(), Shadow("fismo", [w]), []
    reference = torch.zeros(4, 4, dtype=torch.float64, requires_grad=True)
    opt = FISMO([reference], 1.0, polar=polar)
    for s in range(3):
        grads = [normal(4, 4, seed=s)]
        updates.append(shadow.update(grads, polar=polar)[0])
        shadow.follow(grads)
        reference.grad = grads[0]
        opt.step()
    assert torch.equal(w.detach(), before)
    torch.testing.assert_close(sum(updates), reference.detach(), rtol=0, atol=1e-12)
