"""SAM against closed forms on quadratics, a transcription, dense Hessians, and PyHessian."""

import copy
import math
import pickle
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from draws import normal, seeded
from secondlook.optimizers import SAM
from secondlook.optimizers.vit_sam import active_fraction, experiment, frozen_statistics, hessian_top_eig, mixer, vit
from secondlook.optimizers.vit_sam.images import Images, corruptions
from secondlook.optimizers.vit_sam.networks import patches
from secondlook.problems.training import cross_entropy, fit


def closure_for(optimizer, loss):
    def closure():
        optimizer.zero_grad()
        value = loss()
        value.backward()
        return value

    return closure


def quadratic(dim=6):
    a = normal(dim, dim, seed=1)
    h = a @ a.T / dim + torch.eye(dim, dtype=torch.float64)
    w = normal(dim, seed=2).requires_grad_()
    return h, w, lambda: 0.5 * w @ h @ w


def small_net(seed=0):
    """A smooth float64 network of 109 parameters, a batch for it, and the loss."""
    net = nn.Sequential(nn.Linear(5, 9), nn.Tanh(), nn.Linear(9, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    g = seeded(seed)
    with torch.no_grad():
        for p in net.parameters():
            p.normal_(0, 0.7, generator=g)
    x, y = normal(12, 5, seed=seed + 1), torch.randint(0, 3, (12,), generator=g)
    return net, (x, y), lambda: F.cross_entropy(net(x), y)


def values(net):
    return torch.cat([p.detach().flatten() for p in net.parameters()])


# Oracle 1: on a quadratic, the gradient is H (w + rho H w / |H w|).


@pytest.mark.parametrize("rho", [0.05, 2.0])
def test_quadratic_closed_form(rho):
    h, w, loss = quadratic()
    expected = w.detach().clone()
    optimizer = SAM([w], torch.optim.SGD, rho, lr=0.1)
    for _ in range(20):
        g = h @ expected
        expected = expected - 0.1 * h @ (expected + rho * g / g.norm())
        optimizer.step(closure_for(optimizer, loss))
    torch.testing.assert_close(w.detach(), expected, rtol=0, atol=1e-12)


def test_adaptive_quadratic_closed_form():
    h, w, loss = quadratic()
    expected = w.detach().clone()
    optimizer = SAM([w], torch.optim.SGD, 0.5, adaptive=True, lr=0.1)
    for _ in range(20):
        g = h @ expected
        e = 0.5 * expected**2 * g / (expected.abs() * g).norm()
        expected = expected - 0.1 * h @ (expected + e)
        optimizer.step(closure_for(optimizer, loss))
    torch.testing.assert_close(w.detach(), expected, rtol=0, atol=1e-10)


def test_near_the_minimum_it_swings_along_the_sharpest_direction():
    """The orbit of period two along a coordinate of curvature h has |w| = lr h rho / (2 - lr h), scale rho."""
    h = torch.tensor([1.0, 4.0], dtype=torch.float64)
    w = torch.tensor([0.3, 0.2], dtype=torch.float64, requires_grad=True)
    optimizer = SAM([w], torch.optim.SGD, 0.1, lr=0.2)
    for _ in range(400):
        optimizer.step(closure_for(optimizer, lambda: 0.5 * (h * w * w).sum()))
    end = w.detach().abs()
    assert end[0] < 1e-8
    assert end[1].item() == pytest.approx(0.2 * 4 * 0.1 / (2 - 0.2 * 4), rel=1e-8)


# Oracle 2: rho = 0 is the base, bit for bit.


BASES = [
    partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=0.01),
    partial(torch.optim.AdamW, lr=0.01, weight_decay=0.1),
]


@pytest.mark.parametrize("base", BASES, ids=["sgd", "adamw"])
def test_radius_zero_is_the_base(base):
    ends = []
    for wrapped in (True, False):
        net, _, loss = small_net()
        optimizer = SAM(net.parameters(), base, 0.0) if wrapped else base(net.parameters())
        for _ in range(10):
            optimizer.step(closure_for(optimizer, loss))
        ends.append(values(net))
    assert torch.equal(*ends)


# A whole network: what the two passes do, written out with torch.func.


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("base", BASES, ids=["sgd", "adamw"])
def test_transcription_on_a_network(base, adaptive):
    net, _, loss = small_net()
    twin, (x, y), _ = small_net()
    optimizer = SAM(net.parameters(), base, 0.3, adaptive)
    reference = base(twin.parameters())
    names = [name for name, _ in twin.named_parameters()]
    gradient = torch.func.grad(lambda w: F.cross_entropy(torch.func.functional_call(twin, w, (x,)), y))
    for _ in range(15):
        optimizer.step(closure_for(optimizer, loss))
        w = {n: p.detach().clone() for n, p in twin.named_parameters()}
        g = gradient(w)
        size = {n: w[n].abs() if adaptive else torch.ones_like(w[n]) for n in names}
        norm = sum((size[n] * g[n]).square().sum() for n in names).sqrt()
        moved = gradient({n: w[n] + 0.3 * size[n] ** 2 * g[n] / norm for n in names})
        for n, p in twin.named_parameters():
            p.grad = moved[n]
        reference.step()
    torch.testing.assert_close(values(net), values(twin), rtol=0, atol=1e-11)


def test_adaptive_radius_does_not_see_the_scale_of_a_layer():
    """Where w is scaled by c and its use by 1/c, the climb raises the loss as much; the plain one does not."""
    raised = {}
    for adaptive in (True, False):
        for c in (1.0, 10.0):
            w = (c * normal(4, seed=3)).requires_grad_()
            target = normal(4, seed=4)
            optimizer = SAM([w], torch.optim.SGD, 0.1, adaptive, lr=0.1)
            loss = closure_for(optimizer, lambda w=w, c=c, target=target: (w / c - target).square().sum())
            loss()
            optimizer.first_step()
            raised[adaptive, c] = loss().item()
    assert raised[True, 1.0] == pytest.approx(raised[True, 10.0], rel=1e-10)
    assert raised[False, 1.0] != pytest.approx(raised[False, 10.0], rel=1e-2)


# Oracle 4: the climb gains rho |g|, to second order in rho.


def test_first_order_expansion_of_the_climb():
    remainders, rhos = [], [1e-1, 1e-2, 1e-3]
    for rho in rhos:
        net, _, loss = small_net()
        optimizer = SAM(net.parameters(), torch.optim.SGD, rho, lr=0.1)
        start = closure_for(optimizer, loss)().item()
        norm = torch.cat([p.grad.flatten() for p in net.parameters()]).norm().item()
        optimizer.first_step()
        remainders.append(abs(loss().item() - start - rho * norm))
    assert np.polyfit(np.log(rhos), np.log(remainders), 1)[0] == pytest.approx(2, abs=0.05)


def test_norm_is_global_over_groups():
    net, _, loss = small_net()
    params = list(net.parameters())
    optimizer = SAM([{"params": params[:2]}, {"params": params[2:], "rho": 0.6}], torch.optim.SGD, 0.3, lr=0.1)
    before = [p.detach().clone() for p in params]
    closure_for(optimizer, loss)()
    norm = torch.cat([p.grad.flatten() for p in params]).norm()
    optimizer.first_step()
    for i, (p, old) in enumerate(zip(params, before, strict=True)):
        torch.testing.assert_close(p.detach() - old, (0.3 if i < 2 else 0.6) * p.grad / norm)


# The step's own business.


def test_weights_come_back_exactly_and_decay_acts_on_them():
    w = normal(5).float().requires_grad_()
    before = w.detach().clone()
    optimizer = SAM([w], torch.optim.AdamW, 7.3, lr=0.0)
    optimizer.step(closure_for(optimizer, lambda: w.square().sum()))
    assert torch.equal(w.detach(), before)
    flat = SAM([w], torch.optim.AdamW, 7.3, lr=0.1, weight_decay=0.5, eps=1e6)  # hardly moves but for the decay
    flat.step(closure_for(flat, lambda: w.square().sum()))
    torch.testing.assert_close(w.detach(), before * (1 - 0.05), rtol=1e-4, atol=1e-5)


def test_two_calls_are_one_step():
    ends = []
    for by_hand in (False, True):
        net, _, loss = small_net()
        optimizer = SAM(net.parameters(), torch.optim.AdamW, 0.2, lr=0.01)
        closure = closure_for(optimizer, loss)
        for _ in range(3):
            if by_hand:
                closure()
                optimizer.first_step()
                closure()
                optimizer.second_step()
            else:
                optimizer.step(closure)
        ends.append(values(net))
    assert torch.equal(*ends)


def test_batch_norm_statistics_see_the_weights_once():
    """With `model`, running statistics are those of a run whose perturbed pass never happened; without, not."""
    x = normal(16, 3).float()
    seen = {}
    for name in ("once", "given", "not given"):
        net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
        with torch.no_grad():
            for p in net.parameters():
                p.copy_(torch.ones_like(p) + 0.1 * torch.randn(p.shape, generator=seeded(p.numel())))
        if name == "once":
            net(x)
        else:
            extra = {"model": net} if name == "given" else {}
            optimizer = SAM(net.parameters(), torch.optim.SGD, 0.5, lr=0.1, **extra)
            optimizer.step(closure_for(optimizer, lambda net=net: net(x).square().mean()))
            assert net[1].track_running_stats
        seen[name] = net[1].running_mean.clone(), net[1].num_batches_tracked.clone()
    assert all(torch.equal(a, b) for a, b in zip(seen["once"], seen["given"], strict=True))
    assert not torch.equal(seen["once"][0], seen["not given"][0])


def test_frozen_statistics_still_normalise_by_the_batch():
    layer, x = nn.BatchNorm1d(3), normal(8, 3).float() * 5 + 2
    with frozen_statistics(layer):
        inside = layer(x)
    assert torch.equal(layer.running_mean, torch.zeros(3))
    assert torch.equal(inside, layer(x))


def test_maximize_climbs_down_first():
    ends = []
    for sign in (1, -1):
        _, w, loss = quadratic()
        optimizer = SAM([w], torch.optim.SGD, 0.3, lr=0.1, maximize=sign < 0)
        optimizer.step(closure_for(optimizer, lambda sign=sign, loss=loss: sign * loss()))
        ends.append(w.detach())
    assert torch.equal(*ends)


def test_state_is_the_bases_and_pickles():
    net, _, loss = small_net()
    optimizer = SAM(net.parameters(), torch.optim.AdamW, 0.2, lr=0.01)
    optimizer.step(closure_for(optimizer, loss))
    assert optimizer.param_groups is optimizer.base.param_groups
    assert optimizer.state_dict()["param_groups"][0]["rho"] == 0.2
    for twin_net, twin in (copy.deepcopy((net, optimizer)), pickle.loads(pickle.dumps((net, optimizer)))):
        x = normal(12, 5, seed=1)
        y = small_net()[1][1]
        twin.step(closure_for(twin, lambda n=twin_net, x=x, y=y: F.cross_entropy(n(x), y)))
        assert twin.param_groups is twin.base.param_groups
        ends = values(twin_net)
    optimizer.step(closure_for(optimizer, loss))
    assert torch.equal(ends, values(net))


def test_wrong_use_is_named():
    _, w, loss = quadratic()
    with pytest.raises(TypeError, match="base_optimizer"):
        SAM([w], torch.optim.SGD([w], 0.1))
    with pytest.raises(ValueError, match="rho"):
        SAM([{"params": [w], "rho": -1.0}], torch.optim.SGD)
    optimizer = SAM([w], torch.optim.SGD, lr=0.1)
    loss().backward()
    with pytest.raises(RuntimeError, match="closure"):
        optimizer.step()
    with pytest.raises(RuntimeError, match="first_step"):
        optimizer.second_step()
    optimizer.first_step()
    with pytest.raises(RuntimeError, match="twice"):
        optimizer.first_step()
    table = nn.Embedding(4, 2, sparse=True)
    optimizer = SAM(table.parameters(), torch.optim.SGD, lr=0.1)
    with pytest.raises(RuntimeError, match="sparse=False"):
        optimizer.step(closure_for(optimizer, lambda: table(torch.tensor([1])).sum()))


def test_a_gradient_that_is_not_finite_shows():
    w = torch.ones(2, requires_grad=True)
    optimizer = SAM([w], torch.optim.SGD, lr=0.1)
    optimizer.step(closure_for(optimizer, lambda: (w / 0.0).sum()))
    assert not w.isfinite().any()


def test_fit_drives_it():
    net, batch, loss = small_net()
    start = loss().item()
    optimizer = SAM(net.parameters(), torch.optim.SGD, 0.05, lr=0.3)
    history = fit(net, optimizer, iter([batch] * 30), cross_entropy, steps=30, closure=optimizer.needs_closure, every=1)
    assert history.column("loss")[0] == pytest.approx(start)
    assert loss().item() < 0.5 * start


# Oracle 3: sharpness against the dense Hessian and PyHessian; active units by hand.


def dense_hessian(net, x, y):
    w = {n: p.detach() for n, p in net.named_parameters()}
    sizes = [p.numel() for p in w.values()]

    def of_flat(flat):
        parts = {n: s.view(p.shape) for (n, p), s in zip(w.items(), flat.split(sizes), strict=True)}
        return F.cross_entropy(torch.func.functional_call(net, parts, (x,)), y)

    return torch.func.hessian(of_flat)(torch.cat([p.flatten() for p in w.values()]))


def test_top_eigenvalues_are_those_of_the_dense_hessian():
    net, (x, y), loss = small_net()
    exact = torch.linalg.eigvalsh(dense_hessian(net, x, y)).flip(0)[:3]
    found = hessian_top_eig(loss, list(net.parameters()), k=3, iters=60, tol=1e-8)
    torch.testing.assert_close(found, exact, rtol=1e-8, atol=0)


@pytest.mark.filterwarnings("ignore:Using backward:UserWarning")
def test_top_eigenvalue_agrees_with_pyhessian():
    pyhessian = pytest.importorskip("pyhessian")
    net, (x, y), loss = small_net()
    theirs = pyhessian.hessian(net, nn.CrossEntropyLoss(), data=(x, y), cuda=False).eigenvalues(500, 1e-7)[0][0]
    assert hessian_top_eig(loss, list(net.parameters())).item() == pytest.approx(theirs, rel=1e-4)


def test_largest_with_its_sign_not_by_modulus():
    w = torch.zeros(8, dtype=torch.float64, requires_grad=True)
    h = torch.linspace(-6.4, 3.8, 8, dtype=torch.float64)
    assert hessian_top_eig(lambda: 0.5 * (h * w * w).sum(), [w]).item() == pytest.approx(3.8)
    with pytest.raises(ValueError, match="iters"):
        hessian_top_eig(lambda: w.sum(), [w], k=3, iters=3)


def test_active_fraction_counts_positive_inputs_over_all_batches():
    net = nn.Sequential(nn.Identity(), nn.GELU(), nn.Linear(2, 2, bias=False), nn.ReLU()).train()
    with torch.no_grad():
        net[2].weight.copy_(-torch.eye(2))
    x = torch.tensor([[1.0, -1.0], [2.0, 3.0], [-1.0, 0.0]])
    assert active_fraction(net, [x[:2], x[2:]]) == {"1": pytest.approx(50), "3": pytest.approx(100 / 3)}
    assert net.training
    assert active_fraction(nn.Linear(2, 2), [x]) == {}


# Networks and images.


@pytest.mark.parametrize(("shape", "side"), [((3, 1, 8, 8), 4), ((2, 3, 4, 6), 2)])
def test_patches_are_those_of_unfold(shape, side):
    x = normal(*shape)
    assert torch.equal(patches(x, side), F.unfold(x, side, stride=side).transpose(1, 2))


def test_patches_cover_the_image_and_positions_matter():
    """The Mixer and the transformer see every pixel; moving patches changes their scores."""
    x = normal(2, 3, 8, 8).float().requires_grad_()
    for net in (vit(8, 2, 8, 2, heads=2), mixer(8, 2, 8, 2, token_inner=4)):
        scores = net(x)
        assert scores.shape == (2, 10)
        (g,) = torch.autograd.grad(scores.square().sum(), x)
        assert (g != 0).all()
        moved = torch.roll(x, (2, 4), (2, 3))
        assert not torch.allclose(net(moved), scores, atol=1e-3)
        with torch.no_grad():
            if net.positions is not None:
                net.positions.zero_()
                torch.testing.assert_close(net(moved), net(x), rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="patches"):
        vit(8, 3, 8, 1)
    with pytest.raises(ValueError, match="heads"):
        vit(8, 2, 9, 1)


def test_networks_follow_their_generator_and_leave_the_global_one_alone():
    before = torch.get_rng_state()
    a, b, c = (values(vit(8, 2, 8, 1, generator=seeded(s))) for s in (1, 1, 2))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    assert torch.equal(before, torch.get_rng_state())


def test_rows_that_are_not_trained_on_validate():
    everything, some = (Images.load("digits", rows, 8, "cpu").clean for rows in (None, 100))
    assert len(some.train.x) == 100
    assert len(some.train.x) + len(some.val.x) == len(everything.train.x) + len(everything.val.x)
    assert torch.equal(torch.cat([some.train.y, some.val.y]), torch.cat([everything.train.y, everything.val.y]))
    for images in (everything, some):
        torch.testing.assert_close(images.train.x.mean(), torch.tensor(0.0), atol=1e-5, rtol=0)


def test_corruptions_do_what_they_say():
    x = torch.rand(400, 1, 8, 8, generator=seeded())
    noisy, blurred, faint = corruptions(x, seeded(1))
    assert noisy.min() >= 0
    assert noisy.max() <= 1
    middle = (x - 0.5).abs() < 0.01  # far from the edges of the range
    assert (noisy - x)[middle].std().item() == pytest.approx(0.23, abs=0.03)
    torch.testing.assert_close(blurred[:, :, 3, 4], x[:, :, 2:5, 3:6].mean((2, 3)))
    torch.testing.assert_close(faint.mean((1, 2, 3)), x.mean((1, 2, 3)))
    torch.testing.assert_close(faint.std((1, 2, 3)), 0.3 * x.std((1, 2, 3)))


# The experiment's instruments.


def test_the_arms_differ_in_the_radius_alone():
    tried = []

    def score(recipe):
        tried.append(recipe)
        return -abs(recipe.lr - 2) - abs(recipe.decay - 30) - abs(recipe.rho - 0.2)

    base, sam = experiment.tuned([1, 2, 3], [10, 20, 30], [0.1, 0.2, 0.3], score)
    assert (base.lr, base.decay, base.rho) == (2, 30, 0)
    assert (sam.lr, sam.decay, sam.rho) == (2, 30, 0.2)
    assert len(tried) == 9
    assert experiment.tuned([1], [10], [0.1], None) == (experiment.Recipe(1, 10), experiment.Recipe(1, 10, 0.1))


def test_sharpness_is_taken_once_at_the_target():
    net, (x, y), loss = small_net()
    exact = torch.linalg.eigvalsh(dense_hessian(net, x, y))[-1].item()
    looks = experiment.Looks((x, y), target=loss().item() - 1e-9, products=30)
    looks(net)
    assert math.isnan(looks.sharpness)
    looks.target = 10.0
    looks(net)
    assert looks.sharpness == pytest.approx(exact, rel=0.02)
    assert looks.loss == pytest.approx(loss().item())
    with torch.no_grad():
        net[0].weight.zero_()
    looks(net)
    assert looks.sharpness == pytest.approx(exact, rel=0.02)
