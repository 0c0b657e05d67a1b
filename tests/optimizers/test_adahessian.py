"""AdaHessian against closed forms, dense Hessians and an independent implementation."""

import copy
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from draws import seeded
from secondlook.optimizers import AdaHessian, hutchinson_diag
from secondlook.optimizers.adahessian import experiment, sign_vectors, spatial_mean
from secondlook.problems.datasets import Dataset, Split

pytestmark = pytest.mark.filterwarnings("ignore:Using backward:UserWarning")


def tanh_net(seed=0, dtype=torch.float64):
    """62 parameters: 4 -> 6 -> 4 -> 1, no bias on the last layer."""
    g = seeded(seed)
    return [
        (torch.randn(shape, generator=g, dtype=dtype) * 0.7).requires_grad_()
        for shape in [(6, 4), (6,), (4, 6), (4,), (1, 4)]
    ]


def tanh_loss(w, x, y):
    return ((torch.tanh(torch.tanh(x @ w[0].T + w[1]) @ w[2].T + w[3]) @ w[4].T - y) ** 2).mean()


def data(seed=1, n=32, dtype=torch.float64):
    g = seeded(seed)
    return torch.randn(n, 4, generator=g, dtype=dtype), torch.randn(n, 1, generator=g, dtype=dtype)


def dense_diagonal(w, loss):
    """diag of the dense Hessian of loss(list of tensors), one tensor a parameter."""
    sizes, shapes = [t.numel() for t in w], [t.shape for t in w]

    def flat_loss(flat):
        return loss([p.view(s) for p, s in zip(flat.split(sizes), shapes, strict=True)])

    flat = torch.cat([t.detach().flatten() for t in w])
    diagonal = torch.func.hessian(flat_loss)(flat).diagonal()
    return [d.view(s) for d, s in zip(diagonal.split(sizes), shapes, strict=True)]


def conv_problem(dtype=torch.float64):
    """A net with kernels of rank 4, a matrix and vectors, and a loss with curvature everywhere."""
    g = seeded(3)
    net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.Tanh(), nn.Conv2d(3, 2, 2), nn.Tanh(), nn.Flatten(), nn.Linear(18, 3))
    net = net.to(dtype)
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.randn(p.shape, generator=g, dtype=dtype) * 0.3)
    x = torch.randn(8, 1, 6, 6, generator=g, dtype=dtype)
    y = torch.randint(0, 3, (8,), generator=g)
    return net, lambda: nn.functional.cross_entropy(net(x), y)


def descend(params, optimizer, loss, steps, probes=None):
    for i in range(steps):
        optimizer.zero_grad()
        loss().backward(create_graph=True)
        optimizer.step(probes=None if probes is None else probes[i])


# Oracle 1: with a diagonal Hessian every sign vector gives the diagonal exactly.


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("power", [1.0, 0.5])
def test_diagonal_quadratic_follows_the_closed_form(seed, power):
    h = np.array([0.3, 2.0, 7.0, -1.5])
    start = np.array([1.0, -2.0, 0.5, 0.2])
    w = torch.tensor(start, requires_grad=True)
    optimizer = AdaHessian([w], lr=0.1, weight_decay=0.01, hessian_power=power, generator=seeded(seed))
    curvature = torch.tensor(h)
    descend([w], optimizer, lambda: 0.5 * (curvature * w * w).sum(), 10)

    x, m, v = start.copy(), np.zeros(4), np.zeros(4)
    for t in range(1, 11):
        m = 0.9 * m + 0.1 * h * x
        v = 0.999 * v + 0.001 * h**2
        denominator = np.sqrt(v / (1 - 0.999**t)) ** power + 1e-4
        x = x - 0.1 * (m / (1 - 0.9**t) / denominator + 0.01 * x)
    np.testing.assert_allclose(w.detach().numpy(), x, rtol=0, atol=1e-12)


def test_diagonal_hessian_needs_one_probe_only():
    h = torch.tensor([0.5, -3.0, 40.0])
    w = torch.ones(3, requires_grad=True)
    (g,) = torch.autograd.grad(0.5 * (h * w * w).sum(), w, create_graph=True)
    for seed in range(4):
        (d,) = hutchinson_diag([g], [w], 1, signed=True, generator=seeded(seed))
        torch.testing.assert_close(d, h, rtol=0, atol=1e-6)
        (d,) = hutchinson_diag([g], [w], 1, generator=seeded(seed))
        torch.testing.assert_close(d, h.abs(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("power", [1.0, 0.5])
def test_agrees_with_torch_optimizer(power, monkeypatch):
    """Same sign vectors, same conv net, 20 steps: the released arithmetic."""
    peer = pytest.importorskip("torch_optimizer")
    ours, loss = conv_problem()
    theirs, their_loss = conv_problem()
    options = {"lr": 0.1, "betas": (0.9, 0.99), "eps": 1e-4, "weight_decay": 0.02, "hessian_power": power}
    optimizer = AdaHessian(ours.parameters(), **options)
    reference = peer.Adahessian(theirs.parameters(), **options)
    draws = [sign_vectors(list(ours.parameters()), seeded(i)) for i in range(20)]
    pending = iter([])
    # The peer draws bits with randint_like and maps them to signs; hand it the bits of our signs.
    monkeypatch.setattr(torch, "randint_like", lambda p, **_: (next(pending) + 1) / 2)
    for z in draws:
        pending = iter(z)
        for opt, f in ((optimizer, loss), (reference, their_loss)):
            opt.zero_grad()
            f().backward(create_graph=True)
            opt.step(probes=z) if opt is optimizer else opt.step()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


# Oracle 2: the signed mean converges to the dense diagonal like n^(-1/2).


def test_signed_probes_converge_to_the_dense_diagonal():
    w, (x, y) = tanh_net(), data()
    exact = torch.cat([d.flatten() for d in dense_diagonal(w, lambda p: tanh_loss(p, x, y))])
    g = torch.autograd.grad(tanh_loss(w, x, y), w, create_graph=True)
    # H z for 8192 probes as one batched product; the estimator itself stands beside it below.
    generator, counts, errors = seeded(5), [64, 256, 1024, 4096], []
    single = hutchinson_diag(g, w, 64, signed=True, generator=generator)
    z = torch.stack([torch.cat([s.flatten() for s in sign_vectors(w, generator)]) for _ in range(2 * 4096)])
    sizes = [t.numel() for t in w]
    batched = [b.view(-1, *t.shape) for b, t in zip(z.split(sizes, dim=1), w, strict=True)]
    hz = torch.autograd.grad(g, w, batched, is_grads_batched=True)
    products = z * torch.cat([p.flatten(1) for p in hz], dim=1)
    for n in counts:
        estimate = products.view(-1, n, products.shape[1]).mean(dim=1)
        errors.append((((estimate - exact) ** 2).sum(1).mean().sqrt() / exact.norm()).item())
    assert errors[-1] < 0.1
    slope = np.polyfit(np.log(counts), np.log(errors), 1)[0]
    assert abs(slope + 0.5) < 0.1
    relative = (torch.cat([s.flatten() for s in single]) - exact).norm() / exact.norm()
    assert relative < 4 * errors[0]


def test_absolute_average_bounds_the_diagonal_from_above():
    """All 2^9 sign vectors of a small problem: exact expectations, no chance."""
    g = seeded(2)
    a = torch.randn(9, 9, generator=g, dtype=torch.float64)
    h = a + a.T
    w = torch.zeros(9, dtype=torch.float64, requires_grad=True)
    (grad,) = torch.autograd.grad(0.5 * w @ h @ w, w, create_graph=True)
    bits = torch.arange(2**9)[:, None] >> torch.arange(9) & 1
    signs = [[row] for row in (2.0 * bits - 1).to(torch.float64)]
    (signed,) = hutchinson_diag([grad], [w], signed=True, probes=signs)
    (absolute,) = hutchinson_diag([grad], [w], probes=signs)
    torch.testing.assert_close(signed, h.diagonal(), rtol=0, atol=1e-10)
    assert (absolute >= h.diagonal().abs() - 1e-10).all()
    assert (absolute > h.diagonal().abs() + 0.1).any()


# Oracle 3: without the power of the curvature it is averaged SGD.


def test_power_zero_is_averaged_sgd():
    w, (x, y) = tanh_net(dtype=torch.float64), data()
    expected = [t.detach().clone() for t in w]
    optimizer = AdaHessian(w, lr=0.1, hessian_power=0.0, eps=1e-3)
    averages = [torch.zeros_like(t) for t in expected]
    for t in range(1, 6):
        shadow = [e.clone().requires_grad_() for e in expected]
        grads = torch.autograd.grad(tanh_loss(shadow, x, y), shadow)
        averages = [0.9 * m + 0.1 * g for m, g in zip(averages, grads, strict=True)]
        expected = [e - 0.1 * m / (1 - 0.9**t) / (1 + 1e-3) for e, m in zip(expected, averages, strict=True)]
        descend(w, optimizer, lambda: tanh_loss(w, x, y), 1)
    for a, b in zip(w, expected, strict=True):
        torch.testing.assert_close(a.detach(), b, rtol=0, atol=1e-7)


# The estimator's parts.


def test_coupling_between_tensors_enters_the_products():
    a, b = (torch.tensor(v, requires_grad=True) for v in (2.0, 3.0))
    grads = torch.autograd.grad(a * a * b, [a, b], create_graph=True)  # H = [[2b, 2a], [2a, 0]]
    for za, zb in [(1.0, 1.0), (1.0, -1.0)]:
        d = hutchinson_diag(grads, [a, b], probes=[[torch.tensor(za), torch.tensor(zb)]])
        assert [t.item() for t in d] == [abs(6 * za + 4 * zb), abs(4 * za)]


@pytest.mark.parametrize(("shape", "axes"), [((4, 3, 2, 5), (2, 3)), ((4, 3, 7), (2,)), ((2, 2, 2, 3, 4), (2, 3, 4))])
def test_spatial_mean_is_constant_over_a_kernel(shape, axes):
    d = torch.rand(shape, generator=seeded())
    mean = spatial_mean(d)
    assert mean.shape == d.shape
    torch.testing.assert_close(mean, d.mean(axes, keepdim=True).expand(shape))


@pytest.mark.parametrize("shape", [(), (5,), (3, 4)])
def test_spatial_mean_leaves_low_ranks_alone(shape):
    d = torch.rand(shape, generator=seeded())
    assert spatial_mean(d) is d


def test_absolute_value_comes_before_the_average():
    net, loss = conv_problem()
    params = list(net.parameters())
    grads = torch.autograd.grad(loss(), params, create_graph=True)
    z = sign_vectors(params, seeded(1))
    (signed, absolute) = (
        hutchinson_diag(grads, params, block="spatial", signed=s, probes=[z])[0] for s in (True, False)
    )
    assert (absolute > signed.abs()).all()


def test_probes_average_and_stand_for_n_probes():
    net, loss = conv_problem()
    params = list(net.parameters())
    grads = torch.autograd.grad(loss(), params, create_graph=True)
    g = seeded(4)
    draws = [sign_vectors(params, g) for _ in range(3)]
    each = [hutchinson_diag(grads, params, probes=[z]) for z in draws]
    for together in (
        hutchinson_diag(grads, params, probes=draws),
        hutchinson_diag(grads, params, 3, generator=seeded(4)),
    ):
        for i, d in enumerate(together):
            torch.testing.assert_close(d, (each[0][i] + each[1][i] + each[2][i]) / 3)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(st.integers(1, 4), max_size=4), min_size=1, max_size=4), st.integers(0, 2**31))
def test_sign_vectors_are_signs_of_the_right_shape(shapes, seed):
    like = [torch.empty(shape, dtype=torch.float64) for shape in shapes]
    z = sign_vectors(like, seeded(seed))
    assert [t.shape for t in z] == [t.shape for t in like]
    assert all(t.dtype == torch.float64 and bool((t.abs() == 1).all()) for t in z)


def test_sign_vectors_are_balanced():
    (z,) = sign_vectors([torch.empty(100_000)], seeded())
    assert abs(z.mean().item()) < 0.02


# The optimizer's own options.


@settings(max_examples=15, deadline=None)
@given(st.floats(0.1, 100.0))
def test_without_eps_the_step_ignores_the_scale_of_the_loss(scale):
    """m and D scale alike, so the ratio does not: a property Adam shares."""
    moved = []
    for factor in (1.0, scale):
        w, (x, y) = tanh_net(), data()
        optimizer = AdaHessian(w, lr=0.01, eps=1e-12, generator=seeded())
        descend(w, optimizer, lambda w=w, x=x, y=y, factor=factor: factor * tanh_loss(w, x, y), 3)
        moved.append(torch.cat([p.detach().flatten() for p in w]))
    torch.testing.assert_close(moved[0], moved[1], rtol=1e-6, atol=1e-8)


def test_relabelled_parameters_follow_relabelled_signs():
    """Permuting a vector parameter and its sign vectors permutes the path."""
    order = torch.tensor([2, 0, 3, 1])
    g = seeded(6)
    a = torch.randn(4, 4, generator=g, dtype=torch.float64)
    h = a @ a.T
    signs = [[torch.tensor(z, dtype=torch.float64)] for z in ([1.0, -1, 1, 1], [-1.0, -1, 1, -1])]
    paths = []
    for permute in (torch.arange(4), order):
        w = torch.ones(4, dtype=torch.float64)[permute].requires_grad_()
        hp = h[permute][:, permute]
        optimizer = AdaHessian([w], lr=0.1)
        descend([w], optimizer, lambda w=w, hp=hp: 0.5 * w @ hp @ w, 2, [[z[0][permute]] for z in signs])
        paths.append(w.detach())
    torch.testing.assert_close(paths[0][order], paths[1])


def test_spatial_average_off_and_signed_average_differ():
    ends = []
    for options in ({}, {"spatial_average": False}, {"signed_average": True}):
        net, loss = conv_problem()
        optimizer = AdaHessian(net.parameters(), generator=seeded(), **options)
        descend(net, optimizer, loss, 2)
        ends.append([p.detach().clone() for p in net.parameters()])
    assert not torch.equal(ends[0][0], ends[1][0])
    assert not torch.equal(ends[0][0], ends[2][0])


def test_without_blocks_one_signed_probe_is_one_absolute_probe():
    """v takes squares, so the sign is lost unless something is averaged first."""
    ends = []
    for signed in (False, True):
        net, loss = conv_problem()
        optimizer = AdaHessian(net.parameters(), generator=seeded(), spatial_average=False, signed_average=signed)
        descend(net, optimizer, loss, 3)
        ends.append([p.detach().clone() for p in net.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


def test_update_every_counts_refreshes_and_needs_no_graph_between():
    net, loss = conv_problem()
    optimizer = AdaHessian(net.parameters(), lr=0.01, update_every=3)
    wanted = []
    for _ in range(7):
        wanted.append(optimizer.wants_graph)
        optimizer.zero_grad()
        loss().backward(create_graph=optimizer.wants_graph)
        optimizer.step()
    assert wanted == [True, False, False, True, False, False, True]
    for state in optimizer.state.values():
        assert (state["step"], state["refreshes"]) == (7, 3)


def test_a_parameter_that_joins_between_refreshes_gets_its_curvature():
    a, b = torch.ones(2, requires_grad=True), torch.ones(2, requires_grad=True)
    optimizer = AdaHessian([a, b], lr=0.1, update_every=10)
    descend([a], optimizer, lambda: (a**2).sum(), 2)
    descend([a, b], optimizer, lambda: (a**2 + 3 * b**2).sum(), 1)
    torch.testing.assert_close(b.detach(), torch.full((2,), 1 - 0.1 * 6 / (6 + 1e-4)))


def test_graph_is_freed():
    net, loss = conv_problem()
    optimizer = AdaHessian(net.parameters())
    descend(net, optimizer, loss, 1)
    assert all(not p.grad.requires_grad for p in net.parameters())
    old = next(iter(net.parameters())).grad.clone()
    loss().backward(create_graph=True)  # gradients accumulate on the detached ones
    assert next(iter(net.parameters())).grad.requires_grad
    assert not torch.equal(next(iter(net.parameters())).grad, old)


def test_gradient_without_graph_is_refused():
    w = torch.ones(3, requires_grad=True)
    optimizer = AdaHessian([w])
    (w**2).sum().backward()
    with pytest.raises(RuntimeError, match="create_graph=True"):
        optimizer.step()
    with pytest.raises(RuntimeError, match=r"gradient 0 of shape \(3,\)"):
        hutchinson_diag([w.grad], [w])


def test_sparse_gradients_are_refused():
    table = nn.Embedding(4, 2, sparse=True)
    optimizer = AdaHessian(table.parameters())
    table(torch.tensor([1])).sum().backward()
    with pytest.raises(RuntimeError, match="sparse=False"):
        optimizer.step()


def test_probes_must_fit():
    w = torch.ones(3, requires_grad=True)
    optimizer = AdaHessian([w])
    (w**2).sum().backward(create_graph=True)
    with pytest.raises(ValueError, match=r"\[\(3,\)\]"):
        optimizer.step(probes=[[torch.ones(2)]])


def test_bad_estimator_arguments_are_named():
    w = torch.ones(3, requires_grad=True)
    (g,) = torch.autograd.grad((w**2).sum(), w, create_graph=True)
    with pytest.raises(ValueError, match="n_probes"):
        hutchinson_diag([g], [w], 0)
    with pytest.raises(ValueError, match="block"):
        hutchinson_diag([g], [w], 1, block="channels")
    assert hutchinson_diag([], []) == []


def test_default_stream_follows_manual_seed_without_using_it():
    ends = []
    with torch.random.fork_rng():
        for seed in (0, 0, 1):
            torch.manual_seed(seed)
            before = torch.get_rng_state()
            net, loss = conv_problem()
            torch.set_rng_state(before)
            descend(net, AdaHessian(net.parameters()), loss, 2)
            assert torch.equal(torch.get_rng_state(), before)
            ends.append(next(iter(net.parameters())).detach().clone())
    assert torch.equal(ends[0], ends[1])
    assert not torch.equal(ends[0], ends[2])


def test_deepcopy_continues_alike():
    net, loss = conv_problem()
    optimizer = AdaHessian(net.parameters(), n_probes=2, update_every=2, signed_average=True)
    descend(net, optimizer, loss, 2)
    twin = copy.deepcopy(optimizer)
    assert (twin.n_probes, twin.update_every, twin.signed_average) == (2, 2, True)
    assert torch.equal(twin.generator.get_state(), optimizer.generator.get_state())


def test_no_warning_comes_from_the_step_itself():
    w = torch.ones(3, requires_grad=True)
    optimizer = AdaHessian([w])
    w.grad = torch.autograd.grad((w**3).sum(), w, create_graph=True)[0]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.step()
    torch.testing.assert_close(w.detach(), torch.full((3,), 1 - 0.15 * 3 / (6 + 1e-4)))


# The experiment's own instruments.


def test_exact_diagonal_is_that_of_the_dense_hessian():
    net, loss = conv_problem()
    params = list(net.parameters())
    g = seeded(3)
    for p in params:  # draw what conv_problem drew before its data
        torch.randn(p.shape, generator=g, dtype=p.dtype)
    x = torch.randn(8, 1, 6, 6, generator=g, dtype=torch.float64)
    y = torch.randint(0, 3, (8,), generator=g)
    grads = torch.autograd.grad(loss(), params, create_graph=True)
    flat = torch.cat([gr.flatten() for gr in grads])
    rows = [torch.autograd.grad(e, params, retain_graph=True, materialize_grads=True) for e in flat]
    dense = torch.stack([torch.cat([r.flatten() for r in row]) for row in rows]).diagonal()
    found = torch.cat([d.flatten() for d in experiment.exact_diagonal(net, Split(x, y))])
    torch.testing.assert_close(found, dense, rtol=0, atol=1e-10)


@pytest.mark.parametrize("arm", ["adamw", *experiment.VARIANTS])
def test_decoupled_arms_shrink_weights_alike(arm):
    """Without a gradient, a decoupled decay of `decay / lr` times lr is a shrinkage by `decay` a step."""
    net = nn.Linear(2, 2, bias=False)
    before = net.weight.detach().clone()
    opt = experiment.optimizer(arm, net, lr=0.1, decay=0.01, seed=0)
    loss = 0 * net.weight.square().sum()
    net.weight.grad = torch.autograd.grad(loss, net.weight, create_graph=True)[0]
    opt.step()
    torch.testing.assert_close(net.weight.detach(), before * (1 - 0.01))


def test_unknown_arm_is_named():
    with pytest.raises(ValueError, match="no arm 'adamax'"):
        experiment.optimizer("adamax", nn.Linear(1, 1), 0.1, 0.0, 0)


@pytest.mark.parametrize("problem", list(experiment.PROBLEMS))
def test_every_problem_trains_a_step(problem):
    """The code path of the large scales, on a handful of random images."""
    g = seeded()
    setting = experiment.PROBLEMS[problem]
    shape = (1, 8, 8) if setting.data == "digits" else (3, 32, 32)
    part = Split(torch.randn(8, *shape, generator=g), torch.randint(0, 10, (8,), generator=g))
    data = Dataset("random", part, part, part, classes=10)
    h = experiment.train("adahessian", 0.15, 0, setting, data, epochs=1, batch_size=4, weight_decay=5e-4)
    assert h.column("step") == [2]
    assert np.isfinite(h.last("train_loss"))


def test_fewer_rows_are_rows_of_the_same_run():
    g = seeded()
    part = Split(torch.randn(8, 1, 8, 8, generator=g), torch.randint(0, 10, (8,), generator=g))
    setting, data = experiment.PROBLEMS["digits-cnn"], Dataset("random", part, part, part, classes=10)
    recipe = {"epochs": 4, "batch_size": 4, "weight_decay": 0.0}
    each, second = (experiment.train("adam", 0.1, 0, setting, data, every=n, **recipe) for n in (1, 2))
    assert second.column("step") == [4, 8]
    assert second.column("train_loss") == each.column("train_loss")[1::2]


def test_no_vector_of_an_earlier_group_is_kept():
    """A parameter without a gradient falls behind: the others are joined afresh, and the first vectors are let go."""
    params = [torch.ones(3, requires_grad=True) for _ in range(5)]
    optimizer = AdaHessian(params, lr=0.01, generator=seeded(0))
    for here in (params, params[1:], params[1:]):
        optimizer.zero_grad()
        sum((p**4).sum() for p in here).backward(create_graph=True)
        optimizer.step()
    kept = [whole for whole, *_ in optimizer.vectors._kept.values()]
    assert [len(whole) for whole in kept] == [12, 12]  # both averages of the four
