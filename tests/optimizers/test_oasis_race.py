"""The instruments of OASIS's experiments: objectives, first-order rules, tuning and the count of evaluations."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn

from secondlook.optimizers import oasis_minimize
from secondlook.optimizers.oasis import experiment
from secondlook.optimizers.oasis.objectives import Objective, descend, lbfgs_values
from secondlook.optimizers.oasis.race import Race, Trace


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def small_objective(loss="logistic", n=40, d=5):
    x = normal(n, d, seed=1)
    return Objective(x, (x @ normal(d, seed=2) + normal(n, seed=3) > 0).double(), loss, 1 / n)


@pytest.mark.parametrize("loss", ["logistic", "squares"])
def test_derivatives_are_those_of_the_value(loss):
    o, w, v = small_objective(loss), normal(5, seed=7), normal(5, seed=8)
    torch.testing.assert_close(o.gradient(w), torch.func.grad(lambda w: o.value(w))(w), rtol=0, atol=1e-12)
    hessian = torch.func.hessian(lambda w: o.value(w))(w)
    torch.testing.assert_close(o.product(w, v), hessian @ v, rtol=0, atol=1e-12)
    assert torch.linalg.eigvalsh(hessian)[-1] <= o.smoothness
    columns = torch.stack([w, v], 1)
    torch.testing.assert_close(o.value(columns)[1], o.value(v))
    torch.testing.assert_close(o.gradient(columns)[:, 0], o.gradient(w))


def test_optimum_is_stationary_and_least():
    o = small_objective()
    values = lbfgs_values(o, normal(5), 500)
    assert 0 <= values[-1] - o.optimum < 1e-12
    assert all(a >= b for a, b in itertools.pairwise(values))


@pytest.mark.parametrize(("rule", "rate"), [("gd", 1.0), ("nesterov", 1.0), ("adam", 0.1), ("adgd", 1e-3)])
def test_every_rule_descends(rule, rate):
    race = Race(small_objective(), 1e-6, 2000)
    for trace in race.first_order(rule, rate, [0, 1]):
        assert 0 < trace.iterations(1e-6, 2000) < 2000
    if rule == "gd":  # Nesterov's method is the faster one
        (faster,) = race.first_order("nesterov", 1.0, [0])
        assert faster.iterations(1e-6, 2000) < race.first_order("gd", 1.0, [0])[0].iterations(1e-6, 2000)


def test_unknown_rule_is_named():
    with pytest.raises(ValueError, match="no rule 'newton'"):
        next(descend(small_objective(), "newton", normal(5, 1), torch.ones(1)))


@pytest.mark.parametrize("loss", ["logistic", "squares"])
def test_starts_run_at_once_go_the_ways_they_go_alone(loss):
    """Same starts, signs, first steps and ends, for OASIS and for AdaHessian."""
    o = small_objective(loss)
    race, etas = Race(o, 1e-4, 200), [1e-4, 1e-2, 1e-1]
    for seed, eta, trace in zip([0, 1, 7], etas, race.oasis([0, 1, 7], etas), strict=True):
        start, signs = race.start(seed), torch.Generator().manual_seed(seed)
        settings = {"max_iter": 200, "tol": 0, "target": float(race.goal(start)), "generator": signs, "eta0": eta}
        alone = oasis_minimize(o.value, o.gradient, o.product, start, **settings)
        assert len(trace.gaps) > 8
        np.testing.assert_allclose(trace.gaps, o.gap(alone.values, start), rtol=1e-6)
        np.testing.assert_allclose(trace.steps, alone.steps, rtol=1e-6)
    together = race.adahessian(0.3, [0, 1, 7])
    assert len({len(trace.gaps) for trace in together}) > 1  # a start that is done keeps its end
    for seed, trace in zip([0, 1, 7], together, strict=True):
        np.testing.assert_allclose(trace.gaps, race.adahessian(0.3, [seed])[0].gaps, rtol=1e-6)


def test_value_and_gradient_come_together():
    o, w = small_objective("squares"), normal(5, 3)
    value, gradient = o.both(w)
    assert torch.equal(value, o.value(w))
    assert torch.equal(gradient, o.gradient(w))
    v = normal(5, 3, seed=1)
    torch.testing.assert_close(o.product(w, v)[:, 2], o.product(w[:, 2], v[:, 2]))


def test_evaluations_count_products_twice_and_the_first_ten():
    trace = Trace(np.array([1.0, 0.5, 0.01]), cost=3, once=20)
    assert trace.evaluations(0.1, limit=50) == 26
    assert trace.evaluations(1e-3, limit=50) == 170
    (found,) = Race(small_objective(), 1e-3, 500).oasis([0])
    assert (found.cost, found.once) == (3, 20)


@pytest.mark.parametrize(("rule", "rates"), [("gd", [0.25, 0.5, 1.0, 2.0, 1000.0]), ("adahessian", [0.03, 0.3, 3.0])])
def test_tuning_finds_the_fastest_rate(rule, rates):
    race = Race(small_objective(), 1e-4, 3000)
    runs = [race.adahessian(r, [5]) if rule == "adahessian" else race.first_order(rule, r, [5]) for r in rates]
    needed = [trace.iterations(race.gap, race.limit) for (trace,) in runs]
    assert race.tuned(rule, rates, 5) == (rates[int(np.argmin(needed))], min(needed))


def test_unknown_arm_is_named():
    with pytest.raises(ValueError, match="no arm 'adamax'"):
        experiment.optimizer("adamax", nn.Linear(1, 1), 0.1, 0)
