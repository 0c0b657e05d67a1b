"""The pages of a family and of the scoreboard, as notebook cells and the site show them."""

from __future__ import annotations

from typing import Any

from secondlook.suite import registry
from secondlook.suite.cards import Paper
from secondlook.suite.report import curves, pages, source
from secondlook.suite.report.evidence import Evidence
from secondlook.suite.report.judged import count, judged
from secondlook.suite.report.shown import Shown, Styled
from secondlook.suite.report.summaries import dots, summaries


class FamilyPage:
    """One family at one scale: its papers' verdicts, and its benchmark."""

    def __init__(self, name: str, papers: list[Paper], parts: dict[str, Evidence], bench: Evidence) -> None:
        self.name, self.papers, self.bench = name, papers, bench
        self.judged = {p.slug: [judged(p, c, parts[p.slug]) for c in p.claims] for p in papers if p.replicated}

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        shown = self.head()
        return Styled(shown.html, shown.plain)._repr_mimebundle_()

    def head(self) -> Shown:
        """What the family is, and its totals."""
        about = source.docstring(registry.PACKAGE / self.name / "__init__.py").split("\n\n")[0]
        totals = count(self.judged.values())
        plain = f"{self.name}: {len(self.papers)} papers, {len(self.judged)} replicated"
        return self._shown("family_head", plain, about=about, totals=totals)

    def scoreboard(self) -> Shown:
        """Every claim of the family with its interval."""
        plain = "\n".join(f"{s} {c.claim.id}: {c.verdict['verdict']}" for s, cs in self.judged.items() for c in cs)
        return self._shown("family_board", plain)

    def benchmark(self) -> Shown:
        """All methods of the family on the same problems under one protocol."""
        about = source.docstring(registry.PACKAGE / self.name / "benchmark.py")
        metrics = registry.benchmark_metrics(self.name)
        blocks = summaries(self.bench.measurements, metrics)
        for block in blocks:
            table = self.bench.measurements[self.bench.measurements["metric"] == block["metric"]]
            block["curves"] = curves.drawn(table, metrics.get(block["metric"]))
            block["plots"] = [] if block["curves"] else dots(block)
        runs = self.bench.runs.to_dict("records")
        plain = "\n".join(f"{b['label']}: {len(b['rows'])} rows" for b in blocks) or "; ".join(self.bench.holes)
        return self._shown("benchmark", plain, about=about, blocks=blocks, runs=runs)

    def _shown(self, part: str, plain: str, **values: Any) -> Shown:
        html = pages.render(f"parts/{part}.html.j2", family=self, scale=self.bench.scale, **values)
        return Shown(html, plain.strip() or "nothing here")


class Scoreboard:
    """All papers at one scale."""

    def __init__(self, papers: dict[str, Paper], found: Evidence) -> None:
        self.papers, self.scale = papers, found.scale
        parts = found.split(papers)
        self.judged = {s: [judged(p, c, parts[s]) for c in p.claims] for s, p in papers.items() if p.replicated}

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        totals = count(self.judged.values())
        html = pages.render("parts/board_head.html.j2", board=self, totals=totals)
        plain = f"{len(self.papers)} papers, {len(self.judged)} replicated: " + ", ".join(
            f"{n} {v}" for v, n in totals.items()
        )
        return Styled(html, plain)._repr_mimebundle_()

    def table(self) -> Shown:
        """One row a replicated paper, one sign a claim."""
        plain = "\n".join(f"{s}: {', '.join(c.verdict['verdict'] for c in cs)}" for s, cs in self.judged.items())
        return Shown(pages.render("parts/board_table.html.j2", board=self), plain or "no paper is replicated yet")

    def findings(self) -> Shown:
        """What each replicated paper's results show, in a sentence or two."""
        told = [self.papers[s] for s in self.judged if self.papers[s].finding]
        plain = "\n\n".join(f"{p.slug}: {p.finding.text}" for p in told)  # type: ignore[union-attr]
        return Shown(pages.render("parts/board_findings.html.j2", papers=told), plain or "no finding is written yet")
