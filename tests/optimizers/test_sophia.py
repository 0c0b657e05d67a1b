"""Sophia against the formula in NumPy, its estimators against closed forms, and the pitfalls of both."""

import copy
import pickle

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from draws import seeded
from secondlook.curvature import GGNOperator
from secondlook.optimizers import Sophia
from secondlook.optimizers.sophia import bartlett_diag, convex, sample_labels, setting
from secondlook.problems import datasets
from secondlook.problems.language import LanguageProblem
from secondlook.problems.models import CharGPT, mlp
from secondlook.suite import assembly, registry


def vector(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64, requires_grad=True)


def printed(w, grads, estimates, *, lr, betas, rho, decay, every, first=0):
    """The update in NumPy, with the estimate of the steps first, first + every, ..."""
    m, h = np.zeros_like(w), np.zeros_like(w)
    for t, (g, estimate) in enumerate(zip(grads, estimates, strict=True)):
        m = betas[0] * m + (1 - betas[0]) * g
        if t >= first and t % every == 0:
            h = betas[1] * h + (1 - betas[1]) * estimate
        w = w * (1 - lr * decay)
        ratio = np.minimum(np.abs(m) / np.maximum(rho * h, 1e-12), 1)
        w = w - lr * np.sign(m) * ratio
    return w


@pytest.mark.parametrize("skip_first", [False, True])
@pytest.mark.parametrize("rho", [0.04, 3.0])
def test_matches_the_formula(skip_first, rho):
    """24 steps, refresh every 5, some curvatures negative, decay before the step; released and printed order."""
    rng = np.random.default_rng(0)
    grads, estimates = rng.standard_normal((24, 40)), 10 * rng.standard_normal((24, 40))
    w = torch.tensor(rng.standard_normal(40), requires_grad=True)
    options = {"lr": 0.1, "betas": (0.965, 0.99), "rho": rho}
    expected = printed(
        w.detach().numpy().copy(), grads, estimates, **options, decay=0.1, every=5, first=5 if skip_first else 0
    )
    optimizer = Sophia([w], **options, weight_decay=0.1, update_every=5, observed=True, skip_first=skip_first)
    for g, estimate in zip(grads, estimates, strict=True):
        if optimizer.due:
            optimizer.observe([torch.from_numpy(estimate)])
        w.grad = torch.from_numpy(g)
        optimizer.step()
    np.testing.assert_allclose(w.detach().numpy(), expected, rtol=0, atol=1e-14)


def test_without_clipping_the_step_is_newtons_and_a_quadratic_takes_one():
    c, w = torch.tensor([1.0, 1e3, 1e6], dtype=torch.float64), vector(0.3, -0.5, 0.9)
    optimizer = Sophia([w], 1.0, (0, 0), rho=1.0, weight_decay=0, observed=True)
    optimizer.observe([c])
    w.grad = c * w.detach()
    optimizer.step()
    torch.testing.assert_close(w.detach(), torch.zeros(3, dtype=torch.float64), rtol=0, atol=1e-15)


@pytest.mark.parametrize("curvature", [0.0, -5.0, 1e-9])
def test_without_usable_curvature_the_step_follows_the_sign(curvature):
    w = vector(1.0, 1.0, 1.0)
    optimizer = Sophia([w], 0.1, weight_decay=0, observed=True)
    optimizer.observe([torch.full_like(w, curvature)])
    w.grad = torch.tensor([3.0, -1e-5, 0.0], dtype=torch.float64)
    optimizer.step()
    torch.testing.assert_close(w.detach(), torch.tensor([0.9, 1.1, 1.0], dtype=torch.float64), rtol=0, atol=1e-15)


def test_no_coordinate_moves_more_than_lr_whatever_the_estimate():
    w = torch.zeros(1000, requires_grad=True)
    optimizer = Sophia([w], 0.01, weight_decay=0, update_every=1, observed=True)
    for i in range(5):
        before = w.detach().clone()
        optimizer.observe([1e4 * torch.randn(1000, generator=seeded(i))])
        w.grad = 1e3 * torch.randn(1000, generator=seeded(i + 10))
        optimizer.step()
        assert (w.detach() - before).abs().max() <= 0.01 * (1 + 1e-5)


def test_bartlett_finds_the_closed_form_of_softmax_regression():
    """Mean over 2000 draws against sum_n p (1 - p) x^2 / N: 3 standard errors for each entry, 5% in norm."""
    g = seeded()
    x, weight = (torch.randn(*s, generator=g, dtype=torch.float64) for s in ((16, 6), (4, 6)))
    weight.requires_grad_()
    p = (x @ weight.T).softmax(-1).detach()
    exact = (p * (1 - p)).T @ x**2 / 16
    draws = torch.stack([bartlett_diag(x @ weight.T, [weight], generator=g)[0] for _ in range(2000)])
    mean, error = draws.mean(0), draws.std(0) / 2000**0.5
    assert ((mean - exact) / error).abs().max() < 3.5  # the largest of 24
    assert (mean - exact).norm() < 0.05 * exact.norm()


def test_bartlett_summed_over_all_labels_is_the_gauss_newton_diagonal():
    """No chance left: every pair of labels of two rows, weighted by its probability, on a two-layer net."""
    g = seeded(1)
    model = mlp([3, 4, 3], nn.Tanh, g).double()
    x = torch.randn(2, 3, generator=g, dtype=torch.float64)
    params, scores = list(model.parameters()), model(x)
    p = scores.softmax(-1).detach()
    total = [torch.zeros_like(q) for q in params]
    for i in range(3):
        for j in range(3):
            found = bartlett_diag(scores, params, labels=torch.tensor([i, j]))
            total = [t + p[0, i] * p[1, j] * f for t, f in zip(total, found, strict=True)]
    exact = GGNOperator(model, F.cross_entropy, [(x, torch.tensor([0, 1]))]).dense().diagonal()
    torch.testing.assert_close(torch.cat([t.flatten() for t in total]), exact, rtol=0, atol=1e-12)


def test_labels_follow_the_softmax_and_the_generator():
    scores = torch.tensor([0.7, 0.2, 0.1]).log().expand(30, 1000, 3)
    labels = sample_labels(scores, seeded())
    assert labels.shape == (30, 1000)
    shares = torch.bincount(labels.flatten()) / labels.numel()
    torch.testing.assert_close(shares, torch.tensor([0.7, 0.2, 0.1]), rtol=0, atol=0.01)
    assert torch.equal(labels, sample_labels(scores, seeded()))


def test_clipping_the_refresh_gradient_scales_the_whole_estimate():
    g = seeded()
    weight = torch.randn(4, 6, generator=g, dtype=torch.float64, requires_grad=True)
    scores, labels = 100 * torch.randn(8, 6, generator=g, dtype=torch.float64) @ weight.T, torch.zeros(8).long()
    (free,), (clipped,) = (bartlett_diag(scores, [weight], labels=labels, max_norm=n) for n in (None, 1.0))
    assert free.sum() > 8.1  # B * |g|^2, so the norm is above one
    torch.testing.assert_close(clipped, 8 * free / free.sum())
    torch.testing.assert_close(bartlett_diag(scores, [weight], labels=labels, max_norm=1e9)[0], free)


def test_scores_shown_are_averaged_in_and_leave_the_gradients_alone():
    """Sequences count as rows: B is the number of tokens. Forward once, backward twice."""
    model = CharGPT(5, width=8, depth=1, heads=2, context=4, generator=seeded())
    params = list(model.parameters())
    batch = torch.randint(0, 5, (3, 5), generator=seeded(1))
    optimizer = Sophia(params, 0.0, observed=True, update_every=3)
    scores = model(batch[:, :-1])
    labels = sample_labels(scores, seeded(2))
    optimizer.observe_scores(scores, labels)
    assert all(p.grad is None for p in params)
    F.cross_entropy(scores.flatten(0, 1), batch[:, 1:].flatten()).backward()
    loss = F.cross_entropy(model(batch[:, :-1]).flatten(0, 1), labels.flatten())
    expected = [0.01 * 12 * g**2 for g in torch.autograd.grad(loss, params)]
    optimizer.step()
    for p, h in zip(params, expected, strict=True):
        torch.testing.assert_close(optimizer.state[p]["curvature"], h, rtol=1e-4, atol=1e-9)


def test_products_average_to_the_hessian_diagonal():
    """Also the two ways to get them agree: from the training gradient's graph, and from a loss handed in."""
    g = seeded()
    a = torch.randn(5, 5, generator=g, dtype=torch.float64)
    h, u = a @ a.T, torch.randn(5, generator=g, dtype=torch.float64)
    found = []
    for observed in (False, True):
        w = vector(1, 2, 3, 4, 5)
        optimizer = Sophia([w], 0.0, (0, 0), observed=observed)
        loss = w @ h @ w / 2
        if observed:
            optimizer.observe_loss(loss, [u])
            w.grad = (h @ w).detach()
            optimizer.step()
        else:
            w.grad = torch.autograd.grad(loss, w, create_graph=True)[0]
            optimizer.step(probe=[u])
        found.append(optimizer.state[w]["curvature"])
        torch.testing.assert_close(found[-1], u * (h @ u), rtol=0, atol=1e-12)
        assert not w.grad.requires_grad
    w = vector(1, 2, 3, 4, 5)
    optimizer = Sophia([w], 0.0, observed=True, generator=g)
    draws = []
    for _ in range(1500):
        optimizer.observe_loss(w @ h @ w / 2)
        draws.append(optimizer.estimate[w])
    draws = torch.stack(draws)
    assert ((draws.mean(0) - h.diagonal()) / draws.std(0) * 1500**0.5).abs().max() < 3.5


def test_says_when_it_wants_curvature():
    w = vector(1.0)
    for observed, skip_first, wanted in (
        (False, False, [0, 3, 6]), (True, False, [0, 3, 6]), (False, True, [3, 6])
    ):  # fmt: skip
        optimizer = Sophia([w], 0.01, update_every=3, observed=observed, skip_first=skip_first)
        seen = []
        for i in range(8):
            assert optimizer.wants_graph == (optimizer.due and not observed)
            if optimizer.due:
                seen.append(i)
            w.grad = torch.autograd.grad((w**2).sum(), w, create_graph=optimizer.wants_graph)[0]
            if optimizer.due and observed:
                optimizer.observe([torch.ones_like(w)])
                assert not optimizer.due
            optimizer.step()
        assert seen == wanted


def test_curvature_that_is_due_and_missing_is_an_error():
    w = vector(1.0)
    w.grad = torch.ones_like(w)
    with pytest.raises(RuntimeError, match="observe_scores"):
        Sophia([w], observed=True).step()
    with pytest.raises(RuntimeError, match="create_graph=True"):
        Sophia([w]).step()


def test_wrong_shapes_and_sparse_gradients_are_refused():
    w = vector(1.0, 2.0)
    with pytest.raises(ValueError, match=r"\(2,\)"):
        Sophia([w], observed=True).observe([torch.ones(3)])
    with pytest.raises(ValueError, match="classes"):
        bartlett_diag(w, [w])
    with pytest.raises(ValueError, match=r"labels must have shape \(1,\)"):
        bartlett_diag(w[None], [w], labels=torch.zeros(2).long())
    table = nn.Embedding(4, 2, sparse=True)
    table(torch.tensor([1])).sum().backward()
    with pytest.raises(RuntimeError, match="sparse=False"):
        Sophia(table.parameters()).step()


def test_win_rate_counts_what_is_not_clipped():
    w = vector(0, 0, 0, 0)
    optimizer = Sophia([w], 0.1, (0, 0), rho=0.5, observed=True)
    assert optimizer.win_rate().isnan()
    optimizer.observe([torch.tensor([1.0, 2.0, 8.0, -8.0], dtype=torch.float64)])
    w.grad = torch.ones_like(w)
    optimizer.step()
    assert optimizer.win_rate() == 0.25  # one on the edge counts as clipped


def test_copies_keep_everything():
    w = vector(1.0, 2.0)
    optimizer = Sophia([w], update_every=4, observed=True, skip_first=True)
    for twin in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        assert (twin.update_every, twin.observed, twin.skip_first) == (4, True, True)
        assert torch.equal(twin.generator.get_state(), optimizer.generator.get_state())


# The experiment's own instruments.


@pytest.mark.parametrize("name", ["quadratic", "log-cosh", "log-cosh-rotated"])
def test_convex_problems_have_the_derivatives_they_say(name):
    problem = convex.Problem.draw(name, [10.0, 1000.0], [0, 1], 3)
    x, step = torch.randn(2, 2, 3, generator=seeded(), dtype=torch.float64), 1e-5
    for i in range(3):
        there, back = (x + s * step * torch.eye(3, dtype=x.dtype)[i] for s in (1, -1))
        slope = (problem.value(there) - problem.value(back)) / (2 * step)
        torch.testing.assert_close(slope, problem.gradient(x)[..., i], rtol=1e-6, atol=1e-6)
        bend = (problem.gradient(there) - problem.gradient(back))[..., i] / (2 * step)
        torch.testing.assert_close(bend, problem.derivatives(x, second=True)[1][..., i], rtol=1e-6, atol=1e-6)
    assert problem.value(problem.b).abs().max() < 1e-14


def test_steps_needed_by_gradient_descent_are_those_of_theory():
    """With lr = 1 (a step of 1 / kappa) the flat coordinate of a quadratic shrinks by 1 - 1 / kappa a step."""
    problem = convex.Problem.draw("quadratic", [100.0], [0], 2)
    needed = convex.steps_needed("gd", problem, [{"lr": 1.0}], 1e-6, 4000).item()
    exact = np.log(1e-6 / (problem.b[0, 0] ** 2 / 2)) / (2 * np.log(0.99))
    assert exact <= needed <= 1.02 * exact + 2


def test_halves_and_copies_are_what_their_names_say():
    size = {"width": 8, "depth": 1, "heads": 2, "context": 8}
    recipe = setting.Recipe(LanguageProblem(datasets.corpus("pydoc"), size, 2, "cpu"), 12, 2)
    choice = {"lr": 0.01, "rho": 0.05, "beta2": 0.99}
    ends = {}
    for arm in ("sophia-g", "sophia-g-half", "sophia-h", "adamw", "adamw-copy"):
        history = recipe.train(arm, choice, 0)
        assert history.steps == (6 if arm.endswith("-half") else 12)
        assert ("win_rate" in history.rows[-1]) == arm.startswith("sophia")
        ends[arm] = setting.best(history)["val_loss"]
    assert len(set(ends.values())) == 5
    assert ends["sophia-g"] == setting.best(recipe.train("sophia-g", choice, 0))["val_loss"]
    with pytest.raises(ValueError, match="no arm 'lion'"):
        recipe.train("lion", choice, 0)


def test_sophia_descends_on_the_plane_where_newton_does_not():
    ends = {method: path[-1] for method, path in convex.trajectories(40, 0.3).items()}
    assert abs(ends["newton"][0]) < 1e-12  # a maximum along the sharp coordinate
    assert ends["sophia"] == pytest.approx((-0.6538461538461539, 4.0), abs=1e-9)


def test_the_figure_of_what_a_laptop_does_not_train_says_so(tmp_path):
    paper = registry.paper("sophia")
    nothing = pd.DataFrame(columns=["experiment", "metric", "problem", "method", "seed", "step", "value"])
    assembly.draw(paper.model_copy(update={"figures": {"curves": paper.figures["curves"]}}), nothing, tmp_path / "f")
    assert (tmp_path / "f" / "curves.txt").read_text().startswith("language models are trained at scale gpu only")
