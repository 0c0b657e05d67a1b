"""The report on a whole model against its dense Hessian: certificates, intervals, layers, memory, modes."""

import json
import math
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from draws import seeded
from memory import grown
from secondlook.curvature import HessianOperator, SpectrumReport, pack, spectrum
from secondlook.curvature.memory import fit
from secondlook.curvature.products import as_batches
from toys import drawn

N, D, C = 60, 8, 4


def filled(model, seed=1):
    return drawn(model, seed, scale=0.6)


def net(width=10):
    return filled(
        nn.Sequential(nn.Linear(D, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, C))
    )


def points(n=N, seed=2):
    generator = seeded(seed)
    x = torch.randn(n, D, generator=generator, dtype=torch.float64)
    return x, torch.randint(0, C, (n,), generator=generator)


def dense(model, data, params=None):
    return HessianOperator(model, F.cross_entropy, data, params).dense()


def test_everything_agrees_with_the_dense_matrix():
    model, data = net(), points()
    report = spectrum(model, "cross_entropy", data, top=5, tol=1e-8)
    H = dense(model, data)
    exact = torch.linalg.eigvalsh(H)
    assert (report.parameters, report.points, report.matrix) == (len(H), N, "hessian")
    assert report.loss == pytest.approx(F.cross_entropy(model(data[0]), data[1]).item(), rel=1e-12)
    assert report.converged
    for e, value in zip(report.eigenvalues, exact.flip(0)[:5].tolist(), strict=True):
        assert e.low <= value <= e.high
        assert e.value == pytest.approx(value, abs=1e-9)
        assert e.high - e.low < 1e-6
    assert report.bounds[0] <= exact[0] < exact[-1] <= report.bounds[1]
    assert report.trace.low <= H.trace() <= report.trace.high
    grid = torch.tensor(report.density.grid).double()
    smooth = torch.distributions.Normal(exact[:, None], report.density.width).log_prob(grid).exp().mean(0)
    low, high = (torch.tensor(side).double() for side in (report.density.low, report.density.high))
    assert ((low - 1e-6 <= smooth) & (smooth <= high + 1e-6)).double().mean() > 0.85
    assert torch.trapezoid(torch.tensor(report.density.value).double(), grid) == pytest.approx(1, abs=1e-3)
    R = H @ report.vectors - report.vectors * torch.tensor([e.value for e in report.eigenvalues]).double()
    assert R.norm(dim=0).max() < 1e-6


def test_layers_are_the_diagonal_blocks():
    model, data = net(width=12), points()
    report = spectrum(model, F.cross_entropy, data, top=2, density=False, tol=1e-7)
    assert report.density is None
    found = {row.name: row for row in report.layers}
    assert set(found) == {"0", "2", "4"}
    values = [row.eigenvalue.value for row in report.layers]
    assert values == sorted(values, reverse=True)
    covered = []
    for name, row in found.items():
        block = dense(model, data, list(model[int(name)].parameters()))
        assert row.parameters == len(block)
        largest = float(torch.linalg.eigvalsh(block)[-1])
        assert row.eigenvalue.low <= largest <= row.eigenvalue.high
        assert row.eigenvalue.value == pytest.approx(largest, rel=1e-6)
        covered.append(row.trace.low - 1e-12 <= block.trace() <= row.trace.high + 1e-12)
    assert found["4"].trace.low == found["4"].trace.high  # small: exact
    assert found["2"].trace.low < found["2"].trace.high
    assert sum(covered) >= 2


def test_trace_intervals_cover():
    model, data = net(width=5), points()
    truth = dense(model, data).trace()
    options = {"top": 3, "density": False, "layers": False, "probes": 10, "level": 0.8, "tol": 1e-2}
    runs = [spectrum(model, "cross_entropy", data, generator=seeded(s), **options).trace for s in range(80)]
    assert abs(sum(t.low <= truth <= t.high for t in runs) / len(runs) - 0.8) < 0.12


def test_batches_and_memory_change_nothing_but_the_way():
    model, (x, y) = net(width=6), points(301)
    one = spectrum(model, "cross_entropy", (x, y), top=3, tol=1e-9)
    for data, memory in [([(x[:100], y[:100]), (x[100:], y[100:])], 2e9), ((x, y), 2.5e5)]:
        other = spectrum(model, "cross_entropy", data, top=3, tol=1e-9, memory=memory)
        for a, b in zip(one.eigenvalues, other.eigenvalues, strict=True):
            assert a.value == pytest.approx(b.value, abs=1e-10)
        assert one.loss == pytest.approx(other.loss, rel=1e-12)
        for a, b in zip(one.layers, other.layers, strict=True):
            assert a.eigenvalue.value == pytest.approx(b.eigenvalue.value, rel=1e-6)
        assert one.points == other.points == 301
    assert any("cut" in note for note in other.notes)


def test_the_plan_follows_the_memory():
    model, (x, y) = net(), points(400)
    params = list(model.parameters())

    def make(batches):
        return HessianOperator(model, F.cross_entropy, batches, params)

    whole = make([(x, y)]).graph_bytes()
    roomy = fit(make, as_batches((x, y)), 100 * whole, cut=True)
    assert len(roomy.batches) == 1
    assert roomy.keep
    assert roomy.pieces is None
    tight = fit(make, as_batches((x, y)), whole, cut=True)
    assert len(tight.batches) > 1
    assert sum(len(b[1]) for b in tight.batches) == 400
    assert not tight.keep
    copies = [tuple(t.clone() for t in b) for b in tight.batches]  # a view counts as all it looks into
    assert 4 * max(make([b]).graph_bytes() for b in copies) < 0.55 * whole
    assert tight.chunk < roomy.chunk
    with pytest.raises(ValueError, match="smaller batches"):
        fit(make, as_batches((x, y)), whole, cut=False)
    with pytest.raises(ValueError, match="one point alone"):
        fit(make, as_batches((x, y)), 100, cut=True)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
@pytest.mark.parametrize(("limit", "least"), [(1e8, 0), (2e9, 120)])
def test_memory_stays_under_the_limit(limit, least):
    """55,000 parameters, 4,000 points: left alone, it takes more than 120 MB."""
    few = {"top": 3, "tol": 1e-2, "probes": 6, "density_probes": 3, "steps": 12, "max_products": 12, "layers": False}
    added = grown("spectrum", limit, **few)
    assert least < added < limit / 1e6


def test_modes_and_what_is_left_behind():
    model = filled(nn.Sequential(nn.Linear(D, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, C)))
    data = points()
    model.train()
    model(data[0])
    before = [b.clone() for b in model.buffers()]
    moving = spectrum(model, "cross_entropy", data, top=1, mode="keep", density=False, layers=False, tol=1e-9)
    still = spectrum(model, "cross_entropy", data, top=1, density=False, layers=False, tol=1e-9)
    assert model.training
    assert all(torch.equal(a, b) for a, b in zip(before, model.buffers(), strict=True))
    for report in (moving, still):
        model.train(report is moving)
        exact = torch.linalg.eigvalsh(dense(deepcopy(model), data))[-1]  # a product moves the statistics
        assert report.eigenvalues[0].value == pytest.approx(float(exact), rel=1e-8)
    assert moving.eigenvalues[0].value != pytest.approx(still.eigenvalues[0].value, rel=1e-3)
    dropping = nn.Sequential(nn.Linear(D, C), nn.Dropout(0.5)).double().train()
    with pytest.raises(ValueError, match="dropout"):
        spectrum(dropping, "cross_entropy", data, mode="keep")
    assert spectrum(dropping, "cross_entropy", data, top=1, density=False).converged


def test_tied_weights_frozen_weights_and_the_ggn():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(5, 5)
            self.out = nn.Linear(5, 5)
            self.out.weight = self.embed.weight

        def forward(self, x):
            return self.out(torch.tanh(self.embed(x)))

    model = filled(Tied())
    model.out.bias.requires_grad_(False)
    x = torch.randint(0, 5, (20, 3), generator=seeded())
    report = spectrum(model, "cross_entropy", (x, x), top=2, matrix="ggn")
    assert [row.name for row in report.layers] == ["embed"]
    assert report.parameters == 25
    assert report.eigenvalues[1].low >= -1e-12
    assert report.layers[0].eigenvalue.value == pytest.approx(report.eigenvalues[0].value)


def test_json_progress_and_repetition():
    seen = []
    options = {"top": 2, "steps": 8, "progress": lambda *args: seen.append(args)}
    model, data = net(), points()
    report = spectrum(model, "cross_entropy", data, **options)
    assert list(dict.fromkeys(stage for stage, _, _ in seen)) == [
        "eigenvalues", "trace", "density", "layer 0", "layer 2", "layer 4"
    ]  # fmt: skip
    assert all(0 < done <= total for _, done, total in seen)
    content = json.loads(report.to_json())
    assert content["eigenvalues"][0]["low"] == report.eigenvalues[0].low
    assert len(content["density"]["grid"]) == len(content["density"]["value"])
    assert "vectors" not in content
    again = spectrum(model, "cross_entropy", data, **options | {"progress": None})
    assert json.loads(again.to_json()) | {"seconds": 0} == content | {"seconds": 0}
    unknown = spectrum(model, "cross_entropy", data, top=1, max_products=2, density=False, layers=False)
    assert isinstance(unknown, SpectrumReport)
    assert json.loads(unknown.to_json())["bounds"] == [None, None]
    assert "max_products" in unknown.notes[0]


def test_single_precision_agrees_with_double():
    model, (x, y) = net(), points()
    exact = torch.linalg.eigvalsh(dense(model, (x, y))).flip(0)
    report = spectrum(model.float(), "cross_entropy", (x.float(), y), top=4)
    for e, value in zip(report.eigenvalues, exact.tolist(), strict=False):
        assert abs(e.value - value) < 2e-5 * exact[0]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"loss": "crossentropy"}, "one of cross_entropy, mse"),
        ({"loss": "mse"}, "outputs of shape .4, 4., targets of shape .4,.*equal shapes"),
        ({"loss": lambda z, y: F.cross_entropy(z, y, reduction="none")}, "one number"),
        ({"matrix": "fisher"}, "'hessian' or 'ggn'"),
        ({"mode": "train"}, "'eval' or 'keep'"),
        ({"top": 0}, "top >= 1"),
        ({"memory": 2e4}, "allow"),
    ],
)
def test_bad_input(change, said):
    arguments = {"model": net(), "loss": "cross_entropy", "data": points()} | change
    with pytest.raises(ValueError, match=said):
        spectrum(**arguments)


def test_more_bad_input():
    model = net()
    with pytest.raises(TypeError, match="inputs, targets"):
        spectrum(model, "cross_entropy", [points()[0]])
    with pytest.raises(TypeError, match=r"nn\.Module"):
        spectrum(lambda x: x, "cross_entropy", points())
    with torch.no_grad():
        model[0].weight.fill_(math.nan)
    with pytest.raises(ValueError, match="diverged"):
        spectrum(model, "cross_entropy", points())
    for p in model.parameters():
        p.requires_grad_(False)
    with pytest.raises(ValueError, match="requires grad"):
        spectrum(model, "cross_entropy", points())
    assert pack(model.parameters()).numel() > 0
