"""The family's common protocol: log I_v(x) and log K_v(x) for many points, on the same points, in one process.

Points are log-uniform in order and argument, and only those at which SciPy's scaled functions are finite take part:
both sides then do the same work. Recorded are the time of each, all methods interleaved, and the largest disagreement
with SciPy relative to max(|log|, 1), so that no speed is bought with digits. The number of points is swept, for the
methods pay a fixed cost a call: the speed relative to SciPy, repeat by repeat, shows from which size on each is ahead.

Your own method: a function ``(kind, v, x) -> array of logs`` with ``kind`` "I" or "K" and float64 arrays ``v``, ``x``
of shape [n], named as ``package.module:function``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module

import numpy as np
import torch

from secondlook.scientific.log_bessel_gpu import log_iv, log_kv
from secondlook.suite.runner import Run
from secondlook.suite.timing import interleaved

METRICS = {
    "seconds": {"label": "time for all points", "unit": "s", "step": "points", "timing": True},
    "speedup": {"label": "SciPy's time over the method's", "unit": "x", "step": "points", "timing": True},
    "disagreement": {"label": "largest difference from SciPy, relative to max(|log|, 1)", "unit": "", "step": "points"},
    "finite": {"label": "finite results on all points drawn", "unit": "%", "step": "points"},
}
SCALES = {
    "smoke": {"sizes": [2000], "low": 0.01, "high": 30000.0, "repeats": 2},
    "laptop": {"sizes": [100, 1000, 10000, 100000, 1000000], "low": 0.01, "high": 30000.0, "repeats": 7},
    "gpu": {"sizes": [100, 1000, 10000, 100000, 1000000], "low": 0.01, "high": 30000.0, "repeats": 7},
}
Method = Callable[[str, np.ndarray, np.ndarray], np.ndarray]


def benchmark(
    run: Run, *, method: str | None = None, sizes: Sequence[int], low: float, high: float, repeats: int
) -> None:
    """Time and disagreement of every method, function and number of points.

    Args:
        method: a method of your own as ``package.module:function``, measured beside the others.
        low, high: range of orders and arguments.
    """
    methods: dict[str, Method] = {"secondlook": partial(ours, run.device)}
    try:
        from scipy import special  # noqa: F401
    except ImportError:
        run.note("peer scipy is not installed: pip install 'secondlook[peers]'")
        return
    methods["scipy"] = scaled
    if method:
        methods[method] = named(method)
    for size in run.track(sizes, "sizes"):
        rng = np.random.default_rng(size)
        v, x = np.exp(rng.uniform(np.log(low), np.log(high), (2, 2 * size)))  # SciPy is finite at seven in ten
        for kind in ("I", "K"):
            exact = scaled(kind, v, x)
            good = np.flatnonzero(np.isfinite(exact))[:size]
            points = {"v": v[good], "x": x[good]}
            for name, f in methods.items():
                record = partial(run.record, method=name, problem=f"log {kind}", step=len(good))
                difference = np.abs(np.asarray(f(kind, **points)) - exact[good])
                record("disagreement", (difference / np.maximum(np.abs(exact[good]), 1)).max())
                record("finite", 100 * np.isfinite(f(kind, v, x)).mean())
            calls = {name: partial(f, kind, **points) for name, f in methods.items()}
            wide = interleaved(calls, repeats=repeats).pivot(index="repeat", columns="name", values="seconds")
            for name in methods:
                record = partial(run.record, method=name, problem=f"log {kind}", step=len(good))
                for repeat, seconds in wide[name].items():
                    record("seconds", seconds, seed=repeat)
                    if name != "scipy":
                        record("speedup", wide["scipy"][repeat] / seconds, seed=repeat)


def ours(device: str, kind: str, v: np.ndarray, x: np.ndarray) -> np.ndarray:
    """This package on a device; copies there and back are part of the time."""
    log = log_iv if kind == "I" else log_kv
    return log(torch.as_tensor(v, device=device), torch.as_tensor(x, device=device)).cpu().numpy()


def scaled(kind: str, v: np.ndarray, x: np.ndarray) -> np.ndarray:
    """The log of SciPy's exponentially scaled function; NaN where that under- or overflows."""
    from scipy import special

    with np.errstate(divide="ignore", invalid="ignore"):
        found = np.log(special.ive(v, x)) + x if kind == "I" else np.log(special.kve(v, x)) - x
    return np.where(np.isfinite(found), found, np.nan)


def named(method: str) -> Method:
    """The function that ``package.module:function`` names."""
    module, _, name = method.partition(":")
    if not name:
        raise ValueError(f"name your method as package.module:function, got {method!r}")
    return getattr(import_module(module), name)
