"""Landscapes against plain loops: quadratics, the scale of filters, batch norm, batches, divergence, what is left."""

import json
import math
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.optim.swa_utils import update_bn

from draws import seeded
from memory import grown
from secondlook.curvature import HessianOperator, landscape, pack, unpack
from secondlook.curvature.directions import normalised, random_directions
from toys import drawn

N, D, C = 48, 6, 3


def filled(model, seed=1):
    return drawn(model, seed, scale=0.6)


def points(n=N, seed=2, classes=C):
    generator = seeded(seed)
    x = torch.randn(n, D, generator=generator, dtype=torch.float64)
    return x, torch.randint(0, classes, (n,), generator=generator)


def cut(data, *sizes):
    return list(zip(*(t.split(sizes) for t in data), strict=True))


def tanh_net():
    return filled(nn.Sequential(nn.Linear(D, 8), nn.Tanh(), nn.Linear(8, C)))


def bn_net(seed=1, eps=1e-5):
    """With running statistics near those of the data, but not equal to them."""
    net = nn.Sequential(
        nn.Linear(D, 7), nn.BatchNorm1d(7, eps=eps), nn.Tanh(), nn.Linear(7, 5), nn.BatchNorm1d(5, eps=eps), nn.Tanh(),
        nn.Linear(5, C),
    )  # fmt: skip
    net = filled(net, seed)
    net.train()
    for _ in range(3):
        net(points()[0])
    return net


def loop(model, data, found, at=None, prepare=lambda net: net.eval()):
    """The losses by the definition: a copy of the model at every place."""
    k = found.directions.shape[1]
    values = []
    for t in torch.cartesian_prod(*[found.coordinates if at is None else at] * k).view(-1, k):
        net = deepcopy(model)
        params = list(net.parameters())
        with torch.no_grad():
            moved = pack(params) + found.directions @ t.to(found.directions)
            torch._foreach_copy_(params, unpack(moved, params))
            net = prepare(net) or net
            batches = data if isinstance(data, list) else [data]
            total = sum(float(F.cross_entropy(net(x), y)) * len(y) for x, y in batches)
        values.append(total / sum(len(y) for _, y in batches))
    return torch.tensor(values, dtype=torch.float64).view_as(found.losses) if at is None else values


def third_order(model, data, **options):
    """Whether the quadratic model is wrong by terms of third order: half as far, an eighth of the error."""
    found = (landscape(model, "cross_entropy", data, points=5, span=h, **options) for h in (2e-2, 1e-2))
    far, near = ((f.losses - f.quadratic()).abs().max() for f in found)
    return 7 < far / near < 9


@pytest.mark.parametrize("directions", ["random", "hessian"])
def test_a_quadratic_loss_is_its_quadratic_model(directions):
    model = filled(nn.Linear(D, 1))
    x, _ = points()
    y = torch.randn(N, 1, generator=seeded(5), dtype=torch.float64)
    found = landscape(model, "mse", (x, y), directions=directions, points=7, span=3, tol=1e-9)
    assert found.losses.shape == (7, 7)
    assert torch.allclose(found.losses, found.quadratic(), rtol=1e-10, atol=1e-12)
    assert found.losses.std() > 0.1
    H = HessianOperator(model, F.mse_loss, (x, y)).dense()
    d = found.directions
    for axis, exact in zip(found.axes, (d.T @ H @ d).diagonal().tolist(), strict=True):
        assert axis.curvature == pytest.approx(exact, rel=1e-10)
    if directions == "hessian":
        largest = torch.linalg.eigvalsh(H).flip(0)[:2].tolist()
        for axis, value in zip(found.axes, largest, strict=True):
            assert axis.eigenvalue.low <= value <= axis.eigenvalue.high
            assert axis.eigenvalue.high - axis.eigenvalue.low < 1e-5
            assert axis.curvature == pytest.approx(value, rel=1e-8)
            assert axis.length == pytest.approx(1)
    else:
        assert found.axes[0].eigenvalue is None


def test_the_grid_is_what_a_loop_gives_whatever_the_batches_and_the_memory():
    model, data = tanh_net(), points(150)
    one = landscape(model, "cross_entropy", data, points=9)
    assert one.at_once > 1
    assert torch.allclose(one.losses, loop(model, data, one), rtol=0, atol=1e-10)
    centre = F.cross_entropy(model(data[0]), data[1]).item()
    assert one.losses[4, 4] == pytest.approx(centre, rel=1e-13)
    assert one.loss == pytest.approx(centre, rel=1e-13)
    for others, memory in [(cut(data, 100, 50), 2e9), (data, 4e4)]:
        other = landscape(model, "cross_entropy", others, points=9, memory=memory)
        assert torch.allclose(one.losses, other.losses, rtol=0, atol=1e-10)
        assert one.axes[0].slope == pytest.approx(other.axes[0].slope, rel=1e-9)
        assert one.axes[1].curvature == pytest.approx(other.axes[1].curvature, rel=1e-9)
        assert one.mixed == pytest.approx(other.mixed, rel=1e-9)
    assert any("cut" in note for note in other.notes)
    assert third_order(model, data)


def test_a_line_and_directions_of_your_own():
    model, data = tanh_net(), points()
    params = list(model.parameters())
    way = [-p.detach() for p in params]
    found = landscape(model, "cross_entropy", data, directions=[way], points=5)
    assert found.losses.shape == (5,)
    assert found.losses[-1] == pytest.approx(math.log(C))  # all weights zero
    assert torch.allclose(found.losses, loop(model, data, found), rtol=0, atol=1e-10)
    flat = landscape(model, "cross_entropy", data, directions=pack(way), points=5)
    assert torch.equal(flat.losses, found.losses)
    plane = landscape(model, "cross_entropy", data, directions=torch.stack([pack(way), pack(params)], 1), points=5)
    assert torch.allclose(plane.losses[:, 2], found.losses, rtol=1e-12)
    assert torch.allclose(plane.losses[2], found.losses.flip(0), rtol=1e-12)
    line = landscape(model, "cross_entropy", data, directions="hessian", two_dimensional=False, points=5)
    assert [a.name for a in line.axes] == ["eigenvector 1"]
    assert line.quadratic().shape == (5,)


def test_filter_normalisation():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(2, 3, 3)
            self.norm = nn.BatchNorm2d(3)
            self.up = nn.ConvTranspose2d(4, 6, 2, groups=2)
            self.out = nn.Linear(5, 2)

    model = filled(Net())
    model.conv.weight.data[1] = 0
    params = [p.detach() for p in model.parameters()]
    raw = random_directions(params, 1, seeded())[:, 0]
    d = dict(zip([n for n, _ in model.named_parameters()], unpack(normalised(raw, model), params), strict=True))
    plain = dict(zip(d, unpack(raw, params), strict=True))
    norm = torch.linalg.vector_norm
    for j in range(3):
        assert norm(d["conv.weight"][j]) == pytest.approx(float(norm(model.conv.weight[j].detach())))
    for j in range(2):
        assert norm(d["out.weight"][j]) == pytest.approx(float(norm(model.out.weight[j].detach())))
        assert F.cosine_similarity(d["out.weight"][j], plain["out.weight"][j], 0) == pytest.approx(1)
    for channel in range(6):  # channel 4 is made by inputs 2 and 3, as its group's second
        rows, column = slice(2 * (channel // 3), 2 * (channel // 3) + 2), channel % 3
        assert norm(d["up.weight"][rows, column]) == pytest.approx(float(norm(model.up.weight[rows, column].detach())))
    for name in ("conv.bias", "norm.weight", "norm.bias", "up.bias", "out.bias"):
        assert not d[name].any()
    whole = unpack(normalised(raw, model, "layer", ignore_bias_bn=False), params)
    for part, p in zip(whole, params, strict=True):
        assert norm(part) == pytest.approx(float(norm(p)))
    assert torch.equal(normalised(raw, model, None, ignore_bias_bn=False), raw)


def test_landscapes_do_not_see_the_scale_of_relu_layers():
    model, data = filled(nn.Sequential(nn.Linear(D, 8), nn.ReLU(), nn.Linear(8, C))), points()
    scaled = deepcopy(model)
    with torch.no_grad():
        for p, factor in zip(scaled.parameters(), (10, 10, 0.1, 1), strict=True):
            p.mul_(factor)
    options = {"points": 7, "batch_norm": "eval"}
    one, other = (landscape(m, "cross_entropy", data, **options) for m in (model, scaled))
    assert torch.allclose(one.losses, other.losses, rtol=1e-10)
    one, other = (landscape(m, "cross_entropy", data, normalize=None, **options) for m in (model, scaled))
    assert (one.losses - other.losses).abs().max() > 0.1


def test_batch_norm_and_the_scale_of_single_filters():
    """In front of a batch norm that goes by the batch each filter's scale is free; layers' norms do not see that."""
    model, data = bn_net(eps=1e-30), points()
    scaled = deepcopy(model)
    factors = torch.tensor([0.1, 0.3, 1, 3, 10, 0.5, 2], dtype=torch.float64)
    with torch.no_grad():
        scaled[0].weight.mul_(factors[:, None])
        scaled[0].bias.mul_(factors)

    def largest_difference(**options):
        one, other = (landscape(m, "cross_entropy", data, points=5, **options).losses for m in (model, scaled))
        return (one - other).abs().max()

    assert largest_difference(batch_norm="batch") < 1e-8
    assert largest_difference(batch_norm="recompute") < 1e-8
    assert largest_difference(batch_norm="batch", normalize="layer") > 1e-2
    assert largest_difference(batch_norm="eval") > 1e-2


def test_what_batch_norm_does_in_each_mode():
    model, data = bn_net(), cut(points(), 16, 16, 16)

    def by_batch(net):
        net.train()

    def anew(net):
        update_bn([x for x, _ in data], net)
        net.eval()

    found = {}
    for mode, prepare in {"eval": nn.Module.eval, "batch": by_batch, "recompute": anew}.items():
        found[mode] = landscape(model, "cross_entropy", data, points=5, batch_norm=mode)
        assert found[mode].at_once > 1
        exact = loop(model, data, found[mode], prepare=prepare)
        assert torch.allclose(found[mode].losses, exact, rtol=0, atol=1e-10), mode
        assert found[mode].loss == pytest.approx(float(exact[2, 2]), rel=1e-12)
        assert third_order(model, data, batch_norm=mode), mode
    assert torch.equal(found["eval"].directions, found["recompute"].directions)
    for a, b in (("eval", "batch"), ("eval", "recompute"), ("batch", "recompute")):
        assert (found[a].losses - found[b].losses).abs().max() > 1e-2
    assert found["eval"].differences is None
    assert any("differences" in note for note in found["recompute"].notes)
    one_batch = landscape(model, "cross_entropy", points(), points=5)
    assert torch.allclose(found["eval"].losses, one_batch.losses, rtol=0, atol=1e-10)  # points by themselves
    one_batch = landscape(model, "cross_entropy", points(), points=5, batch_norm="batch")
    assert (found["batch"].losses - one_batch.losses).abs().max() > 1e-3


def test_batch_norm_without_statistics_goes_by_the_batch_in_every_mode():
    norm = nn.BatchNorm1d(8, track_running_stats=False)
    model, data = filled(nn.Sequential(nn.Linear(D, 8), norm, nn.Tanh(), nn.Linear(8, C))), points(150)
    found = [landscape(model, "cross_entropy", data, points=3, batch_norm=mode) for mode in ("eval", "recompute")]
    assert torch.allclose(found[0].losses, loop(model, data, found[0]), rtol=0, atol=1e-10)
    assert torch.equal(found[0].losses, found[1].losses)
    with pytest.raises(ValueError, match="smaller batches"):  # cutting them would change the loss
        landscape(model, "cross_entropy", data, points=3, memory=4e4)


def test_differences_find_what_differentiation_does():
    """Frozen statistics recomputed from one batch differ from the batch's own by Bessel's correction alone."""
    model, data = bn_net(), points(4000)
    recomputed, batch = (
        landscape(model, "cross_entropy", data, points=3, batch_norm=mode) for mode in ("recompute", "batch")
    )
    for a, b in zip(recomputed.axes, batch.axes, strict=True):
        assert a.slope == pytest.approx(b.slope, abs=2e-3)
        assert a.curvature == pytest.approx(b.curvature, abs=2e-2)
    assert recomputed.mixed == pytest.approx(batch.mixed, abs=2e-2)


def test_hessian_axes_belong_to_the_plotted_loss():
    model, data = bn_net(), cut(points(), 24, 24)
    for mode in ("eval", "batch"):
        found = landscape(model, "cross_entropy", data, points=3, directions="hessian", batch_norm=mode, tol=1e-8)
        copy = deepcopy(model).train(mode == "batch")
        exact = torch.linalg.eigvalsh(HessianOperator(copy, F.cross_entropy, data).dense()).flip(0)[:2]
        for axis, value in zip(found.axes, exact.tolist(), strict=True):
            assert axis.eigenvalue.low <= value <= axis.eigenvalue.high
            assert axis.curvature == pytest.approx(value, rel=1e-6)
        assert abs(found.mixed) < 1e-6
    rescaled = landscape(model, "cross_entropy", data, points=3, directions="hessian", normalize="filter")
    assert rescaled.axes[0].eigenvalue is None
    anew = landscape(model, "cross_entropy", data, points=3, directions="hessian", batch_norm="recompute")
    assert any("normalised by itself" in note for note in anew.notes)


@pytest.mark.parametrize("batch_norm", ["eval", "batch", "recompute"])
@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_left_as_found(batch_norm, training):
    model, data = bn_net().train(training), points()
    model[4].eval()
    model[1].momentum = None
    state = deepcopy(model.state_dict())
    modes = [m.training for m in model.modules()]
    settings = [(m.momentum, m.track_running_stats) for m in (model[1], model[4])]
    hooks = [len(m._forward_pre_hooks) for m in model.modules()]
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    landscape(model, "cross_entropy", data, points=3, directions="hessian", batch_norm=batch_norm)
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(state.values(), model.state_dict().values(), strict=True))
    assert modes == [m.training for m in model.modules()]
    assert settings == [(m.momentum, m.track_running_stats) for m in (model[1], model[4])]
    assert hooks == [len(m._forward_pre_hooks) for m in model.modules()]
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_a_failure_leaves_the_model_too():
    model = bn_net().train()
    state = deepcopy(model.state_dict())

    def loss(outputs, targets):
        raise RuntimeError("broken")

    with pytest.raises(ValueError, match="broken"):
        landscape(model, loss, points(), batch_norm="recompute")
    assert model[1].training
    assert model[1].track_running_stats
    assert all(torch.equal(a, b) for a, b in zip(state.values(), model.state_dict().values(), strict=True))


def test_models_that_cannot_be_mapped_go_one_by_one():
    class Branching(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = tanh_net()

        def forward(self, x):
            z = self.net(x)
            return z * 2 if float(z.detach().sum()) > 0 else z

    model, data = Branching(), points()
    found = landscape(model, "cross_entropy", data, points=5)
    assert found.at_once == 1
    assert torch.allclose(found.losses, loop(model, data, found), rtol=0, atol=1e-10)


def test_divergence_is_recorded():
    model = filled(nn.Sequential(nn.Linear(D, 4), nn.ReLU(), nn.Linear(4, 1)))
    x, _ = points()

    def exponential(outputs, targets):
        return torch.exp(outputs.square()).mean() + 0 * targets.sum()

    found = landscape(model, exponential, (x, x[:, :1]), directions="hessian", points=11, span=40)
    lost = ~torch.isfinite(found.losses)
    assert 0 < lost.sum() < lost.numel()
    assert torch.isfinite(found.losses[5, 5])
    assert any(f"{int(lost.sum())} of 121 points" in note for note in found.notes)
    listed = json.loads(found.to_json())["losses"]
    assert [v is None for row in listed for v in row] == lost.flatten().tolist()


def test_json_progress_precision_and_repetition():
    seen = []
    model, data = tanh_net(), points()
    options = {"points": 5, "directions": "hessian"}
    found = landscape(model, "cross_entropy", data, progress=lambda *a: seen.append(a), **options)
    assert list(dict.fromkeys(stage for stage, _, _ in seen)) == ["eigenvectors", "grid", "curvature"]
    assert all(0 < done <= total for _, done, total in seen)
    content = json.loads(found.to_json())
    assert content["losses"] == found.losses.tolist()
    assert content["quadratic"] == found.quadratic().tolist()
    assert content["axes"][0]["eigenvalue"]["low"] == found.axes[0].eigenvalue.low
    assert "directions" not in content
    again = json.loads(landscape(model, "cross_entropy", data, **options).to_json())
    assert again | {"seconds": 0} == content | {"seconds": 0}
    single = landscape(deepcopy(model).float(), "cross_entropy", (data[0].float(), data[1]), points=5)
    double = landscape(model, "cross_entropy", data, points=5)
    assert single.losses.dtype == torch.float64
    assert torch.allclose(single.losses, double.losses, rtol=1e-5)
    assert torch.allclose(single.directions.double(), double.directions, rtol=1e-5, atol=1e-6)


def test_frozen_weights_tied_weights_and_models_without_batch_norm():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.out = nn.Embedding(5, 5), nn.Linear(5, 5)
            self.out.weight = self.embed.weight

        def forward(self, x):
            return self.out(torch.tanh(self.embed(x)))

    model = filled(Tied())
    model.out.bias.requires_grad_(False)
    x = torch.randint(0, 5, (20, 3), generator=seeded())
    found = landscape(model, "cross_entropy", (x, x), points=3, batch_norm="recompute")
    assert found.parameters == 25
    assert found.differences is None
    assert any("changes nothing" in note for note in found.notes)
    moved = deepcopy(model)
    with torch.no_grad():
        moved.embed.weight += (found.directions[:, 0] - found.directions[:, 1]).view(5, 5)
    assert found.losses[2, 0] == pytest.approx(F.cross_entropy(moved(x).flatten(0, 1), x.flatten()).item(), rel=1e-12)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"points": 4}, "odd number"),
        ({"span": 0}, "span above 0"),
        ({"batch_norm": "train"}, "eval, batch, recompute"),
        ({"directions": "steepest"}, "'random', 'hessian' or tensors"),
        ({"normalize": "model"}, "'filter', 'layer' or None"),
        ({"directions": torch.ones(7)}, "83"),
        ({"directions": torch.zeros(83)}, "zero or not finite"),
        ({"directions": [[torch.ones(3)]]}, "shaped like the parameters"),
        ({"loss": "crossentropy"}, "one of cross_entropy, mse"),
        ({"memory": 2e3}, "allow"),
    ],
)
def test_bad_input(change, said):
    model = filled(nn.Sequential(nn.Linear(D, 8), nn.Tanh(), nn.Linear(8, C)))
    with pytest.raises(ValueError, match=said):
        landscape(**{"model": model, "loss": "cross_entropy", "data": points()} | change)


def test_more_bad_input():
    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = tanh_net()

        def forward(self, x):
            return self.net(x + torch.randn_like(x))

    with pytest.raises(ValueError, match="random numbers"):
        landscape(Noisy(), "cross_entropy", points(), points=3)
    scale = nn.Module()
    scale.weight = nn.Parameter(torch.ones(D))
    scale.forward = lambda x: x * scale.weight
    with pytest.raises(ValueError, match="ignore_bias_bn=False"):
        landscape(scale, "mse", (points()[0],) * 2)
    with pytest.raises(TypeError, match=r"nn\.Module"):
        landscape(lambda x: x, "cross_entropy", points())


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
@pytest.mark.parametrize(("limit", "least"), [(6e7, 0), (2e9, 80)])
def test_memory_stays_under_the_limit(limit, least):
    """55,000 parameters, 4,000 points: left alone, it takes more than 80 MB."""
    added = grown("landscape", limit, directions="hessian", points=5, max_products=12)
    assert least < added < limit / 1e6
