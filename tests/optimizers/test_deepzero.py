"""DeepZero's estimates against closed forms, autograd, SciPy and one another."""

import math

import numpy as np
import pytest
import scipy.optimize
import torch
from torch import nn
from torch.nn import functional as F

from draws import normal, seeded
from secondlook.curvature import HessianOperator, numel, pack
from secondlook.optimizers import ZOTrainer, cge, rge, zo_grasp
from secondlook.optimizers.deepzero import burgers, cge_by_layer, experiment, layer_masks
from secondlook.optimizers.deepzero.method import grasp_scores
from secondlook.optimizers.deepzero.networks import MaxPool, small_convnet
from secondlook.optimizers.deepzero.setting import with_estimate
from secondlook.optimizers.deepzero.trainer import frozen_statistics, whole_loss
from secondlook.problems.models import mlp


def net_and_batch(depth=2, rows=6):
    model = small_convnet(depth, 3, (2, 8, 8), 4, seeded()).double()
    for i, p in enumerate(model.parameters()):  # also biases and normalisation away from their constants
        p.data += 0.1 * normal(*p.shape, seed=i)
    return model, (normal(rows, 2, 8, 8), torch.arange(rows) % 4)


def small_problem(width=5):
    model = mlp([6, width, 3], nn.Tanh, seeded()).double()
    x, y = normal(20, 6), torch.arange(20) % 3
    params = [p.detach() for p in model.parameters()]
    return model, (x, y), params, whole_loss(model, F.cross_entropy, (x, y))


# The estimates.


def test_a_linear_loss_has_no_error():
    params, slopes = [normal(3, 2), normal(4, seed=1)], [normal(3, 2, seed=2), normal(4, seed=3)]
    found = cge(lambda ps: sum((p * s).sum() for p, s in zip(ps, slopes, strict=True)), params, chunk=3)
    for a, b in zip(found, slopes, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


def test_a_quadratic_s_error_is_half_mu_times_its_diagonal():
    h = normal(7, 7)
    h, x, mu = h @ h.T, normal(7, seed=1), 5e-3
    (found,) = cge(lambda ps: 0.5 * ps[0] @ h @ ps[0], [x], mu)
    torch.testing.assert_close(found - h @ x, mu / 2 * h.diagonal(), rtol=0, atol=1e-10)


def test_it_equals_scipy_s_differences():
    _, _, params, loss = small_problem()
    shapes = [p.shape for p in params]

    def flat(v):
        parts = np.split(v, np.cumsum([s.numel() for s in shapes])[:-1])
        return float(loss([torch.from_numpy(p).view(s) for p, s in zip(parts, shapes, strict=True)]))

    peer = scipy.optimize.approx_fprime(pack(params).numpy(), flat, 5e-3)
    np.testing.assert_allclose(pack(cge(loss, params)), peer, rtol=0, atol=1e-12)


def test_only_masked_coordinates_are_queried():
    _, _, params, loss = small_problem()
    mask = layer_masks(params, [0.3] * len(params), seeded())
    whole, part = pack(cge(loss, params)), pack(cge(loss, params, mask=mask))
    torch.testing.assert_close(part, torch.where(pack(mask), whole, 0), rtol=0, atol=1e-12)
    assert [int(m.sum()) for m in mask] == [round(0.3 * p.numel()) for p in params]


def test_the_random_estimate_is_unbiased_with_the_variance_of_gaussian_directions():
    slope, draws = normal(9), 100_000
    u = normal(draws, 9, seed=1)
    (found,) = rge(lambda ps: ps[0] @ slope, [normal(9, seed=2)], directions=u, chunk=draws)
    single = (u @ slope)[:, None] * u
    assert ((found - slope).abs() < 4 * single.std(0) / math.sqrt(draws)).all()
    squared = (single - slope).square().sum(1).mean() / slope.square().sum()
    assert squared == pytest.approx(9 + 1, rel=0.05)


def test_directions_drawn_and_handed_in_agree():
    _, _, params, loss = small_problem()
    drawn = rge(loss, params, q=11, generator=seeded(4), chunk=4)
    given = rge(loss, params, directions=normal(11, numel(params), seed=4))
    torch.testing.assert_close(pack(drawn), pack(given), rtol=0, atol=1e-12)


def test_float32_cancels_where_float64_does_not():
    """The pitfall of a tiny mu: rounding of the loss, divided by mu."""
    model, (x, y), params, loss = small_problem()
    exact = pack(torch.autograd.grad(F.cross_entropy(model(x), y), list(model.parameters())))
    single = whole_loss(model, F.cross_entropy, (x.float(), y))
    rough = pack(cge(single, [p.float() for p in params], 1e-6)).double()
    assert experiment.distance(rough, exact) > 100 * experiment.distance(pack(cge(loss, params, 1e-6)), exact)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda loss, p: cge(loss, p, mu=0.0), "mu"),
        (lambda loss, p: cge(loss, p, chunk=0), "chunk"),
        (lambda loss, p: cge(loss, p, mask=[torch.ones(2, dtype=torch.bool)]), "mask"),
        (lambda loss, p: rge(loss, p, q=0, generator=seeded()), "q must"),
        (lambda loss, p: rge(loss, p, q=2), "generator"),
        (lambda loss, p: zo_grasp(loss, p, keep=0.0, generator=seeded()), "keep"),
        (lambda loss, p: zo_grasp(loss, p, 2, generator=seeded()), "two axes"),
        (lambda loss, p: layer_masks(p, [1.5], seeded()), "ratios"),
    ],
)
def test_bad_options_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(lambda ps: ps[0].sum(), [torch.ones(3)])


# Pruning.


def test_scores_approach_the_exact_ones_as_queries_grow():
    model, (x, y), params, loss = small_problem()
    theta = list(model.parameters())
    g = pack(torch.autograd.grad(F.cross_entropy(model(x), y), theta))
    exact = -pack(params) * (HessianOperator(model, F.cross_entropy, (x, y)) @ g)

    def agreement(q):
        ranks = []
        for seed in range(4):
            u = normal(q, len(exact), seed=seed)  # the same directions at both points: their noise cancels
            found = pack(grasp_scores(loss, params, q, 1e-4, (u, u)))
            ranks.append(torch.corrcoef(torch.stack([found, exact]).argsort(1).argsort(1).double())[0, 1])
        return sum(ranks) / 4

    few, some, many = (agreement(q) for q in (20, 200, 20_000))
    assert few < some < many
    assert many > 0.97


def test_kept_weights_come_to_the_share_asked_for():
    _, _, params, loss = small_problem(width=20)
    ratios = zo_grasp(loss, params, 50, keep=0.2, generator=seeded())
    weights = [p.numel() for p in params if p.ndim > 1]
    kept = sum(
        n * r for n, r in zip(weights, (r for p, r in zip(params, ratios, strict=True) if p.ndim > 1), strict=True)
    )
    assert kept == pytest.approx(0.2 * sum(weights), abs=1)
    assert all(r == 1 for p, r in zip(params, ratios, strict=True) if p.ndim == 1)


# Networks and training.


@pytest.mark.parametrize("depth", [1, 2, 3, 4, 5])
def test_parameter_counts_are_the_published_ones(depth):
    assert numel(small_convnet(depth).parameters()) == 730 + 2970 * (depth - 1)


def test_pooling_is_max_pooling():
    x = normal(2, 3, 7, 6)
    assert torch.equal(MaxPool()(x), F.max_pool2d(x, 2))


def test_feature_reuse_changes_nothing_and_saves_work():
    model, batch = net_and_batch()
    params = [p.detach() for p in model.parameters()]
    mask = layer_masks(params, [0.5] * len(params), seeded())
    with frozen_statistics(model):
        for m in (None, mask):
            whole = pack(cge(whole_loss(model, F.cross_entropy, batch), params, mask=m))
            base, found = cge_by_layer(model, F.cross_entropy, batch, mask=m, chunk=7)
            torch.testing.assert_close(pack(found), whole, rtol=0, atol=1e-12)
        assert base == F.cross_entropy(model(batch[0]), batch[1])


def test_work_grows_with_every_layer_that_is_not_reused():
    """One block: a convolution's weight needs the convolution and the linear layer, the linear layer's only itself."""
    convolution, linear, weights, biases = 2 * 32 * 32 * 27 * 18, 2 * 18 * 10, 486, 18
    work = experiment.counted(1, 1, 4096, "meta")
    assert work["cge-whole"] == work["rge"] == 731 * (convolution + linear)
    queries_of_convolution, queries_of_norm, queries_of_linear = weights + biases, 36, 190
    expected = (1 + queries_of_convolution) * (convolution + linear) + (queries_of_norm + queries_of_linear) * linear
    assert work["cge"] == expected


def test_queries_leave_running_statistics_alone_and_a_step_follows_one_batch():
    model, batch = net_and_batch(1)
    twin, _ = net_and_batch(1)
    trainer = ZOTrainer(model, lr=0.0)
    trainer.step(batch)
    twin.train()(batch[0])
    for a, b in zip(model.buffers(), twin.buffers(), strict=True):
        assert torch.equal(a, b)
    assert all(m.track_running_stats for m in model.modules() if isinstance(m, nn.BatchNorm2d))


def test_training_follows_exact_gradients():
    ends = []
    for exact in (True, False):
        model, batch = net_and_batch(1)
        trainer = ZOTrainer(model, lr=0.05, mu=1e-6)
        for _ in range(20):
            if exact:
                trainer.optimizer.zero_grad()
                F.cross_entropy(model(batch[0]), batch[1]).backward()
                trainer.optimizer.step()
            else:
                trainer.step(batch)
        ends.append(pack(p.detach() for p in model.parameters()))
    torch.testing.assert_close(*ends, rtol=0, atol=1e-4)


def test_estimate_as_a_loss_gives_its_gradient():
    model, batch = net_and_batch(1)
    value, grads = ZOTrainer(model).gradient(batch)
    loss = with_estimate(ZOTrainer(model))(model, batch)
    loss.backward()
    assert loss == value
    torch.testing.assert_close(loss.detach(), F.cross_entropy(model(batch[0]), batch[1]), rtol=0, atol=1e-14)
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), grads, strict=True))


def test_masks_are_redrawn_and_decay_reaches_every_weight():
    model = mlp([4, 6, 3], nn.Tanh, seeded()).double()
    batch = normal(8, 4), torch.arange(8) % 3
    trainer = ZOTrainer(model, sparsity=[0.5, 1, 0.5, 1], shuffle_every=2, generator=seeded())
    masks, before = [], [p.detach().clone() for p in model.parameters()]
    for _ in range(3):
        trainer.step(batch)
        masks.append(pack(trainer.mask))
    assert torch.equal(masks[0], masks[1])
    assert not torch.equal(masks[1], masks[2])
    assert trainer.queried == 3 * (12 + 6 + 9 + 3 + 1)
    assert not any((p == q).any() for p, q in zip(before, model.parameters(), strict=True) if p.ndim > 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"estimator": "fd"}, "estimator"),
        ({"estimator": "rge"}, "generator"),
        ({"shuffle_every": 0}, "shuffle_every"),
        ({"estimator": "rge", "sparsity": [1.0], "generator": torch.Generator()}, "sparsity"),
    ],
)
def test_bad_trainers_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ZOTrainer(mlp([4, 3]), **options)


# The corrected solver.


def test_solver_and_correction_keep_the_mean_and_constants():
    u = normal(3, burgers.COARSE)
    params = [normal(*p.shape, seed=i) for i, p in enumerate(burgers.initial(seeded()))]
    out = burgers.simulate(params, u, 3)
    torch.testing.assert_close(out.mean(-1), u.mean(-1).expand(3, 3), rtol=0, atol=1e-12)
    constant = torch.full((burgers.COARSE,), 0.7, dtype=torch.float64)
    torch.testing.assert_close(burgers.simulate(params, constant, 2)[-1], constant, rtol=0, atol=1e-12)


def test_reference_decays_as_the_heat_equation_where_waves_are_small():
    x = torch.arange(burgers.FINE, dtype=torch.float64) * (2 * math.pi / burgers.FINE)
    found = burgers.reference(1e-6 * torch.sin(x)[None], 20)[-1, 0]
    expected = 1e-6 * math.exp(-burgers.NU * 20 * burgers.DT) * torch.sin(x[:: burgers.FINE // burgers.COARSE])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)
