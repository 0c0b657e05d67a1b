"""The device's law against matrix exponentials and simulated paths, the optimizer against dense natural gradient."""

import copy
import math

import numpy as np
import pytest
import scipy.linalg
import torch
import torch.nn.functional as F
from torch import nn

from draws import normal, seeded
from secondlook.curvature import GGNOperator, pack
from secondlook.optimizers import TNGD, LowRankOU, ou_solve
from secondlook.optimizers.thermodynamic_ngd import DenseOU, curvature_factor, euler_maruyama, training
from secondlook.problems.models import mlp


def system(n: int = 40, condition: float = 100.0) -> tuple[torch.Tensor, torch.Tensor]:
    q, _ = torch.linalg.qr(normal(n, n))
    return (q * torch.logspace(-math.log10(condition), 0, n, dtype=torch.float64)) @ q.T, normal(n, seed=1)


@pytest.mark.parametrize("t", [0.1, 3.0, 80.0])
def test_mean_is_that_of_the_matrix_exponential(t):
    A, b = system()
    x0 = normal(40, seed=2)
    s = np.linalg.solve(A.numpy(), b.numpy())
    expected = s + scipy.linalg.expm(-A.numpy() * t) @ (x0.numpy() - s)
    np.testing.assert_allclose(ou_solve(A, b, t, x0=x0).numpy(), expected, rtol=0, atol=1e-11 * np.abs(s).max())


def test_noise_has_the_covariance_of_the_matrix_exponential():
    """Unit draws pushed through the noise's linear map, column by column: no sampling error."""
    A, b = system(12)
    t, beta, device = 2.0, 5.0, DenseOU(A)
    root = torch.stack(
        [device.apply(lambda a: (-(-2 * a * t).expm1() / (a * beta)).sqrt(), e) for e in torch.eye(12).double()]
    )
    expected = np.linalg.inv(A.numpy()) @ (np.eye(12) - scipy.linalg.expm(-2 * A.numpy() * t)) / beta
    np.testing.assert_allclose((root @ root.T).numpy(), expected, rtol=0, atol=1e-11)
    draw = ou_solve(device, b, t, beta, generator=seeded(3)) - ou_solve(device, b, t)
    torch.testing.assert_close(draw, root @ normal(12, seed=3), rtol=0, atol=1e-12)


def test_simulated_paths_have_the_law_of_their_scheme():
    """20,000 paths against the exact mean and covariance of Euler's scheme, whose bias is larger than 3 sigma."""
    A, b = system(4, 10.0)
    dt, steps, beta, paths = 0.3, 20, 4.0, 20_000
    x = euler_maruyama(A, b, b.expand(paths, 4), dt, steps, beta, seeded(5))
    s, eye = torch.linalg.solve(A, b), torch.eye(4).double()
    shrink = torch.linalg.matrix_power(eye - A * dt, steps)
    mean = s + shrink @ (b - s)
    covariance = torch.linalg.solve(A @ (eye - A * dt / 2), eye - shrink @ shrink) / beta
    error = (x.mean(0) - mean) / (covariance.diagonal() / paths).sqrt()
    assert error.abs().max() < 3.5
    spread = (covariance.square() + torch.outer(covariance.diagonal(), covariance.diagonal())) / paths
    assert ((x.T.cov() - covariance).abs() / spread.sqrt()).max() < 4  # the largest of 16


def test_ends_are_the_gradient_and_the_solution():
    A, b = system(condition=1e4)
    assert torch.equal(ou_solve(LowRankOU(normal(40, 6), 0.1), b, 0.0), b)
    torch.testing.assert_close(ou_solve(A, b, 0.0), b, rtol=0, atol=1e-13)
    solution = torch.linalg.solve(A, b)
    for t in (1e7, math.inf):
        torch.testing.assert_close(ou_solve(A, b, t), solution, rtol=1e-10, atol=1e-9)


@pytest.mark.parametrize("shape", [(40, 7), (10, 25)])
@pytest.mark.parametrize("t", [0.3, 10.0, math.inf])
def test_low_rank_and_dense_devices_agree(shape, t):
    U, b, x0 = normal(*shape), normal(shape[0], seed=1), normal(shape[0], seed=2)
    dense, low = DenseOU(U @ U.T + 0.01 * torch.eye(shape[0]).double()), LowRankOU(U, 0.01)
    for beta in (None, 3.0):
        pair = [ou_solve(device, b, t, beta, x0, seeded(4)) for device in (dense, low)]
        torch.testing.assert_close(*pair, rtol=0, atol=1e-10)


@pytest.mark.parametrize("low_rank", [False, True])
def test_devices_run_side_by_side(low_rank):
    A, b = system(12)
    device = LowRankOU(normal(12, 5), 0.1) if low_rank else DenseOU(A)
    rows = torch.stack([b, -b, 2 * b])
    alone = torch.stack([ou_solve(device, row, 2.0) for row in rows])
    torch.testing.assert_close(ou_solve(device, rows, 2.0), alone, rtol=0, atol=1e-12)
    noise = ou_solve(device, rows, 2.0, 5.0, generator=seeded(3)) - alone
    assert torch.linalg.matrix_rank(noise) == 3  # each has its own


@pytest.mark.parametrize("loss", ["cross_entropy", "mse"])
def test_factor_is_that_of_the_gauss_newton_matrix(loss):
    model = mlp([5, 4, 3], nn.Tanh, seeded()).double()
    x = normal(6, 5)
    y = torch.tensor([0, 1, 2, 0, 1, 2]) if loss == "cross_entropy" else normal(6, 3, seed=1)
    U = curvature_factor(model, dict(model.named_parameters()), x, loss)
    exact = GGNOperator(model, getattr(F, loss if loss == "cross_entropy" else "mse_loss"), (x, y)).dense()
    torch.testing.assert_close(U @ U.T, exact, rtol=0, atol=1e-14)
    assert U.shape[1] == 6 * (2 if loss == "cross_entropy" else 3)  # no more columns than the rank


def problem(seed: int = 0) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    return mlp([5, 4, 3], nn.Tanh, seeded(seed)).double(), normal(8, 5), torch.arange(8) % 3


def walk(optimizer: torch.optim.Optimizer, model: nn.Module, x: torch.Tensor, y: torch.Tensor, steps: int) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        optimizer.observe(x)
        F.cross_entropy(model(x), y).backward()
        optimizer.step()


def dense_path(delay: int, warm: bool, t: float, steps: int) -> torch.Tensor:
    """The same training with dense matrices and scipy's exponential."""
    model, x, y = problem()
    lam, readout, past = 0.1, 0.0, []
    for k in range(steps):
        G = GGNOperator(model, F.cross_entropy, (x, y)).dense().numpy() + lam * np.eye(39)
        grads = torch.autograd.grad(F.cross_entropy(model(x), y), list(model.parameters()))
        past.append((G, pack(grads).numpy()))
        A, g = past[max(0, k - delay)]
        s = np.linalg.solve(A, g)
        readout = s + scipy.linalg.expm(-A * t) @ ((readout if warm else g) - s)
        flat = pack(list(model.parameters())).detach() - 0.2 * torch.from_numpy(readout)
        nn.utils.vector_to_parameters(flat, model.parameters())
    return flat


@pytest.mark.parametrize(("delay", "warm", "t"), [(0, False, 3.0), (0, True, 3.0), (2, True, 1.0), (2, False, 200.0)])
def test_training_follows_the_dense_computation(delay, warm, t):
    model, x, y = problem()
    walk(TNGD(model.parameters(), model, "cross_entropy", 0.2, 0.1, t, warm_start=warm, delay=delay), model, x, y, 6)
    expected = dense_path(delay, warm, t, 6)
    torch.testing.assert_close(pack(list(model.parameters())).detach(), expected, rtol=0, atol=1e-11)


def test_time_zero_is_gradient_descent_and_after_a_warm_start_no_step_at_all():
    ends = []
    for make in (
        lambda m: TNGD(m.parameters(), m, lr=0.3, t=0.0, warm_start=False),
        lambda m: TNGD(m.parameters(), m, lr=0.3, t=0.0),
    ):
        model, x, y = problem()
        walk(make(model), model, x, y, 4)
        ends.append(pack(list(model.parameters())))
    model, x, y = problem()
    start, sgd = pack(list(model.parameters())), torch.optim.SGD(model.parameters(), 0.3)
    for _ in range(4):
        sgd.zero_grad()
        F.cross_entropy(model(x), y).backward()
        sgd.step()
    torch.testing.assert_close(ends[0], pack(list(model.parameters())), rtol=0, atol=1e-14)
    assert torch.equal(ends[1], start)


def test_long_times_are_the_exact_natural_gradient():
    ends = []
    for make in (
        lambda m: TNGD(m.parameters(), m, "cross_entropy", 0.2, 0.1, t=400.0, warm_start=False),
        lambda m: training.NGD(m.parameters(), m, 0.2, 0.1),
    ):
        model, x, y = problem()
        walk(make(model), model, x, y, 20)
        ends.append(pack(list(model.parameters())))
    torch.testing.assert_close(*ends, rtol=0, atol=1e-10)


def test_one_step_solves_least_squares():
    model = nn.Linear(3, 2).double()
    x, y = normal(20, 3), normal(20, 2, seed=1)
    optimizer = TNGD(model.parameters(), model, "mse", 1.0, 1e-6, math.inf)
    optimizer.observe(x)
    F.mse_loss(model(x), y).backward()
    optimizer.step()
    grads = torch.autograd.grad(F.mse_loss(model(x), y), list(model.parameters()))
    assert pack(grads).norm() < 1e-5


def test_adam_base_averages_the_readout():
    """Constant gradients at t = 0: Adam's first steps have length lr in every coordinate, as torch's have."""
    ends = []
    for thermodynamic in (True, False):
        model, x, y = problem()
        if thermodynamic:
            walk(TNGD(model.parameters(), model, lr=0.01, t=0.0, warm_start=False, base="adam"), model, x, y, 5)
        else:
            adam = torch.optim.Adam(model.parameters(), 0.01)
            for _ in range(5):
                adam.zero_grad()
                F.cross_entropy(model(x), y).backward()
                adam.step()
        ends.append(pack(list(model.parameters())))
    torch.testing.assert_close(*ends, rtol=0, atol=1e-12)


@pytest.mark.parametrize("options", [{}, {"delay": 2, "beta": 50.0}, {"base": "adam"}])
def test_state_continues_bit_for_bit(options):
    model, x, y = problem()
    optimizer = TNGD(model.parameters(), model, t=2.0, generator=seeded(1), **options)
    walk(optimizer, model, x, y, 3)
    other = copy.deepcopy(model)
    resumed = TNGD(other.parameters(), other, t=2.0, generator=seeded(9), **options)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    walk(optimizer, model, x, y, 3)
    walk(resumed, other, x, y, 3)
    assert torch.equal(pack(list(model.parameters())), pack(list(other.parameters())))


def test_groups_have_learning_rates_of_their_own_and_order_does_not_matter():
    model, x, y = problem()
    w = list(model.parameters())
    before = [p.detach().clone() for p in w]
    groups = [{"params": w[2:], "lr": 0.0}, {"params": w[:2], "lr": 0.2}]
    walk(TNGD(groups, model, damping=0.1, t=3.0, warm_start=False), model, x, y, 1)
    assert torch.equal(w[2], before[2])
    expected, x, y = problem()
    walk(TNGD(expected.parameters(), expected, lr=0.2, damping=0.1, t=3.0, warm_start=False), expected, x, y, 1)
    torch.testing.assert_close(w[0], next(expected.parameters()), rtol=0, atol=1e-13)


def test_wrong_use_is_named():
    model, x, y = problem()
    for name, value in (
        ("lr", -1), ("damping", 0), ("t", -1), ("t", math.nan), ("beta", 0), ("delay", -1), ("loss", "hinge"),
        ("base", "sgd"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=name):
            TNGD(model.parameters(), model, **{name: value})
    with pytest.raises(ValueError, match="model"):
        TNGD(problem(1)[0].parameters(), model)
    optimizer = TNGD(model.parameters(), model)
    F.cross_entropy(model(x), y).backward()
    with pytest.raises(RuntimeError, match="observe"):
        optimizer.step()
    with pytest.raises(ValueError, match="positive definite"):
        ou_solve(-torch.eye(2), torch.ones(2), 1.0)
    with pytest.raises(ValueError, match="square"):
        ou_solve(torch.ones(2, 3), torch.ones(2), 1.0)
