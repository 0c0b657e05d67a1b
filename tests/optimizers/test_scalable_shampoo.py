"""Shampoo against NumPy, its roots against exact ones, and the pitfalls of both."""

import itertools

import numpy as np
import pytest
import scipy.linalg
import torch

from draws import seeded
from secondlook.optimizers import Shampoo
from secondlook.optimizers.scalable_shampoo import blocks, inverse_pth_root, merged_shape
from secondlook.optimizers.scalable_shampoo.kronecker import Problem, spread
from secondlook.optimizers.scalable_shampoo.roots import largest_eigenvalue
from secondlook.optimizers.scalable_shampoo.setting import steps_to


def covariances(condition: float, count: int = 3, n: int = 24, seed: int = 0) -> torch.Tensor:
    halves = torch.stack([spread(n, condition**0.5, g) for g in [seeded(seed)] for _ in range(count)])
    return halves @ halves.mT


def run(params, grads, **options) -> Shampoo:
    optimizer = Shampoo(params, **{"lr": 0.1, **options})
    for step in grads:
        for p, g in zip(params, step, strict=True):
            p.grad = g.clone()
        optimizer.step()
    return optimizer


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=seeded(seed), dtype=torch.float64)


@pytest.mark.parametrize("p", [1, 2, 3, 4, 6, 8])
@pytest.mark.parametrize("condition", [1.0, 1e2, 1e4])
def test_root_agrees_with_scipy(p, condition):
    A = covariances(condition)
    X, info = inverse_pth_root(A, p, 1e-6, 1e-13)
    assert info.error.max() < 1e-10
    for a, x, ridge in zip(A, X, info.ridge, strict=True):
        ridged = a.numpy() + float(ridge) * np.eye(len(a))
        np.testing.assert_allclose(x.numpy(), scipy.linalg.fractional_matrix_power(ridged, -1 / p), rtol=0, atol=1e-8)
        np.testing.assert_allclose(np.linalg.matrix_power(x.numpy(), p) @ ridged, np.eye(len(a)), rtol=0, atol=1e-10)


@pytest.mark.parametrize("p", [2, 4])
def test_root_in_float32(p):
    A = covariances(1e2).float()
    X, info = inverse_pth_root(A, p)
    left = torch.matrix_power(X, p) @ (A + info.ridge[:, None, None] * torch.eye(24))
    assert (left - torch.eye(24)).abs().max() < 1e-4
    assert X.dtype == torch.float32


def test_ridge_is_relative_and_the_largest_eigenvalue_exact():
    A = 1e-5 * covariances(1e3)
    largest = largest_eigenvalue(A)
    torch.testing.assert_close(largest, torch.linalg.eigvalsh(A)[:, -1], rtol=1e-3, atol=0)
    scaled, info = inverse_pth_root(A, 4, tol=1e-13)
    plain, _ = inverse_pth_root(1e5 * A, 4, tol=1e-13)
    torch.testing.assert_close(info.ridge, 1e-6 * largest)
    torch.testing.assert_close(scaled, plain * 1e5**0.25, rtol=1e-9, atol=1e-9)


def test_each_matrix_of_a_batch_stops_for_itself():
    A = torch.cat([covariances(1e6, 1), covariances(1.0, 1)]).view(2, 1, 24, 24)
    X, info = inverse_pth_root(A, 4, tol=1e-13)
    assert info.iterations[0, 0] > info.iterations[1, 0] + 3
    for i in range(2):
        alone, _ = inverse_pth_root(A[i, 0], 4, tol=1e-13)
        torch.testing.assert_close(X[i, 0], alone, rtol=1e-9, atol=1e-9)


def test_unguarded_stop_gives_up_on_a_matrix_that_converges():
    """Entries of M - I may grow in the first rounds; the released rule then returns the starting point."""
    worst = {}
    for guard in (0.1, float("inf")):
        A = normal(500, 16, 16)
        A = A @ A.mT + 0.1 * torch.eye(16)
        X, _ = inverse_pth_root(A, 8, 0.0, 1e-10, guard=guard)
        values, vectors = torch.linalg.eigh(A)
        exact = vectors * values[:, None] ** (-1 / 8) @ vectors.mT
        worst[guard] = ((X - exact).norm(dim=(1, 2)) / exact.norm(dim=(1, 2))).max()
    assert worst[0.1] < 1e-8
    assert worst[float("inf")] > 0.1


def test_zero_matrix_has_a_finite_root():
    X, _ = inverse_pth_root(torch.zeros(2, 5, 5), 4)
    assert X.isfinite().all()


@pytest.mark.parametrize(
    ("args", "word"),
    [((torch.eye(3)[:2], 2), "shape"), ((torch.eye(3), 0), "p must"), ((torch.eye(3), 2, -1.0), "eps")],
)
def test_root_refuses(args, word):
    with pytest.raises(ValueError, match=word):
        inverse_pth_root(*args)


@pytest.mark.parametrize(
    ("shape", "size", "merged"),
    [
        ((), 128, ()),
        ((5,), 128, (5,)),
        ((10, 12), 128, (120,)),
        ((64, 64), 128, (64, 64)),
        ((64, 3, 3, 3), 128, (64, 27)),
        ((256, 1, 1, 2), 128, (256, 2)),
        ((2, 3, 64), 8, (6, 64)),
        ((3, 4), 1, (3, 4)),
    ],
)
def test_merged_shapes(shape, size, merged):
    assert merged_shape(shape, size) == merged


def test_blocks_tile_the_tensor():
    t = torch.zeros(300, 5, 40)
    tiles = blocks(t, 128)
    assert [tuple(b.shape) for b in tiles] == [(n, 5, 40) for n in (128, 128, 44)]
    for b in tiles:
        b += 1
    assert torch.equal(t, torch.ones_like(t))


def test_first_step_is_the_polar_factor():
    """With one gradient U S V' and no ridge to speak of, L^(-1/4) G R^(-1/4) = U V'."""
    G = normal(12, 12)  # square, so that both factors are regular
    w = torch.zeros(12, 12, dtype=torch.float64, requires_grad=True)
    run([w], [[G]], lr=1.0, momentum=0.0, eps=1e-14, graft="none", block_size=64)
    U, _, Vh = torch.linalg.svd(G)
    torch.testing.assert_close(w.detach(), -U @ Vh, rtol=0, atol=1e-5)


def test_blocks_of_one_entry_are_adagrad():
    start, grads = normal(6, 5), [[normal(6, 5, seed=s)] for s in range(8)]
    w, twin = (start.clone().requires_grad_() for _ in range(2))
    run([w], grads, momentum=0.0, eps=1e-13, graft="none", block_size=1)
    adagrad = torch.optim.Adagrad([twin], lr=0.1, eps=0)
    for (g,) in grads:
        twin.grad = g
        adagrad.step()
    torch.testing.assert_close(w, twin, rtol=0, atol=1e-6)


@pytest.mark.parametrize("graft", ["sgd", "adagrad"])
def test_every_tensor_has_the_grafted_length(graft):
    params = [torch.zeros(s, dtype=torch.float64, requires_grad=True) for s in [(200, 30), (7,), (4, 6, 3, 3), ()]]
    grads = [[normal(*p.shape, seed=s) for p in params] for s in range(3)]
    optimizer = run(params, grads[:2], graft=graft, momentum=0.0)
    before = [p.detach().clone() for p in params]
    for p, g in zip(params, grads[2], strict=True):
        p.grad = g
    optimizer.step()
    for i, (p, old) in enumerate(zip(params, before, strict=True)):
        D = grads[2][i]
        if graft == "adagrad":
            D = D / (sum(g[i] ** 2 for g in grads).sqrt() + 1e-6)
        torch.testing.assert_close((p.detach() - old).norm(), 0.1 * D.norm(), rtol=1e-6, atol=0)


def naive(
    w, grads, *, lr, momentum, beta2, eps, size, graft, start, root_every, stats_every, nesterov, decay, exponent
):
    """The update of one tensor that is not merged, one block at a time in NumPy, with roots by eigenvalues."""
    places = list(itertools.product(*[[slice(i, i + size) for i in range(0, n, size)] for n in w.shape]))
    k = w.ndim
    factors = {b: [eps * np.eye(n) for n in w[place].shape] for b, place in enumerate(places)}
    roots = {b: [np.eye(len(f)) for f in factors[b]] for b in factors}
    mu, squares = np.zeros_like(w), np.zeros_like(w)
    for t, g in enumerate(grads, 1):
        squares = squares + g * g
        D = g / (np.sqrt(squares) + 1e-6) if graft == "adagrad" else g
        P = np.empty_like(g)
        for b, place in enumerate(places):
            block = g[place]
            for axis in range(k):
                if t % stats_every == 0:
                    flat = np.moveaxis(block, axis, 0).reshape(block.shape[axis], -1)
                    weight = 1 if beta2 == 1 else 1 - beta2
                    factors[b][axis] = beta2 * factors[b][axis] + weight * flat @ flat.T
                if t % root_every == 0:
                    values, vectors = np.linalg.eigh(factors[b][axis])
                    roots[b][axis] = vectors * (values + eps * values[-1]) ** (-1 / (exponent or 2 * k)) @ vectors.T
            for axis in range(k):
                block = np.moveaxis(np.tensordot(roots[b][axis], block, (1, axis)), 0, axis)
            P[place] = block
        if graft != "none":
            P = P * np.linalg.norm(D) / np.linalg.norm(P)
        P = (D if t < start else P) + decay * w
        mu = momentum * mu + P
        w = w - lr * (momentum * mu + P if nesterov else mu)
    return w


@pytest.mark.parametrize("shape", [(11, 7), (5, 9, 6)])
@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"graft": "none"},
        {"graft": "adagrad", "start": 4},
        {"beta2": 0.9, "exponent": 4, "stats_every": 2},
        {"root_every": 3, "nesterov": False, "decay": 0.1},
    ],
)
def test_matches_the_formula(shape, changed):
    """Ten steps in blocks of at most 4, with remainders; the ridge of the reference is exact, ours by power steps."""
    options = {"lr": 0.1, "momentum": 0.9, "beta2": 1.0, "eps": 1e-4, "graft": "sgd", "start": 1, "root_every": 1}
    options |= {"stats_every": 1, "nesterov": True, "decay": 0.0, "exponent": None, **changed}
    grads = [normal(*shape, seed=s) for s in range(10)]
    w = normal(*shape, seed=99).requires_grad_()
    expected = naive(w.detach().numpy(), [g.numpy() for g in grads], size=4, **options)
    options["weight_decay"], options["start_step"] = options.pop("decay"), options.pop("start")
    run([w], [[g] for g in grads], block_size=4, **options)
    np.testing.assert_allclose(w.detach().numpy(), expected, rtol=0, atol=2e-5)


def test_groups_share_batches_and_keep_their_options():
    """One shape in three groups that differ in all that the roots depend on, beside three optimizers."""
    options = [{"beta2": 0.9, "eps": 1e-3}, {"stats_every": 2, "root_every": 2, "maximize": True}, {"exponent": 2}]
    grads = [[normal(6, 5, seed=10 * s + i) for i in range(3)] for s in range(5)]
    together, alone = ([normal(6, 5, seed=99).requires_grad_() for _ in range(3)] for _ in range(2))
    groups = [{"params": [w], **own} for w, own in zip(together, options, strict=True)]
    optimizer = Shampoo(groups, lr=0.1, block_size=4)
    for step in grads:
        for w, g in zip(together, step, strict=True):
            w.grad = g.clone()
        optimizer.step()
    for i, (w, twin, own) in enumerate(zip(together, alone, options, strict=True)):
        sign = -1 if own.pop("maximize", False) else 1
        run([twin], [[sign * step[i]] for step in grads], block_size=4, **own)
        torch.testing.assert_close(w, twin, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("arm", ["adam", "shampoo-2"])
def test_autoencoders_side_by_side_train_as_alone(arm):
    """One arrives early, one explodes, two go on to the limit: the others do not notice."""
    x, lrs, seeds = torch.rand(40, 9, generator=seeded()), [0.02, 1e4, 1e-4, 0.01], [0, 1, 2, 0]
    task = {"x": x, "sizes": [9, 4, 9], "limit": 30}
    many = steps_to(0.1, arm, lrs, seeds, **task)
    assert many[0][0] < 30
    assert len(many[1][1]) < 31
    assert len(many[2][1]) == 31
    for found, lr, seed in zip(many, lrs, seeds, strict=True):
        ((steps, losses),) = steps_to(0.1, arm, [lr], [seed], **task)
        assert steps == found[0]
        np.testing.assert_allclose(found[1], losses, rtol=1e-4)


def test_stale_roots_are_those_of_the_last_refresh():
    w = torch.zeros(6, 5, dtype=torch.float64, requires_grad=True)
    optimizer = run([w], [[normal(6, 5, seed=s)] for s in range(3)], root_every=3, block_size=8)
    kept = [r.clone() for r in optimizer.state[w]["roots"]]
    assert not torch.equal(kept[0], torch.eye(6, dtype=torch.float64))
    w.grad = normal(6, 5, seed=9)
    factor = optimizer.state[w]["factors"][0].clone()
    optimizer.step()
    assert all(map(torch.equal, kept, optimizer.state[w]["roots"]))
    assert not torch.equal(factor, optimizer.state[w]["factors"][0])


def test_ridge_does_not_leak_into_the_factors():
    w, grads = torch.zeros(6, 5, dtype=torch.float64, requires_grad=True), [normal(6, 5, seed=s) for s in range(5)]
    optimizer = run([w], [[g] for g in grads], eps=1e-2, block_size=8)
    expected = sum(g @ g.T for g in grads) + 1e-2 * torch.eye(6, dtype=torch.float64)
    torch.testing.assert_close(optimizer.state[w]["factors"][0], expected, rtol=1e-12, atol=0)


def test_half_precision_is_refused():
    with pytest.raises(ValueError, match="autocast"):
        Shampoo([torch.ones(3, dtype=torch.bfloat16, requires_grad=True)], lr=0.1)


def test_channels_last_changes_nothing():
    ends = []
    for form in (torch.contiguous_format, torch.channels_last):
        w = torch.zeros(8, 6, 3, 3, dtype=torch.float64).to(memory_format=form).requires_grad_()
        run([w], [[normal(8, 6, 3, 3, seed=s).to(memory_format=form)] for s in range(3)], block_size=16)
        ends.append(w.detach())
    torch.testing.assert_close(*ends, rtol=0, atol=1e-12)


def test_preconditioning_takes_the_root_of_a_kronecker_condition_number():
    problem = Problem.draw([0], 10, 12, 10.0)
    found = {rule: float(problem.condition(rule, 200, seeded(1))) for rule in ("none", "shampoo", "diagonal")}
    assert found["none"] == pytest.approx(1e4, rel=1e-6)
    assert found["shampoo"] == pytest.approx(1e2, rel=0.3)
    assert found["diagonal"] > 1e3
