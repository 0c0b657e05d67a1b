"""The harness every replicated room passes: card, code, figures and tests fit together."""

import ast
import importlib
import inspect
import re
from pathlib import Path

import pytest

from secondlook.problems import sources
from secondlook.suite import registry

ROOMS = list(registry.replicated().values())
TESTS = Path(__file__).parent


@pytest.fixture(params=ROOMS, ids=lambda p: p.slug)
def paper(request):
    return request.param


def test_every_experiment_takes_the_card_s_settings(paper):
    module = importlib.import_module(f"{paper.module}.experiment")
    for name, experiment in paper.experiments.items():
        function = getattr(module, name)
        assert function.__doc__, f"{name} says nothing"
        for scale, settings in experiment.scales.items():
            try:
                inspect.signature(function).bind("run", **settings.set)
            except TypeError as error:
                pytest.fail(f"{name} at {scale}: {error}")


def test_every_experiment_runs_at_smoke_and_laptop(paper):
    assert paper.at("smoke")
    assert paper.at("laptop")


def test_every_figure_exists(paper):
    assert paper.figures
    module = importlib.import_module(f"{paper.module}.figures")
    for name in paper.figures:
        assert list(inspect.signature(getattr(module, name)).parameters) == ["table", "paper"]


def test_every_equation_names_public_code(paper):
    assert paper.equations
    names = set()
    for path in registry.room(paper).glob("*.py"):
        tree = ast.parse(path.read_text())
        names |= {n.name for n in ast.walk(tree) if isinstance(n, ast.ClassDef | ast.FunctionDef)}
    for e in paper.equations:
        assert e.code is None or e.code.split(".")[-1] in names, f"{e.name}: no {e.code} in the room"


def test_the_room_re_exports_its_method(paper):
    package = importlib.import_module(paper.module)
    assert package.__all__
    assert all(hasattr(package, name) for name in package.__all__)


def test_data_and_models_are_known(paper):
    from secondlook.problems import zoo

    for e in paper.experiments.values():
        assert {*e.data, *(d for s in e.scales.values() for d in s.data or ())} <= set(sources.DATASETS)
        assert set(e.models) <= set(zoo.names())


def test_every_claim_is_tested_or_says_why_not(paper):
    assert paper.claims
    for c in paper.claims:
        assert c.source
        assert "laptop" in c.scales or len(c.untested["laptop"]) > 20
        if c.published_effect is not None:
            assert c.published, f"{c.id}: a published effect without its printed numbers"


def test_the_method_has_tests_with_assertions(paper):
    path = TESTS / paper.family / f"test_{paper.room}.py"
    assert path.exists()
    assert len(re.findall(r"\bassert\b|assert_close|assert_allclose|raises", path.read_text())) >= 3


def test_it_says_what_the_paper_says_and_what_was_found(paper):
    assert len(paper.says) > 60
    if paper.slug != "demo":
        assert paper.finding is not None
