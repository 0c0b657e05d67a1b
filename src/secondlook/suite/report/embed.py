"""Executed notebooks as parts of a page: nbconvert with a template of our own, formulas typeset, links set right."""

from __future__ import annotations

import re
from functools import cache
from html import escape, unescape
from pathlib import Path
from typing import Any

from markupsafe import Markup

from secondlook.suite import seals
from secondlook.suite.report import pages, prose, source

_STYLE = re.compile(r'<style class="sl-style">.*?</style>', re.S)
_FIGURE = re.compile(r'<img src="data:image/png;base64,[^"]*" data-figure="([^"]+)"')
_HEADING = re.compile(r"<h2>(.*?)</h2>", re.S)


def body(notebook: Path) -> Markup:
    """An executed notebook as HTML. Raises `seals.Damaged` when it is not as it was executed."""
    import nbformat

    text = seals.content(notebook).decode("utf-8")
    html, _ = _exporter().from_notebook_node(nbformat.reads(text, as_version=4))
    return Markup(html)


def localise(html: str, figures: Path | None = None) -> Markup:
    """A room's HTML made at home in the site: no style of its own, MathML, figures as files, links to pages.

    Args:
        html: what `room` made, from a notebook or fresh.
        figures: folder of the copied figures; an SVG that is not there stays the picture that the notebook holds.
    """

    def figure(match: re.Match[str]) -> str:
        name = unescape(match[1])
        if figures is None or ".." in name or not (figures / f"{name}.svg").is_file():
            return match[0]
        return f'<img src="../figures/{escape(name)}.svg"'

    html = _FIGURE.sub(figure, _STYLE.sub("", html))
    html = re.sub(r'href="(?:\.\./)?([a-z0-9-]+)\.ipynb(#[^"]*)?"', r'href="../papers/\1.html\2"', html)
    return Markup(prose.typeset(html))


def headed(html: str) -> tuple[Markup, list[tuple[str, str]]]:
    """HTML whose `h2` have ids, and these as (id, text)."""
    contents: list[tuple[str, str]] = []

    def heading(match: re.Match[str]) -> str:
        text = unescape(re.sub(r"<[^>]+>", "", match[1]))
        name = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
        contents.append((name, text))
        return f'<h2 id="{name}">{match[1]}</h2>'

    return Markup(_HEADING.sub(heading, html)), contents


@cache
def _exporter() -> Any:
    from nbconvert.exporters.templateexporter import TemplateExporter

    class Body(TemplateExporter):
        """One notebook as an HTML fragment."""

        file_extension = ".html"
        output_mimetype = "text/html"

    return Body(
        extra_template_basedirs=[str(pages.HERE / "templates")],
        template_name="notebook",
        filters={
            "colour": source.highlight,
            "prose": lambda text: prose.typeset(prose.markdown(text)),
            "localise": lambda html: _STYLE.sub("", html),
        },
    )
