"""Closed-form risks against simulated regressions: more features, more samples, and how closely to fit."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from secondlook.problems import datasets
from secondlook.spectra.features import powerlaw, relu_kernel
from secondlook.suite.runner import Run

from .method import (
    fitting_ratio_curve,
    interpolation_noise,
    kernel_path,
    krr_risk,
    optimal_fitting_ratio,
    optimal_ridge,
    rf_risk,
    ridge_at_fitting_ratio,
    ridge_path,
)

BOTH = ("features", "samples")  # what grows while the other stays


def stream(seed: int, part: int, device: str) -> torch.Generator:
    """Independent draws for a part (a trial, a control) of a seed."""
    return torch.Generator(device).manual_seed(1000 * seed + part)


def normal(*shape: int, generator: torch.Generator) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, device=generator.device, generator=generator)


def simulate(
    eigvals: Tensor, coeffs2: Tensor, noise: float, fixed: int, sizes: list[int], ridges: Tensor, g: torch.Generator
) -> Tensor:
    """Test errors `[2, sizes, ridges]` of one draw of regressions on Gaussian modes: growing features, then samples.

    The modes are orthonormal, so the test error is the squared distance of coefficients, with no test sample. Smaller
    problems are parts of larger ones.
    """
    X, G = (normal(max(*sizes, fixed), len(eigvals), generator=g) for _ in range(2))
    y = X @ coeffs2.sqrt() + math.sqrt(noise) * normal(len(X), generator=g)
    scale = eigvals.sqrt()
    errors = []
    for problem in BOTH:
        rows, cols = (fixed, len(G)) if problem == "features" else (len(X), fixed)
        F_all = (X[:rows] * scale) @ G[:cols].T
        for size in sizes:
            n, k = (fixed, size) if problem == "features" else (size, fixed)
            w = ridge_path(F_all[:n, :k] / math.sqrt(k), y[:n, None], ridges).squeeze(-1)
            learned = (w @ G[:k]) * scale / math.sqrt(k)
            errors.append((learned - coeffs2.sqrt()).square().sum(1) + noise)
    return torch.stack(errors).view(len(BOTH), len(sizes), -1)


def sweep(
    run: Run,
    *,
    modes: int,
    alpha: float,
    beta: float,
    noise: float,
    fixed: int,
    sizes: list[int],
    decades: list[float],
    points: int,
    shown: list[int],
    trials: int,
) -> None:
    """Random-feature regression on a power-law task, features or samples swept, against the closed form."""
    eigvals, coeffs2 = (powerlaw(modes, exponent, run.device) for exponent in (alpha, beta))
    ridges = torch.logspace(*decades, points, dtype=torch.float64, device=run.device)
    grown = torch.tensor(sizes, dtype=torch.float64, device=run.device)
    full = torch.full_like(grown, fixed)
    shapes = {"features": (full, grown), "samples": (grown, full)}

    def closed_form(features: bool) -> Tensor:
        """Risks `[2, sizes, ridges]`; without `features`, as if there were infinitely many."""
        return torch.stack(
            [
                rf_risk(eigvals, coeffs2, n.unsqueeze(1), k.unsqueeze(1) if features else math.inf, ridges, noise)
                for n, k in shapes.values()
            ]
        )

    theories = {"framework": closed_form(True), "kernel-limit": closed_form(False)}
    arms = {f"ridge {float(ridges[i]):g}": theories["framework"][:, :, i] for i in shown}
    arms["best ridge"] = torch.stack([optimal_ridge(eigvals, coeffs2, n, k, noise)[1] for n, k in shapes.values()])
    for method, curves in arms.items():
        for problem, curve in zip(shapes, curves, strict=True):
            run.record_series("risk", curve, steps=sizes, method=method, problem=problem, seed=run.seeds[0])

    for seed in run.track(run.seeds, "seeds"):
        draws = [
            simulate(eigvals, coeffs2, noise, fixed, sizes, ridges, stream(seed, t, run.device)) for t in range(trials)
        ]
        errors = torch.stack(draws)
        for method, theory in theories.items():
            # Products of different trials: their mean is the squared bias of the theory, without the trials' variance.
            gap = errors / theory - 1
            squared = (gap.sum(0).square() - gap.square().sum(0)) / (trials * (trials - 1))
            run.record("squared_gap", 1e4 * squared.mean(), method=method, problem="all", seed=seed)
        mean = errors.mean(0)
        simulated = [*(mean[:, :, i] for i in shown), mean.min(2).values]
        for method, curves in zip(arms, simulated, strict=True):
            for problem, curve in zip(shapes, curves, strict=True):
                run.record_series("test_error", curve, steps=sizes, method=method, problem=problem, seed=seed)


def random_task(generator: torch.Generator) -> tuple[Tensor, Tensor, float]:
    """Eigenvalues, squared coefficients and noise of a task of no particular kind."""

    def uniform(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=generator, dtype=torch.float64))

    modes = int(10 ** uniform(0.7, 2.5))
    rank = torch.arange(1, modes + 1, dtype=torch.float64)
    eigvals = {
        0: lambda: rank ** -uniform(0.2, 3),
        1: lambda: torch.exp(-rank * uniform(0.02, 0.5)).clamp(min=1e-12),
        2: lambda: 10 ** (-4 * torch.rand(modes, generator=generator, dtype=torch.float64)),
        3: lambda: torch.where(rank <= modes * uniform(0.05, 0.5), 1.0, 10 ** -uniform(0.5, 4)).double(),
    }[int(uniform(0, 4))]()
    coeffs2 = rank ** -uniform(-0.5, 3) * normal(modes, generator=generator).square()
    return eigvals, coeffs2 / coeffs2.sum(), uniform(0, 1) ** 3


def theorem(run: Run, *, structures: int, sizes: list[int], small: float) -> None:
    """Does the closed-form risk ever increase with features or samples, on random eigenstructures?"""
    grown = torch.tensor(sizes, dtype=torch.float64)
    for seed in run.track(run.seeds, "seeds"):
        generator = stream(seed, 0, "cpu")
        increases = {(m, p): 0 for m in ("best ridge", "small ridge") for p in BOTH}
        for _ in range(structures):
            eigvals, coeffs2, noise = random_task(generator)
            full = grown[int(torch.randint(len(sizes), (), generator=generator))].expand_as(grown)
            for problem, (n, k) in {"features": (full, grown), "samples": (grown, full)}.items():
                risks = {
                    "best ridge": optimal_ridge(eigvals, coeffs2, n, k, noise)[1],
                    "small ridge": rf_risk(eigvals, coeffs2, n, k, small * eigvals.sum(), noise),
                }
                slack = 1e-9 * (float(coeffs2.sum()) + noise)  # the search's own resolution
                for method, risk in risks.items():
                    increases[method, problem] += int((risk.diff() > slack).sum())
        for (method, problem), count in increases.items():
            run.record("increases", count, method=method, problem=problem, seed=seed)


def fitting(
    run: Run, *, modes: int, samples: int, tasks: list[list[float]], roots: list[float], closely: float, trials: int
) -> None:
    """Kernel regression on power-law tasks, from interpolation to underfitting, ridge by ridge.

    `tasks` are (alpha, beta, noise relative to the noise-free ridgeless risk), `roots` the square roots of the fitting
    ratios that the ridges aim at, zero first; `closely` is the one whose cost is recorded.
    """
    ratios = torch.tensor(roots, dtype=torch.float64, device=run.device).square()
    prepared = {}
    for alpha, beta, noise_rel in tasks:
        problem = f"alpha {alpha:g}, beta {beta:g}, noise {noise_rel:g}"
        eigvals, coeffs2 = powerlaw(modes, alpha, run.device), powerlaw(modes, beta, run.device)
        noise = noise_rel * float(krr_risk(eigvals, coeffs2, samples, 0.0).test)
        ridges = ridge_at_fitting_ratio(eigvals, samples, ratios)
        prepared[problem] = (eigvals.sqrt(), coeffs2.sqrt(), noise, ridges)

        at = {"problem": problem, "seed": run.seeds[0]}
        risk = krr_risk(eigvals, coeffs2, samples, ridges, noise).test
        run.record_series("relative_error", risk / risk[0], steps=ratios.tolist(), method="framework", **at)
        run.record("best_ratio", ratios[risk.argmin()], method="framework", **at)
        limit = fitting_ratio_curve(alpha, beta, noise_rel, ratios)
        run.record_series("relative_error", limit, steps=ratios.tolist(), method="limit", **at)
        run.record("best_ratio", optimal_fitting_ratio(alpha, beta, noise_rel), method="limit", **at)
        run.record("largest_noise", interpolation_noise(alpha, beta), method="limit", **at)

    for seed in run.track(run.seeds, "seeds"):
        errors = {problem: torch.zeros(2, len(roots), dtype=torch.float64, device=run.device) for problem in prepared}
        for trial in range(trials):
            g = stream(seed, trial, run.device)
            X, label_noise = normal(samples, modes, generator=g), normal(samples, generator=g)
            for problem, (scale, coeffs, noise, ridges) in prepared.items():
                y = X @ coeffs + math.sqrt(noise) * label_noise
                features = X * scale
                w = ridge_path(features, y.unsqueeze(1), ridges).squeeze(-1)
                errors[problem][0] += (y - w @ features.T).square().mean(1)
                errors[problem][1] += (w * scale - coeffs).square().sum(1) + noise
        for problem, (train, test) in errors.items():
            at = {"method": "simulation", "problem": problem, "seed": seed}
            run.record_series("relative_error", test / test[0], steps=ratios.tolist(), **at)
            run.record("best_ratio", (train / test)[test.argmin()], **at)
            run.record("cost_of_fit", 100 * (test[roots.index(closely)] / test[0] - 1), **at)


def images(
    run: Run, *, data: list[str], samples: int, tests: int, noises: list[float], decades: list[float], points: int
) -> None:
    """Regression of image classes with the kernel of a wide ReLU layer, with Gaussian noise on the training targets.

    `noises`, zero first, are relative to the smallest test error without noise; the test error counts the noise.
    """
    for problem in data:
        parts = datasets.load(problem).to(run.device)
        for seed in run.track(run.seeds, problem):
            least = 0.0
            arms = {f"noise {level:g}": (level, 0) for level in noises} | {"copy": (0.0, 1)}
            for method, (level, part) in arms.items():
                g = stream(seed, part, run.device)
                x, y = draw(parts.train, samples, parts.classes, g)
                x_test, y_test = draw(parts.test, tests, parts.classes, g)
                variance = level * least  # summed over the classes
                centre = y.mean(0)
                targets = y - centre + math.sqrt(variance / parts.classes) * normal(*y.shape, generator=g)
                kernel = relu_kernel(x)
                ridges = kernel.diagonal().mean() * torch.logspace(*decades, points, dtype=x.dtype).to(x)
                dual = kernel_path(kernel, targets, ridges)
                train = (ridges.view(-1, 1, 1) * dual).square().sum(2).mean(1)  # what is left of the targets
                misses = relu_kernel(x_test, x) @ dual - (y_test - centre)
                test = misses.square().sum(2).mean(1) + variance
                least = least or float(test.min())
                at = {"method": method, "problem": problem, "seed": seed}
                run.record("best_ratio", (train / test)[test.argmin()], **at)
                run.record_series("image_error", test / test.min(), steps=(train / test).tolist(), **at)


def draw(part: datasets.Split, count: int, classes: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """At most `count` images of a part as unit vectors in float64, and their classes one-hot."""
    rows = torch.randperm(len(part.x), generator=generator, device=generator.device)[:count]
    x = F.normalize(part.x[rows].flatten(1).double(), dim=1)
    return x, F.one_hot(part.y[rows], classes).double()
