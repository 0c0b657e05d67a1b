"""From job tables to one paper's tables, verdicts and figures, and from those to the tables of all papers."""

from __future__ import annotations

import shutil
import sys
import traceback
from pathlib import Path

import pandas as pd

from secondlook.suite import registry, tables
from secondlook.suite.cards import Paper
from secondlook.suite.errors import CannotWrite, NotMeasured, TableError
from secondlook.suite.judge import judge

TABLES = {"measurements": tables.MEASUREMENTS, "runs": tables.RUNS, "verdicts": tables.VERDICTS}


def assess(paper: Paper, scale: str, results: Path) -> None:
    """Write one paper's tables under `papers/SLUG` and its figures under `figures/SLUG`."""
    parts = {kind: _parts(results, kind, paper, scale) for kind in ("measurements", "runs")}
    measurements = tables.collect(parts["measurements"], tables.MEASUREMENTS)
    runs = tables.collect(parts["runs"], tables.RUNS)
    folder = results / "papers" / paper.slug
    tables.write(measurements, folder / "measurements.parquet", tables.MEASUREMENTS)
    tables.write(runs, folder / "runs.parquet", tables.RUNS)
    verdicts = judge(paper, scale, measurements, runs)
    tables.write(verdicts, folder / "verdicts.parquet", tables.VERDICTS)
    draw(paper, measurements, results / "figures" / paper.slug)


def _parts(results: Path, kind: str, paper: Paper, scale: str) -> list[Path]:
    """The job tables of a paper's experiments at this scale, in the card's order; others in the folder are stale."""
    found: list[Path] = []
    for experiment in paper.at(scale):
        whole = results / kind / paper.slug / f"{experiment}.parquet"
        seeds = sorted(whole.parent.glob(f"{experiment}.seed*.parquet"), key=lambda p: int(p.suffixes[0][5:]))
        found += [whole] if whole.exists() else seeds
    return found


def draw(paper: Paper, measurements: pd.DataFrame, folder: Path) -> None:
    """Draw the card's figures. One that cannot be drawn leaves `NAME.txt` with the reason; the others stand."""
    from secondlook.suite import plots

    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    for name in paper.figures:
        try:
            plots.house()
            plots.save(registry.function(paper, "figures", name)(measurements, paper), folder, name)
        except CannotWrite:
            raise  # a full disk says nothing about the figure
        except NotMeasured as reason:
            (folder / f"{name}.txt").write_text(f"{reason}\n", encoding="utf-8")
        except Exception as error:
            print(traceback.format_exc(), file=sys.stderr)
            reason = "nothing was measured" if measurements.empty else f"{type(error).__name__}: {error}"
            (folder / f"{name}.txt").write_text(f"not drawn: {reason}\n", encoding="utf-8")


def collect(results: Path) -> None:
    """Put the tables of all papers together. Reads `papers/*`, writes `tables/*` as Parquet and CSV."""
    for name, schema in TABLES.items():
        parts = [results / "papers" / slug / f"{name}.parquet" for slug in registry.replicated()]
        tables.write(
            tables.collect([p for p in parts if p.exists()], schema),
            results / "tables" / f"{name}.parquet",
            schema,
            csv=True,
        )


def verdicts(results: Path) -> pd.DataFrame:
    """The verdicts of all papers as they lie."""
    return tables.read(results / "tables" / "verdicts.parquet", tables.VERDICTS)


def rejudge(scale: str, results: Path) -> pd.DataFrame:
    """Recompute every verdict from `tables/measurements` and `tables/runs` alone, and write them."""
    folder = results / "tables"
    measurements = tables.read(folder / "measurements.parquet", tables.MEASUREMENTS)
    runs = tables.read(folder / "runs.parquet", tables.RUNS)
    return tables.write(judge_all(scale, measurements, runs), folder / "verdicts.parquet", tables.VERDICTS, csv=True)


def judge_all(scale: str, measurements: pd.DataFrame, runs: pd.DataFrame) -> pd.DataFrame:
    """Verdicts of every paper that has runs in the tables, in the registry's order."""
    ran = set(runs["paper"])
    judged = [judge(p, scale, measurements, runs) for slug, p in registry.replicated().items() if slug in ran]
    judged = [j for j in judged if len(j)]
    if not judged:
        raise TableError("the tables hold no run of a known paper; run `snakemake --cores all` first")
    return tables.conform(pd.concat(judged, ignore_index=True), tables.VERDICTS)


def keep_reference(results: Path, reference: Path) -> None:
    """Keep a results folder's tables as the suite's own last measured ones: small, tracked, with their provenance."""
    for name, schema in TABLES.items():
        table = tables.read(results / "tables" / f"{name}.parquet", schema)
        tables.write_csv(table, reference / f"{name}.csv", float_format="%.10g")
