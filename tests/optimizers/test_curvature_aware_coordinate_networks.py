"""L-BFGS against conjugate gradients, PyTorch's and SciPy's; coordinate networks against their definitions."""

import math

import numpy as np
import pytest
import scipy.optimize
import torch
import torch.nn.functional as F
from torch.func import grad_and_value

from draws import seeded
from secondlook.curvature.flat import numel, pack
from secondlook.optimizers import CoordNet, fit_signal
from secondlook.optimizers.curvature_aware_coordinate_networks import Trace, lbfgs, psnr, strong_wolfe, two_loop
from secondlook.optimizers.curvature_aware_coordinate_networks.experiment import signal
from secondlook.optimizers.curvature_aware_coordinate_networks.fitting import _Objective


def with_gradient(f):
    def function(w):
        gradient, value = grad_and_value(f)(w)
        return value, gradient

    return function


def rosenbrock(w):
    return (100 * (w[1:] - w[:-1] ** 2) ** 2 + (1 - w[:-1]) ** 2).sum()


def wave(samples=40):
    t = torch.linspace(-1, 1, samples, dtype=torch.float64)[:, None]
    return t, 0.5 + 0.4 * torch.sin(3 * t)


def tiny(activation="tanh", hidden=16, seed=0):
    return CoordNet(1, 1, hidden, 1, activation, generator=seeded(seed)).double()


# The optimizer.


def test_with_exact_line_search_on_a_quadratic_its_iterates_are_those_of_conjugate_gradients():
    n = 30
    basis = torch.linalg.qr(torch.randn(n, n, generator=seeded(), dtype=torch.float64))[0]
    A = basis * torch.logspace(0, 1, n, dtype=torch.float64) @ basis.mT
    b = torch.randn(n, generator=seeded(1), dtype=torch.float64)
    w, pairs, gradient = torch.zeros(n).double(), [], -b
    x, r, p = torch.zeros(n).double(), b.clone(), b.clone()
    for _ in range(n):
        direction = two_loop(gradient, pairs)
        step = -(gradient @ direction) / (direction @ A @ direction)
        pairs.append((step * direction, step * A @ direction))
        w, gradient = w + pairs[-1][0], gradient + pairs[-1][1]
        alpha = (r @ r) / (p @ A @ p)
        x, new = x + alpha * p, r - alpha * A @ p
        p, r = new + (new @ new) / (r @ r) * p, new
        assert float((w - x).norm()) < 1e-6 * float(x.norm())
    assert float((A @ w - b).norm()) < 1e-8 * float(b.norm())


def test_the_two_loops_equal_bfgs_with_matrices_and_the_direction_of_pytorch():
    n = 12
    f = with_gradient(rosenbrock)
    w = torch.randn(n, generator=seeded(), dtype=torch.float64).requires_grad_()
    peer = torch.optim.LBFGS([w], max_iter=7, history_size=5, line_search_fn="strong_wolfe")

    def closure():
        peer.zero_grad()
        loss = rosenbrock(w)
        loss.backward()
        return loss

    peer.step(closure)
    state = peer.state[w]
    pairs = list(zip(state["old_stps"], state["old_dirs"], strict=True))
    assert len(pairs) == 5
    torch.testing.assert_close(two_loop(state["prev_flat_grad"], pairs), state["d"], rtol=1e-6, atol=1e-12)

    s, y = pairs[-1]
    B = torch.eye(n).double() * (s @ y) / (y @ y)
    for s, y in pairs:
        left = torch.eye(n).double() - torch.outer(s, y) / (s @ y)
        B = left @ B @ left.mT + torch.outer(s, s) / (s @ y)
    g = f(w.detach())[1]
    torch.testing.assert_close(two_loop(g, pairs), -B @ g, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("first", [1e-4, 0.3, 1.0, 50.0])
def test_the_line_search_ends_at_a_strong_wolfe_point(first):
    f, slope = (lambda t: (t - 2) ** 4 + 0.3 * math.sin(9 * t)), (lambda t: 4 * (t - 2) ** 3 + 2.7 * math.cos(9 * t))
    asked = []

    def phi(t):
        asked.append(t)
        return f(t), slope(t)

    t = strong_wolfe(phi, f(0), slope(0), first)
    assert t == asked[-1]
    assert f(t) <= f(0) + 1e-4 * t * slope(0)
    assert abs(slope(t)) <= -0.9 * slope(0)


def test_the_line_search_survives_infinities_and_gives_up_in_ascent():
    cliff = strong_wolfe(lambda t: (math.inf, math.nan) if t > 1 else ((t - 0.7) ** 2, 2 * t - 1.4), 0.49, -1.4, 64)
    assert 0 < cliff <= 1
    assert strong_wolfe(lambda t: (t, 1.0), 0.0, -1.0, 1.0) == 0


def test_it_ends_where_scipy_s_does():
    objective = _Objective(tiny(), *wave(), math.inf, math.inf, None)
    start = objective.best.clone()
    ours = objective(lbfgs(objective, start, history=10, evaluations=150))[0]
    peer = scipy.optimize.fmin_l_bfgs_b(
        lambda w: tuple(part.numpy() for part in objective(torch.tensor(w))), start.numpy(), m=10, maxfun=150, factr=0
    )
    assert float(ours) < 1e-3 * objective(start)[0]
    assert psnr(float(ours)) == pytest.approx(psnr(float(peer[1])), rel=0.05)


def test_it_converges_superlinearly_on_a_network_small_enough():
    x, y = wave()
    noisy = y + 0.05 * torch.randn(y.shape, generator=seeded(3), dtype=y.dtype)
    objective = _Objective(tiny(hidden=2), x, noisy, math.inf, math.inf, None)
    norms = []

    def watched(w):
        value, gradient = objective(w)
        norms.append(float((gradient + 1e-3 * w).norm()))
        return value + 0.5e-3 * w @ w, gradient + 1e-3 * w

    lbfgs(watched, objective.best.clone(), history=100, evaluations=400, gtol=1e-12)
    best = np.minimum.accumulate(norms)
    assert best[-1] < 1e-10
    assert min(best[1:] / best[:-1]) < 0.1
    assert len(norms) < 200


# Networks and fits.


def test_networks_are_what_they_say():
    x = torch.rand(7, 2, generator=seeded()) * 2 - 1
    acts = {
        "sine": lambda z: torch.sin(30 * z),
        "gauss": lambda z: torch.exp(-0.5 * (z / 0.1) ** 2),
        "tanh": torch.tanh,
    }
    for name, act in acts.items():
        net = CoordNet(2, 3, 8, 2, name, generator=seeded(1))
        (A, B, C), (a, b, c) = net.weights, net.biases
        torch.testing.assert_close(net(x), F.linear(act(F.linear(act(F.linear(x, A, a)), B, b)), C, c))
    net = CoordNet(2, 1, 8, 1, "relu_pe", frequencies=4, generator=seeded(1))
    assert net.weights[0].shape == (8, 16)
    torch.testing.assert_close(net(x), net(x + 2), rtol=0, atol=1e-4)  # the encoding has period 2
    assert not torch.allclose(net(x), net(x + 1))


def test_sines_start_with_pre_activations_of_unit_variance():
    net = CoordNet(2, 1, 256, 3, "sine", generator=seeded())
    assert float(net.weights[0].detach().abs().max()) <= 0.5
    assert float(net.weights[1].detach().abs().max()) == pytest.approx(math.sqrt(6 / 256) / 30, rel=1e-3)
    x = torch.rand(500, 2, generator=seeded(1)) * 2 - 1
    h = torch.sin(30 * F.linear(x, net.weights[0], net.biases[0]))
    assert float((30 * h @ net.weights[1].mT).detach().std()) == pytest.approx(1, abs=0.1)


def test_psnr_and_the_work_of_each_way():
    assert psnr(0.01) == pytest.approx(20)
    t, y = wave()
    for options, most in (({}, 30), ({"optimizer": "adam"}, 30), ({"optimizer": "adam", "batches": 4}, 30)):
        net, seen = tiny(), []
        trace = fit_signal(
            net,
            t,
            y,
            budget_evals=30,
            lr=0.01,
            generator=seeded(5),
            callback=lambda *at, s=seen: s.append(at),
            **options,
        )
        assert trace.evals[-1] == pytest.approx(most)
        assert trace.psnr == sorted(trace.psnr)
        assert trace.psnr[-1] > trace.psnr[0]
        assert psnr(F.mse_loss(net(t), y).item()) == pytest.approx(trace.psnr[-1], rel=1e-6)
        assert seen == list(zip(trace.evals, trace.psnr, strict=True))
    assert fit_signal(tiny(), t, y, budget_evals=10**6, budget_seconds=0).evals == [1]


def test_gauss_newton_counts_its_matrix_and_fits_a_small_network_in_a_few_steps():
    t, y = wave()
    net = tiny(hidden=8)
    trace = fit_signal(net, t, y, "gn", budget_evals=150)
    assert trace.evals[1] - trace.evals[0] == pytest.approx(1 + min(len(y), numel(net.parameters())) / 3)
    assert len(trace.evals) < 20
    assert trace.psnr[-1] > 10 + fit_signal(tiny(hidden=8), t, y, "adam", lr=0.03, budget_evals=150).psnr[-1]


def test_traces_and_signals():
    trace = Trace([1, 2, 3], [0.1, 0.2, 0.3], [5.0, 9.0, 9.0])
    assert (trace.reached(9), trace.reached(10), trace.at(1), trace.at(2.5)) == (2, math.inf, 5.0, 9.0)
    assert trace.pace() == pytest.approx(0.1)
    for name, samples, shapes in (
        ("camera", 8, [(64, 2), (64, 1)]),
        ("astronaut", 8, [(64, 2), (64, 3)]),
        ("chirp", 50, [(50, 1)] * 2),
    ):
        x, y = signal(name, samples)
        assert [x.shape, y.shape] == shapes
        assert float(x.abs().max()) == 1
        assert 0 <= float(y.min()) < float(y.max()) <= 1


def test_fits_repeat_and_leave_the_global_stream_alone():
    t, y = wave()
    torch.manual_seed(1)
    before = torch.get_rng_state()
    runs = [fit_signal(tiny(), t, y, "adam", budget_evals=5, batches=3, generator=seeded(2)).psnr for _ in range(2)]
    assert runs[0] == runs[1]
    assert torch.equal(before, torch.get_rng_state())
    assert not torch.equal(pack(tiny(seed=0).parameters()), pack(tiny(seed=1).parameters()))


def test_bad_options_are_named():
    t, y = wave()
    for options, word in (
        ({"optimizer": "sgd"}, "optimizer"),
        ({"batches": 2}, "batches=1"),
        ({"budget_evals": 0}, "budget_evals"),
        ({"lr": 0.0}, "lr"),
        ({"history": 0}, "history"),
    ):
        with pytest.raises(ValueError, match=word):
            fit_signal(tiny(), t, y, **options)
    with pytest.raises(ValueError, match="one each"):
        fit_signal(tiny(), t, y[:-1])
    with pytest.raises(ValueError, match="activation"):
        CoordNet(1, 1, activation="relu")
