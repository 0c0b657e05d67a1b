"""Spiked random matrices, batch Hessians of a network, and largest stable learning rates by batch size."""

from __future__ import annotations

import math
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from statistics import fmean, median

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from secondlook.curvature import FunctionOperator, HessianOperator, eigsh
from secondlook.problems.datasets import Dataset
from secondlook.problems.images import ImageProblem
from secondlook.problems.models import convnet, mlp
from secondlook.problems.training import cross_entropy, fit, minibatches
from secondlook.suite.runner import Run

from .method import (
    batch_hessian_extremes,
    batch_hessians,
    effective_batch,
    max_stable_lr,
    noise_level,
    spiked_covariance_top,
    spiked_top_eigenvalue,
)

DOMINANT = 1.5  # noise dominates where the batch's largest eigenvalue exceeds the full one's by this factor
OPTIMIZERS = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}


def slope(x: list[float], y: list[float]) -> float:
    """Least-squares slope of log y on log x; NaN with fewer than two points or where a value is not finite."""
    if len(x) < 2 or not all(map(math.isfinite, y)):
        return math.nan
    a, b = (torch.tensor(v, dtype=torch.float64).log() for v in (x, y))
    a = a - a.mean()
    return float((a * b).sum() / (a * a).sum())


def noisy_hessian(lam: float, dim: int, sigma: float, batch: int, generator: torch.Generator) -> float:
    """Largest eigenvalue of a rank-one matrix with symmetric Gaussian noise."""
    A = torch.randn(dim, dim, generator=generator, device=generator.device, dtype=torch.float64)
    E = (A + A.T) * (sigma / math.sqrt(2 * batch))
    E[0, 0] += lam
    return float(torch.linalg.eigvalsh(E)[-1])


def noisy_ggn(lam: float, dim: int, sigma: float, batch: int, generator: torch.Generator) -> float:
    """Largest eigenvalue of the sample covariance of `batch` Gaussian vectors with one strong direction."""
    X = sigma * torch.randn(batch, dim, generator=generator, device=generator.device, dtype=torch.float64)
    X[:, 0] *= math.sqrt(lam) / sigma
    gram = X @ X.T if batch < dim else X.T @ X
    return float(torch.linalg.eigvalsh(gram)[-1]) / batch


def spiked(run: Run, *, dim: int, sigma: float, spikes: list[float], batches: list[int], draws: int) -> None:
    """Random matrices of both models against their limits, and how the rate 2 / lambda grows with the batch."""
    models: dict[str, tuple[Callable[..., float], Callable[..., float]]] = {
        "hessian": (noisy_hessian, spiked_top_eigenvalue),
        "ggn": (noisy_ggn, spiked_covariance_top),
    }
    for seed in run.track(run.seeds, "seeds"):
        generator = torch.Generator(run.device).manual_seed(seed)
        for problem, (draw, law) in models.items():
            errors: dict[str, list[float]] = {"theory": [], "no-noise": []}
            for lam in spikes:
                at = {"problem": f"{problem}, spike {lam:g}", "seed": seed}
                tops = []
                for batch in batches:
                    tops.append(fmean(draw(lam, dim, sigma, batch, generator) for _ in range(draws)))
                    expected = {"theory": law(lam, dim, sigma, batch), "no-noise": lam}
                    run.record("top", tops[-1], method="measured", step=batch, **at)
                    run.record("top", expected["theory"], method="theory", step=batch, **at)
                    for method, value in expected.items():
                        errors[method].append(100 * abs(tops[-1] / value - 1))
                if lam == spikes[0]:
                    fitted = [b for b, top in zip(batches, tops, strict=True) if top > DOMINANT * lam]
                    rates = [2 / top for top in tops if top > DOMINANT * lam]
                    run.record("exponent", slope(fitted, rates), method="measured", problem=problem, seed=seed)
                    same = [2 / draw(lam, dim, sigma, batches[0], generator) for _ in fitted]
                    run.record("exponent", slope(fitted, same), method="same-batch", problem=problem, seed=seed)
            for method, values in errors.items():
                run.record("error", fmean(values), method=method, problem=problem, seed=seed)


def network_of(data: Dataset, network: list[int], stream: int) -> nn.Module:
    """A perceptron for grey images, a small convolutional network for coloured ones."""
    generator, x = torch.Generator().manual_seed(stream), data.train.x
    if x.shape[1] == 1:
        return mlp((x[0].numel(), *network, data.classes), generator=generator).to(x.device)
    return convnet(tuple(x.shape[1:]), network, data.classes, generator=generator).to(x.device)


def network(
    run: Run,
    *,
    data: str,
    network: list[int],
    batches: list[int],
    repeats: int,
    probes: int,
    epochs: int,
    batch_size: int,
    lr: float,
    noise_batch: int,
    points: int | None = None,
) -> None:
    """Extreme eigenvalues of batch Hessians beside those of the full Hessian, before and after training."""
    images = ImageProblem(data, mlp).load(run.device)
    for seed in run.track(run.seeds, "seeds"):
        model = network_of(images, network, seed)
        order = minibatches(*images.train, batch_size, torch.Generator(run.device).manual_seed(500 + seed))
        for when, share in (("untrained", 0), ("trained", epochs)):
            optimizer = torch.optim.SGD(model.parameters(), lr)
            fit(model, optimizer, order, cross_entropy, steps=share * order.steps_per_epoch)
            x, y = images.train.x[:points].double(), images.train.y[:points]
            at = {"problem": when, "seed": seed}
            _network(run, deepcopy(model).double(), (x, y), batches, repeats, probes, noise_batch, at)


def _network(
    run: Run,
    model: nn.Module,
    data: tuple[Tensor, Tensor],
    batches: list[int],
    repeats: int,
    probes: int,
    noise_batch: int,
    at: dict,
) -> None:
    """One state of one network."""
    generator = torch.Generator().manual_seed(900 + at["seed"])
    full = HessianOperator(model, F.cross_entropy, data)
    pairs = eigsh(full, 1, which="both", tol=1e-4, generator=generator)
    (low, top), direction, dim = pairs.values.tolist(), pairs.vectors[:, 1], full.shape[0]
    sigmas, found = [], {"measured": [], "bottom": [], "direction": []}
    for batch in batches:
        hessians = list(batch_hessians(model, F.cross_entropy, data, batch, repeats, generator))
        ends = torch.stack([eigsh(H, 1, which="both", tol=1e-3, generator=generator).values for H in hessians])
        found["measured"].append(float(ends[:, 1].mean()))
        found["bottom"].append(float(ends[:, 0].mean()))
        # The curvature along a direction that does not depend on the batch is unbiased.
        found["direction"].append(fmean(float(direction @ (H @ direction)) for H in hessians))
        sigmas.append(noise_level(full, hessians, effective_batch(batch, len(data[0])), probes, generator))
    sigma = math.sqrt(fmean(s * s for s in sigmas))
    theory = [spiked_top_eigenvalue(top, dim, sigma, batch, len(data[0])) for batch in batches]
    for method, tops in {"measured": found["measured"], "direction": found["direction"], "theory": theory}.items():
        run.record_series("inflation", [t / top for t in tops], steps=batches, method=method, **at)
    run.record_series("bottom", [b / low for b in found["bottom"]], steps=batches, method="measured", **at)
    geometric = {name: math.exp(fmean(math.log(abs(v)) for v in values)) for name, values in found.items()}
    run.record("top_ratio", geometric["measured"] / top, method="measured", **at)
    run.record("top_ratio", geometric["direction"] / top, method="direction", **at)
    run.record("bottom_ratio", geometric["bottom"] / abs(low), method="measured", **at)
    for method, tops in {"theory": theory, "no-noise": [top] * len(batches)}.items():
        error = median(abs(t / m - 1) for t, m in zip(tops, found["measured"], strict=True))
        run.record("network_error", 100 * error, method=method, **at)
    run.record("sigma", sigma, method="measured", **at)
    # The noise itself: its largest eigenvalue beside that of independent entries with the same Frobenius norm.
    H = next(batch_hessians(model, F.cross_entropy, data, noise_batch, 1, generator))
    noise = FunctionOperator(lambda v: H @ v - full @ v, dim, dtype=full.dtype, device=full.device)
    largest = float(eigsh(noise, 1, which="magnitude", tol=1e-2, generator=generator).values.abs())
    edge = 2 * sigma * math.sqrt(dim / effective_batch(noise_batch, len(data[0])))
    run.record("noise_ratio", largest / edge, method="measured", step=noise_batch, **at)


def rates(
    run: Run,
    *,
    data: str,
    network: list[int],
    batches: list[int],
    steps: int,
    grids: dict[str, list[int]],
    repeats: int,
    same_batch: int,
    points: int | None = None,
) -> None:
    """Largest stable learning rates of SGD and Adam by batch size.

    The exponent is fitted where noise dominates the untrained network's largest eigenvalue, a rule fixed beforehand.
    `grids` gives the first and last exponent of half-octave grids of rates, in half powers of two.
    """
    images = ImageProblem(data, mlp).load(run.device)
    for seed in run.track(run.seeds, "seeds"):
        at = {"problem": data, "seed": seed}
        start = network_of(images, network, seed)
        double, generator = deepcopy(start).double(), torch.Generator().manual_seed(700 + seed)
        points_of = (images.train.x[:points].double(), images.train.y[:points])
        extremes = partial(batch_hessian_extremes, double, F.cross_entropy, points_of, generator=generator)
        top = float(extremes(len(points_of[0]), 1)[0])
        tops = [float(extremes(batch, repeats)[0].mean()) for batch in batches]
        fitted = [batch for batch, t in zip(batches, tops, strict=True) if t > DOMINANT * top]
        run.record_series("rate_limit", [2 / t for t in tops], steps=batches, method="hessian", **at)
        run.record("fitted", len(fitted), method="hessian", **at)
        for name, make in OPTIMIZERS.items():
            first, last = grids[name]
            search = partial(
                max_stable_lr,
                lambda params, lr, make=make: make(params, lr=lr),
                lambda start=start: deepcopy(start),
                images.train,
            )
            grid = [2 ** (k / 2) for k in range(first, last + 1)]
            found = {b: search(b, grid, steps, seed=10_000 + seed) for b in batches}
            run.record_series("rate", found.values(), steps=batches, method=name, **at)
            run.record("exponent", slope(fitted, [found[b] for b in fitted]), method=name, **at)
            run.record("exponent_all", slope(batches, [found[b] for b in batches]), method=name, **at)
            same = [search(same_batch, grid, steps, seed=20_000 + 100 * seed + b) for b in fitted]
            run.record("exponent", slope(fitted, same), method=f"{name}-same-batch", **at)
