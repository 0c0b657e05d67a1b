"""Errors against 50-digit references, finite results, speed beside SciPy, and von Mises-Fisher fits."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from scipy import special
from torch import Tensor
from torch.nn import functional as F

from secondlook.problems import datasets
from secondlook.scientific.log_bessel_gpu.method import log_iv, log_kv
from secondlook.scientific.log_bessel_gpu.reference import log_iv_reference, log_kv_reference
from secondlook.scientific.log_bessel_gpu.regimes import ARGUMENT, ORDER, ROOT, asinh_ratio, debye, debye_tail
from secondlook.scientific.log_bessel_gpu.vmf import VonMisesFisher
from secondlook.suite.runner import Run
from secondlook.suite.timing import interleaved

OURS = {"I": log_iv, "K": log_kv}
SIGN = {"I": 1, "K": -1}
REFERENCE = {"I": log_iv_reference, "K": log_kv_reference}


def log_scipy(kind: str, v: np.ndarray, x: np.ndarray) -> np.ndarray:
    """The best SciPy offers: the log of its exponentially scaled functions; NaN where those under- or overflow."""
    scaled = special.ive(v, x) if kind == "I" else special.kve(v, x)
    with np.errstate(divide="ignore", invalid="ignore"):
        found = np.log(scaled) + (x if kind == "I" else -x)
    return np.where(np.isfinite(found), found, np.nan)


def region(v: np.ndarray, x: np.ndarray) -> np.ndarray:
    """The name of the regime each point falls into."""
    return np.where(v > ORDER, "large order", np.where(x > ARGUMENT, "large argument", "corner"))


def textbook(kind: str, v: np.ndarray, x: np.ndarray) -> np.ndarray:
    """The large-order expansion with its phase as printed, the plain difference of two parts."""
    v, x, sign = torch.as_tensor(v), torch.as_tensor(x), SIGN[kind]
    h = torch.hypot(v, x)
    front = (h - v * asinh_ratio(v, x, h)) * sign - torch.log(h * (2 * math.pi if sign > 0 else 2 / math.pi)) / 2
    return (front + debye_tail(v, h, sign)).numpy()


def accuracy(run: Run, *, points: int, low: float, high: float, roots: int) -> None:
    """Errors relative to max(|log|, 1) on a fixed logarithmic grid, and along the curve where the log vanishes."""
    axis = np.geomspace(low, high, points)
    v, x = (a.ravel() for a in np.meshgrid(axis, axis, indexing="ij"))
    orders = np.geomspace(ORDER * 1.01, high, roots)
    for kind in run.track(("I", "K"), "functions"):
        ours = partial(_on_device, OURS[kind], run.device)
        arms = {
            "secondlook": ours,
            "scipy": partial(log_scipy, kind),
            "float32": partial(ours, dtype=torch.float32),
            "debye-everywhere": lambda v, x, s=SIGN[kind]: debye(torch.as_tensor(v), torch.as_tensor(x), s).numpy(),
        }
        exact = [REFERENCE[kind](*point) for point in zip(v.tolist(), x.tolist(), strict=True)]
        for method, arm in arms.items():
            error = _errors(arm(v, x), exact)
            for order, rows in zip(axis, error.reshape(points, points), strict=True):
                run.record_series("error", rows, steps=axis, method=method, problem=f"{kind}, v = {order:.6g}")
            for name in np.unique(region(v, x)):
                inside = error[region(v, x) == name]
                run.record("median_error", np.nanmedian(inside), method=method, problem=f"{kind}, {name}")
                run.record("max_error", inside.max(), method=method, problem=f"{kind}, {name}")
        # Here the phase is about 1, the difference of two parts of the size of v: the hardest place for it.
        beside = ROOT * orders * (1 + 1 / orders)
        exact = [REFERENCE[kind](*point) for point in zip(orders.tolist(), beside.tolist(), strict=True)]
        for method, arm in {"secondlook": ours, "textbook-phase": partial(textbook, kind)}.items():
            error = _errors(arm(orders, beside), exact)
            run.record_series("zero_error", error, steps=orders, method=method, problem=f"{kind}, zero curve")


def _on_device(function: Callable, device: str, v: np.ndarray, x: np.ndarray, **options) -> np.ndarray:
    return function(torch.as_tensor(v, device=device), torch.as_tensor(x, device=device), **options).cpu().numpy()


def _errors(found: np.ndarray, exact: list) -> np.ndarray:
    return np.array([float(abs(float(a) - b) / max(abs(b), 1)) for a, b in zip(found, exact, strict=True)])


def log_uniform(n: int, low: float, high: float, generator: torch.Generator) -> Tensor:
    """`n` float64 draws whose logarithm is uniform."""
    u = torch.rand(n, generator=generator, dtype=torch.float64)
    return torch.exp(math.log(low) + u * math.log(high / low))


def finite(run: Run, *, points: int, low: float, high: float) -> None:
    """Share of finite results over log-uniform orders and arguments."""
    for seed in run.track(run.seeds, "seeds"):
        g = torch.Generator().manual_seed(seed)
        v, x = (log_uniform(points, low, high, g).numpy() for _ in range(2))
        for kind in ("I", "K"):
            for method, found in {
                "secondlook": _on_device(OURS[kind], run.device, v, x),
                "scipy": log_scipy(kind, v, x),
            }.items():
                run.record("finite", 100 * np.isfinite(found).mean(), method=method, problem=kind, seed=seed)


def speed(run: Run, *, points: int, scipy_points: int, repeats: int, low: float, high: float) -> None:
    """Elements a second beside SciPy, in each regime, on points where SciPy is finite."""
    boxes = {
        "large order": (ORDER, high, low, high),
        "large argument": (low, ORDER, ARGUMENT, high),
        "corner": (low, ORDER, low, ARGUMENT),
        "all": (low, high, low, high),
    }
    for seed in run.track(run.seeds, "seeds"):
        g = torch.Generator().manual_seed(seed)
        for name, box in boxes.items():
            for kind in ("I", "K"):
                v, x = finite_points(kind, box, scipy_points, g)
                tiles = math.ceil(points / len(v))
                many = [torch.as_tensor(np.tile(a, tiles)[:points], device=run.device) for a in (v, x)]
                table = interleaved(
                    {
                        "secondlook": partial(OURS[kind], *many),
                        "scipy": partial(log_scipy, kind, v, x),
                        "scipy-again": partial(log_scipy, kind, v, x),
                    },
                    repeats=repeats,
                )
                seconds = table.groupby("name")["seconds"].median()
                rate = {m: (points if m == "secondlook" else len(v)) / s / 1e6 for m, s in seconds.items()}
                for method in rate:
                    record = partial(run.record, method=method, problem=f"{kind}, {name}", seed=seed)
                    record("rate", rate[method])
                    record("speedup", rate[method] / rate["scipy"])


def finite_points(kind: str, box: tuple, n: int, generator: torch.Generator) -> tuple[np.ndarray, np.ndarray]:
    """`n` log-uniform points (v, x) of a box (lowest v, highest v, lowest x, highest x) at which SciPy is finite."""
    v = log_uniform(6 * n, *box[:2], generator).numpy()
    x = log_uniform(6 * n, *box[2:], generator).numpy()
    good = np.flatnonzero(np.isfinite(log_scipy(kind, v, x)))[:n]
    return v[good], x[good]


# ------------------------------------------------------------------------------- von Mises-Fisher


def scipy_fit(d: int, rbar: float, steps: int = 50) -> tuple[float, float, float]:
    """kappa, mean log-likelihood and score of the same Newton iteration on SciPy's scaled functions."""

    def ratio(k: float) -> float:
        with np.errstate(invalid="ignore", divide="ignore"):
            return float(special.ive(d / 2, k) / special.ive(d / 2 - 1, k))

    k = rbar * (d - rbar**2) / (1 - rbar**2)
    for _ in range(steps):
        a = ratio(k)
        change = (a - rbar) / (1 - a * a - (d - 1) / k * a)
        k -= change
        if not abs(change) > 4e-16 * k:
            break
    log_i = float(log_scipy("I", np.array(d / 2 - 1), np.array(k)))
    return k, k * rbar + (d / 2 - 1) * math.log(k) - d / 2 * math.log(2 * math.pi) - log_i, rbar - ratio(k)


def record_fits(run: Run, X: Tensor, problem: str, seed: int, kappa: float | None = None) -> None:
    """Fit with ours, with SciPy and with the closed-form start alone; `kappa` is the truth where there is one."""
    d = X.shape[1]
    vmf = VonMisesFisher(d)
    rbar = float(X.double().mean(0).norm())
    start = rbar * (d - rbar**2) / (1 - rbar**2)
    ours = vmf.fit(X)
    fits = {
        "secondlook": (ours.kappa, ours.loglik, vmf.score(rbar, ours.kappa)),
        "scipy": scipy_fit(d, rbar),
        "start-only": (start, start * rbar + float(vmf.log_normalizer(start)), vmf.score(rbar, start)),
    }
    for method, (k, loglik, score) in fits.items():
        record = partial(run.record, method=method, problem=problem, seed=seed)
        record("loglik", loglik)
        record("kappa", k)
        record("score", abs(score))
        record("finite_fit", 100.0 * (math.isfinite(k) and math.isfinite(loglik)))
        if kappa is not None:
            record("kappa_error", 100 * abs(k / kappa - 1))


def random_features(images: Tensor, d: int, generator: torch.Generator) -> Tensor:
    """Unit vectors `[n, d]`: images `[n, c, s, s]` through one layer of random 3x3 filters and a rectifier, pooled to
    at most 8x8 places."""
    side = min(8, images.shape[-1])
    filters = torch.randn(d // side**2, images.shape[1], 3, 3, generator=generator).to(images)
    # Batches of 250: the unpooled maps of all images together would not fit.
    maps = [F.adaptive_avg_pool2d(F.conv2d(b, filters, padding=1).relu(), side).flatten(1) for b in images.split(250)]
    return F.normalize(torch.cat(maps).double(), dim=1)


def vmf(run: Run, *, dims: list[int], ratios: list[float], samples: int, images: int) -> None:
    """Samples of known concentration kappa = ratio d, fitted again; and features of the digits images."""
    x = datasets.load("digits").train.x[:images].to(run.device)
    for seed in run.track(run.seeds, "seeds"):
        g = torch.Generator().manual_seed(seed)
        for d in dims:
            mu = F.normalize(torch.randn(d, generator=g, dtype=torch.float64), dim=0)
            for ratio in ratios:
                X = VonMisesFisher(d).sample(mu, ratio * d, samples, g).to(run.device)
                record_fits(run, X, f"samples, d = {d}, kappa = {ratio:g} d", seed, ratio * d)
            record_fits(run, random_features(x, d, g), f"digits features, d = {d}", seed)


def cifar_features(run: Run, *, dims: list[int], images: int) -> None:
    """The same fits on features of CIFAR-10 images."""
    x = datasets.load("cifar10-jpeg").train.x[:images].to(run.device)
    for seed in run.seeds:
        for d in dims:
            X = random_features(x, d, torch.Generator().manual_seed(seed))
            record_fits(run, X, f"CIFAR-10 features, d = {d}", seed)
