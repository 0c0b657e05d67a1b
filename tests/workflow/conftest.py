"""A temporary copy of the checkout, in which the real DAG runs."""

import pytest

from checkout import Copy


@pytest.fixture(scope="session")
def copy(tmp_path_factory) -> Copy:
    return Copy(tmp_path_factory.mktemp("checkout"))


@pytest.fixture(scope="session")
def smoke(copy) -> Copy:
    """The copy, with a room added as docs/adding-a-paper.md says, after a whole smoke run."""
    copy.run("secondlook", "new", "demo", "--family", "solvers")
    copy.snakemake()
    return copy
