"""One synthetic results folder and its site, shared by all tests of the report."""

from __future__ import annotations

from pathlib import Path

import pytest
from synthetic import everyone, fill, hostile

from secondlook.suite.cards import Paper
from secondlook.suite.report import site


@pytest.fixture(scope="session")
def papers() -> dict[str, Paper]:
    """All known papers, the example replicated, and the hostile one."""
    return everyone() | {"hostile": hostile()}


@pytest.fixture(scope="session")
def results(tmp_path_factory: pytest.TempPathFactory, papers: dict[str, Paper]) -> Path:
    """A filled results folder; tests only read it."""
    root = tmp_path_factory.mktemp("results") / "laptop"
    fill(root, papers)
    return root


@pytest.fixture(scope="session")
def built(results: Path, papers: dict[str, Paper]) -> Path:
    """The folder of the built site."""
    return site.build(results, "laptop", papers=papers).parent
