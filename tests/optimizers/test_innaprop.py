"""INNAprop against its special cases, the printed update, and the differential equation it discretises."""

import numpy as np
import pytest
import torch
from torch import nn

from draws import seeded
from secondlook.optimizers import INNAprop
from secondlook.optimizers.innaprop import euler_step, inna_flow
from secondlook.optimizers.innaprop.experiment import euler, start, tuned, turns, valley
from secondlook.optimizers.innaprop.setting import PROBLEMS, optimizer, train, train_seeds, vgg11

PAIRS = [(0.1, 0.9), (1.0, 1.0), (2.0, 2.0), (0.5, 0.1), (0.0, 0.7)]
every_pair = pytest.mark.parametrize("pair", PAIRS, ids=str)


def problem(seed=0):
    """A float64 net and its noisy loss: gradients never repeat."""
    g = seeded(seed)
    net = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.randn(p.shape, generator=g, dtype=p.dtype))
    x, y = torch.randn(40, 6, generator=g, dtype=torch.float64), torch.randint(0, 3, (40,), generator=g)
    return net, lambda t: nn.functional.cross_entropy(net(x.roll(-8 * t, 0)[:8]), y.roll(-8 * t)[:8])


def gradients(net, loss, t):
    net.zero_grad()
    loss(t).backward()
    return [p.grad for p in net.parameters()]


def descended(make, steps, each_step=lambda opt, t: None):
    net, loss = problem()
    opt = make(net.parameters())
    for t in range(steps):
        each_step(opt, t)
        gradients(net, loss, t)
        opt.step()
    return list(net.parameters())


def farthest(a, b):
    return max((p - q).abs().max().item() for p, q in zip(a, b, strict=True))


def printed(steps, lr, alpha, beta, sigma=0.999, eps=1e-8, decay=0.0, rates=None):
    """The update as it is printed, one parameter at a time: the new psi in x's step, and beta - lr divided by."""
    net, loss = problem()
    params = list(net.parameters())
    psi = [(1 - alpha * beta) * p.detach() for p in params]
    v = [torch.zeros_like(p) for p in params]
    for t in range(steps):
        lr = rates(t) if rates else lr
        for i, g in enumerate(gradients(net, loss, t)):
            x = (1 - lr * decay) * params[i].detach()
            v[i] = sigma * v[i] + (1 - sigma) * g * g
            root = v[i].sqrt() / (1 - sigma ** (t + 1)) ** 0.5 + eps
            psi[i] = (1 - lr / beta) * psi[i] + lr * (1 / beta - alpha) * x
            x = (1 + lr * (1 - alpha * beta) / (beta - lr)) * x - lr / (beta - lr) * psi[i] - lr * beta * g / root
            params[i].data = x
    return params


# Oracle 1: the printed update.


@every_pair
@pytest.mark.parametrize("decay", [0.0, 0.05])
def test_it_is_the_printed_update(pair, decay):
    ours = descended(lambda p: INNAprop(p, 0.02, *pair, weight_decay=decay), 50)
    assert farthest(ours, printed(50, 0.02, *pair, decay=decay)) < 1e-12


def test_it_is_the_printed_update_under_a_schedule():
    def rate(t):
        return 0.05 * (1 - t / 50)

    def schedule(opt, t):
        opt.param_groups[0]["lr"] = rate(t)

    ours = descended(lambda p: INNAprop(p, 1.0, 0.1, 0.9, weight_decay=0.1), 50, schedule)
    assert farthest(ours, printed(50, 0.0, 0.1, 0.9, decay=0.1, rates=rate)) < 1e-12


def test_psi_starts_at_rest_before_the_first_decay():
    w = torch.ones(3, dtype=torch.float64, requires_grad=True)
    w.grad = torch.zeros_like(w)
    opt = INNAprop([w], lr=0.1, alpha=0.1, beta=0.9, weight_decay=0.5)
    opt.step()
    away = (1 - 0.09) - (1 - 0.09) * 0.95  # from the rest of the decayed weight
    assert opt.state[w]["psi"].tolist() == pytest.approx([0.91 - 0.1 / 0.9 * away] * 3, abs=1e-15)
    assert w.tolist() == pytest.approx([0.95 - 0.1 / 0.9 * away] * 3, abs=1e-15)


def test_a_step_equal_to_beta_is_no_pole():
    """Printed, it divides by zero there; on both sides of it ours goes through smoothly."""
    ends = [descended(lambda p, lr=lr: INNAprop(p, lr, 0.1, 0.5), 3) for lr in (0.5 - 1e-9, 0.5, 0.5 + 1e-9)]
    assert farthest(ends[0], ends[1]) < 1e-6
    assert farthest(ends[1], ends[2]) < 1e-6
    assert all(p.isfinite().all() for p in ends[1])


# Oracle 2: special cases.


def test_with_both_dampings_one_it_is_adamw_without_momentum():
    adamw = descended(lambda p: torch.optim.AdamW(p, 0.01, betas=(0.0, 0.99), weight_decay=0.1), 200)
    assert farthest(descended(lambda p: INNAprop(p, 0.01, 1, 1, sigma=0.99, weight_decay=0.1), 200), adamw) < 1e-13


@pytest.mark.parametrize(("alpha", "beta"), [(2.0, 0.5), (0.1, 10.0), (4.0, 0.25)])
def test_with_product_one_it_is_rmsprop_with_a_corrected_start(alpha, beta):
    rmsprop = descended(lambda p: torch.optim.Adam(p, 0.01 * beta, betas=(0.0, 0.999)), 200)
    ours = descended(lambda p: INNAprop(p, 0.01, alpha, beta, weight_decay=0.0), 200)
    assert farthest(ours, rmsprop) < 1e-12
    others = descended(lambda p: INNAprop(p, 0.01, alpha, 0.9 * beta, weight_decay=0.0), 200)
    assert farthest(others, rmsprop) > 1e-3


def test_the_pairs_are_told_apart():
    ends = [descended(lambda p, pair=pair: INNAprop(p, 0.01, *pair), 20) for pair in PAIRS]
    assert min(farthest(a, b) for i, a in enumerate(ends) for b in ends[:i]) > 1e-3


@every_pair
def test_one_gradient_moves_by_lr_over_alpha_in_the_end(pair):
    """The memory of momentum: lr beta at once, the rest of lr / alpha within 1 / (lr alpha) steps."""
    alpha, beta = pair
    x, psi = [torch.zeros(1, dtype=torch.float64)], [torch.zeros(1, dtype=torch.float64)]
    push, rest = [torch.ones(1, dtype=torch.float64)], [torch.zeros(1, dtype=torch.float64)]
    path = []
    for t in range(3_000):
        euler_step(x, psi, push if t == 0 else rest, 0.1, alpha, beta)
        path.append(-x[0].item())
    assert path[0] == pytest.approx(0.1 * beta)
    expected = [0.1 * beta]
    for t in range(1, len(path)):
        expected.append(expected[-1] + 0.1**2 * (1 - alpha * beta) * (1 - 0.1 * alpha) ** (t - 1))
    np.testing.assert_allclose(path, expected, rtol=1e-10)
    if alpha:
        assert path[-1] == pytest.approx(0.1 / alpha, rel=1e-9)


# Oracle 3: the differential equation.

H = torch.tensor([[2.0, 0.6], [0.6, 0.5]], dtype=torch.float64)


@every_pair
def test_unscaled_it_is_explicit_euler(pair):
    alpha, beta = pair
    x, psi = [torch.tensor([1.0, -2.0], dtype=torch.float64)], [torch.tensor([0.3, 0.1], dtype=torch.float64)]
    z = torch.cat([x[0], psi[0]])
    eye = torch.eye(2, dtype=torch.float64)
    c = (1 / beta - alpha) * eye
    system = torch.cat([torch.cat([c - beta * H, -eye / beta], 1), torch.cat([c, -eye / beta], 1)])
    for _ in range(50):
        euler_step(x, psi, [H @ x[0]], 0.05, alpha, beta)
        z = z + 0.05 * system @ z
    assert farthest([torch.cat([x[0], psi[0]])], [z]) < 1e-12


@every_pair
def test_the_flow_is_the_damped_oscillator(pair):
    """On a parabola of curvature h the equation is linear and the dampings add: x'' + (alpha + beta h) x' + h x = 0."""
    alpha, beta = pair
    h, times = 3.0, np.linspace(0, 4, 30)
    roots = np.roots([1, alpha + beta * h, h]).astype(complex)
    a, b = np.linalg.solve([[1, 1], roots], [1.5, -beta * h * 1.5])  # the velocity at rest is -beta F'
    exact = (a * np.exp(roots[0] * times) + b * np.exp(roots[1] * times)).real
    found = inna_flow(lambda x: h * x, [1.5], alpha, beta, (0, 4))(times)
    np.testing.assert_allclose(found[0], exact, atol=1e-8)


@every_pair
def test_halving_the_step_halves_the_distance_to_the_flow(pair):
    flow = inna_flow(lambda x: H.numpy() @ x, [1.0, -2.0], *pair, (0, 2))(2.0)
    errors = []
    for n in (400, 800):
        x = [torch.tensor([1.0, -2.0], dtype=torch.float64)]
        psi = [(1 - pair[0] * pair[1]) * x[0]]
        for _ in range(n):
            euler_step(x, psi, [H @ x[0]], 2 / n, *pair)
        errors.append(np.linalg.norm(torch.cat([*x, *psi]).numpy() - flow))
    assert errors[0] / errors[1] == pytest.approx(2, abs=0.05)


@pytest.mark.parametrize(("name", "value"), [("alpha", -1.0), ("beta", 0.0), ("beta", float("nan"))])
def test_the_flow_names_a_bad_damping(name, value):
    with pytest.raises(ValueError, match=name):
        inna_flow(lambda x: x, [1.0], **{"alpha": 1.0, "beta": 1.0, name: value}, t_span=(0, 1))


@pytest.mark.filterwarnings("ignore::RuntimeWarning", "ignore::UserWarning")
def test_the_flow_says_when_it_gets_stuck():
    with pytest.raises(RuntimeError, match="t_span"):
        inna_flow(lambda x: -(x**3), [1.0], 0.1, 0.9, (0, 50))


# What the experiments measure.


def test_the_valley_s_gradient():
    at = torch.tensor([0.3, -0.7], dtype=torch.float64, requires_grad=True)
    x, y = at
    ((1 - x) ** 2 + 10 * (y - x**2) ** 2).backward()
    torch.testing.assert_close(torch.stack(valley(*at.detach())), at.grad)


def test_turns_are_counted_on_every_coordinate_and_tremor_is_not():
    t = np.linspace(0, 4 * np.pi, 1000)
    assert turns(np.stack([np.cos(t), t])) == 3
    assert turns(np.stack([np.cos(t), np.sin(t)])) == 7
    assert turns(np.stack([t, t + 1e-6 * np.cos(50 * t)])) == 0


def test_a_path_from_rest_leaves_with_velocity_minus_beta_gradient():
    x0 = torch.from_numpy(np.stack([start(0), start(1)]))
    path = euler(x0, [1 - 0.5 * 0.9, 0.0], 0.5, 0.9, 1e-6, 1e-6, 1)
    torch.testing.assert_close((path[0, 0] - x0) / 1e-6, -0.9 * torch.stack(valley(*x0.T), 1), rtol=1e-8, atol=1e-8)


def test_arms_are_what_they_are_called():
    w = [torch.ones(2, requires_grad=True)]
    opt = optimizer("innaprop-2-0.5-copy", w, 0.1, 0.3)
    assert isinstance(opt, INNAprop)
    assert {k: opt.defaults[k] for k in ("lr", "alpha", "beta", "weight_decay")} == {
        "lr": 0.1, "alpha": 2.0, "beta": 0.5, "weight_decay": 0.3
    }  # fmt: skip
    assert isinstance(optimizer("adamw-copy", w, 0.1, 0.3), torch.optim.AdamW)
    with pytest.raises(ValueError, match="sgd"):
        optimizer("sgd", w, 0.1, 0.0)


def test_a_copy_starts_elsewhere_and_the_arms_together():
    problem = PROBLEMS["digits-mlp"]
    recipe = {"problem": problem, "data": problem.load("cpu"), "epochs": 1, "batch_size": 64, "weight_decay": 0.0}
    a, copy, b = (train(arm, 1e-9, 0, **recipe).rows[0]["loss"] for arm in ("adamw", "adamw-copy", "innaprop-1-1"))
    assert a == pytest.approx(b, rel=1e-5)
    assert abs(a - copy) > 1e-3


@pytest.mark.parametrize("arm", ["adamw", "adamw-copy", "innaprop-0.1-0.9"])
def test_seeds_side_by_side_are_those_of_each_alone(arm):
    problem = PROBLEMS["digits-mlp"]
    recipe = {"problem": problem, "data": problem.load("cpu"), "epochs": 3, "batch_size": 64, "weight_decay": 0.1}
    together = train_seeds(arm, 0.03, (0, 1, 2), **recipe, every=1)
    for seed, found in enumerate(together):
        alone = train(arm, 0.03, seed, **recipe, every=1)
        assert found.steps == alone.steps
        for name in ("train_accuracy", "test_accuracy"):
            assert found.column(name) == alone.column(name)
        assert "loss" not in found.rows[0]  # this one was not trained alone
    assert together[0].rows != together[1].rows


def test_one_that_diverges_leaves_the_others_alone():
    problem = PROBLEMS["digits-mlp"]
    recipe = {"problem": problem, "data": problem.load("cpu"), "epochs": 1, "batch_size": 64, "weight_decay": 0.0}
    assert [h.diverged for h in train_seeds("adamw", float("inf"), (0, 1), **recipe, every=1)] == [True, True]


def test_tuning_takes_the_best_sum_and_one_choice_needs_none():
    assert tuned([1.0, 2.0, 3.0], 2, lambda lr, seed: (-abs(lr - 2), 0.0)) == 2.0
    assert tuned([5.0], 1, lambda lr, seed: 1 / 0) == 5.0


def test_vgg11_has_eight_convolutions_of_the_published_widths():
    net = vgg11(width=4, generator=seeded())
    widths = [m.out_channels for m in net if isinstance(m, nn.Conv2d)]
    assert widths == [4, 8, 16, 16, 32, 32, 32, 32]
    assert net(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
