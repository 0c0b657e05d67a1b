"""Finds the rooms. The only place that knows where cards lie."""

from __future__ import annotations

import ast
from collections.abc import Callable
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from secondlook.suite.cards import FAMILIES, Metric, Paper, load
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


def benchmark_scales(name: str) -> dict[str, dict]:
    """Settings per scale of a family's benchmark, {} where it has none."""
    return _benchmark(name).get("SCALES", {})


def benchmark_metrics(name: str) -> dict[str, Metric]:
    """What a family's benchmark records, {} where it has none."""
    return {metric: Metric(**facts) for metric, facts in _benchmark(name).get("METRICS", {}).items()}


@cache
def _benchmark(name: str) -> dict[str, Any]:
    """The constants SCALES and METRICS of a family's benchmark, read from the source: nothing is imported."""
    path, found = PACKAGE / family(name) / "benchmark.py", {}
    if path.exists():
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
            for t in targets:
                if isinstance(t, ast.Name) and t.id in ("SCALES", "METRICS"):
                    try:
                        found[t.id] = ast.literal_eval(node.value)  # type: ignore[attr-defined]
                    except ValueError:
                        raise CardError(
                            f"{path}: {t.id} must be a plain literal, so that it can be read without importing"
                        ) from None
    return found


def function(card: Paper, file: str, name: str) -> Callable[..., Any]:
    """The function of that name in a room's `experiment.py` or `figures.py`, which is imported.

    Raises `UnknownName` for what is none, or was only imported there: a card names nobody else's code.
    """
    found = vars(import_module(f"{card.module}.{file}"))
    ours = {
        n: f for n, f in found.items() if callable(f) and getattr(f, "__module__", "").startswith(f"{card.module}.")
    }
    if name not in ours:
        raise UnknownName(f"function in {card.room}/{file}.py", name, ours)
    return ours[name]


def room(card: Paper) -> Path:
    """The folder of a paper."""
    return PACKAGE / card.family / card.room
