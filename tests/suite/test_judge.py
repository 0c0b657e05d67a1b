"""Verdicts on synthetic tables: false positives, power, controls, every form."""

import math

import numpy as np
import pandas as pd
import pytest
from pydantic import ValidationError

from secondlook.suite import tables
from secondlook.suite.cards import Claim, ClaimTest, Paper
from secondlook.suite.claims import Unmeasured, evaluate
from secondlook.suite.judge import judge, requirement

DIFFERENCE = {
    "form": "difference",
    "experiment": "e",
    "metric": "m",
    "of": {"method": "new"},
    "minus": {"method": "old"},
    "is": "above",
}
CONTROL = {"why": "the baseline against its copy", "of": {"method": "copy"}}


def paper(*claims: dict) -> Paper:
    return Paper.model_validate(
        {
            "slug": "a-paper",
            "title": "A paper",
            "family": "solvers",
            "year": 2020,
            "fidelity": "exact",
            "summary": "s",
            "metrics": {"m": {"label": "m", "unit": "1"}},
            "experiments": {"e": {"about": "x", "scales": {"laptop": {"seeds": 5}, "smoke": {"seeds": 2}}}},
            "claims": claims,
        }
    )


def claim(test: dict | None = None, **kw) -> dict:
    base = {"id": "c", "statement": "s", "source": "abstract", "setting": "x", "unit": "1", "scales": ["laptop"]}
    return base | {"test": test or DIFFERENCE, "control": CONTROL} | kw


def rows(problem: str = "p", step: float = math.nan, **methods) -> pd.DataFrame:
    """A tidy table; each keyword is a method with one value a seed."""
    out = [
        {
            "paper": "a-paper",
            "experiment": "e",
            "problem": problem,
            "method": name,
            "seed": seed,
            "metric": "m",
            "step": step,
            "value": float(v),
            "unit": "1",
            "status": "ok" if np.isfinite(v) else "diverged",
            "run_id": "r",
        }
        for name, values in methods.items()
        for seed, v in enumerate(values)
    ]
    return pd.DataFrame(out)


RUNS = pd.DataFrame({"paper": [], "experiment": [], "status": [], "note": []})


def verdict(card: Paper, table: pd.DataFrame, scale: str = "laptop") -> dict:
    found = tables.conform(judge(card, scale, table, RUNS), tables.VERDICTS)
    return found.iloc[0].to_dict()


def test_no_effect_is_supported_in_at_most_5_percent_of_2000_trials():
    rng = np.random.default_rng(0)
    card, table = paper(claim()), rows(new=[0] * 5, old=[0] * 5, copy=[0] * 5)
    supported = contradicted = 0
    for _ in range(2000):
        table["value"] = rng.normal(size=len(table))
        v = judge(card, "laptop", table, RUNS).iloc[0]["verdict"]
        supported += v == "supported"
        contradicted += v == "contradicted"
    assert supported <= 100
    assert contradicted <= 2000 * 0.05 + 4 * math.sqrt(2000 * 0.05 * 0.95)


def test_no_effect_in_any_of_five_claims_is_supported_in_about_5_percent_of_papers():
    rng = np.random.default_rng(1)
    claims = [claim(id=f"c{i}", test=DIFFERENCE | {"of": {"method": f"new{i}"}}) for i in range(5)]
    card = paper(*claims)
    methods = {f"new{i}": [0] * 5 for i in range(5)} | {"old": [0] * 5, "copy": [0] * 5}
    table, false, trials = rows(**methods), 0, 300
    for _ in range(trials):
        table["value"] = rng.normal(size=len(table))
        false += (judge(card, "laptop", table, RUNS)["verdict"] == "supported").any()
    assert false / trials <= 0.05 + 4 * math.sqrt(0.05 * 0.95 / trials)


def test_a_real_effect_is_supported_and_its_opposite_contradicted():
    rng = np.random.default_rng(2)
    old, copy = rng.normal(size=5), rng.normal(size=5)
    up = verdict(paper(claim()), rows(new=old + 3 + 0.1 * rng.normal(size=5), old=old, copy=copy))
    down = verdict(paper(claim()), rows(new=old - 3 + 0.1 * rng.normal(size=5), old=old, copy=copy))
    assert (up["verdict"], down["verdict"]) == ("supported", "contradicted")
    assert up["low"] < 3 < up["high"]
    assert up["p"] < 0.05 < up["p_against"]
    assert up["control_supported"] == "False"


def test_a_control_that_passes_takes_the_support_away():
    found = verdict(paper(claim()), rows(new=[3, 3.1, 3.2], old=[0, 0, 0.1], copy=[3, 3.1, 3.3]))
    assert found["verdict"] == "inconclusive"
    assert "negative control" in found["reason"]


def test_a_control_that_was_not_measured_takes_the_support_away():
    found = verdict(paper(claim()), rows(new=[3, 3.1, 3.2], old=[0, 0, 0.1]))
    assert found["verdict"] == "inconclusive"
    assert "no control" in found["reason"]


def test_reproduced_needs_the_published_setting_and_number():
    table = rows(new=[3, 3.2, 3.1, 2.9, 3.0], old=[0.1, 0, 0, 0.1, 0], copy=[0, 0.1, -0.1, 0.2, 0])
    at = {"published_effect": 3.0, "as_published": ["laptop"]}
    assert verdict(paper(claim(**at)), table)["verdict"] == "reproduced"
    assert verdict(paper(claim(published_effect=3.0)), table)["verdict"] == "supported"
    assert verdict(paper(claim(**at | {"published_effect": 4.0})), table)["verdict"] == "supported"
    tolerant = at | {"published_effect": 4.0, "tolerance": 1.5, "tolerance_why": "rounding"}
    assert verdict(paper(claim(**tolerant)), table)["verdict"] == "reproduced"


def test_untested_says_why():
    other = paper(claim(scales=[], untested={"laptop": "needs a cluster"}))
    assert verdict(other, rows(new=[1], old=[0]))["reason"] == "needs a cluster"
    assert "plumbing" in verdict(paper(claim()), rows(new=[1], old=[0]), "smoke")["reason"]
    failed = pd.DataFrame({"paper": ["a-paper"], "experiment": ["e"], "status": ["no-data"], "note": ["get the data"]})
    found = judge(paper(claim()), "laptop", rows(other=[1.0]), failed).iloc[0]
    assert (found["verdict"], found["reason"]) == ("untested", "get the data")


def test_divergence_supports_nothing():
    found = verdict(paper(claim()), rows(new=[3, 3.1, math.nan, 3.2], old=[0, 0, 0.1, 0], copy=[0, 0.1, 0, 0]))
    assert (found["verdict"], found["reason"]) == ("inconclusive", "1 of 4 pairs diverged")
    found = verdict(paper(claim()), rows(new=[math.nan] * 3, old=[0, 0, 0.1], copy=[0, 0.1, 0]))
    assert found["verdict"] == "inconclusive"


def test_deterministic_claims_are_decided_by_the_inequality():
    sure = {"deterministic": True, "deterministic_why": "a table's arithmetic"}
    assert verdict(paper(claim(**sure)), rows(new=[3], old=[1], copy=[1]))["verdict"] == "supported"
    assert verdict(paper(claim(**sure)), rows(new=[1], old=[3], copy=[3]))["verdict"] == "contradicted"
    assert verdict(paper(claim()), rows(new=[3], old=[1], copy=[1]))["verdict"] == "inconclusive"


def value(**kw) -> ClaimTest:
    return ClaimTest.model_validate({"experiment": "e", "metric": "m", "of": {"method": "new"}} | kw)


def test_forms():
    t = rows(new=[2, 2.2, 2.1], old=[1, 1.1, 1.05])
    ratio = evaluate(value(form="ratio", over={"method": "old"}, **{"is": "above"}), t)
    assert ratio.effect == pytest.approx(2)
    assert ratio.holds
    assert evaluate(value(form="value", target=2.1, tolerance=0.5), t).p_for < 0.05
    off = evaluate(value(form="value", target=5, tolerance=0.5), t)
    assert not off.holds
    assert off.p_against < 0.05
    chain = value(form="ordering", of=[{"method": "new"}, {"method": "old"}])
    assert evaluate(chain, t).effect == pytest.approx(np.mean([1, 1.1, 1.05]))
    bound = value(form="bound", **{"is": "below"}, than=2.2)
    assert evaluate(bound, t).holds
    assert not evaluate(bound, rows(new=[2, math.inf])).holds
    series = pd.concat([rows(step=s, new=[s**-0.5, 2 * s**-0.5]) for s in (1, 4, 16)])
    slope = evaluate(value(form="slope", target=-0.5, tolerance=0.1), series)
    assert slope.effect == pytest.approx(-0.5)
    rank = evaluate(value(form="correlation", **{"is": "below"}, than=-0.8), series)
    assert rank.effect == pytest.approx(-1)
    scattered = pd.concat([rows(step=s, new=[s, v]) for s, v in ((1, 2), (4, 3), (16, 1))])
    wide = evaluate(value(form="correlation", **{"is": "above"}, than=0), scattered)
    assert (wide.low, wide.high) == (-1, 1)
    xy = pd.concat([series, series.assign(method="old", value=-series["value"])])
    both = {"of": None, "x": {"method": "new"}, "y": {"method": "old"}}
    assert evaluate(value(form="correlation", **both, **{"is": "below"}, than=0), xy).effect == pytest.approx(-1)


def test_selectors():
    series = pd.concat([rows(step=s, new=[s, s + 1]) for s in (1, 4, 16)])
    at = lambda step: value(form="value", of={"method": "new", "step": step}, **{"is": "above"}, than=0)  # noqa: E731
    assert evaluate(at("last"), series).effect == 16.5
    assert evaluate(at("first"), series).effect == 1.5
    assert evaluate(at(4), series).effect == 4.5
    with pytest.raises(Unmeasured, match="method=none"):
        evaluate(value(form="value", of={"method": "none"}, **{"is": "above"}, than=0), series)
    with pytest.raises(ValueError, match="aggregate"):
        evaluate(at([1, 4]), series)
    mean = value(form="value", of={"method": "new", "step": [1, 4]}, aggregate="max", **{"is": "above"}, than=0)
    assert evaluate(mean, series).effect == 4.5


def test_pairs_may_be_problems():
    t = pd.concat([rows(problem=f"p{i}", new=[i + 1.0 + 0.01 * i], old=[i]) for i in range(4)])
    found = evaluate(value(form="difference", minus={"method": "old"}, pairs="problem", **{"is": "above"}), t)
    assert found.n == 4
    assert found.effect == pytest.approx(1.015)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"test": {"form": "difference", "of": {"method": "a"}, "is": "above"}}, "minus"),
        ({"test": DIFFERENCE | {"is": None}}, "is: above"),
        ({"test": DIFFERENCE | {"target": 1.0}}, "go together"),
        ({"control": None}, "needs a `control`"),
        ({"control": {"why": "x", "fo": {"method": "copy"}}}, "fo"),
        ({"tolerance": 1.0}, "tolerance_why"),
        ({"as_published": ["gpu"]}, "as_published"),
        ({"scales": ["gpu"]}, "untested"),
    ],
)
def test_a_careless_claim_is_refused(change, message):
    with pytest.raises(ValidationError, match=message):
        Claim.model_validate(claim() | change)


def test_requirement_reads_as_a_reader_says_it():
    assert requirement(value(form="value", target=2, tolerance=0.5)) == "2 ± 0.5"
    assert requirement(value(form="bound", **{"is": "below"}, than=1e-13)) == "≤ 1e-13"
    assert requirement(value(form="ratio", over={"method": "old"}, **{"is": "above"})) == "> 1"
