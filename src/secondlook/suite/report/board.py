"""The scoreboard of the front page: a line a paper, and what other places say of the claims."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from secondlook.suite.cards import Paper
from secondlook.suite.report.evidence import Evidence
from secondlook.suite.report.judged import JudgedClaim
from secondlook.suite.report.room import Page

RANK = {"reproduced": 4, "supported": 3, "contradicted": 2, "inconclusive": 1, "untested": 0}


@dataclass(frozen=True)
class Row:
    """A paper's line on the scoreboard."""

    paper: Paper
    claims: list[JudgedClaim]
    seconds: float
    failed: int = 0  # experiments that ended without result

    @property
    def verdicts(self) -> list[str]:
        return list(dict.fromkeys(c.verdict["verdict"] for c in self.claims)) if self.paper.replicated else ["open"]

    @property
    def rank(self) -> float:
        """Sorts by replicated, then by how many claims were decided, and how."""
        return -1 if not self.paper.replicated else sum(10 + RANK[c.verdict["verdict"]] for c in self.claims)

    @property
    def headline(self) -> JudgedClaim | None:
        return next(
            (c for c in self.claims if c.verdict["effect"] == c.verdict["effect"] and c.verdict["effect"] is not None),
            None,
        )

    @property
    def why(self) -> str:
        """What stands in the place of a headline."""
        return (
            "no claim in the card" if not self.claims else "nothing tested here" if self.seconds else "not run here yet"
        )


@dataclass(frozen=True)
class Board:
    """All lines, replicated papers first, each half in the registry's order."""

    rows: list[Row]

    @classmethod
    def of(cls, papers: Mapping[str, Paper], parts: Mapping[str, Evidence]) -> Board:
        rows = [
            Row(
                paper,
                Page(paper, parts[slug]).judged(),
                float(parts[slug].runs["wall_s"].sum()),
                len({run["experiment"] for run in parts[slug].failures() if run["status"] == "failed"}),
            )
            for slug, paper in papers.items()
        ]
        return cls(sorted(rows, key=lambda r: not r.paper.replicated))

    @property
    def claims(self) -> list[tuple[Paper, JudgedClaim]]:
        return [(r.paper, c) for r in self.rows if r.paper.replicated for c in r.claims]

    @property
    def differing(self) -> list[tuple[Paper, JudgedClaim]]:
        """Claims on which the kept reference of the same scale has another verdict."""
        return [(p, c) for p, c in self.claims if c.differs]

    @property
    def only_elsewhere(self) -> dict[str, int]:
        """Scale -> how many of the claims untested here were tested there."""
        found: dict[str, int] = {}
        for _, c in self.claims:
            for scale in c.tested_at:
                found[scale] = found.get(scale, 0) + 1
        return found
