"""Cards: what is refused, and how plainly."""

import subprocess
import sys

import pytest
import yaml

from secondlook.suite import registry
from secondlook.suite.cards import FAMILIES, load
from secondlook.suite.errors import CardError, UnknownName

GOOD = {
    "slug": "a-paper",
    "title": "A paper",
    "family": "solvers",
    "year": 2020,
    "fidelity": "exact",
    "summary": "One line.",
}


def write(tmp_path, card, room="solvers/a_paper"):
    path = tmp_path / room / "card.yaml"
    path.parent.mkdir(parents=True)
    path.write_text(card if isinstance(card, str) else yaml.safe_dump(card))
    return path


def test_a_bibliographic_card_is_enough(tmp_path):
    paper = load(write(tmp_path, GOOD))
    assert (paper.room, paper.module, paper.replicated) == ("a_paper", "secondlook.solvers.a_paper", False)


@pytest.mark.parametrize(
    ("card", "field", "said"),
    [
        (GOOD | {"year": "soon"}, "year", "valid integer"),
        (GOOD | {"yaer": 2020}, "yaer", "Extra inputs"),
        (GOOD | {"family": "cooking"}, "family", "'optimizers'"),
        ({k: v for k, v in GOOD.items() if k != "title"}, "title", "required"),
        (GOOD | {"slug": "A Paper"}, "slug", "pattern"),
        ("a: [1, 2", "line 2", "not valid YAML"),
        ("just text", "", "mapping of fields"),
        (GOOD | {"claims": [{"id": "c"}]}, "claims.0.statement", "required"),
        (GOOD | {"slug": "other"}, "", "belongs into solvers/other/card.yaml"),
    ],
)
def test_a_bad_card_names_file_field_and_remedy(tmp_path, card, field, said):
    path = write(tmp_path, card)
    with pytest.raises(CardError) as error:
        load(path)
    message = str(error.value)
    assert str(path) in message
    assert field in message
    assert said in message
    assert any(remedy in message for remedy in ("mend", "see docs", "move"))


def test_a_claim_must_read_what_the_card_declares(tmp_path):
    claim = {
        "id": "c",
        "statement": "s",
        "source": "abstract",
        "setting": "x",
        "unit": "1",
        "scales": ["laptop"],
        "test": {"form": "bound", "experiment": "e", "metric": "m", "of": {}, "is": "below", "than": 1},
        "control": {"why": "w", "of": {"method": "broken"}},
    }
    experiment = {"about": "x", "scales": {"laptop": {"seeds": 1}}}
    card = GOOD | {"claims": [claim], "metrics": {"m": {"label": "m", "unit": "1"}}, "experiments": {"e": experiment}}
    assert load(write(tmp_path / "good", card)).claims[0].control_test.of.method == "broken"
    with pytest.raises(CardError, match="experiment 'e'"):
        load(write(tmp_path / "no-experiment", card | {"experiments": {"other": experiment}}))
    with pytest.raises(CardError, match="metric 'm'"):
        load(write(tmp_path / "no-metric", card | {"metrics": {}}))
    smoke = {"about": "x", "scales": {"smoke": {"seeds": 1}}}
    with pytest.raises(CardError, match="scale 'laptop'"):
        load(write(tmp_path / "no-scale", card | {"experiments": {"e": smoke}}))


LISTED = {
    "optimizers": 23,
    "spectra": 21,
    "compression": 21,
    "samplers": 19,
    "influence": 17,
    "solvers": 25,
    "scientific": 21,
    "representation": 22,
}


def test_all_169_papers_are_known():
    papers = registry.papers()
    assert sum(LISTED.values()) == 169
    for family in FAMILIES:
        assert sum(p.family == family for p in papers.values()) >= LISTED[family]
    assert all(p.summary.endswith((".", "?", "!")) and len(p.title) > 3 for p in papers.values())


def test_unknown_papers_get_the_nearest_names():
    with pytest.raises(UnknownName, match="did you mean gptq"):
        registry.paper("gpqt")


def test_loading_all_cards_loads_neither_torch_nor_pandas():
    code = (
        "import sys\n"
        "from secondlook.suite import registry, runner, layout, provenance\n"
        "from secondlook.problems import sources\n"
        "assert len(registry.papers()) >= 169\n"
        "loaded = {'torch', 'pandas', 'scipy', 'matplotlib'} & set(sys.modules)\n"
        "assert not loaded, loaded\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
