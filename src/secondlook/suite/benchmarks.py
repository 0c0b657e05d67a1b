"""Runs a family's benchmark through the same recorder as an experiment."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

from secondlook.suite import runner
from secondlook.suite.cards import Metric
from secondlook.suite.errors import SecondLookError
from secondlook.suite.registry import benchmark_scales


def run(
    family: str,
    scale: str,
    results: Path,
    device: str,
    method: str | None = None,
    progress: runner.Progress = runner.silent,
    jobs: int = 1,
) -> tuple[runner.Run, dict[str, Any]]:
    """Run one family's benchmark. Raises `SecondLookError` where the family has none at this scale."""
    settings = benchmark_scales(family)
    if scale not in settings:
        has = ", ".join(settings) or "no scale"
        raise SecondLookError(f"family {family!r} has a benchmark at {has}, not at {scale!r}")
    module = import_module(f"secondlook.{family}.benchmark")
    metrics = {name: Metric.model_validate(m) for name, m in module.METRICS.items()}
    config = {"family": family, "scale": scale, "set": settings[scale], "method": method}
    return runner.recorded(
        runner.Run(
            paper=f"benchmark-{family}",
            experiment="benchmark",
            scale=scale,
            seeds=(),
            device=device,
            results=results,
            metrics=metrics,
            jobs=jobs,
            progress=progress,
        ),
        config,
        lambda this: module.benchmark(this, method=method, **settings[scale]),
    )
