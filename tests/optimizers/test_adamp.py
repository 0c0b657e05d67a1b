"""SGDP and AdamP against closed forms, the norm identity, dense projections and an independent implementation."""

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from draws import seeded
from secondlook.optimizers import SGDP, AdamP
from secondlook.optimizers.adamp import effective_step, predicted_norm_sq, project
from secondlook.optimizers.adamp.circle import descend, settled, starts
from secondlook.optimizers.adamp.setting import PROBLEMS, Watch, hidden, optimizer, train, train_gpt
from secondlook.optimizers.adamp.stacked import Stacked, cross_entropies
from secondlook.problems import datasets
from secondlook.problems.datasets import Dataset, Split


def normal(*shape, seed=0):
    return torch.randn(shape, generator=seeded(seed), dtype=torch.float64)


def net_and_loss(seed=0):
    """A kernel that batch norm and a matrix that layer norm makes scale invariant, and others that are not."""
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Flatten(),
        nn.Linear(16, 6, bias=False), nn.LayerNorm(6, elementwise_affine=False), nn.Linear(6, 5),
    ).double()  # fmt: skip
    g = seeded(seed)
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.randn(p.shape, generator=g, dtype=p.dtype) * 0.4 + (p.ndim == 1))
    x, y = torch.randn(16, 1, 6, 6, generator=g, dtype=torch.float64), torch.randint(0, 5, (16,), generator=g)
    return net, lambda: nn.functional.cross_entropy(net(x), y)


def descended(make, steps=20):
    net, loss = net_and_loss()
    opt = make(net.parameters())
    for _ in range(steps):
        opt.zero_grad()
        loss().backward()
        opt.step()
    return list(net.parameters())


def farthest(a, b):
    return max((p - q).abs().max().item() for p, q in zip(a, b, strict=True))


# Oracle 1: an independent implementation, 20 steps in float64.


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("options", [{}, {"weight_decay": 0.1}, {"weight_decay": 0.1, "delta": 10.0, "wd_ratio": 0.3}])
def test_adamp_agrees_with_torch_optimizer(nesterov, options):
    peer = pytest.importorskip("torch_optimizer")
    options = {"lr": 0.01, "betas": (0.9, 0.99), "nesterov": nesterov, **options}
    ours, theirs = (descended(lambda p, make=make: make(p, **options)) for make in (AdamP, peer.AdamP))
    assert farthest(ours, theirs) < 1e-13


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize(
    "options", [{}, {"weight_decay": 0.05, "dampening": 0.3}, {"weight_decay": 0.05, "delta": 10.0, "wd_ratio": 0.3}]
)
def test_sgdp_agrees_with_torch_optimizer(nesterov, options):
    """Without Nesterov the released code projects its momentum in place."""
    peer = pytest.importorskip("torch_optimizer")
    options = {"lr": 0.05, "momentum": 0.9, "nesterov": nesterov, **options}
    ours = descended(lambda p: SGDP(p, project_buffer=True, **options))
    assert farthest(ours, descended(lambda p: peer.SGDP(p, **options))) < 1e-13


def test_printed_and_released_sgdp_differ_without_nesterov_only():
    for nesterov in (False, True):
        printed, released = (
            descended(lambda p, b=b, n=nesterov: SGDP(p, nesterov=n, project_buffer=b)) for b in (False, True)
        )
        assert (farthest(printed, released) > 1e-3) is not nesterov


# Oracle 2: without the projection they are their parents.


def test_with_delta_zero_adamp_is_adamw():
    parents = descended(lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1))
    assert farthest(descended(lambda p: AdamP(p, lr=0.01, weight_decay=0.1, delta=0.0)), parents) < 1e-14


@pytest.mark.parametrize("nesterov", [False, True])
def test_with_delta_zero_sgdp_is_sgd(nesterov):
    parents = descended(lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=nesterov))
    assert farthest(descended(lambda p: SGDP(p, lr=0.05, delta=0.0, nesterov=nesterov)), parents) < 1e-14


def test_decoupled_decay_has_the_strength_of_an_l2_term():
    """A steady gradient of an L2 term adds up to weight_decay / (1 - momentum) in the momentum."""
    w = torch.ones(3, dtype=torch.float64, requires_grad=True)
    w.grad = torch.zeros_like(w)
    SGDP([w], lr=0.1, momentum=0.9, weight_decay=0.01).step()
    torch.testing.assert_close(w.detach(), torch.full_like(w, 1 - 0.1 * 0.01 / (1 - 0.9)))


def test_dampening_counts_at_the_first_step_too():
    w = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    w.grad = torch.ones_like(w)
    SGDP([w], lr=0.1, momentum=0.9, dampening=0.25).step()
    torch.testing.assert_close(w.detach(), torch.full_like(w, -0.1 * 0.75))


# Oracle 3: the projection, written out.


@pytest.mark.parametrize("kind", ["rows", "whole", "neither"])
def test_projection_takes_the_first_view_that_passes(kind):
    w, g, u = normal(3, 5), normal(3, 5, seed=1), normal(3, 5, seed=2)
    if kind == "rows":
        g -= (g * w).sum(1, keepdim=True) / (w * w).sum(1, keepdim=True) * w
        expected = u - (u * w).sum(1, keepdim=True) / (w * w).sum(1, keepdim=True) * w
    elif kind == "whole":
        g -= (g * w).sum() / (w * w).sum() * w
        expected = u - (u * w).sum() / (w * w).sum() * w
    else:
        expected = u
    found, projected = project(w[None], g[None], u[None])
    torch.testing.assert_close(found[0], expected, rtol=0, atol=1e-7)  # eps is 1e-8
    assert projected.tolist() == [kind != "neither"]


def test_one_row_that_fails_switches_the_rows_off():
    w = normal(4, 6)
    tangent = normal(4, 6, seed=1)
    tangent -= (tangent * w).sum(1, keepdim=True) / (w * w).sum(1, keepdim=True) * w
    g = tangent.clone()
    g[2] = w[2]
    u = normal(4, 6, seed=2)
    assert torch.equal(project(w[None], g[None], u[None])[0][0], u)
    assert not torch.equal(project(w[None], tangent[None], u[None])[0][0], u)


def test_threshold_shrinks_with_the_root_of_the_entries():
    """A cosine of 0.04 passes 0.1 / sqrt(4), not 0.1 / sqrt(9)."""
    for entries, passes in ((4, True), (9, False)):
        w, g = torch.zeros(1, 1, entries, dtype=torch.float64), torch.zeros(1, 1, entries, dtype=torch.float64)
        w[..., 0], g[..., 0], g[..., 1] = 1, 0.04, math.sqrt(1 - 0.04**2)
        assert project(w, g, g)[1].tolist() == [passes]


def test_tensors_are_judged_one_by_one():
    w, u = normal(2, 3, 5), normal(2, 3, 5, seed=2)
    g = normal(2, 3, 5, seed=1)
    g[1] -= (g[1] * w[1]).sum(1, keepdim=True) / (w[1] * w[1]).sum(1, keepdim=True) * w[1]
    found, projected = project(w, g, u)
    assert projected.tolist() == [False, True]
    assert torch.equal(found[0], u[0])
    assert (found[1] * w[1]).sum(1).abs().max() < 1e-7


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 7), st.integers(0, 2**31))
def test_projected_updates_are_tangent(tensors, rows, entries, seed):
    w, u = normal(tensors, rows, entries, seed=seed), normal(tensors, rows, entries, seed=seed + 1)
    found, projected = project(w, torch.zeros_like(w), u)  # a zero gradient is orthogonal to everything
    assert projected.all()
    assert (found * w).sum(2).abs().max() < 1e-6


def test_the_test_looks_at_the_gradient_not_at_the_update_nor_the_decay():
    """A weight whose gradient is tangent is projected whatever its momentum and its decay are."""
    w = normal(2, 4).requires_grad_()
    opt = SGDP([w], lr=0.1, momentum=0.9, weight_decay=1.0, wd_ratio=0.0)
    before = w.detach().clone()
    opt.state[w] = {"step": 1, "momentum_buffer": before.clone()}  # all radial
    w.grad = torch.zeros_like(w)
    opt.step()
    assert farthest([w.detach()], [before]) < 1e-7


def test_projected_weights_decay_by_the_ratio():
    tangent, radial = normal(2, 4).requires_grad_(), normal(2, 4).requires_grad_()
    before = tangent.detach().clone()
    opt = AdamP([tangent, radial], lr=0.1, weight_decay=0.5, wd_ratio=0.2)
    tangent.grad, radial.grad = torch.zeros_like(before), before.clone()
    opt.step()
    torch.testing.assert_close(tangent.detach(), before * (1 - 0.1 * 0.5 * 0.2))
    torch.testing.assert_close(radial.detach(), before * (1 - 0.1 * 0.5) - 0.1 * before.sign(), rtol=1e-6, atol=1e-7)


def test_vectors_and_scalars_are_never_projected():
    for shape in ((), (5,)):
        w = torch.ones(shape, dtype=torch.float64, requires_grad=True)
        opt = SGDP([w], lr=0.1, momentum=0.9)
        opt.state[w] = {"step": 1, "momentum_buffer": torch.ones_like(w)}
        w.grad = torch.zeros_like(w)
        opt.step()
        torch.testing.assert_close(w.detach(), torch.full_like(w, 1 - 0.1 * 0.9))


def test_direction_is_that_of_the_tangent_step():
    """Oracle: without decay the new direction is the tangent step, normalised."""
    w = normal(3, 6).requires_grad_()
    start, target = w.detach().clone(), normal(3, 6, seed=1)
    p = torch.zeros_like(start)
    opt = SGDP([w], lr=0.3, momentum=0.9)
    for _ in range(10):
        opt.zero_grad()
        (-nn.functional.cosine_similarity(w, target, dim=1).sum()).backward()
        opt.step()
        unit = nn.functional.normalize(start, dim=1)
        t = nn.functional.normalize(target, dim=1)
        p = 0.9 * p - (t - (t * unit).sum(1, keepdim=True) * unit) / start.norm(dim=1, keepdim=True)
        start = start - 0.3 * (p - (p * unit).sum(1, keepdim=True) * unit)
    torch.testing.assert_close(w.detach(), start, rtol=0, atol=1e-7)


# Oracle 4: the norm identity.


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
def test_norms_follow_the_identity(momentum):
    w = normal(4, 8).requires_grad_()
    target = normal(4, 8, seed=1)
    opt = torch.optim.SGD([w], lr=0.2, momentum=momentum)
    norms, p_sq, p = [w.detach().square().sum(1)], [], torch.zeros_like(w)
    for _ in range(200):
        opt.zero_grad()
        (-nn.functional.cosine_similarity(w, target, dim=1).sum()).backward()
        p = momentum * p + w.grad
        opt.step()
        norms.append(w.detach().square().sum(1))
        p_sq.append(p.square().sum(1))
    seen = torch.stack(norms)
    found = predicted_norm_sq(seen[0], torch.stack(p_sq), 0.2, momentum)
    assert (found / seen - 1).abs().max() < 1e-13
    if momentum:
        without = predicted_norm_sq(seen[0], torch.stack(p_sq), 0.2, 0.0)
        assert (without / seen - 1).abs().max() > 1e-2


def test_steady_updates_grow_the_norm_nineteen_times_faster():
    steps = torch.ones(2_000, dtype=torch.float64)
    with_momentum, without = (predicted_norm_sq(torch.tensor(0.0), steps, 0.1, m)[-1] for m in (0.9, 0.0))
    assert with_momentum / without == pytest.approx(19, rel=0.01)


def test_effective_step_sees_directions_only():
    before, after = normal(3, 5), normal(3, 5, seed=1)
    step = effective_step(before, after)
    cosine = nn.functional.cosine_similarity(before, after, dim=1)
    torch.testing.assert_close(step, (2 - 2 * cosine).sqrt())
    torch.testing.assert_close(effective_step(7 * before, 0.1 * after), step)
    assert effective_step(before, 3 * before).max() < 1e-15


# The optimizers' own edges.


def test_sparse_and_complex_are_refused():
    table = nn.Embedding(4, 2, sparse=True)
    opt = AdamP(table.parameters())
    table(torch.tensor([1])).sum().backward()
    with pytest.raises(RuntimeError, match="sparse=False"):
        opt.step()
    with pytest.raises(ValueError, match="view_as_real"):
        SGDP([torch.zeros(2, dtype=torch.complex64, requires_grad=True)])


def test_parameters_may_join_late_and_lie_in_any_order_in_memory():
    """Bias corrections count each parameter's own steps; a channels-last kernel steps as a plain one."""
    ends = []
    for layout in (torch.contiguous_format, torch.channels_last):
        kernel = normal(4, 3, 2, 2).to(memory_format=layout).requires_grad_()
        late = normal(4, 3, 2, 2, seed=1).requires_grad_()
        opt = AdamP([kernel, late], lr=0.01, weight_decay=0.1)
        for step in range(3):
            kernel.grad = normal(4, 3, 2, 2, seed=2 + step)
            late.grad = kernel.grad if step == 2 else None
            opt.step()
        ends.append([kernel.detach().contiguous(), late.detach()])
    assert farthest(*ends) == 0.0
    once = normal(4, 3, 2, 2, seed=1).requires_grad_()
    once.grad = normal(4, 3, 2, 2, seed=4)
    AdamP([once], lr=0.01, weight_decay=0.1).step()
    torch.testing.assert_close(ends[0][1], once.detach(), rtol=0, atol=1e-15)


# The experiments' instruments.


def test_the_circle_is_what_the_optimizers_do():
    begin, lr = starts([0, 1]), torch.tensor([0.03, 0.1], dtype=torch.float64)
    assert ((begin >= math.pi / 2) & (begin < 0.95 * math.pi)).all()
    for projected, make in ((False, torch.optim.SGD), (True, SGDP)):
        angles, norms = descend(begin, lr, torch.full_like(lr, 0.9), 30, projected)
        for i in range(2):
            w = torch.stack([begin[i].cos(), begin[i].sin()])[None].requires_grad_()
            opt = make([w], lr=lr[i].item(), momentum=0.9)
            for _ in range(30):
                opt.zero_grad()
                (-w[0, 0] / w.norm()).backward()
                opt.step()
            assert norms[-1, i].item() == pytest.approx(w.norm().item(), abs=1e-9)
            assert angles[-1, i].item() == pytest.approx(abs(math.atan2(*w.detach()[0].flip(0))), abs=1e-7)


def test_settled_counts_to_the_last_large_angle():
    angles = torch.tensor([[1.0, 1.0, 0.0], [0.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 1.0, 0.0]])
    assert settled(angles, 0.5).tolist() == [4.0, 4.0, 1.0]


def batch_of(n, seed=0):
    g = seeded(seed)
    return torch.randn(n, 16, 1, 8, 8, generator=g), torch.randint(0, 10, (n, 16), generator=g)


def test_watch_measures_norms_steps_and_invariance():
    models = [PROBLEMS["digits-mlp-bn"].model(generator=seeded(s)) for s in (0, 1)]
    before = [[w.detach().clone() for w in hidden(model)] for model in models]
    assert [tuple(w.shape) for w in before[0]] == [(32, 64), (32, 32)]
    nets = Stacked(models)
    watch = Watch(nets)
    x, y = batch_of(2)
    nets.set_gradients(cross_entropies(nets(x), y))
    watch.before()
    for lr, part in zip((0.1, 0.2), nets.parts, strict=True):
        torch.optim.SGD(part, lr).step()
    watch.after()
    seen = watch.read()
    assert seen["looks_invariant"].tolist() == [100, 100]
    for i, old in enumerate(before):
        moved = [effective_step(a, w[i].detach()) for a, w in zip(old, watch.weights, strict=True)]
        torch.testing.assert_close(seen["effective_step"][i], torch.cat(moved).mean())
    # one tangent step: the squared norm grows by the squared length of the step
    torch.testing.assert_close(watch.growth, watch.travelled.sum(1), rtol=1e-2, atol=1e-5)


@pytest.mark.parametrize("arm", ["sgd-nesterov", "sgdp-released", "adamp"])
def test_networks_side_by_side_train_as_each_alone(arm):
    """In float64; batch norm's running averages included, which evaluation mode reads. One may blow up alone."""
    models = [PROBLEMS["digits-mlp-bn"].model(generator=seeded(s)).double() for s in (0, 1, 2)]
    nets, lrs, broken = Stacked(copy.deepcopy(models)), (0.01, 0.03, 0.01), 2
    opts = [optimizer(arm, part, lr, 0.1) for lr, part in zip(lrs, nets.parts, strict=True)]
    alone = [optimizer(arm, list(m.parameters()), lr, 0.1) for lr, m in zip(lrs, models, strict=True)]
    for step in range(6):
        x, y = batch_of(3, step)
        x = x.double()
        x[broken] *= math.nan if step == 3 else 1
        nets.set_gradients(cross_entropies(nets(x), y))
        for i, (model, opt) in enumerate(zip(models, alone, strict=True)):
            opt.zero_grad()
            nn.functional.cross_entropy(model(x[i]), y[i]).backward()
            opt.step()
            opts[i].step()
    assert nets.finite().tolist() == [True, True, False]
    images = batch_of(1, 9)[0][0].double()
    for i in (0, 1):
        torch.testing.assert_close(nets.scores(images)[i], models[i].eval()(images), rtol=1e-9, atol=1e-9)


def test_matched_sgd_reaches_as_far_as_momentum():
    ends = []
    for arm in ("sgd-matched", "sgd-momentum"):
        w = torch.zeros(1, requires_grad=True)
        opt = optimizer(arm, [w], 0.1)
        for _ in range(200):
            w.grad = torch.ones(1)
            opt.step()
        ends.append(w.item())
    assert ends[0] == pytest.approx(ends[1], rel=0.05)


def test_unknown_arm_is_named():
    with pytest.raises(ValueError, match="no arm 'adamax'"):
        optimizer("adamax", [torch.ones(1, requires_grad=True)], 0.1)


@pytest.mark.parametrize("name", list(PROBLEMS))
def test_every_problem_trains_and_copies_start_elsewhere(name):
    g = seeded()
    shape = (3, 32, 32) if name.startswith("cifar10") else (1, 8, 8)
    part = Split(torch.randn(8, *shape, generator=g), torch.randint(0, 10, (8,), generator=g))
    data = Dataset("random", part, part, part, classes=10)
    recipe = {"problem": PROBLEMS[name], "data": data, "epochs": 1, "batch_size": 4}
    ends = [train(arm, [(0.01, 0.0, 0)], **recipe)[0][-1]["val_loss"] for arm in ("adamp", "adamp", "adamp-copy")]
    assert ends[0] == ends[1] != ends[2]
    rows, watch = train("sgdp", [(0.01, 0.0, 0), (0.1, 0.0, 0)], watched=True, **recipe)
    assert len(rows) == 1
    assert 0 < watch.travelled[0].sum() < watch.travelled[1].sum()


def test_only_a_run_that_diverges_is_lost():
    part = Split(torch.randn(8, 1, 8, 8, generator=seeded()), torch.arange(8))
    recipe = {"problem": PROBLEMS["digits-mlp-plain"], "data": Dataset("random", part, part, part, classes=10)}
    rows, _ = train("sgd", [(0.1, 0.0, 0), (1e9, 0.0, 0)], epochs=5, batch_size=4, **recipe)
    assert rows[-1]["val_loss"].isnan().tolist() == [False, True]
    assert rows[-1]["test_accuracy"].isnan().tolist() == [False, True]


def test_weight_norm_reaches_every_layer_of_the_transformer():
    """Weight norm leaves the start as it is, so a run without steps cannot tell, and one with steps can."""
    text = datasets.corpus("pydoc")
    size = {"width": 8, "depth": 1, "heads": 2, "context": 64}
    recipe = {"text": text, "size": size, "batch_size": 2, "device": "cpu"}
    ends = [
        train_gpt("adamw", 0.1, 0.0, 0, normalised=n, steps=s, **recipe) for n, s in ((0, 0), (1, 0), (0, 2), (1, 2))
    ]
    assert ends[0] == pytest.approx(ends[1], rel=1e-4)
    assert ends[2] != pytest.approx(ends[3], rel=1e-4)
