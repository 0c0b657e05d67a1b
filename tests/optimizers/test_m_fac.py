"""M-FAC against dense inverses, closed forms and its own printed recursion."""

import copy
import pickle

import numpy as np
import pytest
import torch
from torch import nn

from secondlook.optimizers import MFAC
from secondlook.optimizers.m_fac import DynamicIHVP, StaticIHVP, batch_gradients, obs_prune, obs_step, prunable
from secondlook.optimizers.m_fac.experiment import DiagonalFisher
from secondlook.problems.training import cross_entropy


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def dense_inverse(G, damp, block_size=None):
    """F^-1 by NumPy; with blocks, zero outside of them first."""
    fisher = damp * np.eye(G.shape[1]) + G.numpy().T @ G.numpy() / len(G)
    if block_size:
        block = np.arange(G.shape[1]) // block_size
        fisher *= block[:, None] == block[None]
    return np.linalg.inv(fisher)


def window_of(G, damp, earlier=()):
    window = DynamicIHVP(*G.shape, damp, G.dtype)
    for g in [*earlier, *G]:
        window.push(g)
    return window


# Oracle 1: dense algebra.


@pytest.mark.parametrize("block_size", [None, 300, 128, 7, 1])
def test_static_equals_the_dense_inverse(block_size):
    G, x = normal(64, 300), normal(300, seed=1)
    exact = dense_inverse(G, 1e-3, block_size)
    fisher = StaticIHVP(G, 1e-3, block_size)
    np.testing.assert_allclose(
        fisher.mul(x).numpy(), exact @ x.numpy(), rtol=0, atol=1e-9 * np.abs(exact @ x.numpy()).max()
    )
    fisher.diag().zero_()  # the caller's own
    np.testing.assert_allclose(fisher.diag().numpy(), exact.diagonal(), rtol=1e-9)
    for i, j in [(0, 0), (3, 5), (17, 290), (290, 17), (299, 299), (127, 128)]:
        scale = np.sqrt(exact[i, i] * exact[j, j])
        assert abs(fisher.entry(i, j).item() - exact[i, j]) < 1e-9 * scale


@pytest.mark.parametrize("pushes", [64, 81, 192])
def test_dynamic_equals_the_dense_inverse_wherever_the_window_stands(pushes):
    """Whatever was in the window before is forgotten, and the order inside the ring buffer does not matter."""
    G, x = normal(64, 300), normal(300, seed=1)
    exact = dense_inverse(G, 1e-3)
    window = window_of(G, 1e-3, earlier=normal(pushes - 64, 300, seed=2))
    for found, wanted in ((window.mul(x), exact @ x.numpy()), (window.mul_latest(), exact @ G[-1].numpy())):
        np.testing.assert_allclose(found.numpy(), wanted, rtol=0, atol=1e-9 * np.abs(wanted).max())
    torch.testing.assert_close(window.mul(x), StaticIHVP(G, 1e-3).mul(x), rtol=1e-9, atol=1e-9)


def test_dynamic_follows_the_printed_recursion():
    """D from an LU factorisation without pivoting, B from D row by row, then the product: as the paper has it."""
    m, damp = 12, 1e-2
    G, x = normal(m, 40).numpy(), normal(40, seed=1).numpy()
    upper = G @ G.T / damp + m * np.eye(m)
    for k in range(m):
        upper[k + 1 :] -= np.outer(upper[k + 1 :, k] / upper[k, k], upper[k])
    D = np.triu(upper - m * np.eye(m))
    c = m + D.diagonal()
    B = np.eye(m) / damp
    for i in range(m):
        B[i, :i] = -sum((D[k, i] / c[k] * B[k, :i] for k in range(i)), np.zeros(i))
    y = G @ x / damp
    for i in range(m):
        y[i] -= sum(D[k, i] / c[k] * y[k] for k in range(i))
    printed = x / damp - G.T @ (B.T @ (y / c))
    found = window_of(torch.from_numpy(G), damp).mul(torch.from_numpy(x))
    np.testing.assert_allclose(found.numpy(), printed, rtol=1e-10, atol=1e-10)


# Oracle 3 and 4: one gradient, and the limits.


@pytest.mark.parametrize("damp", [1e-5, 1.0])
def test_one_gradient_has_a_closed_form(damp):
    g, x = normal(20), normal(20, seed=1)
    exact = x / damp - g * (g @ x) / (damp * (damp + g @ g))
    for fisher in (StaticIHVP(g[None], damp), window_of(g[None], damp)):
        torch.testing.assert_close(fisher.mul(x), exact, rtol=1e-9, atol=1e-9)


def test_a_window_that_is_not_full_counts_its_zeros():
    """F is divided by m, not by the number of gradients that came so far."""
    g, x = normal(20), normal(20, seed=1)
    window = DynamicIHVP(5, 20, 0.1, torch.float64)
    assert torch.equal(window.mul(x), x / 0.1)
    window.push(g)
    torch.testing.assert_close(window.mul(x), x / 0.1 - g * (g @ x) / (0.1 * (5 * 0.1 + g @ g)))
    torch.testing.assert_close(window.mul_latest(), window.mul(g))


def test_heavy_damping_leaves_the_gradient():
    g = normal(20)
    torch.testing.assert_close(window_of(normal(5, 20), 1e12, [g]).mul(g), g / 1e12, rtol=1e-10, atol=0)


def test_gradients_that_drown_the_damping_in_rounding_stay_finite():
    """Equal float32 gradients of norm 1e4: the Gram matrix rounds to one that is not positive definite."""
    g = 1e3 * normal(100, dtype=torch.float32)
    window = DynamicIHVP(8, 100, 1e-8)
    for i in range(8):
        window.push(g * (1 + 1e-7 * i))
    damped = window.dots.double() + 8e-8 * torch.eye(8)
    assert torch.linalg.cholesky_ex(damped)[1] > 0, "the case this test is about does not arise"
    step = window.mul_latest()
    assert torch.isfinite(step).all()
    assert step @ g > 0
    assert step.norm() < 1.1 * 8 * g.norm() / (g @ g)  # no further than with that one gradient alone


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: StaticIHVP(normal(5)), "G must be"),
        (lambda: StaticIHVP(normal(0, 5)), "G must be"),
        (lambda: StaticIHVP(normal(2, 5), damp=0.0), "damp"),
        (lambda: StaticIHVP(normal(2, 5), block_size=0), "block_size"),
        (lambda: StaticIHVP(normal(2, 5)).mul(normal(4)), "5 columns"),
        (lambda: StaticIHVP(normal(2, 5)).entry(0, 5), "numbered from 0 to 4"),
        (lambda: DynamicIHVP(0, 5), "m must"),
        (lambda: DynamicIHVP(2, 5, damp=-1.0), "damp"),
        (lambda: DynamicIHVP(2, 5).push(normal(1)), "5 columns"),
    ],
)
def test_bad_input_is_named(make, named):
    with pytest.raises(ValueError, match=named):
        make()


# The optimizer.


def test_steps_equal_those_with_a_dense_fisher():
    """Window, weight decay before it, and a running average that is not divided by 1 - mu^t."""
    h = normal(6, 6)
    h = h @ h.T + torch.eye(6, dtype=torch.float64)
    w = normal(6, seed=1).requires_grad_()
    optimizer = MFAC([w], lr=0.05, n_grads=3, damp=0.02, momentum=0.6, weight_decay=0.1)
    position, rows, v = w.detach().numpy().copy(), [np.zeros(6)] * 3, np.zeros(6)
    for _ in range(8):
        optimizer.zero_grad()
        (0.5 * w @ h @ w).backward()
        optimizer.step()
        g = h.numpy() @ position + 0.1 * position
        rows = [*rows[1:], g]
        v = 0.6 * v + 0.4 * dense_inverse(torch.from_numpy(np.array(rows)), 0.02) @ g
        position = position - 0.05 * v
    np.testing.assert_allclose(w.detach().numpy(), position, rtol=1e-9, atol=1e-12)


def test_curvature_crosses_parameters():
    """Two parameters with the same gradients always: the Fisher sees their sum, so steps shrink by two."""
    alone, first, second = (torch.zeros(3, dtype=torch.float64, requires_grad=True) for _ in range(3))
    for params in ([alone], [first, second]):
        optimizer = MFAC(params, lr=1.0, n_grads=1, damp=1e-12)
        for p in params:
            p.grad = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
        optimizer.step()
    torch.testing.assert_close(first, second)
    torch.testing.assert_close(2 * first, alone)


def test_half_precision_parameters_keep_float32_state_through_a_checkpoint():
    w = normal(8, dtype=torch.float32).bfloat16().requires_grad_()
    optimizer = MFAC([w], lr=0.1, n_grads=4, damp=1e-2, momentum=0.5)
    (w.float() ** 2).sum().backward()
    before = w.detach().clone()
    optimizer.step()
    assert w.dtype == torch.bfloat16
    assert not torch.equal(before, w)
    other = MFAC([w], n_grads=4)
    other.load_state_dict(optimizer.state_dict())
    saved = {name: value.clone() for name, value in optimizer.state["window"].items() if name != "slot"}
    other.step()  # must not reach into the state it was loaded from
    for name, value in saved.items():
        assert value.dtype == torch.float32
        assert torch.equal(optimizer.state["window"][name], value)


def test_a_group_that_comes_later_widens_the_window():
    """Its entries in the gradients so far are zeros, as if it had been there without a gradient."""
    ends = []
    for late in (False, True):
        a, b = normal(3).requires_grad_(), normal(2, seed=1).requires_grad_()
        optimizer = MFAC([a] if late else [a, b], n_grads=4, momentum=0.3)
        for i in range(4):
            if i == 2 and late:
                optimizer.add_param_group({"params": [b]})
            a.grad, b.grad = normal(3, seed=i), normal(2, seed=10 + i) if i >= 2 else None
            optimizer.step()
        ends.append(torch.cat([a, b]))
    assert torch.equal(*ends)


def test_a_pickled_optimizer_goes_on():
    w = normal(4).requires_grad_()
    optimizer = MFAC([w], n_grads=3)
    w.grad = normal(4, seed=1)
    optimizer.step()
    twin = pickle.loads(pickle.dumps(optimizer))
    (p,) = twin.param_groups[0]["params"]
    w.grad, p.grad = normal(4, seed=2), normal(4, seed=2)
    optimizer.step()
    twin.step()
    assert torch.equal(w, p)


def test_what_cannot_work_is_refused():
    w = normal(4).requires_grad_()
    with pytest.raises(ValueError, match="share one window: set damp"):
        MFAC([{"params": [w], "damp": 1.0}])
    with pytest.raises(ValueError, match="complex"):
        MFAC([torch.zeros(2, dtype=torch.complex64, requires_grad=True)])
    with pytest.raises(ValueError, match="the window lies on one device"):
        MFAC([w, torch.zeros(2, device="meta", requires_grad=True)])
    table = nn.Embedding(4, 2, sparse=True)
    optimizer = MFAC(table.parameters())
    table(torch.tensor([1])).sum().backward()
    with pytest.raises(RuntimeError, match="sparse=False"):
        optimizer.step()
    saved = MFAC([w], n_grads=3)
    w.grad = torch.ones_like(w)
    saved.step()
    with pytest.raises(ValueError, match="3 gradients, this one 4"):
        MFAC([w], n_grads=4).load_state_dict(saved.state_dict())


# Pruning.


def network(seed=0):
    g = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Tanh(), nn.Flatten(), nn.Linear(12, 4)).double()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=g, dtype=p.dtype) * 0.5)
    return model


def batches(n=20, seed=5):
    g = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(8, 1, 4, 4, generator=g, dtype=torch.float64), torch.randint(0, 4, (8,), generator=g))
        for _ in range(n)
    ]


def weights(model):
    return torch.cat([p.detach().flatten() for p in prunable(model).values()])


def test_one_weight_is_removed_as_obs_says():
    """Of all single weights the one with the least damage goes, and the rest minimise the quadratic model."""
    G, w = normal(30, 10), normal(10, seed=1)
    inverse = dense_inverse(G, 1e-2)
    fisher = np.linalg.inv(inverse)
    new, left = obs_step(w, StaticIHVP(G, 1e-2), 1)
    damage, best = {}, {}
    for k in range(10):
        rest = [i for i in range(10) if i != k]
        delta = np.zeros(10)
        delta[k] = -w[k]
        delta[rest] = -np.linalg.solve(fisher[np.ix_(rest, rest)], fisher[rest, k] * delta[k])
        damage[k], best[k] = 0.5 * delta @ fisher @ delta, w.numpy() + delta
    k = min(damage, key=damage.get)
    assert left.tolist() == [i != k for i in range(10)]
    np.testing.assert_allclose(new.numpy(), best[k], atol=1e-10)
    assert new[k] == 0


def test_several_weights_superpose():
    G, w = normal(30, 10), normal(10, seed=1)
    inverse = dense_inverse(G, 1e-2)
    new, left = obs_step(w, StaticIHVP(G, 1e-2), 4)
    gone = np.argsort(w.numpy() ** 2 / inverse.diagonal())[:4]
    expected = w.numpy() - sum(w[k].item() / inverse[k, k] * inverse[:, k] for k in gone)
    expected[gone] = 0
    assert set(np.flatnonzero(~left.numpy())) == set(gone)
    np.testing.assert_allclose(new.numpy(), expected, atol=1e-10)


def test_the_diagonal_baseline_is_the_static_algorithm_with_blocks_of_one():
    G, w = normal(30, 50), normal(50, seed=1)
    short, full = DiagonalFisher(G, 1e-2), StaticIHVP(G, 1e-2, block_size=1)
    torch.testing.assert_close(short.diag(), full.diag())
    torch.testing.assert_close(short.mul(w), full.mul(w))


def test_gradients_are_taken_in_evaluation_mode_and_leave_no_trace():
    model = network().train()
    before = copy.deepcopy(model.state_dict())
    params = list(prunable(model).values())
    G = batch_gradients(model, cross_entropy, batches(3), params)
    assert G.shape == (3, 27 + 48)
    assert model.training
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    model.eval()
    cross_entropy(model, batches(3)[1]).backward()
    torch.testing.assert_close(G[1], torch.cat([p.grad.flatten() for p in params]))


def test_pruning_reaches_the_sparsity_and_touches_nothing_else():
    model = network()
    others = {n: p.detach().clone() for n, p in model.named_parameters() if n not in prunable(model)}
    masks = obs_prune(model, cross_entropy, batches(), 0.6, n_grads=20)
    assert list(masks) == ["0.weight", "4.weight"]
    assert (weights(model) == 0).sum() == 45  # of 75
    for name, p in prunable(model).items():
        assert torch.equal(p != 0, masks[name])
    assert all(torch.equal(others[n], p) for n, p in model.named_parameters() if n in others)


def test_recomputation_keeps_what_was_pruned_and_uses_the_surviving_weights_alone():
    once, twice = network(), network()
    obs_prune(once, cross_entropy, batches(), 0.5, 10)
    first = weights(once) == 0
    obs_prune(once, cross_entropy, batches(), 0.75, 10, block_size=8)
    assert (weights(once) == 0).sum() == 56
    assert (weights(once)[first] == 0).all()
    # By hand: blocks are cut from what the first step left.
    obs_prune(twice, cross_entropy, batches(), 0.5, 10)
    G = batch_gradients(twice, cross_entropy, batches(10), list(prunable(twice).values()))[:, ~first]
    new, _ = obs_step(weights(twice)[~first], StaticIHVP(G, block_size=8), 56 - 37)
    torch.testing.assert_close(weights(once)[~first], new)
    # Two steps of one call pass the same half-way point: densities 1/2 and 1/4.
    steps = network()
    obs_prune(steps, cross_entropy, batches(10), 0.75, 10, recomputations=2)
    assert (weights(steps) == 0).sum() == 56
    assert (weights(steps)[first] == 0).all()


def test_as_released_the_last_gradient_is_zero():
    ours, released = network(), network()
    obs_prune(released, cross_entropy, batches(), 0.6, 10, as_released=True)
    params = list(prunable(ours).values())
    G = torch.cat([batch_gradients(ours, cross_entropy, batches(9), params), torch.zeros(1, 75, dtype=torch.float64)])
    expected, _ = obs_step(weights(ours), StaticIHVP(G), 45)
    torch.testing.assert_close(weights(released), expected)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"sparsity": 1.0}, "sparsity"),
        ({"sparsity": -0.1}, "sparsity"),
        ({"n_grads": 0}, "n_grads"),
        ({"recomputations": 0}, "recomputations"),
        ({"loader": []}, "no .* batches"),
        ({"loader": iter(batches(3))}, "no .* batches"),
        ({"model": nn.Flatten()}, "nothing to prune"),
    ],
)
def test_pruning_names_what_is_wrong(options, named):
    defaults = {"model": network(), "loss_fn": cross_entropy, "loader": batches(2), "sparsity": 0.5, "n_grads": 4}
    with pytest.raises(ValueError, match=named):
        obs_prune(**defaults | options)


def test_a_model_that_is_sparser_already_is_refused():
    model = network()
    obs_prune(model, cross_entropy, batches(), 0.6, 10)
    with pytest.raises(ValueError, match=r"sparsity must lie between the model's own, 0\.6"):
        obs_prune(model, cross_entropy, batches(), 0.5, 10)
