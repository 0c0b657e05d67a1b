"""EK-FAC influence against dense Gauss-Newton solves, a real PBRF and kronfluence."""

import pytest
import torch
from torch import nn
from torch.func import functional_call, hessian, jacrev
from torch.nn import functional as F

from secondlook.curvature.kronecker import linear_layers, to_matrices
from secondlook.influence.ekfac_influence import (
    CrossEntropy,
    EKFACInfluence,
    HalfSquaredError,
    arms,
    cg_solver,
    dense_solver,
    lissa_solver,
    pbrf,
    response,
)
from secondlook.influence.ekfac_influence.ensemble import losses, member, train_ensemble
from secondlook.influence.ekfac_influence.gauss_newton import flatten, root_rows
from secondlook.influence.ekfac_influence.tail import power_law


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def filled(model: nn.Module, seed: int = 0) -> nn.Module:
    g = generator(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(0.5 * torch.randn(p.shape, generator=g))
    return model.double().eval()


@pytest.fixture
def classifier():
    model = filled(nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)))
    x, y = randn(20, 4, seed=1), torch.randint(3, (20,), generator=generator(2))
    return model, x, y


def full_gauss_newton(model, x, loss):
    """Dense G in the layers' layout, from torch.func Jacobians and output Hessians."""
    layers = linear_layers(model)
    params = {n: p.detach() for n, p in model.named_parameters()}
    jacobian = jacrev(lambda p: functional_call(model, p, (x,)))(params)
    j = flatten(to_matrices(layers, jacobian))  # [N, C, P]
    outputs = model(x).detach()
    target = torch.zeros(len(x), dtype=torch.long) if isinstance(loss, CrossEntropy) else torch.zeros_like(outputs)
    h = torch.stack(
        [hessian(lambda o, t=t: loss.loss(o[None], t[None]).sum())(o) for o, t in zip(outputs, target, strict=True)]
    )
    return torch.einsum("ncp,ncd,ndq->pq", j, h, j) / len(x)


@pytest.mark.parametrize("loss", [CrossEntropy(), HalfSquaredError()])
def test_output_losses_are_consistent(loss):
    outputs, other = randn(5, 3), randn(5, 3, seed=1)
    y = torch.tensor([0, 2, 1, 1, 0]) if isinstance(loss, CrossEntropy) else randn(5, 3, seed=2)
    h = torch.stack(
        [hessian(lambda o, t=t: loss.loss(o[None], t[None]).sum())(o) for o, t in zip(outputs, y, strict=True)]
    )
    root = loss.hessian_root(outputs)
    torch.testing.assert_close(root @ root.mT, h)
    torch.testing.assert_close(loss.hessian_product(outputs, other), torch.einsum("ncd,nd->nc", h, other))
    # the divergence vanishes with its slope at the reference, and has the loss's Hessian there
    d = torch.stack([hessian(lambda o, r=o: loss.divergence(o[None], r[None]).sum())(o) for o in outputs])
    torch.testing.assert_close(d, h)
    torch.testing.assert_close(loss.divergence(outputs, outputs), torch.zeros(5, dtype=torch.float64))
    assert bool((loss.divergence(outputs, other) > 0).all())


def test_sampled_targets_follow_the_output_distribution():
    outputs = torch.tensor([[0.0, 1.0, -1.0]]).repeat(20_000, 1)
    drawn = CrossEntropy().sample(outputs, torch.zeros(20_000, dtype=torch.long), generator())
    torch.testing.assert_close(drawn.bincount() / 20_000, outputs[0].softmax(0), atol=0.01, rtol=0)
    noise = HalfSquaredError().sample(outputs, outputs, generator()) - outputs
    assert abs(float(noise.std()) - 1) < 0.02


@pytest.mark.parametrize("loss", [CrossEntropy(), HalfSquaredError()])
def test_gauss_newton_rows_and_exact_solvers(classifier, loss):
    model, x, _ = classifier
    g = full_gauss_newton(model, x, loss)
    rows = root_rows(model, linear_layers(model), loss, x)
    torch.testing.assert_close(rows.T @ rows / 20, g)
    damping = {"0": 0.05, "2": 0.2}
    lam = torch.cat([torch.full((30,), 0.05), torch.full((21,), 0.2)]).double()
    v = {"0": randn(2, 6, 5), "2": randn(2, 3, 7)}
    want = torch.linalg.solve(g + lam.diag(), flatten(v).T).T
    for inputs in ([x[:12], x[12:]], [x]):  # P = 51 < N C = 60: Cholesky
        torch.testing.assert_close(flatten(dense_solver(model, inputs, loss, damping)(v)), want)
    few = full_gauss_newton(model, x[:9], loss)  # N C = 27 < P: Woodbury
    want_few = torch.linalg.solve(few + lam.diag(), flatten(v).T).T
    torch.testing.assert_close(flatten(dense_solver(model, [x[:9]], loss, damping)(v)), want_few)
    torch.testing.assert_close(
        flatten(cg_solver(model, [x[:12], x[12:]], loss, damping, tolerance=1e-10)(v)), want, rtol=1e-6, atol=1e-8
    )


def test_iterating_reaches_its_tolerance_for_a_float32_network():
    g = generator()
    model = nn.Sequential(nn.Linear(200, 32), nn.ReLU(), nn.Linear(32, 10)).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(0.1 * torch.randn(p.shape, generator=g))
    x, damping = torch.rand(64, 200, generator=g) + 1, {"0": 1e-5, "2": 1e-4}
    v = {"0": torch.randn(2, 32, 201, generator=g), "2": torch.randn(2, 10, 33, generator=g)}
    found = flatten(arms.exact("cg", model, [x], "ce", damping)(v))
    want = flatten(dense_solver(model.double(), [x.double()], "ce", damping)(v))
    assert found.dtype == torch.float32
    assert float((found - want).norm() / want.norm()) < 1e-3


def test_lissa_converges_to_the_exact_solve(classifier):
    model, x, _ = classifier
    damping = {"0": 0.1, "2": 0.1}
    v = {"0": randn(2, 6, 5), "2": randn(2, 3, 7)}
    want = flatten(dense_solver(model, [x], "ce", damping)(v))
    lissa = lissa_solver(model, x, "ce", damping, depth=400, batch_size=20, generator=generator())
    assert float((flatten(lissa(v)) - want).norm() / want.norm()) < 1e-3
    wild = lissa_solver(model, x, "ce", damping, depth=400, batch_size=20, scale=0.05, generator=generator())
    assert not bool(flatten(wild(v)).isfinite().all())  # a scale below the largest eigenvalue diverges


def test_pbrf_responds_as_the_exact_influence_predicts(classifier):
    model, x, y = classifier
    influence = EKFACInfluence(model).fit([(x, y)], generator=generator())
    solve = dense_solver(model, [x], "ce", influence.damping)
    query, m = (x[15:], y[15:]), slice(0, 8)
    exact = influence.scores_along(solve(influence.gradients([query])), [(x[m], y[m])])
    weights, residual = pbrf(
        model, [x[:12], x[12:]], (x[m], y[m]), "ce", influence.damping, solve, eps=1e-5 / 20, tolerance=1e-7
    )
    assert residual <= 1e-7
    torch.testing.assert_close(response(model, weights, query, "ce", 1e-5 / 20), exact, rtol=1e-3, atol=1e-3)
    _, unfinished = pbrf(model, [x], (x[m], y[m]), "ce", influence.damping, solve, eps=1.0, max_steps=1)
    assert unfinished > 1e-3


def test_one_linear_layer_with_exact_expectation_equals_the_dense_solve():
    """For half the squared distance of a linear layer G = I kron A: K-FAC and EK-FAC lose nothing."""
    model = filled(nn.Linear(4, 3))
    x, y = randn(11, 4, seed=1), randn(11, 3, seed=2)
    outputs = model(x).detach()
    # residuals sqrt(3) e_c for each c in turn have second moment exactly I
    drawn = outputs.repeat(3, 1) + 3**0.5 * torch.eye(3, dtype=torch.float64).repeat_interleave(11, 0)
    for strategy in ("ekfac", "kfac"):
        influence = EKFACInfluence(model, "mse", damping=0.01, strategy=strategy)
        influence.fit([(x.repeat(3, 1), drawn)], targets="given")
        solve = dense_solver(model, [x], "mse", influence.damping)
        want = influence.scores_along(solve(influence.gradients([(x, y)])), [(x, y)])
        torch.testing.assert_close(influence.scores([(x, y)], [(x, y)]), want, rtol=1e-8, atol=1e-8)


def test_trace_equals_that_of_the_sampled_fisher(classifier):
    model, x, y = classifier
    drawn = CrossEntropy().sample(model(x).detach(), y, generator())
    kfac = EKFACInfluence(model, strategy="kfac").fit([(x, drawn)], targets="given")
    ekfac = EKFACInfluence(model).fit([(x, drawn)], targets="given")
    off = 0.0
    for name, d in ekfac.gradients([(x, drawn)]).items():
        trace = d.square().sum() / len(x)
        torch.testing.assert_close(ekfac.blocks[name].eigenvalues.sum(), trace, rtol=1e-6, atol=0)
        off = max(off, abs(float(kfac.blocks[name].eigenvalues.sum() / trace) - 1))
    assert off > 1e-3  # K-FAC does not have this property


def test_large_damping_gives_scaled_dot_products(classifier):
    model, x, y = classifier
    batch = [(x, y)]
    dots = EKFACInfluence(model, strategy="identity").fit(batch).scores(batch, batch)
    for strategy in ("ekfac", "kfac", "diagonal"):
        heavy = EKFACInfluence(model, damping=1e5, strategy=strategy).fit(batch, generator=generator())
        torch.testing.assert_close(1e5 * heavy.scores(batch, batch), dots, rtol=1e-3, atol=1e-4)


def test_scores_have_the_papers_sign_and_do_not_depend_on_batching(classifier):
    model, x, y = classifier
    influence = EKFACInfluence(model).fit([(x, y)], generator=generator())
    scores = influence.scores([(x, y)], [(x, y)])
    assert scores.shape == (20, 20)
    # more weight on an example lowers its own loss, and on one network the scores are symmetric
    assert bool((scores.diagonal() <= 0).all())
    torch.testing.assert_close(scores, scores.T)
    split = influence.scores([(x[:3], y[:3]), (x[3:], y[3:])], [(x[i : i + 7], y[i : i + 7]) for i in (0, 7, 14)])
    torch.testing.assert_close(split, scores)


def test_fit_is_reproducible_from_its_generator(classifier):
    model, x, y = classifier
    tables = [EKFACInfluence(model).fit([(x, y)], generator=generator(s)).blocks["0"].eigenvalues for s in (1, 1, 2)]
    assert torch.equal(tables[0], tables[1])
    assert not torch.equal(tables[0], tables[2])


def test_low_rank_queries_and_other_measurements(classifier):
    model, x, y = classifier
    influence = EKFACInfluence(model).fit([(x, y)], generator=generator())
    batch = [(x, y)]
    full = influence.scores(batch, batch)
    torch.testing.assert_close(influence.scores(batch, batch, rank=6), full)
    rough = influence.scores(batch, batch, rank=1)
    assert float(torch.corrcoef(torch.stack([rough.flatten(), full.flatten()]))[0, 1]) > 0.8
    margin = influence.scores(batch, batch, measurement=lambda outputs, y: -CrossEntropy().loss(outputs, y))
    torch.testing.assert_close(margin, -full)


def test_token_losses_are_summed():
    model = filled(nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 4)))
    x, y = randn(6, 7, 3), torch.randint(4, (6, 7), generator=generator())
    torch.testing.assert_close(
        CrossEntropy().loss(model(x), y).sum(), F.cross_entropy(model(x).flatten(0, 1), y.flatten(), reduction="sum")
    )
    influence = EKFACInfluence(model).fit([(x, y)], generator=generator())
    assert influence.scores([(x[:2], y[:2])], [(x, y)], rank=1).shape == (2, 6)


def test_bad_input_raises_early(classifier):
    model, x, y = classifier
    with pytest.raises(ValueError, match="unknown loss"):
        EKFACInfluence(model, "hinge")
    with pytest.raises(ValueError, match="unknown strategy"):
        EKFACInfluence(model, strategy="magic")
    with pytest.raises(ValueError, match="negative"):
        EKFACInfluence(model, damping=-1.0)
    with pytest.raises(RuntimeError, match="call fit"):
        EKFACInfluence(model).scores([(x, y)], [(x, y)])
    with pytest.raises(ValueError, match="targets"):
        EKFACInfluence(model).fit([(x, y)], targets="true")
    fitted = EKFACInfluence(model, damping={"0": 1.0}).fit([(x, y)], generator=generator())
    with pytest.raises(ValueError, match="no damping for layers"):
        fitted.scores([(x, y)], [(x, y)])
    with pytest.raises(ValueError, match="no training batches"):
        EKFACInfluence(model).fit([(x, y)]).scores([(x, y)], [])
    with pytest.raises(ValueError, match="positive damping"):
        dense_solver(model, [x], "ce", {"0": 0.0, "2": 1.0})
    with pytest.raises(ValueError, match="depth"):
        lissa_solver(model, x, "ce", {"0": 1.0, "2": 1.0}, depth=0)


def test_ensemble_training_equals_training_alone(classifier):
    """Two networks on two subsets, against torch.optim.SGD on the same mini-batches."""
    _, x, y = classifier
    models = [filled(nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)), seed) for seed in (1, 2)]
    include = torch.stack([torch.arange(20) < 10, torch.arange(20) >= 8])
    common = {"steps": 7, "lr": 0.1, "batch_size": 8}
    decay = torch.tensor([0.0, 0.1])
    trained = train_ensemble(
        models, CrossEntropy(), x, y, **common, generator=generator(3), weight_decay=decay, include=include
    )
    for k, model in enumerate(models):
        optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=float(decay[k]))
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 7)
        g = generator(3)
        rows = [r for _ in range(4) for r in torch.randperm(20, generator=g)[:16].split(8)][:7]
        for r in rows:
            kept = include[k][r].double() / include[k].double().mean()
            optimizer.zero_grad()
            (kept * F.cross_entropy(model(x[r]), y[r], reduction="none")).mean().backward()
            optimizer.step()
            schedule.step()
        for name, p in model.named_parameters():
            torch.testing.assert_close(trained[name][k], p.detach(), rtol=1e-6, atol=1e-8)
    values = losses(models[0], trained, CrossEntropy(), x, y)
    assert values.shape == (2, 20)
    torch.testing.assert_close(CrossEntropy().loss(member(models[0], trained, 1)(x), y).detach(), values[1])


def test_power_law_fit_finds_the_exponent_and_rejects_a_gaussian():
    g = generator()
    pareto = (1 - torch.rand(40, 4000, generator=g, dtype=torch.float64)) ** (-1 / 2)  # density exponent 3
    fits = [power_law(row, 0.05, 100, g) for row in pareto]
    assert sum(f.exponent for f in fits) / 40 == pytest.approx(3, abs=0.1)
    assert sum(f.log_likelihood_gain for f in fits) > 0
    # for data that do follow the law, p is uniform: its mean over 40 samples has a standard error of 0.046
    assert sum(f.ks_p for f in fits) / 40 == pytest.approx(0.5, abs=0.15)
    assert power_law(torch.randn(20_000, generator=g), 0.05, 200, g).ks_p < 0.05
    with pytest.raises(ValueError, match="not positive"):
        power_law(-pareto[0], 0.05, 10, g)
    with pytest.raises(ValueError, match="at least 10"):
        power_law(pareto[0, :50], 0.05, 10, g)


@pytest.mark.parametrize("strategy", ["ekfac", "kfac", "diagonal", "identity"])
def test_agrees_with_kronfluence(strategy, tmp_path):
    pytest.importorskip("kronfluence")
    from secondlook.influence.benchmark import kronfluence_scores

    model = filled(
        nn.Sequential(
            nn.Conv2d(2, 3, 3, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(75, 4), nn.Tanh(), nn.Linear(4, 3)
        )
    )
    x, y = randn(12, 2, 5, 5, seed=1), torch.randint(3, (12,), generator=generator(2))
    train, query = (x[:9], y[:9]), (x[9:], y[9:])
    ours = EKFACInfluence(model, strategy=strategy).fit([train], targets="given").scores([query], [train])
    theirs = kronfluence_scores(model, train, query, strategy=strategy, batch_size=5)
    assert float((theirs + ours).abs().max() / ours.abs().max()) < 1e-4  # kronfluence leaves the minus sign out
