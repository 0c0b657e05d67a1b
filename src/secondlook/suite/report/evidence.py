"""What a results folder holds, read so that whatever is missing becomes a hole with a reason, never a crash."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from secondlook.suite import registry, seals
from secondlook.suite.cards import Claim, Paper
from secondlook.suite.report.places import Place, by_claim
from secondlook.suite.scales import SCALES

COLUMNS = {
    "measurements": "paper experiment problem method seed metric step value unit status run_id",
    "runs": "run_id paper experiment scale seeds status note git_commit dirty started_at wall_s cpu_s peak_mb device "
    "threads processor python torch numpy secondlook config_sha256 config",
    "verdicts": "paper claim scale verdict effect low high n unit form threshold published p p_against control_effect "
    "control_low control_high control_p control_supported reason",
}


@dataclass(frozen=True)
class Evidence:
    """The tables of one scale, of one paper or of all, and the verdicts of other places beside them."""

    results: Path
    scale: str
    measurements: pd.DataFrame
    runs: pd.DataFrame
    verdicts: pd.DataFrame
    elsewhere: tuple[Place, ...] = ()
    holes: list[str] = field(default_factory=list)

    def split(self, slugs: Iterable[str]) -> dict[str, Evidence]:
        """Each paper's part."""

        def parts(table: pd.DataFrame) -> tuple[dict[str, pd.DataFrame], pd.DataFrame]:
            return {str(k): g for k, g in table.groupby("paper", sort=False)}, table.iloc[:0]

        own = [parts(t) for t in (self.measurements, self.runs, self.verdicts)]
        slugs = list(slugs)
        other = [place.split(slugs) for place in self.elsewhere]
        return {
            slug: Evidence(
                self.results,
                self.scale,
                *(found.get(slug, empty) for found, empty in own),
                tuple(places[slug] for places in other),
                self.holes,
            )
            for slug in slugs
        }

    def verdict(self, paper: Paper, claim: Claim) -> dict[str, Any]:
        """The row of the verdicts table; where there is none, an untested one that says why."""
        row = self._verdicts.get((paper.slug, claim.id))
        if row is None:
            row = dict.fromkeys(COLUMNS["verdicts"].split()) | {
                "paper": paper.slug,
                "claim": claim.id,
                "verdict": "untested",
                "unit": claim.unit,
                "reason": self._no_verdict(paper, claim),
            }
        return row

    def verdicts_elsewhere(self, paper: Paper, claim: Claim) -> Iterator[tuple[Place, dict[str, Any]]]:
        """(place, verdict row) for every other place where the claim was tested."""
        own = self.verdict(paper, claim)["verdict"]
        for place in self.elsewhere:
            row = place.rows.get((paper.slug, claim.id))
            if row is not None and (row["verdict"] != "untested" or (place.here and own != "untested")):
                yield place, row

    def failures(self) -> list[dict[str, Any]]:
        """Runs that ended without measurements, each with its reason."""
        return self.runs[self.runs["status"] != "ok"].to_dict("records")

    @cached_property
    def _verdicts(self) -> dict[tuple[str, str], dict[str, Any]]:
        return by_claim(self.verdicts)

    def _no_verdict(self, paper: Paper, claim: Claim) -> str:
        if self.scale not in claim.scales:
            return claim.untested.get(self.scale, f"not testable at scale {self.scale}")  # type: ignore[call-overload]
        return f"not measured yet: run `snakemake --cores all {paper.slug}` at scale {self.scale}"


def of_paper(results: Path, scale: str, slug: str) -> Evidence:
    """One paper's evidence, as its notebook reads it: from `papers/SLUG`, or from the tables of all papers."""
    holes: list[str] = []
    found = []
    for name in COLUMNS:
        own = results / "papers" / slug / f"{name}.parquet"
        path = own if own.exists() else results / "tables" / f"{name}.parquet"
        found.append(_read(path, name, holes, slug))
    places = tuple(place.split([slug])[slug] for place in _elsewhere(results, scale))
    return Evidence(results, scale, *found, places, holes)


def of_all(results: Path, scale: str) -> Evidence:
    """Every paper's evidence."""
    holes: list[str] = []
    found = [_read(results / "tables" / f"{name}.parquet", name, holes) for name in COLUMNS]
    return Evidence(results, scale, *found, _elsewhere(results, scale), holes)


def benchmark(results: Path, scale: str, family: str) -> Evidence:
    """A family's benchmark, empty where it was not run."""
    folder, holes = results / "benchmarks", []
    measurements = _read(folder / f"{family}.parquet", "measurements", holes)
    runs = _read(folder / f"{family}.runs.parquet", "runs", holes) if not holes else _empty("runs")
    return Evidence(results, scale, measurements, runs, _empty("verdicts"), holes=holes)


def models(results: Path) -> list[dict[str, Any]]:
    """The reference models that were trained: name, seed and what their `.json` says; a broken file says that."""
    found = []
    for path in sorted(results.glob("models/*/seed*.json")):
        try:
            facts = seals.read_json(path)
        except (OSError, ValueError) as error:
            facts = {"note": f"{path.name} cannot be read: {error}; train the model again"}
        known = {k: facts.get(k) for k in ("metrics", "settings", "wall_s", "sha256", "note")}
        found.append(known | {"name": path.parent.name, "seed": path.stem.removeprefix("seed")})
    return found


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """Mean, 95% t-interval, count and diverged count over seeds of each (experiment, metric, problem, method, step)."""
    from scipy.special import stdtrit

    by = ["experiment", "metric", "unit", "problem", "method", "step"]
    groups = table.groupby(by, dropna=False, sort=False, observed=True)
    out = groups["value"].agg(["mean", "count", "std", "size"]).reset_index()
    n = out["count"].to_numpy()
    with np.errstate(invalid="ignore", divide="ignore"):
        half = np.where(n > 1, stdtrit(np.maximum(n - 1, 1), 0.975) * out["std"] / np.sqrt(n), np.nan)
    return out.assign(low=out["mean"] - half, high=out["mean"] + half, diverged=out["size"] - n).drop(
        columns=["std", "size"]
    )


def _read(path: Path, name: str, holes: list[str], slug: str | None = None) -> pd.DataFrame:
    if not path.exists():
        holes.append(f"{path.parent.name}/{path.name} is missing: nothing was measured here yet")
        return _empty(name)
    try:
        filters, data = [("paper", "==", slug)] if slug else None, io.BytesIO(seals.content(path))
        table = pd.read_csv(data) if path.suffix == ".csv" else pd.read_parquet(data, filters=filters)
        lacking = set(COLUMNS[name].split()) - set(table.columns)
        if lacking:
            raise ValueError(f"it lacks the columns {', '.join(sorted(lacking))}")
    except Exception as error:  # a damaged file may raise nearly anything
        holes.append(f"{path.parent.name}/{path.name} cannot be read ({error}); delete it and run snakemake again")
        return _empty(name)
    for column in ("note", "reason", "unit"):
        if column in table:
            table[column] = table[column].fillna("")
    return table


def _empty(name: str) -> pd.DataFrame:
    return pd.DataFrame(columns=COLUMNS[name].split())


def _elsewhere(results: Path, scale: str) -> tuple[Place, ...]:
    """Other scales: this machine's own runs, or else the kept reference; and the reference of this scale."""
    kept = results.parent / "reference"
    kept = kept if kept.exists() else registry.PACKAGE.parents[1] / "results" / "reference"
    places = []
    for other in SCALES:
        own = results.parent / other / "tables"
        reference = other == scale or not (own / "verdicts.parquet").exists()
        folder, suffix = (kept / other, "csv") if reference else (own, "parquet")
        if (folder / f"verdicts.{suffix}").exists():
            verdicts, runs = (_read(folder / f"{name}.{suffix}", name, []) for name in ("verdicts", "runs"))
            places.append(Place(other, reference, other == scale, verdicts, runs))
    return tuple(place for place in places if len(place.verdicts))
