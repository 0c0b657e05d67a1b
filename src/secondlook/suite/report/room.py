"""What notebook cells talk to: `page = open_page("gptq", results, scale)`, then `page.claims()` and its like.

Reads cards, tables and sources; imports no torch and no room.
"""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

from markupsafe import Markup

from secondlook.suite import registry
from secondlook.suite.cards import Paper
from secondlook.suite.report import evidence, pages, source
from secondlook.suite.report.evidence import Evidence
from secondlook.suite.report.families import FamilyPage, Scoreboard
from secondlook.suite.report.judged import JudgedClaim, judged
from secondlook.suite.report.shown import Shown, Styled
from secondlook.suite.report.summaries import summaries

SECTIONS = (
    ("What the paper says", "says"),
    ("Claims and verdicts", "claims"),
    ("Figures", "figures"),
    ("The method, equation by equation", "method"),
    ("Measurements", "measurements"),
    ("Provenance", "provenance"),
)


class Page:
    """One paper at one scale."""

    def __init__(self, paper: Paper, found: Evidence) -> None:
        self.paper, self.evidence, self.scale = paper, found, found.scale

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        shown = self.head()
        return Styled(shown.html, shown.plain)._repr_mimebundle_()

    def judged(self) -> list[JudgedClaim]:
        """The claims in the card's order."""
        return [judged(self.paper, c, self.evidence) for c in self.paper.claims]

    def head(self) -> Shown:
        """Title, bibliography, finding."""
        p = self.paper
        plain = f"{p.title} ({p.year})\n{p.summary}\n" + (f"\nFinding: {p.finding.text}" if p.finding else "")
        return self._shown("head", plain)

    def says(self) -> Shown:
        """What the paper says, in our words."""
        return self._shown("says", self.paper.says or self.paper.summary)

    def claims(self) -> Shown:
        """Each claim: published, measured, needed, verdict, and the negative control beside it."""
        claims = self.judged()
        plain = "\n".join(
            f"{c.verdict['verdict']:<13} {c.claim.id}: {' '.join(c.effect)} {c.unit}, needs {c.verdict['threshold']}"
            for c in claims
        )
        return self._shown("claims", plain, claims=claims, failures=self.evidence.failures())

    def figures(self) -> Shown:
        """The paper's figures, redrawn from the measurements."""
        folder = self.evidence.results / "figures" / self.paper.slug
        figures = [(name, card, *_figure(folder, name)) for name, card in self.paper.figures.items()]
        plain = "\n".join(f"{name}: {reason or card.caption}" for name, card, _, reason in figures)
        return self._shown("figures", plain, figures=figures)

    def method(self) -> Shown:
        """Each equation of the card beside the source of what computes it."""
        room = registry.room(self.paper)
        pairs = [(e, source.find(room, e.code) if e.code else None) for e in self.paper.equations]
        plain = "\n\n".join(f"{e.name} ({e.source}): {e.tex}\n{s.text if s else ''}" for e, s in pairs)
        return self._shown("method", plain, pairs=pairs)

    def measurements(self) -> Shown:
        """Mean and 95% interval of every metric, by experiment, method, problem and step."""
        blocks = summaries(self.evidence.measurements, self.paper.metrics)
        plain = "\n".join(f"{b['experiment']} / {b['label']}: {len(b['rows'])} rows" for b in blocks)
        return self._shown("measurements", plain, blocks=blocks, total=len(self.evidence.measurements))

    def provenance(self) -> Shown:
        """Where the numbers come from: code, settings, machine, versions, seeds, time."""
        runs = [r | {"config": _pretty(r["config"])} for r in self.evidence.runs.to_dict("records")]
        plain = "\n".join(
            f"{r['experiment']}: {r['status']}, {r['git_commit'][:10]}, {r['wall_s']:.1f} s" for r in runs
        )
        return self._shown("provenance", plain, runs=runs)

    def sections(self) -> Markup:
        """The whole page, for the site where no executed notebook stands."""
        parts = [Markup("<h2>{}</h2>{}").format(title, getattr(self, name)().html) for title, name in SECTIONS]
        return self.head().html + Markup("").join(parts)

    def _shown(self, part: str, plain: str, **values: Any) -> Shown:
        html = pages.render(f"parts/{part}.html.j2", paper=self.paper, scale=self.scale, **values)
        return Shown(html, plain.strip() or "nothing here")


def open_page(paper: str, results: str | Path, scale: str) -> Page:
    """A paper's page. Raises `UnknownName` for a slug that is not known."""
    return Page(registry.paper(paper), evidence.of_paper(Path(results), scale, paper))


def open_family(family: str, results: str | Path, scale: str) -> FamilyPage:
    """A family's page. Raises `UnknownName` for a family that is not known."""
    name = registry.family(family)
    papers = [p for p in registry.papers().values() if p.family == name]
    root = Path(results)
    parts = evidence.of_all(root, scale).split(p.slug for p in papers)
    return FamilyPage(name, papers, parts, evidence.benchmark(root, scale, name))


def open_scoreboard(results: str | Path, scale: str) -> Scoreboard:
    """The scoreboard of all papers."""
    return Scoreboard(registry.papers(), evidence.of_all(Path(results), scale))


def _figure(folder: Path, name: str) -> tuple[str, str]:
    """A drawn figure as data URI, or "" and the reason why there is none."""
    png, reason = folder / f"{name}.png", folder / f"{name}.txt"
    if png.exists():
        return "data:image/png;base64," + base64.b64encode(png.read_bytes()).decode(), ""
    if reason.exists():
        return "", reason.read_text(encoding="utf-8", errors="replace").strip()
    return "", "not drawn yet"


def _pretty(config: str) -> str:
    try:
        return json.dumps(json.loads(config), indent=2, ensure_ascii=False)
    except (TypeError, ValueError):
        return str(config)
