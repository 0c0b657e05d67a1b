"""Points whose dimension is known, and representations while a network learns or memorises."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from secondlook.problems.images import ImageProblem
from secondlook.problems.models.convnets import convnet
from secondlook.problems.models.mlp import mlp
from secondlook.problems.models.resnet import resnet20
from secondlook.problems.pairing import streams
from secondlook.problems.training import Minibatches, accuracy, cross_entropy, fit, minibatches
from secondlook.suite.runner import Run
from secondlook.suite.statistics import correlation

from .method import (
    binned_shannon_entropy,
    diffusion_spectral_entropy,
    diffusion_spectral_mutual_information,
    diffusion_spectrum,
    median_distance,
    spectral_entropy,
)

DRAWS: dict[str, Callable[..., Tensor]] = {
    "gaussian": lambda *shape, generator: torch.randn(*shape, generator=generator, dtype=torch.float64),
    "uniform": lambda *shape, generator: 2 * torch.rand(*shape, generator=generator, dtype=torch.float64) - 1,
}
NETWORKS: dict[str, Callable[[torch.Generator], nn.Module]] = {
    "digits": lambda g: mlp((64, 128, 64, 10), generator=g),
    "mnist": lambda g: convnet((1, 28, 28), [32, 64, 128], global_pool=True, generator=g),
    "cifar10-jpeg": lambda g: resnet20(generator=g),
}


def cloud(kind: str, points: int, ambient: int, dimension: int, stream: int) -> tuple[Tensor, Tensor]:
    """Points `[N, ambient]` that vary in the first `dimension` coordinates, and the pattern of noise, in [-1, 1]."""
    generator = torch.Generator().manual_seed(stream)
    z = DRAWS[kind](points, ambient, generator=generator)
    z[:, dimension:] = torch.randn((), generator=generator, dtype=z.dtype)
    return z, DRAWS["uniform"](points, ambient, generator=generator)


def entropies(z: Tensor, other: Tensor, copy: Tensor, sigma: float) -> tuple[dict[str, float], dict[str, float]]:
    """Entropy of each arm, and how far the released spectrum is from that with normalised rows."""
    released, row, another = (
        diffusion_spectrum(z, sigma),
        diffusion_spectrum(z, sigma, "row"),
        diffusion_spectrum(other, sigma),
    )
    values = {
        "dse": spectral_entropy(released),
        "row": spectral_entropy(row),
        "binned": binned_shannon_entropy(z),
        "binned-copy": binned_shannon_entropy(copy),
        "same-dimension": spectral_entropy(another),
    }
    gaps = {"released-row": released - row, "other-cloud": another - row}
    return {name: float(v) for name, v in values.items()}, {name: float(gap.abs().max()) for name, gap in gaps.items()}


def toy(
    run: Run, *, points: int, ambient: int, dimensions: list[int], same: int, noises: list[float], sigma: float
) -> None:
    """Entropies of points whose intrinsic dimension grows, under growing noise in all coordinates.

    The points and the pattern of the noise are those of the seed; only the noise's size changes. Arms: `dse` and
    `row` (the two normalisations), `binned`, `binned-copy` (the same on other draws) and `same-dimension` (DSE of
    points that only pretend to have more dimensions).
    """
    for seed in run.track(run.seeds, "seeds"):
        for kind in DRAWS:
            found: dict[str, list[list[float]]] = {}  # arm: noise by dimension
            for d in dimensions:
                first = 3 * (10_000 * seed + d)
                clouds = [cloud(kind, points, ambient, m, first + k) for k, m in enumerate((d, same, d))]
                for i, noise in enumerate(noises):
                    at = {"problem": f"{kind} {noise:g}", "seed": seed, "step": d}
                    values, gaps = entropies(*((z + noise * e).to(run.device) for z, e in clouds), sigma)
                    for arm, value in values.items():
                        run.record("entropy", value, method=arm, **at)
                        found.setdefault(arm, [[] for _ in noises])[i].append(value)
                    for name, gap in gaps.items():
                        run.record("spectrum_gap", gap, method=name, **at)
            for arm, table in found.items():
                for noise, values in zip(noises, table, strict=True):
                    _robustness(run, dimensions, table[0], values, method=arm, problem=kind, seed=seed, step=noise)


def _robustness(run: Run, dimensions: list[int], quiet: list[float], values: list[float], **at: Any) -> None:
    """How entropy depends on dimension at one noise level, and how far it is from that without noise."""
    moved = [abs(a - b) for a, b in zip(values, quiet, strict=True)]
    run.record("rank_correlation", correlation(dimensions, values, "spearman"), **at)
    run.record("range", max(values) - min(values), **at)
    run.record("retained", (values[-1] - values[0]) / (quiet[-1] - quiet[0]), **at)
    run.record("moved", sum(moved) / len(moved), **at)
    run.record("most_moved", max(moved), **at)


def penultimate(model: nn.Module, x: Tensor) -> Tensor:
    """What the last linear layer is given, `[N, D]`."""
    head = [m for m in model.modules() if isinstance(m, nn.Linear)][-1]
    seen: list[Tensor] = []
    hook = head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    training = model.training
    model.eval()
    with torch.no_grad():
        for part in x.split(1000):
            model(part)
    model.train(training)
    hook.remove()
    return torch.cat(seen)


def look(z: Tensor, y: Tensor, sigma: float) -> dict[str, float]:
    """Entropy, and mutual information with the label, at the released bandwidth and at one that follows the scale."""
    values = {}
    for suffix, width in {"": sigma, "_median": median_distance(z) or 1.0}.items():
        values["dse" + suffix] = diffusion_spectral_entropy(z, width)
        values["dsmi" + suffix] = diffusion_spectral_mutual_information(z, y, width)
    return values


def training(
    run: Run,
    *,
    problems: list[str],
    images: int,
    points: int,
    looks: list[int],
    batch_size: int,
    lr: float,
    sigma: float,
    fitted: float,
) -> None:
    """Representations of held-out images while networks learn true labels, or memorise shuffled ones.

    All arms have one recipe (Adam at a constant rate, that of the first epoch to the last). `clean` and `shuffled` of
    a seed start from the same weights; `clean-copy` is an independent run of `clean`; `untrained` is the start of that
    copy, compared with the start of `clean`.
    """
    for name in problems:
        data = ImageProblem(name, NETWORKS[name]).load(run.device)
        x, y = data.train.x[:images], data.train.y[:images]
        held_out = data.test.x[:points], data.test.y[:points]
        for seed in run.track(run.seeds, f"{name}: seeds"):
            shuffled = y[torch.randperm(len(y), generator=torch.Generator().manual_seed(seed)).to(y.device)]
            series = {}
            for arm, labels in {"clean": y, "clean-copy": y, "shuffled": shuffled}.items():
                weights, order = streams(arm, seed, run.device)
                model = NETWORKS[name](weights).to(run.device)
                batches = minibatches(x, labels, min(batch_size, len(x)), order)
                series[arm] = _follow(model, batches, looks, lr, (x, labels), held_out, sigma)
                for metric, values in series[arm].items():
                    run.record_series(metric, values, steps=looks, method=arm, problem=name, seed=seed)
            _summarise(run, series, fitted, problem=name, seed=seed)


def _follow(
    model: nn.Module,
    batches: Minibatches,
    looks: list[int],
    lr: float,
    train: tuple[Tensor, Tensor],
    held_out: tuple[Tensor, Tensor],
    sigma: float,
) -> dict[str, list[float]]:
    """Train, and measure at the given epochs."""
    optimizer = torch.optim.Adam(model.parameters(), lr)
    rows, done = [], 0
    for epoch in looks:
        fit(model, optimizer, batches, cross_entropy, steps=(epoch - done) * batches.steps_per_epoch)
        done = epoch
        accuracies = {"train_accuracy": accuracy(model, *train), "test_accuracy": accuracy(model, *held_out)}
        rows.append(accuracies | look(penultimate(model, held_out[0]), held_out[1], sigma))
    return {metric: [row[metric] for row in rows] for metric in rows[0]}


def _summarise(run: Run, series: dict[str, dict[str, list[float]]], fitted: float, **at: Any) -> None:
    """What the claims read: gains over training, and values where the training labels are first fitted."""

    def at_fit(arm: str, metric: str) -> float:
        pairs = zip(series[arm]["train_accuracy"], series[arm][metric], strict=True)
        return next((value for reached, value in pairs if reached >= fitted), math.nan)

    def most(arm: str, metric: str) -> float:
        return max(series[arm][metric]) - series[arm][metric][0]

    for metric in ("dse", "dse_median", "dsmi", "dsmi_median"):
        for arm in series:
            values = series[arm][metric]
            run.record(f"{metric}_gain", values[-1] - values[0], method=arm, **at)
        other, first = series["clean-copy"][metric][0], series["clean"][metric][0]
        run.record(f"{metric}_gain", other - first, method="untrained", **at)
    for metric in ("dsmi", "dsmi_median"):
        for arm in ("clean-copy", "shuffled"):
            clean = most("clean", metric)
            run.record(f"{metric}_share", most(arm, metric) / clean if clean else math.nan, method=arm, **at)
            run.record(f"{metric}_lead", at_fit("clean", metric) - at_fit(arm, metric), method=arm, **at)
