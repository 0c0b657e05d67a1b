"""AuON and Muon against their printed formulas, dense SVDs, the algebra of cosh, and torch's SGD and Muon."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from secondlook.optimizers import AuON, Muon
from secondlook.optimizers.auon import Together, cosh_rms, newton_schulz5
from secondlook.optimizers.auon.setting import RULES, counted, direction, sgd
from secondlook.optimizers.hidden import Recipe, digits, hidden, optimizer

SHAPES = [(6, 9), (9, 6), (7, 7), (5,), (4, 2, 3, 3)]


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def taken(make, steps=20, shapes=SHAPES):
    """Weights after some steps on gradients that are handed in."""
    params = [normal(*shape, seed=i).requires_grad_() for i, shape in enumerate(shapes)]
    opt = make(params)
    for step in range(steps):
        for i, p in enumerate(params):
            p.grad = normal(*p.shape, seed=100 * step + i)
        opt.step()
    return [p.detach() for p in params]


def farthest(a, b):
    return max((p - q).abs().max().item() for p, q in zip(a, b, strict=True))


# Oracle 1: the formulas, written out in NumPy.


def orthogonal(u, steps):
    x = u.reshape(len(u), -1)
    x = x.T if x.shape[0] > x.shape[1] else x
    x = x / (np.linalg.norm(x) + 1e-7)
    for _ in range(steps):
        a = x @ x.T
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return (x.T if u.shape[0] > u[0].size else x).reshape(u.shape)


def printed(rule, w, grads, *, lr, mu, decay, gamma=1.5, ns_steps=5):
    m = np.zeros_like(w)
    for g in grads:
        w = w * (1 - lr * decay)
        m = mu * m + (1 - mu) * g
        u = mu * m + (1 - mu) * g
        if rule in ("hybrid", "muon") and w.ndim > 1:
            u = orthogonal(u, ns_steps)
        if rule != "muon":
            unit = u / (np.linalg.norm(u) + 1e-7)
            u = (unit if rule == "printed" else u) / (np.sqrt(np.mean(np.cosh(gamma * unit) ** 2)) + 1e-8)
        if rule in ("printed", "muon") and w.ndim > 1:
            u = u * math.sqrt(max(1, w.shape[0] / w[0].size))
        w = w - lr * u
    return w


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    ("rule", "make", "options"),
    [
        ("released", AuON, {}),
        ("released", AuON, {"gamma": 4.0}),
        ("printed", lambda p, **o: AuON(p, normalise=True, aspect=True, **o), {"gamma": 1.0}),
        ("hybrid", lambda p, **o: AuON(p, hybrid=True, **o), {"gamma": 4.0, "ns_steps": 1}),
        ("hybrid", lambda p, **o: AuON(p, hybrid=True, **o), {}),
        ("muon", Muon, {}),
    ],
)
def test_matches_the_formula(rule, make, options, shape):
    w = normal(*shape)
    grads = [normal(*shape, seed=100 * step).numpy() for step in range(20)]
    expected = printed(rule, w.numpy(), grads, lr=0.1, mu=0.9, decay=0.05, **options)
    found = taken(lambda p: make(p, lr=0.1, momentum=0.9, weight_decay=0.05, **options), shapes=[shape])
    np.testing.assert_allclose(found[0].numpy(), expected, rtol=0, atol=1e-13)


# Oracle 2: the algebra of the divisor.


@pytest.mark.parametrize("shape", [(10, 10), (64, 64), (128, 512)])
def test_divisor_is_one_and_next_to_nothing(shape):
    """To leading order r - 1 is gamma^2 / 2N: 1.1e-2, 2.7e-4, 1.7e-5."""
    u = normal(*shape)
    scaled = 1.5 * u / u.norm()
    r = cosh_rms(scaled).item()
    assert r == pytest.approx((1 + scaled.sinh().square().mean().item()) ** 0.5, abs=1e-14)
    assert r - 1 == pytest.approx(1.5**2 / (2 * u.numel()), rel=0.03)
    assert (u.norm() / direction("auon", u).norm()).item() == pytest.approx(r, abs=1e-7)  # eps is 1e-8


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 40), st.floats(0.01, 8), st.integers(0, 2**31), st.booleans())
def test_divisor_keeps_to_its_limits(entries, gamma, seed, spiked):
    u = normal(entries, seed=seed)
    u[0] *= 1e6 if spiked else 1  # one entry alone reaches the upper limit
    r = cosh_rms(gamma * u / u.norm()).item()
    limit = math.sqrt(1 + math.sinh(gamma) ** 2 / entries)
    assert 1 < r <= limit * (1 + 1e-12)
    if spiked:
        assert r == pytest.approx(limit, rel=1e-4)


@pytest.mark.parametrize("rule", ["auon", "auon-printed"])
def test_update_has_the_spectrum_and_direction_of_the_momentum(rule):
    u = normal(40, 12) @ torch.diag(torch.logspace(0, -5, 12, dtype=torch.float64))
    found = direction(rule, u)
    before, after = torch.linalg.svdvals(u), torch.linalg.svdvals(found)
    torch.testing.assert_close(after / after[0], before / before[0], rtol=0, atol=1e-14)
    assert torch.nn.functional.cosine_similarity(u.flatten(), found.flatten(), 0) > 1 - 1e-14


def test_printed_form_is_bounded_and_released_form_follows_the_gradient():
    u = 1e4 * normal(30, 30)
    assert torch.linalg.matrix_norm(direction("auon-printed", u)) < 1
    torch.testing.assert_close(direction("auon", 7 * u), 7 * direction("auon", u))


# Oracle 3: what is left without the divisor.


def test_with_gamma_zero_it_is_torchs_nesterov_momentum():
    found = taken(lambda p: AuON(p, lr=0.3, momentum=0.9, gamma=0.0))
    assert farthest(found, taken(lambda p: sgd(p, 0.3, 0.9))) < 1e-7  # 20 steps of eps = 1e-8


def test_one_step_is_that_of_sgd_with_the_rate_over_the_divisor():
    u = normal(8, 8)
    r = cosh_rms(1.5 * u / u.norm()).item()
    torch.testing.assert_close(direction("auon", u), u / r, rtol=1e-7, atol=0)


def test_with_gamma_zero_the_hybrid_is_muon():
    options = {"lr": 0.1, "momentum": 0.9, "ns_steps": 3}
    found = taken(lambda p: AuON(p, gamma=0.0, hybrid=True, aspect=True, **options))
    assert farthest(found, taken(lambda p: Muon(p, **options))) < 1e-7


# Oracle 4: Newton-Schulz.


@pytest.mark.parametrize("shape", [(12, 30), (30, 12), (20, 20), (3, 8, 5)])
def test_newton_schulz_maps_singular_values_and_keeps_vectors(shape):
    """By a dense SVD: each step applies its polynomial to the singular values and nothing else."""
    G = normal(*shape)
    U, s, Vh = torch.linalg.svd(G, full_matrices=False)
    s = s / torch.linalg.matrix_norm(G)[..., None]
    for _ in range(5):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    torch.testing.assert_close(newton_schulz5(G), U @ torch.diag_embed(s) @ Vh, rtol=0, atol=1e-6)  # eps is 1e-7


def test_five_steps_reach_the_band_from_two_thousandths_on():
    s = torch.logspace(math.log10(0.002), math.log10(0.9), 40, dtype=torch.float64)
    s[-1] = (1 - s[:-1].square().sum().clamp_max(0.99)).sqrt()
    s = s / s.norm()
    out = torch.linalg.svdvals(newton_schulz5(torch.diag(s[s > 0.002])))
    assert out.min() > 0.68
    assert out.max() < 1.21
    assert newton_schulz5(torch.diag(torch.tensor([1.0, 1e-5]).double()))[1, 1] < 0.1  # too small for five steps


@pytest.mark.parametrize("adjust", ["original", "match_rms_adamw"])
def test_muon_agrees_with_torchs_to_bfloat16(adjust):
    options = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1, "adjust_lr_fn": adjust}
    ours, peer = (taken(lambda p, make=make: make(p, **options), 5, SHAPES[:3]) for make in (Muon, torch.optim.Muon))
    starts = [normal(*shape, seed=i) for i, shape in enumerate(SHAPES[:3])]
    for a, b, start in zip(ours, peer, starts, strict=True):
        assert (a - b).norm() < 0.03 * (a - start).norm()


def test_equal_shapes_in_a_batch_step_as_each_alone():
    apart = [taken(lambda p: Muon(p, 0.1), shapes=[shape])[0] for shape in [(6, 9)]]
    both = taken(lambda p: Muon(p, 0.1), shapes=[(6, 9), (6, 9)])
    torch.testing.assert_close(both[0], apart[0], rtol=0, atol=1e-13)
    assert farthest(both[:1], both[1:]) > 0.1


# The optimizers' own edges.


def test_zero_momentum_moves_nothing_but_decay_does():
    w = torch.ones(3, 4, requires_grad=True)
    w.grad = torch.zeros_like(w)
    for opt in (AuON([w], 0.5, normalise=True), AuON([w], 0.5, hybrid=True), Muon([w], 0.5)):
        opt.step()
    assert torch.equal(w.detach(), torch.ones(3, 4))
    AuON([w], 0.5, weight_decay=0.2).step()
    torch.testing.assert_close(w.detach(), torch.full((3, 4), 0.9))


def test_the_gradient_is_left_as_it_was():
    """The released code changes it in place."""
    for make in (AuON, Muon):
        w = torch.ones(3, 4, requires_grad=True)
        w.grad = torch.ones_like(w)
        make([w], 0.1).step()
        assert torch.equal(w.grad, torch.ones(3, 4))


def test_the_two_forms_exclude_each_other():
    with pytest.raises(ValueError, match="set one of them"):
        AuON([torch.ones(2, requires_grad=True)], normalise=True, hybrid=True)


def test_sparse_gradients_are_refused():
    table = nn.Embedding(4, 2, sparse=True)
    table(torch.tensor([1])).sum().backward()
    with pytest.raises(RuntimeError, match="sparse=False"):
        AuON(table.parameters()).step()


# The experiment's own instruments.


def test_together_steps_every_part_and_resumes():
    net = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    opt = optimizer(RULES["muon"], net, rest_lr=0.01, lr=0.1)
    assert [len(g["params"]) for g in opt.param_groups] == [1, 3]
    calls = []

    def closure():
        calls.append(1)
        opt.zero_grad()
        loss = net(torch.ones(2, 3)).square().sum()
        loss.backward()
        return loss

    before = [p.detach().clone() for p in net.parameters()]
    assert opt.step(closure).item() > 0
    assert len(calls) == 1
    assert not any(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))
    assert set(opt.state) == set(net.parameters())
    saved, twin = opt.state_dict(), optimizer(RULES["muon"], net, rest_lr=0.01, lr=0.1)
    twin.load_state_dict(saved)
    assert all(torch.equal(twin.state[w]["momentum_buffer"], opt.state[w]["momentum_buffer"]) for w in hidden(net))
    with pytest.raises(ValueError, match="belongs to two"):
        Together(Muon(net.parameters()), AuON(net.parameters()))


def test_operations_are_counted():
    n = 64
    cubes = counted("muon", n) - 4 * counted("muon", n // 2)  # what is quadratic falls out
    assert cubes == pytest.approx(5 * 3 * 2 * (n**3 - n**3 / 2), rel=1e-5)
    assert counted("auon", n) == pytest.approx(12 * n**2, rel=1e-2)


def test_a_copy_trains_from_another_start():
    recipe = Recipe(digits([64, 8, 8, 10], 32, "cpu"), RULES, 4, 2, 3e-3, "cpu")
    ends = [recipe.train(arm, {"lr": 1.0}, 0).last("val_loss") for arm in ("sgd", "sgd", "sgd-copy", "muon")]
    assert ends[0] == ends[1]
    assert len(set(ends)) == 3


@pytest.mark.parametrize("arm", ["sgd", "sgd-copy", "auon-printed", "hybrid", "muon", "adamw"])
def test_seeds_side_by_side_are_those_of_each_alone(arm):
    recipe = Recipe(digits([64, 16, 16, 10], 32, "cpu"), RULES, 12, 3, 3e-3, "cpu")
    found = recipe.train_seeds(arm, {"lr": 0.1}, range(3))
    for seed, history in enumerate(found):
        alone = recipe.train(arm, {"lr": 0.1}, seed)
        for name in ("step", "train_loss", "val_loss", "test_loss"):
            assert history.column(name) == alone.column(name)
    assert found[0].rows != found[1].rows


def test_one_that_diverges_leaves_the_others_alone():
    recipe = Recipe(digits([64, 8, 8, 10], 32, "cpu"), RULES, 4, 2, 3e-3, "cpu")
    assert all(history.diverged for history in recipe.train_seeds("sgd", {"lr": math.inf}, range(2)))
