"""Runs one experiment and keeps what it measures."""

from __future__ import annotations

import math
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol, TypeVar

from secondlook.suite import provenance, registry
from secondlook.suite.cards import Metric, Paper, ScaleSettings
from secondlook.suite.errors import DatasetMissing, SecondLookError, UnknownName
from secondlook.suite.timelimit import TimeLimit, time_limit

T = TypeVar("T")


class Progress(Protocol):
    """Shows how far a loop has come. The command line gives a live bar, the workflow nothing."""

    def __call__(self, items: Iterable[T], label: str, total: int | None) -> Iterator[T]: ...


def silent(items: Iterable[T], label: str, total: int | None) -> Iterator[T]:
    """No display."""
    yield from items


@dataclass
class Run:
    """What an experiment is given: where it runs, on which seeds, and where its measurements go."""

    paper: str
    experiment: str
    scale: str
    seeds: tuple[int, ...]
    device: str
    results: Path
    metrics: dict[str, Metric]
    jobs: int = 1  # processes that a benchmark may use
    run_id: str = ""
    progress: Progress = silent
    rows: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def record(
        self, metric: str, value: Any, *, method: str, problem: str, seed: int = 0, step: float | None = None
    ) -> None:
        """Keep one measurement. `value` is a number or 0-d tensor; one that is not finite is kept as diverged."""
        if metric not in self.metrics:
            raise UnknownName("metric of this card", metric, self.metrics)
        value = float(value)
        finite = math.isfinite(value)
        self.rows.append(
            {
                "paper": self.paper,
                "experiment": self.experiment,
                "problem": problem,
                "method": method,
                "seed": int(seed),
                "metric": metric,
                "step": math.nan if step is None else float(step),
                "value": value if finite else math.nan,
                "unit": self.metrics[metric].unit,
                "status": "ok" if finite else "diverged",
                "run_id": self.run_id,
            }
        )

    def record_series(
        self,
        metric: str,
        values: Iterable[Any],
        *,
        steps: Sequence[float],
        method: str,
        problem: str,
        seed: int = 0,
    ) -> None:
        """Keep one measurement a step. A tensor or array is moved to the host once."""
        values = values.tolist() if hasattr(values, "tolist") else values
        for step, value in zip(steps, values, strict=True):
            self.record(metric, value, method=method, problem=problem, seed=seed, step=step)

    def track(self, items: Iterable[T], label: str, total: int | None = None) -> Iterator[T]:
        """Iterate with a progress display."""
        if total is None and hasattr(items, "__len__"):
            total = len(items)  # type: ignore[arg-type]
        return self.progress(items, label, total)

    def note(self, text: str) -> None:
        """Leave a remark in the run's provenance, for instance that a peer is not installed."""
        self.notes.append(text)


@dataclass(frozen=True)
class Job:
    """One (paper, experiment) with some or all of its seeds, at one scale."""

    paper: Paper
    experiment: str
    scale: str
    seeds: tuple[int, ...]

    @classmethod
    def of(cls, paper: Paper, experiment: str, scale: str, seed: int | None = None) -> Job:
        """The job a user names. Raises `UnknownName` or `SecondLookError` with the choices."""
        if experiment not in paper.experiments:
            raise UnknownName(f"experiment of {paper.slug}", experiment, paper.experiments)
        at = paper.at(scale)
        if experiment not in at:
            scales = ", ".join(paper.experiments[experiment].scales)
            raise SecondLookError(f"{paper.slug}/{experiment} does not run at scale {scale!r}; its card has {scales}")
        seeds = tuple(range(at[experiment].seeds)) if seed is None else (seed,)
        return cls(paper, experiment, scale, seeds)

    @property
    def settings(self) -> ScaleSettings:
        return self.paper.at(self.scale)[self.experiment]

    @property
    def config(self) -> dict[str, Any]:
        """All that decides the numbers, besides the code."""
        e = self.paper.experiments[self.experiment]
        return {
            "paper": self.paper.slug,
            "experiment": self.experiment,
            "scale": self.scale,
            "seeds": list(self.seeds),
            "set": self.settings.set,
            "data": self.paper.data(self.experiment, self.scale),
            "models": e.models,
        }


def run(job: Job, results: Path, device: str = "cpu", progress: Progress = silent) -> tuple[Run, dict[str, Any]]:
    """Run an experiment on the given seeds. See `recorded` for what is returned."""

    def work(this: Run) -> None:
        experiment = registry.function(job.paper, "experiment", job.experiment)
        with time_limit(job.settings.runtime):
            experiment(this, **job.settings.set)

    this = Run(
        paper=job.paper.slug,
        experiment=job.experiment,
        scale=job.scale,
        seeds=job.seeds,
        device=device,
        results=results,
        metrics=job.paper.metrics,
        progress=progress,
    )
    return recorded(this, job.config, work)


def recorded(this: Run, config: dict[str, Any], work: Callable[[Run], None]) -> tuple[Run, dict[str, Any]]:
    """Do the work and record where its numbers come from. Never raises for what the work does: a crash is a row, too.

    Returns:
        The `Run` with its rows, and its row for the runs table. After a crash the rows recorded so far are dropped, for
        half an experiment must not be judged as a whole one; the error stands in the row's `note`.
    """
    digest = provenance.config_sha256(config)
    # The same job has the same id wherever and whenever it runs, so two runs' tables can be compared bit for bit.
    this.run_id = f"{this.paper}.{this.experiment}.{digest[:10]}"
    commit, dirty = provenance.git_state()
    started, wall, cpu = datetime.now(UTC), time.perf_counter(), time.process_time()
    status = "ok"
    try:
        work(this)
    except TimeLimit as error:
        status = "failed"
        this.notes.append(str(error))
    except DatasetMissing as error:
        status = "no-data"
        this.notes.append(str(error))
    except Exception as error:
        status = "failed"
        this.notes.append(f"{type(error).__name__}: {error}")
        print(traceback.format_exc(), file=sys.stderr)
    if status != "ok":
        this.rows.clear()
    return this, {
        "run_id": this.run_id,
        "paper": this.paper,
        "experiment": this.experiment,
        "scale": this.scale,
        "seeds": " ".join(map(str, this.seeds)),
        "status": status,
        "note": "; ".join(this.notes),
        "git_commit": commit,
        "dirty": dirty,
        "started_at": started.isoformat(timespec="seconds"),
        "wall_s": time.perf_counter() - wall,
        "cpu_s": time.process_time() - cpu,
        "peak_mb": provenance.peak_mb(),
        "device": _device_name(this.device),
        "threads": _threads(),
        "processor": provenance.processor(),
        **provenance.versions(),
        "config_sha256": digest,
        "config": provenance.canonical(config),
    }


def _threads() -> int:
    torch = sys.modules.get("torch")
    return torch.get_num_threads() if torch else 1


def _device_name(device: str) -> str:
    if device == "cpu":
        return "cpu"
    import torch

    return torch.cuda.get_device_name()
