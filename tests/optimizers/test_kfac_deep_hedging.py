"""Heston's market against closed forms, hedging by hand, and K-FAC against dense algebra."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

from draws import normal, seeded
from secondlook.optimizers import KFAC, HedgingLSTM, hedge_pnl, simulate_heston
from secondlook.optimizers.kfac_deep_hedging import Heston, banded, black_scholes_delta, call_price, experiment
from secondlook.optimizers.kfac_deep_hedging.policy import side_by_side
from secondlook.problems.training import fit, minibatches

FLAT = Heston(xi=1e-9, theta=0.04, variance=0.04)  # Black and Scholes' market


def black_scholes(spot: float, strike: float, deviation: float) -> float:
    def cdf(x: float) -> float:
        return 0.5 * math.erfc(-x / math.sqrt(2))

    d1 = math.log(spot / strike) / deviation + deviation / 2
    return spot * cdf(d1) - strike * cdf(d1 - deviation)


# ----------------------------------------------------------------------------------------- the market


@pytest.mark.parametrize("strike", [90.0, 100.0, 115.0])
def test_price_without_vol_of_vol_is_black_and_scholes(strike):
    expected = black_scholes(100, strike, 0.2 * math.sqrt(FLAT.maturity))
    assert call_price(Heston(xi=1e-3, rho=0.0), strike) == pytest.approx(expected, abs=1e-5)


def test_price_is_the_mean_payoff_of_simulated_paths():
    market = Heston()
    S, V = simulate_heston(60_000, 30, market, seed=0)
    assert (V >= 0).all()
    for strike in (95.0, 100.0, 105.0):
        payoff = (S[:, -1] - strike).clamp_min(0).double()
        error = float(payoff.mean()) - call_price(market, strike)
        assert abs(error) < 3 * float(payoff.std()) / math.sqrt(len(payoff))


def test_moments_of_the_paths():
    """E S is constant without drift; E V relaxes to theta exponentially."""
    market = Heston(variance=0.09, kappa=5.0, maturity=0.5)
    S, V = simulate_heston(30_000, 50, market, seed=1)
    assert abs(float(S[:, -1].mean()) - 100) < 3 * float(S[:, -1].std()) / math.sqrt(len(S))
    expected = 0.04 + 0.05 * math.exp(-5.0 * 0.5)
    assert float(V[:, -1].mean()) == pytest.approx(expected, rel=0.02)
    again, other = simulate_heston(100, 10, market, seed=1), simulate_heston(100, 10, market, seed=2)
    assert torch.equal(again[0], simulate_heston(100, 10, market, seed=1)[0])
    assert not torch.equal(again[0], other[0])


def test_discrete_delta_hedge_has_the_known_error():
    """Without costs: mean 0, and a deviation of sqrt(pi / 4N) vega sigma within 5% (Kamal and Derman 1999)."""
    n, paths = 50, 20_000
    S, V = simulate_heston(paths, n, FLAT, seed=2)
    premium = black_scholes(100, 100, 0.2 * math.sqrt(FLAT.maturity))
    pnl, costs = hedge_pnl(S, black_scholes_delta(S, V, 100.0, FLAT.maturity), 100.0, premium, 0.0)
    deviation = 0.2 * math.sqrt(FLAT.maturity)
    vega_sigma = 100 * math.exp(-(deviation**2) / 8) / math.sqrt(2 * math.pi) * deviation
    assert abs(float(pnl.mean())) < 3 * float(pnl.std()) / math.sqrt(paths)
    assert float(pnl.std()) == pytest.approx(math.sqrt(math.pi / (4 * n)) * vega_sigma, rel=0.05)
    assert not costs.any()


def test_profit_and_costs_by_hand():
    S = torch.tensor([[100.0, 110.0, 105.0]])
    pnl, costs = hedge_pnl(S, torch.tensor([[0.5, -0.2]]), 100.0, 2.0, 0.01)
    assert costs.item() == pytest.approx(0.01 * (0.5 * 100 + 0.7 * 110 + 0.2 * 105))
    assert pnl.item() == pytest.approx(2 - 5 + 0.5 * 10 + 0.2 * 5 - costs.item(), rel=1e-6)


def test_band_moves_no_further_than_needed():
    held = banded(torch.tensor([[0.5, 0.55, 0.7, 0.3]]), 0.1)
    torch.testing.assert_close(held, torch.tensor([[0.4, 0.45, 0.6, 0.4]]))
    S, V = simulate_heston(50, 8, Heston(), seed=0)
    target = black_scholes_delta(S, V, 100.0, Heston().maturity)
    assert torch.equal(banded(target, 0.0), target)


# ----------------------------------------------------------------------------------------- the policy


def test_policy_is_the_lstm_of_torch():
    """One layer, positions fed back by hand: the same gates as nn.LSTMCell, whose order is write, keep, new, read."""
    model = HedgingLSTM.seeded(5, 1, seeded())
    S, V = simulate_heston(7, 6, Heston(), seed=3)
    cell = nn.LSTMCell(4, 5)
    order = torch.cat([torch.arange(5, 10), torch.arange(5), torch.arange(15, 20), torch.arange(10, 15)])
    with torch.no_grad():
        cell.weight_ih.copy_(model.inputs[0].weight[order])
        cell.weight_hh.copy_(model.recurrent[0].weight[order])
        cell.bias_ih.copy_(model.inputs[0].bias[order])
        cell.bias_hh.zero_()
        position, state, expected = torch.zeros(7, 1), None, []
        for k in range(6):
            log, vol, left = (
                10 * (S[:, k : k + 1] / 100).log(),
                10 * V[:, k : k + 1].sqrt(),
                torch.full((7, 1), 1 - k / 6),
            )
            state = cell(torch.cat([log, vol, left, position], 1), state)
            position = model.head(state[0]).tanh()
            expected.append(position)
        torch.testing.assert_close(model(S, V, 100.0), torch.cat(expected, 1), rtol=0, atol=1e-6)


def test_policy_does_not_look_ahead():
    model = HedgingLSTM.seeded(4, 2, seeded())
    S, V = simulate_heston(5, 8, Heston(), seed=4)
    later, V2 = S.clone(), V.clone()
    later[:, 5:] *= 1.1
    V2[:, 5:] *= 2
    a, b = model(S, V, 100.0), model(later, V2, 100.0)
    assert torch.equal(a[:, :5], b[:, :5])
    assert not torch.equal(a[:, 5], b[:, 5])


def test_policies_side_by_side_train_as_alone():
    """Positions of two policies, and Adam's runs with two rates and three seeds."""
    paths = {part: simulate_heston(40, 4, Heston(), seed=i) for i, part in enumerate(("train", "val"))}
    models = [HedgingLSTM.seeded(5, 2, seeded(i)) for i in range(2)]
    S, V = (torch.stack(part) for part in zip(*paths.values(), strict=True))
    for i, positions in enumerate(side_by_side(models, S, V, 100.0)):
        torch.testing.assert_close(positions, models[i](S[i], V[i], 100.0))
    desk = experiment.Desk(paths, 2.7, 0.005, 5, 1, 8, 10, 2)
    options, seeds = [{"lr": 0.1}, {"lr": 0.02}, {"lr": 0.1}], [0, 1, 2]
    many = desk.train("adam", options, seeds)
    for (model, history), option, seed in zip(many, options, seeds, strict=True):
        ((alone, own),) = desk.train("adam", [option], [seed])
        assert history.column("step") == own.column("step") == [2, 4, 6, 8, 10]
        np.testing.assert_allclose(history.column("objective"), own.column("objective"), rtol=1e-4)
        torch.testing.assert_close(model(S[0], V[0], 100.0), alone(S[0], V[0], 100.0), rtol=0, atol=1e-4)


def test_trained_policy_finds_the_delta_and_does_not_beat_it():
    """Black and Scholes' market without costs: the delta is optimal, K-FAC has to find it and cannot do better."""
    S, V = simulate_heston(12_000, 5, FLAT, seed=5)
    premium = black_scholes(100, 100, 0.2 * math.sqrt(FLAT.maturity))
    desk = experiment.Desk({}, premium, 0.0, 12, 1, 128, 200, 200)
    model = HedgingLSTM.seeded(12, 1, seeded(1))
    batches = minibatches(S[:8000], V[:8000], 128, seeded(2))
    fit(model, KFAC(model, 0.03, 0.01), batches, desk.loss, steps=200)
    test = S[8000:], V[8000:]
    with torch.no_grad():
        held = model(*test, 100.0)
    delta = black_scholes_delta(*test, 100.0, FLAT.maturity)
    assert np.corrcoef(held.flatten().numpy(), delta.flatten().numpy())[0, 1] > 0.99
    ours, theirs = (float(desk.pnl(x, test)[0].var()) for x in (held, delta))
    assert ours > theirs * (1 - 3 * math.sqrt(2 / 4000))


# ----------------------------------------------------------------------------------------- K-FAC


def stepped(model: nn.Module, x: torch.Tensor, weights: torch.Tensor, **options: float) -> KFAC:
    optimizer = KFAC(model, **options)
    (model(x) * weights).sum(-1).mean().backward()
    optimizer.step()
    return optimizer


def test_factors_of_one_example_are_the_exact_covariance_of_its_gradient():
    layer = nn.Linear(3, 2).double()
    x, w = normal(1, 3), normal(1, 2, seed=1)
    optimizer = stepped(layer, x, w, lr=0.0)
    state = optimizer.state[layer.weight]
    gradient = torch.cat([layer.weight.grad, layer.bias.grad[:, None]], 1).flatten()
    kron = torch.kron(state["G"], state["A"])
    torch.testing.assert_close(kron, torch.outer(gradient, gradient), rtol=0, atol=1e-12)


def test_factors_are_mean_and_sum_over_uses():
    """A layer used three times on a batch of four, factors written out with loops."""
    layer, x = nn.Linear(2, 2, bias=False).double(), normal(4, 2)
    optimizer = KFAC(layer, lr=0.0)
    seen, z = [x], x
    outputs = []
    for _ in range(3):
        z = layer(z)
        z.retain_grad()
        outputs.append(z)
        z = z.tanh()
        seen.append(z)
    z.square().sum(1).mean().backward()
    optimizer.step()
    A = sum(torch.outer(a, a) for use in seen[:3] for a in use.detach()) / 12
    G = sum(torch.outer(4 * s, 4 * s) for z in outputs for s in z.grad) / 4
    state = optimizer.state[layer.weight]
    torch.testing.assert_close(state["A"], A, rtol=0, atol=1e-14)
    torch.testing.assert_close(state["G"], G, rtol=0, atol=1e-14)


def test_step_is_the_formula():
    layer = nn.Linear(3, 2).double()
    before = torch.cat([layer.weight, layer.bias[:, None]], 1).detach().clone()
    x, w = normal(6, 3), normal(6, 2, seed=1)
    lam, lr, clip = 0.02, 0.5, 1e-3
    optimizer = stepped(layer, x, w, lr=lr, damping=lam, kl_clip=clip)
    state = optimizer.state[layer.weight]
    A, G = state["A"].numpy(), state["G"].numpy()
    pi = math.sqrt(np.trace(A) / 4 / (np.trace(G) / 2))
    W = torch.cat([layer.weight.grad, layer.bias.grad[:, None]], 1).numpy()
    U = np.linalg.inv(G + math.sqrt(lam) / pi * np.eye(2)) @ W @ np.linalg.inv(A + pi * math.sqrt(lam) * np.eye(4))
    scale = min(1.0, math.sqrt(clip / (lr**2 * (U * W).sum())))
    assert scale < 1
    after = torch.cat([layer.weight, layer.bias[:, None]], 1).detach()
    np.testing.assert_allclose((before - after).numpy(), lr * scale * U, rtol=0, atol=1e-13)


@pytest.mark.parametrize("damping", [1e8, 1e-3])
def test_large_damping_leaves_the_direction_of_the_gradient(damping):
    model = HedgingLSTM.seeded(6, 1, seeded()).double()
    S, V = (x.double() for x in simulate_heston(32, 5, Heston(), seed=0))
    before = nn.utils.parameters_to_vector(model.parameters()).detach().clone()
    optimizer = KFAC(model, 1.0, damping, kl_clip=math.inf)
    hedge_pnl(S, model(S, V, 100.0), 100.0, 2.7, 0.005)[0].square().mean().backward()
    gradient = torch.cat([p.grad.flatten() for p in model.parameters()])
    optimizer.step()
    moved = before - nn.utils.parameters_to_vector(model.parameters()).detach()
    cosine = float(torch.cosine_similarity(moved, gradient, dim=0))
    assert (cosine > 0.9999) is (damping > 1)


def walk(model: nn.Module, optimizer: KFAC, steps: int) -> None:
    S, V = simulate_heston(32, 4, Heston(), seed=7)
    for _ in range(steps):
        optimizer.zero_grad()
        hedge_pnl(S, model(S, V, 100.0), 100.0, 2.7, 0.005)[0].square().mean().backward()
        optimizer.step()


def test_state_continues_bit_for_bit():
    model = HedgingLSTM.seeded(4, 1, seeded())
    optimizer = KFAC(model, 0.03, every=2)
    walk(model, optimizer, 3)
    other = HedgingLSTM.seeded(4, 1, seeded(1))
    other.load_state_dict(model.state_dict())
    resumed = KFAC(other, 0.03, every=2)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    walk(model, optimizer, 3)
    walk(other, resumed, 3)
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(p, q)


def test_wrong_use_is_named():
    model = nn.Linear(2, 1)
    for name, value in (
        ("lr", -1), ("damping", 0), ("momentum", 1.0), ("decay", 1.0), ("kl_clip", 0), ("every", 0),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=name):
            KFAC(model, **{name: value})


def test_a_convolution_is_a_layer_used_at_every_position():
    """Patches of a kernel that does not overlap are the inputs of a linear layer."""
    torch.manual_seed(0)
    conv, x, w = nn.Conv2d(2, 3, 2, stride=2).double(), normal(5, 2, 4, 4), normal(5, 3, 2, 2, seed=1)
    linear = nn.Linear(8, 3).double()
    linear.load_state_dict({"weight": conv.weight.detach().flatten(1), "bias": conv.bias.detach()})
    patches = x.unfold(2, 2, 2).unfold(3, 2, 2).permute(0, 2, 3, 1, 4, 5).reshape(5, 4, 8)
    ours, theirs = KFAC(conv, lr=0.5), KFAC(linear, lr=0.5)
    (conv(x) * w).sum((1, 2, 3)).mean().backward()
    (linear(patches) * w.flatten(2).mT).sum((1, 2)).mean().backward()
    ours.step(), theirs.step()
    torch.testing.assert_close(conv.weight.flatten(1), linear.weight, rtol=0, atol=1e-13)
    torch.testing.assert_close(conv.bias, linear.bias, rtol=0, atol=1e-13)
