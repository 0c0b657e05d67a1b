"""Scaffolds a paper's room from `template/`."""

from __future__ import annotations

import re
from pathlib import Path
from string import Template

import yaml

from secondlook.suite import registry
from secondlook.suite.cards import FAMILIES
from secondlook.suite.errors import SecondLookError
from secondlook.suite.files import write_text

TEMPLATES = Path(__file__).parent / "template"


def scaffold(slug: str, family: str | None = None, title: str | None = None, year: int | None = None) -> list[Path]:
    """Write a paper's room and its test. Facts of a known paper are kept; nothing that exists is overwritten.

    Raises:
        SecondLookError: the slug is malformed, the family missing, or the room has a replication already.
    """
    if not re.fullmatch(r"[a-z0-9][a-z0-9-]*", slug) or slug.replace("-", "_").isdigit():
        raise SecondLookError(f"{slug!r} is no slug: use lower-case letters, digits and dashes, like `my-paper`")
    known = registry.papers().get(slug)
    if known and known.replicated:
        raise SecondLookError(f"{slug} has a replication already: {registry.room(known)}")
    if known:
        facts = known.model_dump(exclude_unset=True)
    elif family is None:
        raise SecondLookError(f"{slug} is new here: give its family with --family ({', '.join(FAMILIES)})")
    else:
        facts = {
            "slug": slug,
            "title": title or slug.replace("-", " ").capitalize(),
            "family": registry.family(family),
            "year": year or 2020,
            "arxiv": None,
            "code": None,
            "licence": None,
            "fidelity": "reduced",
            "summary": "One line on what the paper does.",
        }
    room = registry.PACKAGE / facts["family"] / slug.replace("-", "_")
    values = {
        "facts": yaml.safe_dump(facts, sort_keys=False, allow_unicode=True, width=110).strip(),
        "title": facts["title"].replace('"', "'").replace("\\", ""),
        "module": f"secondlook.{facts['family']}.{room.name}",
    }
    test = registry.PACKAGE.parents[1] / "tests" / facts["family"] / f"test_{room.name}.py"
    files = {room / name: name for name in ("card.yaml", "method.py", "experiment.py", "figures.py")}
    files |= {room / "__init__.py": "init.py", test: "test.py"}
    for path in files:
        if path.exists() and path.name != "card.yaml":
            raise SecondLookError(f"{path} exists already; nothing was written")
    for path, name in files.items():
        write_text(path, Template((TEMPLATES / f"{name}.txt").read_text(encoding="utf-8")).substitute(values))
    registry.papers.cache_clear()
    return list(files)
