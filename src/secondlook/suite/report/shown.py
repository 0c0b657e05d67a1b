"""Pieces of a page that show themselves: as HTML where there is a browser, as plain text where there is none."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from secondlook.suite.report import pages


@dataclass(frozen=True)
class Shown:
    """A piece of a page, as HTML and as plain text."""

    html: Markup
    plain: str

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        return {"text/html": f'<div class="sl">{self.html}</div>', "text/plain": self.plain}

    def __str__(self) -> str:
        return self.plain


class Styled(Shown):
    """A piece that brings the style sheet along, once a notebook."""

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        style = f'<style class="sl-style">{pages.stylesheet("tokens", "parts", "jupyter")}</style>'
        bundle = super()._repr_mimebundle_()
        return bundle | {"text/html": style + bundle["text/html"]}
