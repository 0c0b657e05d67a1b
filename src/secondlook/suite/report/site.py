"""Builds the static site of one scale: scoreboard, a page a paper, a page a family. Works from `file://`, offline."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pandas as pd
from markupsafe import Markup

import secondlook
from secondlook.suite import registry, scales, seals
from secondlook.suite.cards import FAMILIES, Paper
from secondlook.suite.files import write_text
from secondlook.suite.report import embed, evidence, pages, prose, source
from secondlook.suite.report.board import Board, Row
from secondlook.suite.report.families import FamilyPage
from secondlook.suite.report.judged import count
from secondlook.suite.report.room import Page

GUIDES = {"adding-a-paper": "Add a paper", "statistics": "Statistics"}


def build(results: Path, scale: str, papers: Mapping[str, Paper] | Iterable[Paper] | None = None) -> Path:
    """Build the whole site from what lies in a results folder.

    Args:
        results: one scale's results folder, for instance `results/laptop`. What is missing there shows as a hole.
        scale: the scale's name.
        papers: the papers to show; all of the registry when None.

    Returns:
        The path of `report/index.html`. The folder is replaced as a whole, and only when all of it is built.
    """
    results = Path(results)
    cards = papers.values() if isinstance(papers, Mapping) else papers
    known = {p.slug: p for p in (registry.papers().values() if cards is None else cards)}
    target = results / "report"
    target.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=".report.", dir=target.parent))
    try:
        _Builder(results, scales.scale(scale), known, fresh).build()
        fresh.chmod(0o755)
        _replace(fresh, target)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return target / "index.html"


class _Builder:
    def __init__(self, results: Path, scale: scales.Scale, papers: dict[str, Paper], out: Path) -> None:
        self.results, self.scale, self.papers, self.out = results, scale, papers, out
        self.found = evidence.of_all(results, scale.name)
        self.parts = self.found.split(papers)
        self.guides = {
            f"{name}.html": (text, path)
            for name, text in GUIDES.items()
            if (path := registry.PACKAGE.parents[1] / "docs" / f"{name}.md").exists()
        }
        self.models = evidence.models(results)
        self.site = self._site()

    def build(self) -> None:
        self._assets()
        self._copies()
        board = Board.of(self.papers, self.parts)
        rows = board.rows
        for i, row in enumerate(rows):
            neighbours = {
                "before": rows[i - 1].paper if i else None,
                "after": rows[i + 1].paper if i + 1 < len(rows) else None,
            }
            self._paper(row, neighbours)
        families = [self._family(name) for name in FAMILIES if any(p.family == name for p in self.papers.values())]
        self._page("models.html", "models.html.j2", models=self.models)
        for name, (title, path) in self.guides.items():
            self._page(name, "guide.html.j2", title=title, body=self._guide(path))
        totals = count(r.claims for r in rows if r.paper.replicated)
        # The front page comes last: where it stands, all that it links to stands.
        self._page(
            "index.html",
            "index.html.j2",
            rows=rows,
            board=board,
            families=families,
            totals=totals,
            replicated=sum(r.paper.replicated for r in rows),
            ran=sum(bool(r.seconds) for r in rows),
            holes=self.found.holes,
            downloads=self._downloads(),
        )

    def _paper(self, row: Row, neighbours: dict[str, Paper | None]) -> None:
        paper, part = row.paper, self.parts[row.paper.slug]
        name = f"papers/{paper.slug}.html"
        page = Page(paper, part)
        if not paper.replicated:
            self._page(name, "invitation.html.j2", paper=paper, body=embed.localise(page.head().html), **neighbours)
            return
        holes, notebook = [], self.results / "notebooks" / f"{paper.slug}.ipynb"
        body = None
        if notebook.exists():
            try:
                body = embed.body(notebook)
            except Exception as error:  # a damaged notebook may raise nearly anything
                holes.append(
                    f"the executed notebook {notebook.name} was changed or damaged since it ran ({error}); "
                    "this page is made from the tables: delete the notebook and run snakemake again"
                )
        else:
            holes.append(f"no notebook was executed for this paper: run `secondlook notebook paper {paper.slug}`")
        found, toc = embed.headed(embed.localise(body if body is not None else page.sections(), self.out / "figures"))
        html, files = str(found), []
        if len(part.measurements):
            table = f"../tables/papers/{paper.slug}.csv"
            _csv(part.measurements, self.out / "papers" / table)
            html = html.replace('"../tables/measurements.csv"', f'"{table}"')
            files.append((table, "Measurements (CSV)"))
        html = self._without_dead_tables(html)
        if body is not None:
            files.append((f"../notebooks/{paper.slug}.ipynb", "Notebook"))
        code = registry.room(paper) / "method.py"
        if code.exists():
            target = self.out / "source" / f"{paper.slug}.py"
            target.parent.mkdir(exist_ok=True)
            shutil.copyfile(code, target)
            files.append((f"../source/{paper.slug}.py", "Method (Python)"))
        values = {"toc": toc, "files": files, "holes": holes, "has_code": body is not None}
        self._page(name, "paper.html.j2", paper=paper, body=Markup(html), **values, **neighbours)

    def _without_dead_tables(self, html: str) -> str:
        """Links to tables that this results folder lacks become plain text."""

        def link(match: re.Match[str]) -> str:
            return match[0] if (self.out / "papers" / match[1]).exists() else match[2]

        return re.sub(r'<a class="sl-evidence" href="([^"]*)">(.*?)</a>', link, html)

    def _family(self, name: str) -> dict[str, Any]:
        papers = [p for p in self.papers.values() if p.family == name]
        bench = evidence.benchmark(self.results, self.scale.name, name)
        page = FamilyPage(name, papers, self.parts, bench)
        files = []
        if len(bench.measurements):
            _csv(bench.measurements, self.out / "benchmarks" / f"{name}.csv")
            files.append((f"../benchmarks/{name}.csv", "Benchmark (CSV)"))
        if (self.out / "notebooks" / "families" / f"{name}.ipynb").exists():
            files.append((f"../notebooks/families/{name}.ipynb", "Notebook"))
        benchmark = str(page.benchmark().html)
        for there, here in (
            (f"../../benchmarks/{name}.parquet", f"../benchmarks/{name}.csv"),
            (f">{name}.parquet<", f">{name}.csv<"),
        ):
            benchmark = benchmark.replace(there, here)
        self._page(
            f"families/{name}.html",
            "family.html.j2",
            family=page,
            head=embed.localise(page.head().html),
            claims=embed.localise(page.scoreboard().html),
            benchmark=embed.localise(benchmark),
            files=files,
        )
        about = source.docstring(registry.PACKAGE / name / "__init__.py").split("\n\n")[0]
        return {
            "name": name,
            "about": about,
            "papers": len(papers),
            "replicated": len(page.judged),
            "totals": count(page.judged.values()),
        }

    def _guide(self, path: Path) -> Markup:
        """A page of `docs/`; links between guides that are both here stay, others become text."""

        def link(match: re.Match[str]) -> str:
            href, text = match[1], match[2]
            page = re.sub(r"\.md(?=#|$)", ".html", href)
            if page.split("#")[0] in self.guides:
                return f'<a href="{page}">{text}</a>'
            return match[0] if re.match(r"https?://|#", href) else text

        html = prose.typeset(prose.markdown(path.read_text(encoding="utf-8")))
        html = re.sub(r'<a href="([^"]*)">(.*?)</a>', link, html, flags=re.S)
        return Markup(
            re.sub(r"(<table>.*?</table>)", r'<div class="sl-scroll" tabindex="0">\1</div>', html, flags=re.S)
        )

    def _page(self, name: str, template: str, **values: Any) -> None:
        root = "../" * name.count("/")
        html = pages.render(template, site=self.site, root=root, here=name, **values)
        write_text(self.out / name, prose.typeset(html))

    def _assets(self) -> None:
        write_text(self.out / "assets" / "style.css", pages.stylesheet("tokens", "parts", "site"))
        for name in ("scoreboard.js", "page.js", "mark.svg"):
            shutil.copyfile(pages.HERE / "assets" / name, self.out / "assets" / name)

    def _copies(self) -> None:
        """Evidence to take along: figures, executed notebooks, tables as CSV."""
        for pattern in ("figures/*/[!.]*.svg", "figures/*/[!.]*.png"):
            for path in self.results.glob(pattern):
                self._copy(path, path.read_bytes())
        for pattern in ("notebooks/[!.]*.ipynb", "notebooks/families/[!.]*.ipynb"):
            for path in self.results.glob(pattern):
                with suppress(seals.Damaged):  # a paper's page says so
                    self._copy(path, seals.content(path))
        for name in ("measurements", "runs", "verdicts"):
            table = getattr(self.found, name)
            written = self.results / "tables" / f"{name}.csv"
            if len(table):
                (self.out / "tables").mkdir(exist_ok=True)
                try:
                    self._copy(written, seals.content(written))
                except (OSError, seals.Damaged):
                    _csv(table, self.out / "tables" / f"{name}.csv")
        for place in self.found.elsewhere:
            _csv(place.verdicts, self.out / "tables" / f"verdicts-{place.name}.csv")

    def _copy(self, path: Path, data: bytes) -> None:
        target = self.out / path.relative_to(self.results)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)

    def _downloads(self) -> list[tuple[str, str, str]]:
        """(address, name, what it is) of every file for all papers together."""
        about = {
            "measurements": "every single measurement, one row each",
            "runs": "one row a run: commit, machine, versions, settings",
            "verdicts": "one row a claim",
        }
        found = [(f"tables/{n}.csv", f"{n}.csv", text) for n, text in about.items()]
        for place in self.found.elsewhere:
            name = f"verdicts-{place.name}.csv"
            found.append((f"tables/{name}", name, f"verdicts at {place.scale} scale, {place.origin}"))
        found.append(("notebooks/scoreboard.ipynb", "scoreboard.ipynb", "this page as an executed notebook"))
        return [f for f in found if (self.out / f[0]).exists()]

    def _site(self) -> dict[str, Any]:
        """What every page says at its foot, from the data and not from the clock."""
        runs = self.found.runs
        days = sorted(str(d)[:10] for d in runs["started_at"].dropna().unique())
        nav = [("index.html", "Scoreboard"), ("models.html", "Models"), *((n, t) for n, (t, _) in self.guides.items())]
        return {
            "description": "A second look at papers on second-order machine learning: "
            "every method runs, every claim gets a verdict.",
            "nav": nav,
            "guide": next(iter(self.guides), ""),
            "scale": self.scale.name,
            "scale_about": self.scale.about,
            "commits": [c for c in dict.fromkeys(runs["git_commit"].dropna()) if c][:3],
            "dirty": bool(len(runs)) and bool(runs["dirty"].astype(bool).any()),
            "ran": "" if not days else days[0] if days[0] == days[-1] else f"{days[0]} to {days[-1]}",
            "version": secondlook.__version__,
        }


def _csv(table: pd.DataFrame, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    table.to_csv(path, index=False, lineterminator="\n")


def _replace(fresh: Path, target: Path) -> None:
    """Put a finished folder in the place of the old one."""
    if target.exists():
        old = target.with_name(f".{target.name}.{os.getpid()}.old")
        target.rename(old)
        fresh.rename(target)
        shutil.rmtree(old, ignore_errors=True)
    else:
        fresh.rename(target)


__all__ = ["build"]
