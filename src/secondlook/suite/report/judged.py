"""Claims with their verdicts, and everything that is shown beside them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from secondlook.suite.cards import Claim, Paper
from secondlook.suite.report import marks, words
from secondlook.suite.report.evidence import Evidence
from secondlook.suite.report.numerals import quantity
from secondlook.suite.report.places import Place


@dataclass(frozen=True)
class JudgedClaim:
    """A claim with its verdict, as the templates show it."""

    claim: Claim
    verdict: dict[str, Any]
    plot: marks.Plot | None
    test: tuple[str, str]
    control: tuple[str, str]
    published: list[tuple[str, str]]
    elsewhere: list[tuple[Place, dict[str, Any]]]

    @property
    def effect(self) -> tuple[str, str]:
        return quantity(self.verdict["effect"], self.verdict["low"], self.verdict["high"])

    @property
    def control_effect(self) -> tuple[str, str]:
        return quantity(*(self.verdict[f"control_{k}"] for k in ("effect", "low", "high")))

    @property
    def unit(self) -> str:
        """The unit of the effect: ratios, slopes and correlations have none."""
        form = self.claim.test.form if self.claim.test else ""
        return "×" if form == "ratio" else "" if form in ("slope", "correlation") else words.unit(self.claim.unit)

    @property
    def differs(self) -> bool:
        """The reference of the same scale has another verdict. What was not run here yet differs from nothing."""
        own = self.verdict["verdict"] if self.verdict["scale"] else None
        return own is not None and any(place.here and row["verdict"] != own for place, row in self.elsewhere)

    @property
    def tested_at(self) -> list[str]:
        """Where the claim is untested here: the other scales at which it was tested."""
        untested = self.verdict["verdict"] == "untested"
        return [place.scale for place, _ in self.elsewhere if untested and not place.here]


def judged(paper: Paper, claim: Claim, found: Evidence) -> JudgedClaim:
    """A claim of a paper with its verdict and everything shown beside it."""
    verdict = found.verdict(paper, claim)
    control = words.expressed(claim, paper, claim.control_test) if claim.control else ("", "")
    return JudgedClaim(
        claim=claim,
        verdict=verdict,
        plot=marks.interval_plot(claim.test, verdict) if claim.test else None,
        test=words.expressed(claim, paper),
        control=control,
        published=list(words.flat(claim.published)),
        elsewhere=list(found.verdicts_elsewhere(paper, claim)),
    )


def count(groups: Iterable[Iterable[JudgedClaim]]) -> dict[str, int]:
    """Claims per verdict."""
    found = [c.verdict["verdict"] for group in groups for c in group]
    return {v: found.count(v) for v in words.VERDICTS}
