"""The templates, and what they may call."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from secondlook.suite.report import marks, numerals, prose, source, words

HERE = Path(__file__).parent


@cache
def environment() -> Environment:
    """Jinja2 with escaping always on, and undefined names an error."""
    env = Environment(
        loader=FileSystemLoader(HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    env.filters |= {
        "number": numerals.number,
        "printed": numerals.printed,
        "spelled": numerals.spelled,
        "probability": numerals.probability,
        "duration": numerals.duration,
        "markdown": prose.markdown,
        "inline": prose.inline,
        "formula": prose.formula,
        "highlight": source.highlight,
        "badge": marks.badge,
        "icon": marks.icon,
        "unit": words.unit,
        "lower_first": lambda text: text[:1].lower() + text[1:],
        "upper_first": lambda text: text[:1].upper() + text[1:],
        "moment": lambda text: str(text)[:16].replace("T", " ") + (" UTC" if str(text).endswith("+00:00") else ""),
        "ticked": prose.ticked,
    }
    env.tests["match_repository"] = lambda text: bool(re.fullmatch(r"[\w.-]+/[\w.-]+", text))
    env.globals |= {"quantity": numerals.quantity, "missing": numerals.missing, "words": words, "plural": words.plural}
    return env


def render(name: str, **values: Any) -> Markup:
    """One template, filled in."""
    return Markup(environment().get_template(name).render(**values))


@cache
def stylesheet(*names: str) -> str:
    """Style sheets of the package, one after the other."""
    return "\n".join((HERE / "assets" / f"{name}.css").read_text(encoding="utf-8") for name in names)
