import math
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.linalg import sqrtm
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

from secondlook.problems.mixtures import GaussianMixture
from secondlook.problems.models.denoiser import denoiser
from secondlook.samplers import DDIM, EMS, DPMSolverPP, DPMSolverV3, RungeKutta, UniPC, compute_ems
from secondlook.samplers.benchmark import diffusers_sampler
from secondlook.samplers.dpm_solver_v3.experiment import speedup
from secondlook.samplers.dpm_solver_v3.frechet import frechet_distance
from secondlook.samplers.dpm_solver_v3.multistep import taylor_coefficients
from secondlook.samplers.dpm_solver_v3.schedule import EDMSchedule, VPSchedule

VP, EDM = VPSchedule(), EDMSchedule()
D = 3


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def model():
    """A correlated three-component mixture in three dimensions."""
    g = rng(1)
    roots = torch.randn(3, D, D, generator=g, dtype=torch.float64) * 0.4
    means = torch.randn(3, D, generator=g, dtype=torch.float64)
    covariances = roots @ roots.mT + 0.05 * torch.eye(D, dtype=torch.float64)
    return GaussianMixture(torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64), means, covariances)


def noise_of(model, schedule=VP):
    return lambda x, lam: model.eps(x, schedule.alpha(lam), schedule.sigma(lam))


@pytest.fixture(scope="module")
def eps(model):
    return noise_of(model)


@pytest.fixture(scope="module")
def x_T():
    return torch.randn(16, D, generator=rng(2), dtype=torch.float64)


@pytest.fixture(scope="module")
def ems(model, eps):
    return compute_ems(eps, VP, model.sample(256, rng(3)), n_grid=60, n_data=256, probes=None, generator=rng(4))


def scales(lam, schedule=VP):
    lam = torch.tensor(lam, dtype=torch.float64)
    return schedule.alpha(lam).item(), schedule.sigma(lam).item()


# ------------------------------------------------------------------------------------ earlier solvers, by hand


def by_hand(eps, x, steps, rule):
    """A multistep loop of its own: `rule(lams, datas, lam)` integrates e^(u - lam) m(u) over the step."""
    lams = np.linspace(VP.start, VP.end, steps + 1)
    past = []
    for n, (s, t) in enumerate(pairwise(lams)):
        (a_s, sigma_s), (a_t, sigma_t) = scales(s), scales(t)
        past.insert(0, (s, (x - sigma_s * eps(x, torch.tensor(s))) / a_s))
        order = min(n + 1, steps - n)
        x = sigma_t / sigma_s * x + a_t * rule(past[:order], t)
    return x


def first(past, t):
    return (1 - math.exp(past[0][0] - t)) * past[0][1]


def second_taylor(past, t):
    s, m0 = past[0]
    h = t - s
    if len(past) == 1:
        return first(past, t)
    slope = (m0 - past[1][1]) / (s - past[1][0])
    return (1 - math.exp(-h)) * m0 + (h - 1 + math.exp(-h)) * slope


def second_midpoint(past, t):
    s, m0 = past[0]
    if len(past) == 1:
        return first(past, t)
    r = (s - past[1][0]) / (t - s)
    return (1 - math.exp(s - t)) * ((1 + 1 / (2 * r)) * m0 - past[1][1] / (2 * r))


def interpolated(past, t):
    """Exact integral of e^(u - t) times the Lagrange polynomial through the remembered data predictions."""
    s = past[0][0]

    def weight(i):
        def integrand(u):
            others = [lam for j, (lam, _) in enumerate(past) if j != i]
            return math.exp(u - t) * math.prod((u - lam) / (past[i][0] - lam) for lam in others)

        return quad(integrand, s, t, epsabs=1e-13)[0]

    return sum(weight(i) * m for i, (_, m) in enumerate(past))


def capped(rule, order):
    return lambda past, t: rule(past[:order], t)


def test_degenerate_statistics_give_dpm_solver_plus_plus(eps, x_T):
    flat = EMS.degenerate(VP, (D,), 24_000)
    for order, rule in ((1, first), (2, second_taylor), (3, interpolated)):
        ours = DPMSolverV3(eps, VP, flat, order=order, corrector=False).sample(x_T, 12)
        torch.testing.assert_close(ours, by_hand(eps, x_T, 12, capped(rule, order)), atol=2e-6, rtol=0)


def test_degenerate_statistics_differ_from_the_midpoint_variant(eps, x_T):
    flat = EMS.degenerate(VP, (D,), 2400)
    ours = DPMSolverV3(eps, VP, flat, order=2, corrector=False).sample(x_T, 12)
    assert (ours - by_hand(eps, x_T, 12, capped(second_midpoint, 2))).abs().max() > 1e-3


def test_degenerate_statistics_give_the_noise_prediction_solver(eps, x_T):
    flat = EMS.degenerate(VP, (D,), 24_000, kind="noise")
    x = x_T
    for s, t in pairwise(np.linspace(VP.start, VP.end, 9)):
        (a_s, _), (a_t, sigma_t) = scales(s), scales(t)
        x = a_t / a_s * x - sigma_t * math.expm1(t - s) * eps(x, torch.tensor(s))
    ours = DPMSolverV3(eps, VP, flat, order=1, corrector=False).sample(x_T, 8)
    torch.testing.assert_close(ours, x, atol=2e-6, rtol=0)


def test_baselines_equal_their_formulas(eps, x_T):
    for sampler, rule in (
        (DDIM(eps, VP), capped(first, 1)),
        (DPMSolverPP(eps, VP, 1), capped(first, 1)),
        (DPMSolverPP(eps, VP, 2), capped(second_midpoint, 2)),
        (DPMSolverPP(eps, VP, 2, "taylor"), capped(second_taylor, 2)),
        (UniPC(eps, VP, 2, "bh2", corrector=False), capped(second_midpoint, 2)),
        (UniPC(eps, VP, 2, "v", corrector=False), capped(second_taylor, 2)),
    ):
        torch.testing.assert_close(sampler.sample(x_T, 9), by_hand(eps, x_T, 9, rule), atol=1e-10, rtol=0)
    # The full second-derivative term makes 3M the exact quadrature of the interpolating polynomial.
    full = DPMSolverPP(eps, VP, 3, "taylor").sample(x_T, 9)
    torch.testing.assert_close(full, by_hand(eps, x_T, 9, capped(interpolated, 3)), atol=1e-9, rtol=0)


def third_released(past, t):
    """3M as its authors released it, in their own symbols."""
    if len(past) < 3:
        return second_midpoint(past, t)
    (l0, m0), (l1, m1), (l2, m2) = past
    h = t - l0
    r0, r1 = (l0 - l1) / h, (l1 - l2) / h
    d10, d11 = (m0 - m1) / r0, (m1 - m2) / r1
    d1, d2 = d10 + r0 / (r0 + r1) * (d10 - d11), (d10 - d11) / (r0 + r1)
    phi1 = math.expm1(-h)
    phi2 = phi1 / h + 1
    return -phi1 * m0 + phi2 * d1 - (phi2 / h - 0.5) * d2


def test_third_order_released_variant(eps, x_T):
    ours = DPMSolverPP(eps, VP, 3).sample(x_T, 9)
    torch.testing.assert_close(ours, by_hand(eps, x_T, 9, capped(third_released, 3)), atol=1e-9, rtol=0)


@pytest.mark.parametrize("variant", ["bh1", "bh2", "v"])
def test_unipc_equals_its_linear_system(eps, x_T, variant):
    """UniPC as its paper states it: rho from R rho = b / B(h), one half for a single difference."""

    def integral(nodes, t):
        (s, m0), rest = nodes[0], nodes[1:]
        hh = -(t - s)
        big = math.expm1(hh) if variant == "bh2" else hh
        r = np.array([(lam - s) / (t - s) for lam, _ in rest])
        b, phi = [], math.expm1(hh) / hh - 1
        for i in range(1, len(rest) + 1):
            b.append(phi * math.factorial(i) / big)
            phi = phi / hh - 1 / math.factorial(i + 1)
        rho = np.linalg.solve(np.vander(r, increasing=True).T, b) if len(rest) > 1 or variant == "v" else [0.5]
        total = -math.expm1(hh) * m0
        for weight, gap, (_, m) in zip(rho, r, rest, strict=False):
            total = total - big * weight * (m - m0) / gap
        return total

    steps, x, past, new = 8, x_T, [], None
    lams = np.linspace(VP.start, VP.end, steps + 1)
    for n, (s, t) in enumerate(pairwise(lams)):
        (a_s, sigma_s), (a_t, sigma_t) = scales(s), scales(t)
        m = (x - sigma_s * eps(x, torch.tensor(s))) / a_s if not past else new
        past.insert(0, (s, m))
        order = min(3, n + 1, steps - n)
        base = sigma_t / sigma_s * x
        x = base + a_t * integral(past[:order], t)
        if n < steps - 1:
            new = (x - sigma_t * eps(x, torch.tensor(t))) / a_t
            x = base + a_t * integral([past[0], (t, new), *past[1:order]], t)
    torch.testing.assert_close(UniPC(eps, VP, 3, variant).sample(x_T, steps), x, atol=1e-9, rtol=0)


# ------------------------------------------------------------------------------------------ the solver itself


def literal_v3(eps, x, ems, steps, order, c_pseudo, p_pseudo):
    """The method with global cumulative integrals I, B, C and rewritten noise, as its equations print it."""
    lam = ems.lambdas.numpy()
    M, dl = len(lam) - 1, lam[1] - lam[0]
    l, s, b = ems.l, ems.s, ems.b
    cum = lambda c: torch.cat([torch.zeros_like(c[:1]), ((c[1:] + c[:-1]) / 2 * dl).cumsum(0)])  # noqa: E731
    L, S = cum(l), cum(s)
    B = cum((-S).exp() * b)
    I, C = cum((L + S).exp()), cum((L + S).exp() * B)
    grid = [round(M * (u - lam[0]) / (lam[-1] - lam[0])) for u in np.linspace(lam[0], lam[-1], steps + 1)]

    def derivatives(nodes, pseudo):
        base = nodes[0][0]
        g = [(S[base] - S[i]).exp() * f - S[base].exp() * (B[i] - B[base]) for i, f in nodes]
        if len(nodes) == 1:
            return g, []
        lams = [lam[i] for i, _ in nodes]
        if not pseudo:
            A = np.array([[(u - lams[0]) ** n / math.factorial(n) for n in range(1, len(nodes))] for u in lams[1:]])
            inverse = np.linalg.inv(A)
            return g, [sum(w * (gj - g[0]) for w, gj in zip(row, g[1:], strict=True)) for row in inverse]

        def divided(i, j):
            return g[i] if i == j else (divided(i + 1, j) - divided(i, j - 1)) / (lams[j] - lams[i])

        return g, [math.factorial(n) * divided(0, n) for n in range(1, len(nodes))]

    def step(x, nodes, t, pseudo):
        i = nodes[0][0]
        (a_s, _), (a_t, _) = scales(lam[i]), scales(lam[t])
        g, higher = derivatives(nodes, pseudo)
        out = a_t / a_s * (L[i] - L[t]).exp() * x - a_t * (-L[t] - S[i]).exp() * (I[t] - I[i]) * g[0]
        out = out - a_t * (-L[t]).exp() * (C[t] - C[i] - B[i] * (I[t] - I[i]))
        for n, gn in enumerate(higher, start=1):
            u = torch.tensor((lam - lam[i]) ** n / math.factorial(n))[:, None]
            c = cum((L + S - (L + S)[i]).exp() * u)
            out = out - a_t * (L[i] - L[t]).exp() * (c[t] - c[i]) * gn
        return out

    def nonlinear(x, i, e):
        a, sigma = scales(lam[i])
        return (sigma * e - l[i] * x) / a

    past = [(grid[0], nonlinear(x, grid[0], eps(x, torch.tensor(lam[grid[0]]))))]
    for n, t in enumerate(grid[1:], start=1):
        k = min(order, n, steps - n + 1)
        predicted = step(x, past[:k], t, p_pseudo)
        if n == steps:
            return predicted
        e = eps(predicted, torch.tensor(lam[t]))
        f = nonlinear(predicted, t, e)
        nodes = [past[0], (t, f), *past[1:k]]
        corrected = step(x, nodes if c_pseudo else nodes[:k], t, c_pseudo) if c_pseudo or k > 1 else predicted
        _, sigma = scales(lam[t])
        e = (sigma * e - l[t] * predicted + l[t] * corrected) / sigma
        past.insert(0, (t, nonlinear(corrected, t, e)))
        x = corrected
    return x


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize(("c_pseudo", "p_pseudo"), [(True, False), (False, False), (True, True)])
def test_solver_equals_its_printed_equations(eps, x_T, ems, order, c_pseudo, p_pseudo):
    ours = DPMSolverV3(eps, VP, ems, order=order, c_pseudo=c_pseudo, p_pseudo=p_pseudo).sample(x_T, 7)
    theirs = literal_v3(eps, x_T, ems, 7, order, c_pseudo, p_pseudo)
    torch.testing.assert_close(ours, theirs, atol=1e-8, rtol=1e-8)


@pytest.mark.parametrize("schedule", [VP, EDM])
def test_one_gaussian_is_solved_exactly_up_to_quadrature(schedule):
    mean = torch.tensor([0.3, -0.5, 0.0], dtype=torch.float64)
    variance = torch.tensor([0.2, 1.0, 0.01], dtype=torch.float64)
    gaussian = GaussianMixture(torch.ones(1, dtype=torch.float64), mean[None], torch.diag(variance)[None])
    eps = noise_of(gaussian, schedule)
    (a_T, s_T), (a_0, s_0) = scales(schedule.start, schedule), scales(schedule.end, schedule)
    x = s_T * torch.randn(8, D, generator=rng(), dtype=torch.float64)
    # The flow of a Gaussian keeps every coordinate's standard score.
    exact = a_0 * mean + (x - a_T * mean) * ((a_0**2 * variance + s_0**2) / (a_T**2 * variance + s_T**2)).sqrt()
    errors = []
    for n_grid in (30, 60, 120):
        stats = compute_ems(eps, schedule, gaussian.sample(8, rng(1)), n_grid, 8, None, generator=rng(2))
        lam = stats.lambdas[:, None]
        a, s = schedule.alpha(lam), schedule.sigma(lam)
        torch.testing.assert_close(stats.l, s**2 / (a**2 * variance + s**2))
        assert not stats.s.any()
        sampler = DPMSolverV3(eps, schedule, stats, order=1, corrector=False)
        errors.append((sampler.sample(x, 3) - exact).abs().max().item())
    assert errors[0] < 5e-2
    for coarse, fine in pairwise(errors):
        assert 3.5 < coarse / fine < 4.5


def test_orders_of_convergence(eps, x_T, ems):
    reference = RungeKutta(eps, VP).sample(x_T, 400)
    fine = ems.refine(9600)
    for make in (
        lambda k: DPMSolverV3(eps, VP, fine, order=k, corrector=False, lower_order_final=False),
        lambda k: DPMSolverPP(eps, VP, k, "taylor", lower_order_final=False),
    ):
        for order in (1, 2, 3):
            errors = [(make(order).sample(x_T, n) - reference).square().mean().sqrt().item() for n in (40, 320)]
            # Finer still, the first-order first step (an error of order h^2) takes over.
            assert math.log(errors[0] / errors[1], 8) > order - 0.35


def test_runge_kutta_converges_at_fourth_order(eps, x_T):
    reference = RungeKutta(eps, VP).sample(x_T, 640)
    errors = [(RungeKutta(eps, VP).sample(x_T, n) - reference).abs().max().item() for n in (80, 160)]
    assert math.log2(errors[0] / errors[1]) > 3.5


def test_statistics_help_where_steps_are_few(eps, x_T, ems):
    reference = RungeKutta(eps, VP).sample(x_T, 400)
    error = {
        name: (DPMSolverV3(eps, VP, e.refine(1200), order=1, corrector=False).sample(x_T, 6) - reference).norm()
        for name, e in (("measured", ems), ("shuffled", ems.shuffled(rng(5))))
    }
    assert error["measured"] < 0.5 * error["shuffled"]


def samplers(eps, ems):
    return [
        DDIM(eps, VP),
        DPMSolverPP(eps, VP, 2),
        DPMSolverPP(eps, VP, 3),
        UniPC(eps, VP, 3),
        DPMSolverV3(eps, VP, ems, order=2),
        DPMSolverV3(eps, VP, ems, order=3, c_pseudo=False, spacing="time"),
    ]


@pytest.mark.parametrize("which", range(6))
def test_every_sampler_keeps_the_contract(eps, ems, x_T, which):
    calls = []

    def counted(x, lam):
        calls.append(lam.item())
        return eps(x, lam)

    sampler, before = samplers(counted, ems)[which], x_T.clone()
    out = sampler.sample(x_T, 6)
    assert len(calls) == 6  # correction costs no evaluation
    assert calls == sorted(calls)
    assert out.shape == x_T.shape
    assert torch.equal(x_T, before)
    assert torch.equal(out, sampler.sample(x_T, 6))  # no state between calls
    torch.testing.assert_close(sampler.sample(x_T[3:5], 6), out[3:5])  # samples do not see each other
    assert sampler.sample(x_T, 1).isfinite().all()
    assert (
        samplers(lambda x, lam: eps(x.double(), lam).float(), ems)[which].sample(x_T.float(), 6).dtype == torch.float32
    )


def test_bad_input_is_refused(eps, ems, x_T):
    with pytest.raises(ValueError, match="order"):
        DPMSolverV3(eps, VP, ems, order=4)
    with pytest.raises(ValueError, match="recompute"):
        DPMSolverV3(eps, EDM, ems)
    with pytest.raises(ValueError, match="refine"):
        DPMSolverV3(eps, VP, ems).sample(x_T, 100)
    with pytest.raises(ValueError, match="steps"):
        DDIM(eps, VP).sample(x_T, 0)
    with pytest.raises(ValueError, match="variant"):
        DPMSolverPP(eps, VP, 2, "released")
    with pytest.raises(ValueError, match="spacing"):
        DDIM(eps, VP, spacing="logsnr").sample(x_T, 3)
    with pytest.raises(ValueError, match="uniform"):
        EMS(torch.tensor([0.0, 1.0, 5.0]), ems.l[:3], ems.s[:3], ems.b[:3])
    with pytest.raises(ValueError, match="finite"):
        EMS(ems.lambdas, ems.l * math.nan, ems.s, ems.b)
    with pytest.raises(ValueError, match="derivatives"):
        compute_ems(eps, VP, x_T, derivatives="autograd")
    with pytest.raises(ValueError, match="t_end"):
        VPSchedule(t_end=0)


# ------------------------------------------------------------------------------------------------- statistics


def test_forward_mode_agrees_with_central_differences(eps, model):
    data = model.sample(64, rng(3))
    runs = [
        compute_ems(eps, VP, data, n_grid=40, n_data=64, derivatives=how, batch_size=batch, generator=rng(4))
        for how, batch in (("jvp", 512), ("central", 24))
    ]
    for name in ("l", "s", "b"):
        a, b = (getattr(run, name) for run in runs)
        torch.testing.assert_close(a, b, atol=2e-5, rtol=2e-5)


def test_probes_estimate_the_exact_diagonal(eps, model):
    data = model.sample(64, rng(3))
    exact, estimated = (
        compute_ems(eps, VP, data, n_grid=4, n_data=64, probes=p, generator=rng(4)).l for p in (None, 400)
    )
    assert (exact - estimated).abs().max() < 0.02


def test_statistics_against_a_dense_computation(eps, model):
    """l from dense Jacobians; s and b from f differentiated along the solved ODE."""
    data, h = model.sample(40, rng(3)), 1e-3
    stats = compute_ems(eps, VP, data, n_grid=240, n_data=40, probes=None, generator=rng(4))
    g = rng(4)
    x0 = data[torch.randint(len(data), (40,), generator=g)]
    z = torch.randn(x0.shape, generator=g, dtype=torch.float64)

    def l_of(lam):
        a, s = scales(lam)
        x = a * x0 + s * z
        jacobian = torch.func.vmap(torch.func.jacfwd(lambda y: eps(y[None], torch.tensor(lam))[0]))(x)
        return (s * jacobian.diagonal(dim1=1, dim2=2)).mean(0)

    def f_of(x, lam):
        a, s = scales(lam)
        return (s * eps(x, torch.tensor(lam)) - l_of(lam) * x) / a

    def moved(x, lam, by):
        for _ in range(4):  # Heun steps of the ODE itself
            v = lambda x, u: VP.drift(torch.tensor(u)) * x - scales(u)[1] * eps(x, torch.tensor(u))  # noqa: E731
            k = v(x, lam)
            x = x + by / 8 * (k + v(x + by / 4 * k, lam + by / 4))
            lam = lam + by / 4
        return x

    for i in (60, 120, 180):
        lam = stats.lambdas[i].item()
        torch.testing.assert_close(stats.l[i], l_of(lam))
        a, s = scales(lam)
        x = a * x0 + s * z
        f = f_of(x, lam)
        rate = (f_of(moved(x, lam, h), lam + h) - f_of(moved(x, lam, -h), lam - h)) / (2 * h)
        for j in range(D):
            slope, intercept = np.polyfit(f[:, j].numpy(), rate[:, j].numpy(), 1)
            assert stats.s[i, j].item() == pytest.approx(slope, abs=5e-3)
            assert stats.b[i, j].item() == pytest.approx(intercept, abs=5e-3)


def test_statistics_are_reproducible_and_leave_global_state_alone(eps, model):
    data, state = model.sample(32, rng(3)), torch.random.get_rng_state()
    runs = [compute_ems(eps, VP, data, 10, 32, generator=rng(7)) for _ in range(2)]
    assert torch.equal(runs[0].s, runs[1].s)
    assert torch.equal(state, torch.random.get_rng_state())


def test_refining_keeps_the_curves(ems):
    fine = ems.refine(240)
    for name in ("lambdas", "l", "s", "b"):
        torch.testing.assert_close(getattr(fine, name)[::4], getattr(ems, name))
    torch.testing.assert_close(fine.l[2], (ems.l[0] + ems.l[1]) / 2)
    assert torch.equal(ems.shuffled(rng()).l.sort(0).values, ems.l.sort(0).values)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.floats(-3, 3), min_size=2, max_size=4),
    st.lists(st.integers(-20, 20), min_size=4, max_size=4, unique=True),
)
def test_differences_are_exact_on_polynomials(coefficients, places):
    """True order recovers every derivative of a polynomial of degree k - 1; pseudo order agrees at k = 2."""
    k = len(coefficients)
    lams = [p / 8 for p in places[:k]]
    polynomial = np.polynomial.Polynomial(coefficients)
    # Powers around the base point, so that derivatives there are the coefficients' factorials.
    terms = [torch.tensor(polynomial(lam - lams[0]), dtype=torch.float64) for lam in lams]
    found = taylor_coefficients(lams, terms)
    for n, value in enumerate(found, start=1):
        assert value.item() == pytest.approx(math.factorial(n) * coefficients[n], abs=1e-6)
    pseudo = taylor_coefficients(lams, terms, pseudo=True)
    assert pseudo[-1].item() == pytest.approx(found[-1].item(), abs=1e-6)


@settings(max_examples=30, deadline=None)
@given(st.floats(-6, 6))
def test_schedules_are_consistent(lam):
    lam = torch.tensor(lam, dtype=torch.float64)
    for schedule in (VP, EDM):
        a, s = schedule.alpha(lam), schedule.sigma(lam)
        assert (a / s).log().item() == pytest.approx(lam.item(), abs=1e-9)
        slope = torch.func.grad(schedule.log_alpha)(lam)
        assert slope.item() == pytest.approx(schedule.drift(lam).item(), abs=1e-9)
    assert (VP.alpha(lam) ** 2 + VP.sigma(lam) ** 2).item() == pytest.approx(1)


def test_time_grids_end_where_the_lambda_grids_do():
    for schedule in (VP, EDM):
        a, b = schedule.nodes(7), schedule.nodes(7, "time")
        torch.testing.assert_close(a[[0, -1]], b[[0, -1]])
        assert (b.diff() > 0).all()


# ------------------------------------------------------------------------------------------------- the models


def test_mixture_equals_torch_distributions(model):
    a, s = 0.6, 0.8
    noised = MultivariateNormal(a * model.means, a**2 * model.covariances + s**2 * torch.eye(D, dtype=torch.float64))
    peer = MixtureSameFamily(Categorical(model.weights), noised)
    x = torch.randn(20, D, generator=rng(), dtype=torch.float64)
    torch.testing.assert_close(model.log_prob(x, a, s), peer.log_prob(x))
    x.requires_grad_()
    (score,) = torch.autograd.grad(peer.log_prob(x).sum(), x)
    torch.testing.assert_close(model.score(x, a, s), score)
    torch.testing.assert_close(model.eps(x, a, s), -s * score)


def test_mixture_samples_have_its_moments(model):
    x = model.sample(40_000, rng())
    mean = model.weights @ model.means
    gaps = model.means - mean
    covariance = torch.einsum("k,kij->ij", model.weights, model.covariances + gaps[:, :, None] * gaps[:, None, :])
    torch.testing.assert_close(x.mean(0), mean, atol=0.03, rtol=0)
    torch.testing.assert_close(x.T.cov(), covariance, atol=0.05, rtol=0)


def test_mixture_refuses_bad_input(model):
    with pytest.raises(ValueError, match="weights"):
        GaussianMixture(torch.ones(2), model.means, model.covariances)
    with pytest.raises(ValueError, match="positive"):
        GaussianMixture(torch.tensor([1.0, 0.0, 1.0]), model.means, model.covariances)
    with pytest.raises(ValueError, match="eigenvalue"):
        GaussianMixture(model.weights, model.means, -model.covariances)
    with pytest.raises(ValueError, match="shape"):
        model.score(torch.zeros(4, D + 1, dtype=torch.float64))


@pytest.mark.parametrize(
    ("kind", "shape", "sizes"),
    [
        ("mlp", (1, 8, 8), {"width": 32, "blocks": 2}),
        ("unet", (3, 16, 16), {"width": 8, "multipliers": (1, 2, 2), "blocks": 1}),
    ],
)
def test_denoiser_is_differentiable_in_image_and_noise_level(kind, shape, sizes):
    state = torch.random.get_rng_state()
    net = denoiser(shape, kind, generator=rng(3), **sizes).double()
    twin = denoiser(shape, kind, generator=rng(3), **sizes).double()
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), twin.parameters(), strict=True))
    x = torch.randn(4, *shape, generator=rng(), dtype=torch.float64)
    lam = torch.tensor(0.3, dtype=torch.float64)
    torch.testing.assert_close(net(x, lam), VP.sigma(lam) * x)  # untrained: the output layer is zero
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=rng(8), dtype=p.dtype))
    v, h = torch.randn(x.shape, generator=rng(9), dtype=torch.float64), 1e-5
    out, slope = torch.func.jvp(net, (x, lam), (v, torch.ones_like(lam)))
    numeric = (net(x + h * v, lam + h) - net(x - h * v, lam - h)) / (2 * h)
    torch.testing.assert_close(slope, numeric, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(net(x, lam.expand(4)), out)
    with pytest.raises(ValueError, match="kind"):
        denoiser(shape, "vit")


# ---------------------------------------------------------------------------------------------- the experiment


def test_speedup_counts_the_rivals_extra_steps():
    nfes = [5, 10, 20, 40]
    rival = [1 / n**2 for n in nfes]
    assert speedup(nfes, rival, rival) == pytest.approx([0, 0, 0, 0])
    # An error 1.44 times smaller at second order is worth 20% more steps; beyond the last NFE nothing counts.
    assert speedup(nfes, rival, [r / 1.44 for r in rival]) == pytest.approx([20, 20, 20, 0])
    assert speedup(nfes, rival, [4 * r for r in rival])[2] == pytest.approx(-50)
    bumpy = [0.04, 0.05, 0.0025, 0.01]  # the rival's best so far counts
    assert speedup(nfes, bumpy, [0.04, 0.04, 0.0025, 0.0025]) == pytest.approx([0, -50, 0, -50], abs=1e-6)


def test_frechet_distance_of_gaussians():
    a, b = torch.randn(500, 4, generator=rng(1)), torch.randn(400, 4, generator=rng(2)) * 2 + 1
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-6)
    assert frechet_distance(a, a + 3) == pytest.approx(36, rel=1e-4)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a))
    root = sqrtm(a.double().T.cov().numpy() @ b.double().T.cov().numpy()).real
    expected = (a.double().mean(0) - b.double().mean(0)).square().sum() + a.double().T.cov().trace()
    expected = expected + b.double().T.cov().trace() - 2 * np.trace(root)
    assert frechet_distance(a, b) == pytest.approx(expected.item())
    with pytest.raises(ValueError, match="length"):
        frechet_distance(a, b[:, :3])


def test_samples_that_diverged_are_infinitely_far_away():
    a, b = torch.ones(4, 3), torch.randn(5, 3, generator=rng(1))
    a[2, 1] = torch.nan
    assert frechet_distance(a, b) == frechet_distance(b, a) == torch.inf


# --------------------------------------------------------------------------------------------------- the peer


@pytest.mark.parametrize(
    ("recipe", "variant", "ours"),
    [
        ("dpm-solver++", "heun", partial(DPMSolverPP, order=2, variant="taylor")),
        ("dpm-solver++", "midpoint", partial(DPMSolverPP, order=2)),
        ("dpm-solver++-3m", "midpoint", partial(DPMSolverPP, order=3)),
        ("unipc-2", "bh2", partial(UniPC, order=2)),
        ("unipc-3", "bh1", partial(UniPC, order=3, variant="bh1")),
        ("unipc-3", "bh2", partial(UniPC, order=3)),
    ],
)
def test_diffusers_agrees(eps, x_T, recipe, variant, ours):
    pytest.importorskip("diffusers")
    peer = diffusers_sampler(eps, VP, recipe, variant).sample(x_T, 10)
    torch.testing.assert_close(ours(eps, VP).sample(x_T, 10), peer, atol=2e-4, rtol=0)  # single precision there
