"""A checkout with two small papers in it, and its results when nothing disturbs them."""

from __future__ import annotations

from pathlib import Path

import pytest
from disturbed import reduced, snakemake, twin

from checkout import Copy


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Copy:
    """A checkout with two small papers."""
    return reduced(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def undisturbed(tiny, tmp_path_factory) -> Path:
    """The results of a run that nothing happened to, on two cores, in the plainest locale."""
    results = tmp_path_factory.mktemp("undisturbed")
    snakemake(tiny, results, LC_ALL="C", TZ="UTC")
    return results / "smoke"


@pytest.fixture
def another(tiny, tmp_path) -> Copy:
    """The same checkout in another folder, for tests that change its sources."""
    return twin(tiny, tmp_path / "another place")
