"""Sharpness along training against dense Hessians: certificates, crossings, cost, and a model left as it was."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from draws import seeded
from secondlook.curvature import (
    HessianOperator,
    SharpnessTracker,
    adam_diagonal,
    certify,
    eigsh,
    pack,
)
from toys import drawn

N, D, C = 50, 6, 3


def filled(model, seed=1):
    return drawn(model, seed, scale=0.5)


def net(width=8, seed=1):
    return filled(
        nn.Sequential(nn.Linear(D, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, C)), seed
    )


def points(seed=2):
    generator = seeded(seed)
    x = torch.randn(N, D, generator=generator, dtype=torch.float64)
    return x, torch.randint(0, C, (N,), generator=generator)


def dense(model, data):
    return HessianOperator(model, F.cross_entropy, data).dense()


def train(model, data, optimizer, steps, look):
    """`steps` steps on all points; `look(step)` before each."""
    x, y = data
    for step in range(steps):
        look(step)
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()


class Bowl(nn.Module):
    """A quadratic whose Hessian is diagonal, and can be changed at will."""

    def __init__(self, curvatures):
        super().__init__()
        self.at = nn.Parameter(torch.zeros_like(curvatures))
        self.curvatures = curvatures

    def forward(self, x):
        return (self.curvatures * self.at.square()).sum() / 2 + 0 * x


def height(outputs, targets):
    return outputs.mean()


NOWHERE = (torch.zeros(1).double(), torch.zeros(1).double())


@pytest.mark.parametrize("top", [1, 3])
def test_certificates_hold_at_every_step_of_a_training_run(top):
    model, data, lr = net(), points(), 0.8
    tracker = SharpnessTracker(model, "cross_entropy", data, top=top, every=5, tol=1e-4)
    truth = {}

    def look(step):
        if tracker.step(step, lr=lr):
            truth[step] = torch.linalg.eigvalsh(dense(model, data)).flip(0)[:top].tolist()

    train(model, data, torch.optim.SGD(model.parameters(), lr=lr), 41, look)
    assert [m.step for m in tracker.measurements] == list(range(0, 41, 5))
    sharpest = [values[0] for values in truth.values()]
    assert max(sharpest) > 1.5 * min(sharpest)  # a run on which there is something to follow
    for m in tracker.measurements:
        assert m.converged
        assert m.limit == pytest.approx(2.5)
        for e, exact in zip(m.eigenvalues, truth[m.step], strict=True):
            assert e.low <= exact <= e.high
            assert e.value == pytest.approx(exact, rel=1e-3)
            assert e.high - e.low < 3e-3 * sharpest[0] + 1e-2 * exact


@pytest.mark.parametrize("top", [1, 3])
def test_a_warm_start_costs_fewer_products_than_a_cold_one(top):
    model, data = net(width=20), points()
    tracker = SharpnessTracker(model, "cross_entropy", data, top=top, every=4, tol=1e-5)
    cold = []

    def look(step):
        if tracker.step(step):
            H = HessianOperator(model, F.cross_entropy, data)
            cold.append(certify(H, eigsh(H, top, tol=1e-5, generator=seeded(step))).products)

    train(model, data, torch.optim.SGD(model.parameters(), lr=0.3), 33, look)
    warm = [m.products for m in tracker.measurements]
    assert sum(warm[1:]) < 0.95 * sum(cold[1:])
    assert tracker.products == sum(warm)


@pytest.mark.parametrize("seed", range(10))
def test_a_direction_that_overtakes_from_nowhere_is_not_missed(seed):
    """The new sharpest direction is orthogonal to all that was found before, so a warm start alone cannot see it."""
    n = 2000
    curvatures = torch.rand(n, generator=seeded(seed), dtype=torch.float64)
    curvatures[:3] = torch.tensor([10.0, 6.0, 3.0]).double()
    model = Bowl(curvatures)
    tracker = SharpnessTracker(model, height, NOWHERE, generator=seeded(seed))
    assert tracker.step(0).eigenvalues[0].value == pytest.approx(10, rel=1e-3)
    curvatures[7] = 11.0
    fooled = eigsh(tracker.operator(), tol=1e-3, start=torch.eye(n).double()[:, :1], max_products=50)
    assert float(fooled.values[0]) == pytest.approx(10)
    found = tracker.step(1).eigenvalues[0]
    assert found.low <= 11 <= found.high
    assert found.value == pytest.approx(11, rel=1e-3)


def test_the_second_of_two_overtakes_and_falls_back():
    curvatures = torch.linspace(-1, 1, 300).double()
    model = Bowl(curvatures)
    tracker = SharpnessTracker(model, height, NOWHERE)
    for step, second in enumerate(torch.linspace(3, 7, 21).tolist() + torch.linspace(7, 3, 21).tolist()):
        curvatures[5], curvatures[9] = 5.0, second
        assert tracker.step(step).eigenvalues[0].value == pytest.approx(max(5, second), rel=1e-3)


@pytest.mark.parametrize("mode", ["keep", "eval"])
def test_a_model_is_left_exactly_as_it_was(mode):
    model = filled(nn.Sequential(nn.Linear(D, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, C)))
    data = points()
    F.cross_entropy(model(data[0]), data[1]).backward()
    model[0].bias.requires_grad_(False)
    model[3].eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    gradients = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    random = torch.random.get_rng_state()
    found = SharpnessTracker(model, F.cross_entropy, data, mode=mode, top=2, tol=1e-6).step(0)
    assert torch.equal(torch.random.get_rng_state(), random)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    for p, g in zip(model.parameters(), gradients, strict=True):
        assert torch.equal(p.grad, g)
    assert [m.training for m in model] == [True, True, True, False]
    assert [p.requires_grad for p in model[0].parameters()] == [True, False]
    model.train(mode == "keep")
    exact = torch.linalg.eigvalsh(dense(model, data)).flip(0)[:2]
    assert [e.value for e in found.eigenvalues] == pytest.approx(exact.tolist(), rel=1e-5)


def test_dropout_in_training_mode_is_refused_and_off_in_evaluation_mode():
    model, data = filled(nn.Sequential(nn.Linear(D, 8), nn.Dropout(0.5), nn.Linear(8, C))), points()
    with pytest.raises(ValueError, match="dropout"):
        SharpnessTracker(model, "cross_entropy", data).step(0)
    found = SharpnessTracker(model, "cross_entropy", data, mode="eval", tol=1e-6).step(0)
    assert model.training
    exact = torch.linalg.eigvalsh(dense(model.eval(), data))[-1]
    assert found.eigenvalues[0].value == pytest.approx(float(exact), rel=1e-5)


def test_preconditioned_sharpness_of_adam():
    model, data = net(), points()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01, betas=(0.0, 0.9), eps=1e-3)
    tracker = SharpnessTracker(model, "cross_entropy", data, precondition=adam_diagonal(optimizer), tol=1e-6)
    with pytest.raises(ValueError, match="taken a step"):
        tracker.step(0)
    before, steps = [], []

    def look(step):
        before.append(pack(model.parameters()).detach().clone())
        if step and tracker.step(step):
            scale = pack(adam_diagonal(optimizer)(list(model.parameters()))).rsqrt()
            exact = torch.linalg.eigvalsh(scale[:, None] * dense(model, data) * scale)[-1]
            assert tracker.measurements[-1].eigenvalues[0].value == pytest.approx(float(exact), rel=1e-4)
            # without averaging of gradients, D is what Adam has just divided the gradient by
            gradient = pack([p.grad for p in model.parameters()])
            steps.append((before[-2] - before[-1]) / (0.01 * gradient * scale.square()))

    train(model, data, optimizer, 4, look)
    assert len(steps) == 3
    torch.testing.assert_close(torch.stack(steps), torch.ones(3, len(steps[0])).double(), rtol=1e-7, atol=1e-7)


def test_both_ends_and_the_condition_number():
    model, data = filled(nn.Linear(D, 1)), points()
    x, y = data[0], data[1].double().unsqueeze(1)
    both = SharpnessTracker(model, "mse", (x, y), smallest=True, tol=1e-8, matrix="ggn").step(0)
    exact = torch.linalg.eigvalsh(HessianOperator(model, F.mse_loss, (x, y)).dense())
    assert both.smallest.low <= exact[0] <= both.smallest.high
    assert both.condition == pytest.approx(float(exact[-1] / exact[0]), rel=1e-6)
    model = net()
    indefinite = SharpnessTracker(model, "cross_entropy", data, smallest=True).step(0)
    assert indefinite.smallest.low <= torch.linalg.eigvalsh(dense(model, data))[0] <= indefinite.smallest.high
    assert indefinite.smallest.value < 0
    assert indefinite.condition == math.inf
    assert math.isnan(SharpnessTracker(model, "cross_entropy", data).step(0).condition)


def test_the_table_has_a_row_for_each_eigenvalue():
    tracker = SharpnessTracker(net(), "cross_entropy", points(), top=2, every=5, smallest=True)
    assert [tracker.step(step, lr=0.5) is not None for step in range(6)] == [True, False, False, False, False, True]
    table = tracker.table()
    assert list(table["step"]) == [0, 0, 0, 5, 5, 5]
    assert list(table["end"]) == ["largest", "largest", "smallest"] * 2
    assert list(table["rank"]) == [1, 2, 1] * 2
    assert (table["low"] <= table["eigenvalue"]).all()
    assert (table["limit"] == 4).all()
    assert math.isnan(SharpnessTracker(net(), "cross_entropy", points()).step(0).limit)


def test_all_of_a_tiny_matrix_and_what_cannot_be_measured():
    tiny = filled(nn.Linear(2, 1))
    x = torch.randn(20, 2, generator=seeded(), dtype=torch.float64)
    found = SharpnessTracker(tiny, "mse", (x, x[:, :1]), top=3).step(0)
    exact = torch.linalg.eigvalsh(HessianOperator(tiny, F.mse_loss, (x, x[:, :1])).dense()).flip(0)
    assert [e.value for e in found.eigenvalues] == pytest.approx(exact.tolist(), rel=1e-9)
    with torch.no_grad():
        tiny.weight.fill_(math.nan)
    with pytest.raises(ValueError, match="diverged"):
        SharpnessTracker(tiny, "cross_entropy", (x, torch.zeros(20, 1).double())).step(0)
    for message, options in {
        "'hessian' or 'ggn'": {"matrix": "fisher"},
        "at least 1": {"top": 0},
        "in the shape of each": {"precondition": lambda params: params[:1]},
        "positive and finite": {"precondition": lambda params: [0 * torch.ones_like(p) for p in params]},
    }.items():
        with pytest.raises(ValueError, match=message):
            SharpnessTracker(net(), "cross_entropy", points(), **options).step(0)
