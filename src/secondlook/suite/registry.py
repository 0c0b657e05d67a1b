"""Finds the rooms. The only place that knows where cards lie."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

from secondlook.suite.cards import FAMILIES, Paper, load
from secondlook.suite.errors import CardError, UnknownName

PACKAGE = Path(__file__).resolve().parents[1]


@cache
def papers() -> dict[str, Paper]:
    """All papers by slug, families in the house's order and papers by name. No room is imported."""
    found: dict[str, Paper] = {}
    for family in FAMILIES:
        for path in sorted((PACKAGE / family).glob("*/card.yaml")):
            card = load(path)
            found[card.slug] = card
    return found


def replicated() -> dict[str, Paper]:
    """The papers that have experiments."""
    return {slug: p for slug, p in papers().items() if p.replicated}


def paper(slug: str) -> Paper:
    """The paper of that slug; raises `UnknownName` with the nearest ones."""
    if slug not in papers():
        raise UnknownName("paper", slug, papers())
    return papers()[slug]


def family(name: str) -> str:
    """The family's name itself; raises `UnknownName` with the nearest ones."""
    if name not in FAMILIES:
        raise UnknownName("family", name, FAMILIES)
    return name


@cache
def benchmark_scales(name: str) -> dict[str, dict]:
    """Settings per scale of a family's benchmark, {} where it has none. Read from the source: nothing is imported."""
    path = PACKAGE / family(name) / "benchmark.py"
    if not path.exists():
        return {}
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if any(isinstance(t, ast.Name) and t.id == "SCALES" for t in targets):
            try:
                return ast.literal_eval(node.value)  # type: ignore[attr-defined]
            except ValueError:
                raise CardError(
                    f"{path}: SCALES must be a plain literal, so that it can be read without importing"
                ) from None
    return {}


def room(card: Paper) -> Path:
    """The folder of a paper."""
    return PACKAGE / card.family / card.room
