"""The criteria before and after training and under shifts of the data, and landscapes of batch-norm networks."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from secondlook.problems import datasets
from secondlook.problems.classifiers import fit_classifier
from secondlook.problems.datasets import Dataset, Split
from secondlook.problems.models import convnet, lenet, mlp, resnet
from secondlook.problems.training import accuracy
from secondlook.suite.runner import Run
from secondlook.suite.statistics import correlation

from .landscape import landscape, normalised, random_axes
from .method import HessianSpectrum, hessian_criteria, smoothed_density
from .shifts import shifted

CRITERIA = ("k_hn", "r_e", "loss", "trace", "top")
CURVE = 121  # points of a spectral density that are kept for the figure


def network(spec: dict[str, Any], data: Dataset, stream: int) -> nn.Module:
    """An untrained network; `spec` has its `kind` and the options of that builder."""
    options = {name: value for name, value in spec.items() if name != "kind"}
    generator, shape = torch.Generator().manual_seed(stream), tuple(data.train.x.shape[1:])
    match spec["kind"]:
        case "mlp":
            return mlp((data.train.x[0].numel(), *options["hidden"], data.classes), generator=generator)
        case "convnet":
            return convnet(shape, classes=data.classes, generator=generator, **options)
        case "lenet":
            return lenet(shape, data.classes, generator=generator)
        case "resnet":
            return resnet(classes=data.classes, generator=generator, **options)
    raise ValueError(f"network kind must be mlp, convnet, lenet or resnet, got {spec['kind']!r}")


def train(model: nn.Module, data: Dataset, recipe: dict[str, Any], stream: int) -> nn.Module:
    """Adam with a cosine schedule, in single precision; comes back in evaluation mode."""
    optimizer = torch.optim.Adam(model.parameters(), lr=recipe["lr"])
    generator = torch.Generator().manual_seed(stream)
    fit_classifier(
        model,
        optimizer,
        data,
        steps=recipe["steps"],
        batch_size=recipe["batch"],
        generator=generator,
        track=lambda items, label: items,
    )
    return model.eval()


def scaling(data: Dataset) -> Callable[[Tensor], Tensor]:
    """Standardises images channel by channel, by the training images."""
    std, mean = torch.std_mean(data.train.x, (0, 2, 3), keepdim=True)
    return lambda x: (x - mean) / std


def measure(model: nn.Module, batch: Split, steps: int, probes: int, stream: int) -> dict[str, Any]:
    """The criteria on one batch, what is usually looked at instead, and the Ritz values and weights behind them."""
    x, y = batch.x.to(next(model.parameters()).dtype), batch.y
    spectrum = HessianSpectrum(
        model, lambda: F.cross_entropy(model(x), y), generator=torch.Generator().manual_seed(stream)
    )
    theta, tau = spectrum.slq(steps, probes)
    with torch.no_grad():
        loss = float(F.cross_entropy(model(x), y))
    mass = (tau * (theta.abs() < 0.01 * theta.abs().amax(-1, keepdim=True))).sum(-1).mean()
    return hessian_criteria(theta, tau) | {
        "loss": loss,
        "trace": float(spectrum.operator.shape[0] * (tau * theta).sum(-1).mean()),
        "top": float(theta.amax(-1).mean()),
        "near_zero": 100 * float(mass),
        "spectrum": (theta, tau),
    }


def record(run: Run, found: dict[str, Any], **at: Any) -> None:
    """The scalars of `measure`."""
    for name in (*CRITERIA, "near_zero"):
        run.record(name, found[name], **at)


def record_density(run: Run, found: dict[str, Any], **at: Any) -> None:
    """The smoothed density, its largest value in each of `CURVE` stretches of the grid, so that no peak is lost."""
    grid, density = smoothed_density(*found["spectrum"])
    ends = [int(i) for i in torch.linspace(0, len(grid), CURVE + 1)]
    stretches = list(pairwise(ends))
    peaks = torch.stack([density[a:b].max() for a, b in stretches]).tolist()
    middles = torch.stack([grid[a:b].mean() for a, b in stretches]).tolist()
    run.record_series("density", peaks, steps=middles, **at)


def criteria(
    run: Run,
    *,
    problems: dict[str, dict[str, Any]],
    shifts: list[list],
    images: int,
    steps: int,
    probes: int,
    dtype: str,
) -> None:
    """The spectrum before and after training, then the criteria of the trained network under shifts of its data."""
    changes: dict[int, dict[str, list[float]]] = {seed: {} for seed in run.seeds}
    for problem, recipe in problems.items():
        raw = datasets.load(recipe["data"]).to(run.device)
        scale = scaling(raw)
        data = raw.map(lambda split, scale=scale: Split(scale(split.x), split.y))
        for seed in run.track(run.seeds, f"{problem}: seeds"):
            at = {"problem": problem, "seed": seed}
            nets = {
                name: network(recipe["net"], data, s) for name, s in (("initial", seed), ("initial-copy", 500 + seed))
            }
            nets["trained"] = train(network(recipe["net"], data, seed).to(run.device), data, recipe, 1000 + seed)
            picked = torch.randperm(len(data.train.y), generator=torch.Generator().manual_seed(seed))[:images]
            batch = Split(*(part[picked.to(run.device)] for part in data.train))
            for method, net in nets.items():
                net = net.to(run.device, getattr(torch, dtype)).eval()
                found = measure(net, batch, steps, probes, 2000 + seed)
                record(run, found, method=method, **at)
                if seed == run.seeds[0]:
                    record_density(run, found, method=method, **at)
            theta, tau = found["spectrum"]
            run.record("k_hn", hessian_criteria(-theta, tau)["k_hn"], method="wrong-sign", **at)
            moved = under_shifts(run, nets["trained"], raw.test, scale, shifts, images, steps, probes, problem, seed)
            for name, values in moved.items():
                changes[seed].setdefault(name, []).extend(values)
    for seed, moved in changes.items():
        for name in CRITERIA:
            value = correlation(moved["accuracy"], moved[name], "spearman")
            run.record("rank_correlation", value, method=name, problem="all", seed=seed)


def under_shifts(
    run: Run,
    model: nn.Module,
    test: Split,
    scale: Callable[[Tensor], Tensor],
    shifts: list[list],
    images: int,
    steps: int,
    probes: int,
    problem: str,
    seed: int,
) -> dict[str, list[float]]:
    """Changes of accuracy (points) and of the criteria (percent), one for each shift, on one batch and one probe.

    The control `unshifted`, beside every second shift, looks at other clean images, drawn with replacement, with a
    probe of its own each time.
    """
    generator = torch.Generator().manual_seed(3000 + seed)
    dtype, rows = next(model.parameters()).dtype, slice(images)

    def look(x: Tensor, y: Tensor, stream: int) -> dict[str, Any]:
        return measure(model, Split(scale(x), y), steps, probes, stream)

    def hits(x: Tensor) -> float:
        return accuracy(model, scale(x).to(dtype), test.y)

    clean, before = look(test.x[rows], test.y[rows], 4000 + seed), hits(test.x)
    at = {"problem": f"{problem}:clean", "seed": seed, "step": 0}
    record(run, clean, method="shifted", **at)
    run.record("accuracy", before, method="shifted", **at)
    moved: dict[str, list[float]] = {name: [] for name in ("accuracy", *CRITERIA)}
    for number, (kind, amount) in enumerate(shifts):
        at = {"problem": f"{problem}:{kind}", "seed": seed, "step": amount}
        x = shifted(test.x, kind, amount, generator)
        found, after = look(x[rows], test.y[rows], 4000 + seed), hits(x)
        record(run, found, method="shifted", **at)
        run.record("accuracy", after, method="shifted", **at)
        moved["accuracy"].append(after - before)
        run.record("accuracy_change", after - before, method="shifted", **at)
        drawn = torch.randint(len(test.y), (len(test.y[rows]),), generator=generator).to(run.device)
        for name in CRITERIA:
            moved[name].append(100 * (found[name] - clean[name]) / abs(clean[name]))
        for name in ("k_hn", "r_e"):
            run.record(f"{name}_change", moved[name][-1], method="shifted", **at)
        if number % 2 == 0:
            copy = look(test.x[drawn], test.y[drawn], 10_000 + 100 * seed + number)
            for name in ("k_hn", "r_e"):
                run.record(f"{name}_change", 100 * (copy[name] / clean[name] - 1), method="unshifted", **at)
        if seed == run.seeds[0] and number % 4 == 3:
            record_density(run, found, method="shifted", problem=f"{problem}: {kind} {amount:g}", seed=seed)
    return moved


def landscapes(
    run: Run,
    *,
    data: str,
    nets: dict[str, dict[str, Any]],
    recipe: dict[str, Any],
    images: int,
    plots: int,
    span: float,
    steps: int,
    cell: float,
    dtype: str,
) -> None:
    """Planes through trained networks: does the plot have its minimum where the network stands, and which curvature?"""
    raw = datasets.load(data).to(run.device)
    scale = scaling(raw)
    scaled = raw.map(lambda split: Split(scale(split.x), split.y))
    kind = getattr(torch, dtype)
    for seed in run.track(run.seeds, "seeds"):
        x, y = scaled.train.x[:images].to(kind), scaled.train.y[:images]
        for problem, spec in nets.items():
            model = train(network(spec, scaled, seed).to(run.device), scaled, recipe, 1000 + seed).to(kind)
            params = list(model.parameters())

            def loss(model: nn.Module = model, x: Tensor = x, y: Tensor = y) -> Tensor:
                return F.cross_entropy(model(x), y)

            spectrum = HessianSpectrum(params, loss, torch.Generator().manual_seed(2000 + seed))
            pairs = spectrum.top(2, tol=1e-4)  # what single precision can reach
            hessian = tuple(unit(v, params) for v in pairs.vectors.T)
            arms: dict[str, list[tuple]] = {"hessian": [(hessian, "none")], "hessian-filter": [(hessian, "filter")]}
            for stream, (method, draw) in enumerate(
                {"random": "random", "random-copy": "random", "random-uniform": "uniform"}.items()
            ):
                generator = torch.Generator().manual_seed(10 * seed + stream)
                arms[method] = [(random_axes(params, generator, draw), "filter") for _ in range(plots)]
            for method, planes in arms.items():
                at = {"method": method, "problem": problem, "seed": seed}
                grids = [landscape(model, loss, axes, how, span, steps) for axes, how in planes]
                run.record("centred", 100 * sum(off_centre(g) <= 1 for g in grids) / len(grids), **at)
                run.record("off_centre", sum(off_centre(g) for g in grids) / len(grids), **at)
                errors = [
                    abs(plotted_curvature(model, loss, normalised(axes[0], params, how), cell) / pairs.values[0] - 1)
                    for axes, how in planes
                ]
                run.record("curvature_error", 100 * sum(errors) / len(errors), **at)
                if seed == run.seeds[0]:
                    run.record_series("surface", grids[0].flatten(), steps=range(grids[0].numel()), **at)


def unit(flat: Tensor, params: list[Tensor]) -> list[Tensor]:
    """A flat vector as tensors shaped like the parameters."""
    return [part.view_as(p) for part, p in zip(flat.split([p.numel() for p in params]), params, strict=True)]


def off_centre(grid: Tensor) -> int:
    """How many cells (the larger of both directions) the smallest value lies from the middle of the grid."""
    side = len(grid)
    row, column = divmod(int(grid.argmin()), side)
    return max(abs(row - side // 2), abs(column - side // 2))


@torch.no_grad()
def plotted_curvature(model: nn.Module, loss: Callable[[], Tensor], axis: list[Tensor], cell: float) -> Tensor:
    """Second difference of the loss along an axis at the network, by steps of `cell` axes, for a unit of length."""
    params = list(model.parameters())
    centre = [p.clone() for p in params]
    values = []
    for t in (-cell, 0.0, cell):
        torch._foreach_copy_(params, torch._foreach_add(centre, axis, alpha=t))
        values.append(loss())
    torch._foreach_copy_(params, centre)
    squared = sum(d.square().sum() for d in axis)
    return (values[0] - 2 * values[1] + values[2]) / (cell**2 * squared)
