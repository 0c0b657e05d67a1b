"""Where else a claim was judged: at other scales on this machine, or in a reference that the suite keeps."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import pandas as pd


@dataclass(frozen=True)
class Place:
    """Verdicts from elsewhere, with the runs they rest on."""

    scale: str
    reference: bool  # kept by the suite, and not run on this machine
    here: bool  # of the very scale that is shown: what one's own verdicts are held against
    verdicts: pd.DataFrame
    runs: pd.DataFrame

    @property
    def name(self) -> str:
        """For file names: `gpu`, or `gpu-reference`."""
        return f"{self.scale}-reference" if self.reference else self.scale

    @cached_property
    def origin(self) -> str:
        """Where the numbers come from, for instance "reference of 2026-11-20, git 73fe922, NVIDIA H200"."""
        what = "reference" if self.reference else "own run"
        days = sorted({str(day)[:10] for day in self.runs["started_at"].dropna()} - {""})
        when = f" of {' to '.join(dict.fromkeys((days[0], days[-1])))}" if days else ""
        commits = [f"git {c[:7]}" for c in _several(self.runs["git_commit"])]
        return ", ".join([what + when, *commits[:2], *_several(self.runs["device"])[:2]])

    @cached_property
    def rows(self) -> dict[tuple[str, str], dict[str, Any]]:
        """Verdict rows by paper and claim."""
        return by_claim(self.verdicts)

    def split(self, slugs: Iterable[str]) -> dict[str, Place]:
        """Each paper's part."""
        verdicts, runs = ({str(k): g for k, g in t.groupby("paper", sort=False)} for t in (self.verdicts, self.runs))
        return {
            s: replace(self, verdicts=verdicts.get(s, self.verdicts.iloc[:0]), runs=runs.get(s, self.runs.iloc[:0]))
            for s in slugs
        }


def by_claim(table: pd.DataFrame) -> dict[tuple[str, str], dict[str, Any]]:
    """The rows of a table of verdicts by paper and claim."""
    return {(r["paper"], r["claim"]): r for r in table.to_dict("records")}


def _several(column: pd.Series) -> list[str]:
    return [str(v) for v in column.dropna().unique() if v]
