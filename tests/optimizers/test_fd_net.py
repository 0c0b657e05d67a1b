"""The trust region against dense algebra and SciPy; the network against explicit schemes and least squares."""

import itertools
import math

import numpy as np
import pytest
import scipy.optimize
import torch
from torch import nn

from draws import normal, seeded
from secondlook.optimizers import FDNet, heat_solution, trust_region_cg
from secondlook.optimizers.fd_net import experiment, steihaug
from secondlook.optimizers.fd_net.heat import frames, pairs
from secondlook.optimizers.fd_net.race import mismatch


def spd(n, seed=0):
    a = normal(n, n, seed=seed)
    return a @ a.T / n + 0.1 * torch.eye(n, dtype=torch.float64)


def minimise(net, x, y, **options):
    return trust_region_cg(mismatch(net, x, y), list(net.parameters()), **options)


# The subproblem.


def test_a_large_region_gives_newton_s_step():
    h, g = spd(8), normal(8, seed=1)
    step = steihaug(lambda v: h @ v, g, 1e6, 1e-13)
    newton = -torch.linalg.solve(h, g)
    torch.testing.assert_close(step.p, newton, rtol=0, atol=1e-8)
    assert step.reason == "residual"
    assert step.predicted == pytest.approx(float(-0.5 * g @ newton), abs=1e-10)


@pytest.mark.parametrize("radius", [1e-3, 0.1, 1.0])
def test_a_small_region_gives_a_step_to_its_boundary(radius):
    h, g = spd(8), normal(8, seed=1)
    step = steihaug(lambda v: h @ v, g, radius, 1e-13)
    assert step.reason == "boundary"
    assert float(step.p.norm()) == pytest.approx(radius, rel=1e-12)
    assert step.predicted == pytest.approx(float(-(g @ step.p + 0.5 * step.p @ h @ step.p)), rel=1e-10)
    cauchy = -min(float(g @ g / (g @ h @ g)), radius / float(g.norm())) * g
    assert step.predicted >= float(-(g @ cauchy + 0.5 * cauchy @ h @ cauchy)) - 1e-14


def test_negative_curvature_is_followed_to_the_boundary():
    h = torch.diag(torch.tensor([2.0, 1.0, -3.0], dtype=torch.float64))
    g = torch.tensor([0.1, 0.1, 1.0], dtype=torch.float64)
    step = steihaug(lambda v: h @ v, g, 0.7, 1e-12)
    assert step.reason == "negative"
    assert float(step.p.norm()) == pytest.approx(0.7, rel=1e-12)
    assert step.predicted == pytest.approx(float(-(g @ step.p + 0.5 * step.p @ h @ step.p)), rel=1e-10)


def test_the_number_of_products_is_limited():
    h, g = spd(20), normal(20, seed=1)
    step = steihaug(lambda v: h @ v, g, 1e6, 1e-14, limit=3)
    assert (step.products, step.reason) == (3, "limit")


# The trust region.


def rosenbrock(ps):
    x = torch.cat([p.flatten() for p in ps])
    return (100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum()


def test_it_does_on_rosenbrock_what_scipy_does():
    x = [torch.tensor([-1.2, 1.0], dtype=torch.float64)]
    trace = trust_region_cg(rosenbrock, x, max_iter=200)
    peer = scipy.optimize.minimize(
        scipy.optimize.rosen,
        [-1.2, 1.0],
        method="trust-ncg",
        jac=scipy.optimize.rosen_der,
        hessp=scipy.optimize.rosen_hess_prod,
        options={"gtol": 1e-10, "eta": 1e-4, "max_trust_radius": 100.0},
    )
    assert trace.converged
    np.testing.assert_allclose(x[0], peer.x, rtol=0, atol=1e-8)
    accepted = sum(b < a for a, b in itertools.pairwise(trace.loss))
    assert abs(accepted - (peer.njev - 1)) <= 2  # SciPy evaluates a gradient at accepted points only
    assert all(b <= a for a, b in itertools.pairwise(trace.loss))


def test_a_quadratic_takes_one_newton_step_and_is_counted():
    h, b = spd(5), normal(5, seed=2)
    x, products = [torch.zeros(5, dtype=torch.float64)], []

    def fun(ps):
        products.append(1)
        return 0.5 * ps[0] @ h @ ps[0] - b @ ps[0]

    trace = trust_region_cg(fun, x, 100.0, cg_tol=lambda _: 1e-13)
    torch.testing.assert_close(x[0], torch.linalg.solve(h, b), rtol=0, atol=1e-9)
    assert trace.converged
    assert trace.evals[1] in (1 + 2 * 5 + 1, 1 + 2 * 6 + 1)  # gradient, five products (or one more, by rounding), next
    assert len(products) == len(trace.loss)  # the loss is evaluated once an iteration


def test_parameters_keep_their_shapes_and_only_they_change():
    layer = nn.Linear(3, 2).double()
    x, y = normal(30, 3), normal(30, 2, seed=1)
    shapes, weights = [p.shape for p in layer.parameters()], list(layer.parameters())
    trace = trust_region_cg(lambda ps: (x @ ps[0].T + ps[1] - y).square().mean(), weights)
    assert [p.shape for p in layer.parameters()] == shapes
    design = torch.cat([x, torch.ones(30, 1, dtype=torch.float64)], 1)
    exact = torch.linalg.lstsq(design, y).solution
    torch.testing.assert_close(torch.cat([layer.weight, layer.bias[:, None]], 1), exact.T, rtol=0, atol=1e-7)
    assert trace.converged
    assert all(p.requires_grad and p.grad is None for p in layer.parameters())


def test_it_leaves_a_saddle_and_stays_where_nothing_falls():
    x = [torch.tensor([1e-3, 0.0], dtype=torch.float64)]
    trace = trust_region_cg(lambda ps: (ps[0][0] ** 2 - 1) ** 2 + ps[0][1] ** 2, x)
    assert trace.loss[-1] < 1e-12
    assert "negative" in trace.ended
    steep = [torch.zeros(1, dtype=torch.float64)]  # a kink: no model is right, the region shrinks to nothing
    trace = trust_region_cg(lambda ps: ps[0].abs().sum() + (ps[0] * 0.3).sum(), steep, max_iter=200)
    assert trace.loss[-1] <= 0.0


def test_it_stops_at_the_target_and_at_the_budget():
    start = torch.tensor([-1.2, 1.0], dtype=torch.float64)
    trace = trust_region_cg(rosenbrock, [start.clone()], target=1.0)
    assert trace.loss[-1] <= 1.0 < trace.loss[-2]
    trace = trust_region_cg(rosenbrock, [start.clone()], max_evals=20)
    assert trace.evals[-2] < 20 <= trace.evals[-1]


@pytest.mark.parametrize(
    ("options", "message"), [({"delta0": 0.0}, "delta0"), ({"delta0": 1e3}, "delta0"), ({"eta": 0.3}, "eta")]
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        trust_region_cg(rosenbrock, [torch.zeros(2, dtype=torch.float64)], **options)


def test_a_start_without_a_loss_is_refused():
    with pytest.raises(ValueError, match="start"):
        trust_region_cg(lambda ps: ps[0].log().sum(), [-torch.ones(2, dtype=torch.float64)])


# The network.


@pytest.mark.parametrize(("r", "substeps"), [(0.3, 1), (0.45, 3)])
def test_it_finds_the_explicit_scheme_that_made_the_data(r, substeps):
    scheme = experiment.euler(substeps, r * substeps)
    x = normal(6, 33)
    x[:, [0, -1]] = 0
    net = FDNet(substeps=substeps)
    trace = minimise(net, x, scheme(x).detach())
    expected = torch.tensor([r, -2 * r, r], dtype=torch.float64)
    torch.testing.assert_close(net.filters.flatten(), expected, rtol=0, atol=1e-6)
    assert trace.loss[-1] < 1e-14


def test_one_substep_is_linear_least_squares_for_every_optimizer():
    x, y = pairs(frames(5, 2, 0.4, 17, 4, 1, seeded()))
    stencils = torch.stack([x[:, :-2], x[:, 1:-1], x[:, 2:]], -1).reshape(-1, 3)
    exact = torch.linalg.lstsq(stencils, (y - x)[:, 1:-1].reshape(-1)).solution
    found = {}
    found["trcg"] = FDNet()
    minimise(found["trcg"], x, y, gtol=1e-14)
    found["lbfgs"] = FDNet()
    options = {"max_iter": 300, "tolerance_grad": 1e-16, "tolerance_change": 1e-18, "line_search_fn": "strong_wolfe"}
    optimizer = torch.optim.LBFGS(found["lbfgs"].parameters(), **options)
    loss = mismatch(found["lbfgs"], x, y)

    def closure():
        optimizer.zero_grad()
        value = 1e3 * loss(list(found["lbfgs"].parameters()))
        value.backward()
        return value

    optimizer.step(closure)
    for name, net in found.items():
        torch.testing.assert_close(net.filters.flatten(), exact, rtol=0, atol=1e-6, msg=name)


def test_the_learned_symbol_is_that_of_the_heat_equation_at_low_frequency():
    """1 + w0 + (w- + w+) cos(theta) against exp(-r theta^2): both are 1 - r theta^2 + O(theta^4)."""
    ratio, substeps = 2.0, 8
    net = experiment.trained(substeps, frames(10, 3, ratio, 65, 4, 1, seeded()))
    left, middle, right = net.filters.detach().flatten().tolist()
    for mode in (1, 2, 3, 4):
        theta = math.pi * mode / 64
        symbol = 1 + middle + (left + right) * math.cos(theta)
        assert symbol == pytest.approx(math.exp(-ratio / substeps * theta**2), abs=2e-5)
    assert left == pytest.approx(right, abs=1e-4)


@pytest.mark.parametrize("dim", [1, 2])
@pytest.mark.parametrize("bc", ["dirichlet", "periodic"])
@pytest.mark.parametrize("width", [3, 5])
def test_a_block_is_the_stencil_written_out(dim, bc, width):
    net = FDNet(width, 1, dim, bc)
    net.filters.data.normal_(generator=seeded(1))
    n, reach = 9, width // 2
    u = normal(2, *[n] * dim)
    w = net.filters.detach()[0, 0]

    def value(place):
        """The field at any place; beyond fixed ends 2 u(end) - u(mirrored)."""
        if bc == "periodic":
            return u[(slice(None), *(i % n for i in place))]
        outside = [k for k, i in enumerate(place) if not 0 <= i < n]
        if not outside:
            return u[(slice(None), *place)]
        k = outside[-1]
        end = 0 if place[k] < 0 else n - 1
        edge, mirrored = ((*place[:k], i, *place[k + 1 :]) for i in (end, 2 * end - place[k]))
        return 2 * value(edge) - value(mirrored)

    expected = u.clone()
    inner = range(n) if bc == "periodic" else range(1, n - 1)
    for place in itertools.product(inner, repeat=dim):
        for offset in itertools.product(range(width), repeat=dim):
            shifted = tuple(p + o - reach for p, o in zip(place, offset, strict=True))
            expected[(slice(None), *place)] += w[offset] * value(shifted)
    torch.testing.assert_close(net.block(u).detach(), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("bc", ["dirichlet", "periodic"])
@pytest.mark.parametrize("count", [1, 40])  # few fields go block by block, many through the matrix's power
def test_a_frame_is_its_sub_steps_in_turn(bc, count):
    net = FDNet(3, 5, bc=bc)
    net.filters.data = torch.tensor([[[0.3, -0.5, 0.1]]], dtype=torch.float64)
    u = expected = normal(count, 33)
    for _ in range(5):
        expected = net.block(expected)
    torch.testing.assert_close(net(u), expected, rtol=0, atol=1e-13)


def test_filters_with_a_nonlinearity_are_summed_and_start_from_the_identity():
    net = FDNet(3, 2, n_filters=2, nonlinearity=torch.tanh, generator=seeded())
    u = normal(3, 9)
    assert torch.equal(net(u), u)
    net.weights.data = torch.tensor([0.5, -2.0], dtype=torch.float64)
    w = net.filters.detach()[:, 0]
    stencils = torch.stack([u[:, :-2], u[:, 1:-1], u[:, 2:]], -1)
    expected = u.clone()
    expected[:, 1:-1] += torch.tanh(stencils @ w.T) @ net.weights.detach()
    torch.testing.assert_close(net.block(u).detach(), expected, rtol=0, atol=1e-12)


def test_spectral_radius_of_the_explicit_scheme():
    for r in (0.25, 0.5, 0.8):
        theta = torch.arange(1, 16) * math.pi / 16
        expected = float((1 - 2 * r * (1 - theta.cos())).abs().max())
        assert experiment.euler(1, r).spectral_radius(17) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 4}, "width"),
        ({"substeps": 0}, "substeps"),
        ({"dim": 3}, "dim"),
        ({"bc": "neumann"}, "bc"),
        ({"n_filters": 2}, "nonlinearity"),
    ],
)
def test_bad_networks_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        FDNet(**options)


@pytest.mark.parametrize("dim", [1, 2])
def test_the_exact_solution_solves_the_equation(dim):
    """Central differences in space against a difference in time, at second order."""
    k, n, h = 0.7, 129, 1e-6
    x = torch.linspace(0, 1, n, dtype=torch.float64)
    u = heat_solution(x, [0.01 - h, 0.01, 0.01 + h], normal(2, *[3] * dim), k)
    inner = (slice(1, -1),) * dim
    space = (
        sum(u[:, 1].roll(1, axis) - 2 * u[:, 1] + u[:, 1].roll(-1, axis) for axis in range(1, dim + 1)) * (n - 1) ** 2
    )
    time = (u[:, 2] - u[:, 0]) / (2 * h)
    error = (time - k * space)[(slice(None), *inner)].abs().max() / time.abs().max()
    assert error < 2e-3
    assert u[..., 0].abs().max() < 1e-12
