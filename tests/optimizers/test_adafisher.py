"""AdaFisher against squared per-sample gradients, a transcription in NumPy, and momentum's recursion."""

import copy
import pickle
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from draws import normal, seeded
from secondlook.optimizers import AdaFisher, kfac_factor_diagonals
from secondlook.optimizers.adafisher import experiment
from secondlook.problems.training import cross_entropy, fit, minibatches
from toys import assert_resumes, batches, drawn, flat, mlp, train


def convolutional(groups=1, seed=0):
    layers = [nn.Conv2d(2, 4, 3, padding=1, stride=2), nn.BatchNorm2d(4), nn.ReLU(inplace=True)]
    layers += [nn.Conv2d(4, 4, 2, groups=groups, bias=False), nn.Flatten(), nn.LayerNorm(16), nn.Linear(16, 3)]
    return drawn(nn.Sequential(*layers), seed)


# The factors.


def test_one_sample_gives_its_squared_gradient():
    layer, x = drawn(nn.Linear(5, 4)), normal(1, 5)
    out = layer(x)
    loss = out.sin().sum()
    (s,) = torch.autograd.grad(loss, out, retain_graph=True)
    h, s = kfac_factor_diagonals(layer, x, s)
    weight, bias = torch.autograd.grad(loss, [layer.weight, layer.bias])
    torch.testing.assert_close(torch.outer(s, h), torch.cat([weight, bias[:, None]], 1) ** 2, rtol=1e-13, atol=0)


def test_positions_of_a_linear_layer_are_averaged():
    layer, x, d = drawn(nn.Linear(3, 2)), normal(4, 6, 3), normal(4, 6, 2)
    h, s = kfac_factor_diagonals(layer, x, d)
    torch.testing.assert_close(h, torch.cat([(x**2).mean((0, 1)), torch.ones(1, dtype=x.dtype)]))
    torch.testing.assert_close(s, (d**2).mean((0, 1)))


@pytest.mark.parametrize(("groups", "bias", "stride"), [(1, True, 1), (2, True, 2), (2, False, 1)])
def test_patches_of_a_convolution(groups, bias, stride):
    layer = nn.Conv2d(4, 6, (3, 2), stride, padding=1, groups=groups, bias=bias).double()
    x = normal(3, 4, 5, 5)
    d = normal(*layer(x).shape, seed=1)
    h, s = kfac_factor_diagonals(layer, x, d)
    size, padded = 4 // groups * 6, np.pad(x.numpy(), ((0, 0), (0, 0), (1, 1), (1, 1)))
    total = np.zeros(size + bias)
    for n in range(3):
        for group in np.split(padded[n], groups):
            for i in range(d.shape[2]):
                for j in range(d.shape[3]):
                    patch = group[:, i * stride : i * stride + 3, j * stride : j * stride + 2].ravel()
                    total += np.append(patch, [1.0] * bias) ** 2
    np.testing.assert_allclose(h, total / (3 * d[0, 0].numel() * size), rtol=1e-12)
    if bias:
        assert h[-1] == pytest.approx(groups / size)
    torch.testing.assert_close(s, (d**2).mean((0, 2, 3)))


def test_normalisation_layers_have_two_numbers_for_their_inputs():
    x, d = normal(3, 4, 5, 6), normal(3, 4, 5, 6, seed=1)
    h, s = kfac_factor_diagonals(nn.BatchNorm2d(4), x, d)
    torch.testing.assert_close(h, torch.stack([((x.sum((0, 2, 3)) / 900) ** 2).sum(), torch.tensor(4.0)]).double() / 9)
    torch.testing.assert_close(s, d.sum((0, 2, 3)) ** 2 / 3)
    x, d = x.flatten(2), d.flatten(2)  # [batch, 4 positions, 30 features]
    h, s = kfac_factor_diagonals(nn.LayerNorm(30), x, d)
    torch.testing.assert_close(h, torch.stack([((x.sum((0, 2)) / 900) ** 2).sum(), torch.tensor(4.0)]).double() / 9)
    torch.testing.assert_close(s, d.sum((0, 1)) ** 2 / 3)
    h, s = kfac_factor_diagonals(nn.LayerNorm(30), x[:, 0], d[:, 0])  # [batch, features]
    torch.testing.assert_close(h, torch.stack([(x[:, 0].sum(0) ** 2).sum(), torch.tensor(30.0)]).double() / 9)
    torch.testing.assert_close(s, d[:, 0].sum(0) ** 2 / 3)


def test_other_layers_have_no_factors():
    with pytest.raises(TypeError, match="Embedding"):
        kfac_factor_diagonals(nn.Embedding(3, 2), normal(2, 3), normal(2, 3))


# The step.


@pytest.mark.parametrize("ema", ["code", "printed"])
def test_a_trajectory_agrees_with_a_transcription(ema):
    """Two linear layers by hand: backward pass, factors, averages and step in NumPy."""
    model, stream, other = mlp(), batches((5,)), batches((5,))
    optimizer = AdaFisher(model, 0.01, every=3, gamma=0.6, damping=0.05, weight_decay=0.1, ema=ema)
    w = [np.c_[model[i].weight.detach().numpy(), model[i].bias.detach().numpy()] for i in (0, 2)]
    keep, add = (0.06, 0.006) if ema == "code" else (0.94, 0.994)
    m, averages, fisher = [0.0, 0.0], [[1.0, 1.0], [1.0, 1.0]], [None, None]
    for t in range(10):
        x, y = next(other)
        a0 = np.c_[x.numpy(), np.ones(8)]
        a1 = np.c_[np.tanh(a0 @ w[0].T), np.ones(8)]
        p = np.exp(a1 @ w[1].T)
        d1 = (p / p.sum(1, keepdims=True) - np.eye(3)[y]) / 8
        d0 = (d1 @ w[1])[:, :-1] * (1 - a1[:, :-1] ** 2)
        for i, (a, d) in enumerate(((a0, d0), (a1, d1))):
            if t % 3 == 0:
                for j, x in enumerate((a, d)):
                    v = (x**2).mean(0)
                    averages[i][j] = keep * averages[i][j] + add * (v - v.min()) / (v.max() - v.min() + 1e-6)
                fisher[i] = np.outer(averages[i][1], averages[i][0]) + 0.05
            m[i] = 0.9 * m[i] + 0.1 * (d.T @ a + 0.1 * w[i])
            w[i] = w[i] - 0.01 * m[i] / (1 - 0.9 ** (t + 1)) / fisher[i]
    train(optimizer, model, stream, 10)
    for i, layer in enumerate((model[0], model[2])):
        np.testing.assert_allclose(layer.weight.detach(), w[i][:, :-1], rtol=1e-11, atol=1e-13)
        np.testing.assert_allclose(layer.bias.detach(), w[i][:, -1], rtol=1e-11, atol=1e-13)
        assert optimizer.fisher_range()[str(2 * i)] == pytest.approx((fisher[i].min(), fisher[i].max()), rel=1e-12)


@pytest.mark.parametrize("decoupled", [False, True])
def test_without_memory_it_is_momentum_over_the_damping(decoupled):
    """gamma = 0: both averages are zero and F is the damping."""
    model, stream, other = convolutional(2), batches((2, 6, 6)), batches((2, 6, 6))
    twin = copy.deepcopy(model)
    optimizer = AdaFisher(model, 0.002, gamma=0.0, every=1, damping=0.01, weight_decay=0.3, decoupled=decoupled)
    train(optimizer, model, stream, 8)
    params = list(twin.parameters())
    m = [torch.zeros_like(p) for p in params]
    for t in range(8):
        grads = torch.autograd.grad(cross_entropy(twin, next(other)), params)
        with torch.no_grad():
            for p, g, v in zip(params, grads, m, strict=True):
                v.mul_(0.9).add_(g if decoupled else g + 0.3 * p, alpha=0.1)
                p.sub_(0.002 * v / 0.01 / (1 - 0.9 ** (t + 1)) + (0.002 * 0.3 * p if decoupled else 0))
    torch.testing.assert_close(flat(model), flat(twin), rtol=1e-12, atol=1e-12)


def test_every_parameter_is_updated():
    """Also those behind modules without factors, with F = 1: a PReLU here."""
    model = drawn(nn.Sequential(nn.Linear(5, 4), nn.PReLU(), nn.Linear(4, 3)))
    before = [p.detach().clone() for p in model.parameters()]
    optimizer = AdaFisher(model, 0.1)
    train(optimizer, model, batches((5,)), 1)
    grad = model[1].weight.grad
    torch.testing.assert_close(before[2] - model[1].weight, 0.1 * grad)
    assert not any(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert set(optimizer.fisher_range()) == {"0", "2"}


def test_the_ablation_has_one_number_a_layer_and_the_same_mean():
    ranges, means = [], []
    for scalar in (False, True):
        model = convolutional()
        optimizer = AdaFisher(model, 1e-3, ema="printed", scalar=scalar)
        train(optimizer, model, batches((2, 6, 6)), 1)
        ranges.append(optimizer.fisher_range())
        states = [optimizer.state[p]["fisher"].flatten() for p in model[0].parameters()]
        means.append(torch.cat(states).mean())
    assert all(high > 1.5 * low for low, high in ranges[0].values())
    assert all(high == low for low, high in ranges[1].values())
    torch.testing.assert_close(*means)


def test_released_constants_leave_a_range_of_eight_percent():
    """k = 0.08, c = 0.008: the averages end below 0.008 / 0.92, and the damping is 1e-3."""
    model = mlp()
    optimizer = AdaFisher(model, 1e-3, every=1)
    train(optimizer, model, batches((5,)), 1)
    for low, high in optimizer.fisher_range().values():
        assert 0.0064 + 1e-3 <= low <= high <= 0.088**2 + 1e-3
    train(optimizer, model, batches((5,)), 20)
    for low, high in optimizer.fisher_range().values():
        assert 1e-3 <= low <= high <= 1e-3 + (0.008 / 0.92) ** 2 + 1e-12


# What a loop may do.


def test_what_layers_show_between_steps_adds_up_as_gradients_do():
    """Two passes before a step are averaged in one after the other; passes that are cleared, or in vain, are not."""
    model, (x, y) = mlp(), next(batches((5,)))
    optimizer = AdaFisher(model, 0.0, every=1)
    cross_entropy(model, (x + 3, y)).backward()
    optimizer.zero_grad()
    model(x)
    with torch.no_grad():
        model(x)
    for part in (slice(0, 4), slice(4, 8)):
        cross_entropy(model, (x[part], y[part])).backward()
    optimizer.step()
    expected = torch.ones(6, dtype=x.dtype)
    for part in (x[:4], x[4:]):
        h = F.pad(part, (0, 1), value=1.0).square().mean(0)
        expected = 0.08 * expected + 0.008 * (h - h.min()) / (h.max() - h.min() + 1e-6)
    torch.testing.assert_close(optimizer.state[model[0].weight]["inputs"], expected)


def test_a_resumed_run_continues_bit_for_bit(tmp_path):
    assert_resumes(partial(AdaFisher, every=2), convolutional(), convolutional(seed=3), tmp_path / "run.pt")


def test_copies_work_and_hooks_can_be_taken_off():
    model = mlp()
    optimizer = AdaFisher(model, every=1)
    train(optimizer, model, batches((5,)), 1)
    for twin in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        net = nn.Sequential(twin.layers["0"], nn.Tanh(), twin.layers["2"])
        before = twin.state[net[0].weight]["outputs"].clone()
        train(twin, net, batches((5,)), 2)
        assert not torch.equal(twin.state[net[0].weight]["outputs"], before)
    lone = copy.deepcopy(model)  # its hooks keep nothing
    cross_entropy(lone, next(batches((5,)))).backward()
    assert not optimizer._hooks.uses
    optimizer.remove()
    cross_entropy(model, next(batches((5,)))).backward()
    assert not optimizer._hooks.uses


def test_frozen_weights_count_as_unsupported():
    model = mlp()
    model[0].weight.requires_grad_(False)
    optimizer = AdaFisher(model, 0.1)
    train(optimizer, model, batches((5,)), 1)
    assert (optimizer.state[model[0].bias]["fisher"] == 1).all()
    assert len(optimizer.state_dict()["state"]) == 3


# The experiment's own instruments.


def test_the_matched_schedule_is_adafisher_where_nothing_is_seen():
    """The constants alone, without what layers show: heavy ball with a schedule."""
    problem = experiment.PROBLEMS["digits-mlp"]
    model = problem.model(generator=seeded())
    twin = copy.deepcopy(model)
    optimizer = AdaFisher(model, 1e-3, every=2)
    optimizer.add = 0.0  # N(H) = N(S) = 0
    setting = experiment.Setting(problem, problem.load("cpu"), 1, 64, 2)
    heavy_ball = torch.optim.SGD(twin.parameters(), 1e-3, momentum=0.9)
    for opt, net in ((optimizer, model), (heavy_ball, twin)):
        schedule = None if opt is optimizer else lambda step: experiment.matched(step, 2)
        data = minibatches(*setting.data.train, 64, seeded(1))
        fit(net, opt, data, cross_entropy, steps=7, schedule=schedule)
    torch.testing.assert_close(flat(model), flat(twin), rtol=1e-4, atol=1e-6)


def test_eigenvalues_that_count_are_those_above_the_mean():
    before = torch.diag(torch.tensor([1.0, 2.0, 9.0], dtype=torch.float64))
    after = torch.diag(torch.tensor([3.0, 0.5, 9.9], dtype=torch.float64))
    assert experiment._moved(before, after).item() == pytest.approx(0.1)


def test_arms_share_starts_and_copies_do_not():
    problem = experiment.PROBLEMS["digits-mlp"]
    setting = experiment.Setting(problem, problem.load("cpu"), 1, 256, 100)
    ends = {arm: setting.train(arm, 0.0, 0)[0].last("val_loss") for arm in ("adam", "adafisher", "adam-copy")}
    assert ends["adam"] == ends["adafisher"] != ends["adam-copy"]
    assert setting.train("adafisher", 1e-3, 0)[0].rows == setting.train("adafisher", 1e-3, 0)[0].rows
    with pytest.raises(ValueError, match="no arm 'lion'"):
        setting.train("lion", 0.1, 0)
