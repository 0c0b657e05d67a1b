"""Two results side by side: what differs is told once, and nothing else is."""

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from secondlook.cli import app
from secondlook.suite import assembly, comparison, registry, tables
from secondlook.suite.comparison import Results, compare
from secondlook.suite.errors import SecondLookError, TableError

NAN = math.nan


def measured(*rows, paper="gptq", experiment="speed", metric="perplexity"):
    """Measurements from (method, seed, step, value)."""
    facts = {"paper": paper, "experiment": experiment, "problem": "p", "metric": metric, "unit": "h", "run_id": "r"}
    columns = ["method", "seed", "step", "value"]
    table = pd.DataFrame(rows, columns=columns).astype({"step": float, "value": float}).assign(**facts)
    return tables.conform(table.assign(status=np.where(table["value"].isna(), "diverged", "ok")), tables.MEASUREMENTS)


def ran(*runs):
    """Runs from (paper, experiment, status)."""
    other = {"dirty": False, "threads": 1}
    return tables.conform(pd.DataFrame([{**other, "paper": p, "experiment": e, "status": s} for p, e, s in runs]),
                          tables.RUNS)  # fmt: skip


def judged(*claims, paper="gptq"):
    """Verdicts from (claim, verdict, effect)."""
    rows = [{"paper": paper, "claim": c, "verdict": v, "effect": e, "low": e - 1, "high": e + 1} for c, v, e in claims]
    return tables.conform(pd.DataFrame(rows, columns=["paper", "claim", "verdict", "effect", "low", "high"]),
                          tables.VERDICTS)  # fmt: skip


ROWS = [("a", 0, NAN, 0.1 + 0.2), ("a", 1, NAN, -7.0), ("b", 0, 1.0, 1 / 3), ("b", 0, 2.0, NAN), ("b", 1, 1.0, 0.0)]
BASE = Results(measured(*ROWS), ran(("gptq", "speed", "ok")), judged(("fast", "supported", 2.0)))


def test_results_do_not_differ_from_themselves():
    found = compare(BASE, BASE)
    assert found.none
    assert (found.compared, found.left_out) == (5, 0)


def test_order_of_rows_does_not_matter():
    turned = replace(BASE, measurements=BASE.measurements[::-1].reset_index(drop=True))
    assert compare(BASE, turned).none


def test_the_last_bit_counts_unless_a_tolerance_is_given():
    off = replace(BASE, measurements=measured(("a", 0, NAN, 0.3), *ROWS[1:]))
    found = compare(BASE, off)
    assert not found.none
    row = found.values.iloc[0]
    assert (row["value_a"], row["value_b"], row["only"]) == (0.1 + 0.2, 0.3, "")
    assert 0 < row["gap"] < 3e-16
    assert compare(BASE, off, rtol=1e-15).none
    assert not compare(BASE, replace(BASE, measurements=measured(("a", 0, NAN, 0.31), *ROWS[1:])), rtol=0.01).none


def test_tolerance_is_relative_to_the_larger_value():
    a, b = (replace(BASE, measurements=measured(("a", 0, NAN, v))) for v in (100.0, -101.0))
    assert compare(a, b).values["gap"].item() == pytest.approx(201 / 101)
    assert compare(a, replace(b, measurements=measured(("a", 0, NAN, 101.0))), rtol=1 / 101).none


def test_a_diverged_row_agrees_with_a_diverged_one_and_with_no_number():
    finite = replace(BASE, measurements=measured(*ROWS[:3], ("b", 0, 2.0, 5.0), ROWS[4]))
    found = compare(BASE, finite, rtol=1e9)
    assert len(found.values) == 1
    assert found.values.loc[0, ["step", "value_b", "gap", "only"]].tolist() == [2.0, 5.0, math.inf, ""]


def test_missing_rows_are_told_with_the_side_that_has_them():
    for sides, only in (((BASE, replace(BASE, measurements=measured(*ROWS[:4]))), "a"), (None, "b")):
        a, b = sides or (replace(BASE, measurements=measured(*ROWS[:4])), BASE)
        found = compare(a, b)
        assert found.values[["method", "seed", "step", "only"]].to_numpy().tolist() == [["b", 1, 1.0, only]]
        assert found.values["gap"].item() == math.inf


def test_a_missing_diverged_row_is_missing():
    found = compare(BASE, replace(BASE, measurements=measured(*ROWS[:3], ROWS[4])), rtol=1.0)
    assert found.values["only"].tolist() == ["a"]


def test_rows_of_one_key_meet_in_order():
    twice = [("a", 0, NAN, 1.0), ("a", 0, NAN, 2.0), ("a", 0, NAN, 3.0)]
    a = replace(BASE, measurements=measured(*twice))
    assert compare(a, a).none
    found = compare(a, replace(BASE, measurements=measured(twice[0], ("a", 0, NAN, 2.5))))
    assert found.values[["value_a", "only"]].to_numpy().tolist() == [[2.0, ""], [3.0, "a"]]


def test_experiments_of_one_side_are_told_once_and_not_value_by_value():
    more = Results(
        pd.concat([BASE.measurements, measured(*ROWS, experiment="new"), measured(*ROWS, paper="pvq-llm")]),
        ran(("gptq", "speed", "ok"), ("gptq", "new", "ok"), ("pvq-llm", "speed", "ok"), ("gptq", "broken", "failed")),
        pd.concat([BASE.verdicts, judged(("fast", "supported", 1.0), paper="pvq-llm")]),
    )
    failed = replace(BASE, runs=ran(("gptq", "speed", "ok"), ("gptq", "new", "failed"), ("gptq", "broken", "failed")))
    found = compare(failed, more)
    assert found.experiments.to_numpy().tolist() == [["gptq", "new", "failed", "ok"],
                                                     ["pvq-llm", "speed", "absent", "ok"]]  # fmt: skip
    assert found.values.empty
    assert found.verdicts.empty
    assert not found.none


def test_an_experiment_that_ended_well_without_rows_is_told_row_by_row():
    found = compare(BASE, replace(BASE, measurements=BASE.measurements.iloc[:0]))
    assert len(found.values) == 5


def test_a_seed_that_failed_hides_no_other_seed():
    a = replace(BASE, runs=ran(("gptq", "speed", "ok"), ("gptq", "speed", "failed")))
    b = replace(BASE, measurements=measured(("a", 0, NAN, 9.0), *ROWS[1:]))
    found = compare(a, b)
    assert found.experiments[["a", "b"]].to_numpy().tolist() == [["failed, ok", "ok"]]
    assert len(found.values) == 1


def test_verdicts_are_told_with_both_effects():
    b = replace(BASE, verdicts=judged(("fast", "contradicted", -2.0), ("exact", "untested", NAN)))
    found = compare(BASE, b)
    assert found.verdicts["claim"].tolist() == ["exact", "fast"]
    first = found.verdicts.iloc[1]
    assert first[["verdict_a", "verdict_b"]].tolist() == ["supported", "contradicted"]
    assert first[["effect_a", "low_a", "high_a"]].tolist() == [2.0, 1.0, 3.0]
    assert first[["effect_b", "low_b", "high_b"]].tolist() == [-2.0, -3.0, -1.0]
    assert found.verdicts["verdict_a"].tolist()[0] == "absent"
    moved = replace(BASE, verdicts=judged(("fast", "supported", 2.5)))
    assert compare(BASE, moved).none  # what an effect rests on is compared as values


def test_timing_metrics_are_left_out():
    off = replace(BASE, measurements=measured(*ROWS[:4]))
    found = compare(BASE, off, leave_out={("gptq", "perplexity")})
    assert found.none
    assert (found.compared, found.left_out) == (0, 5)
    assert not compare(BASE, off, leave_out={("other", "perplexity"), ("gptq", "loss")}).none


def test_timing_metrics_come_from_the_cards():
    timing = comparison.timing_metrics(registry.replicated().values())
    assert ("adahessian", "step_time") in timing
    assert ("adahessian", "test_accuracy") not in timing


@pytest.mark.parametrize("rtol", [-1e-9, NAN, math.inf])
def test_a_foolish_tolerance_is_refused(rtol):
    with pytest.raises(SecondLookError, match="relative tolerance"):
        compare(BASE, BASE, rtol=rtol)


def write(results, folder):
    for name in ("measurements", "runs", "verdicts"):
        tables.write(getattr(results, name), folder / "tables" / f"{name}.parquet", assembly.TABLES[name])


@pytest.fixture
def folders(tmp_path):
    """A results folder with awkward numbers and steps, and the reference kept of it."""
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.normal(size=400) * 10.0 ** rng.integers(-300, 300, 400), [0.0, 1 / 3, 1.00000000005]])
    steps = np.where(np.arange(len(values)) % 3 == 0, NAN, np.sinh(rng.normal(size=len(values))) * 1e-3)
    rows = [("a", i, s, v) for i, (s, v) in enumerate(zip(steps, values, strict=True))]
    write(replace(BASE, measurements=measured(*ROWS, *rows)), tmp_path / "laptop")
    assembly.keep_reference(tmp_path / "laptop", tmp_path / "reference")
    return tmp_path / "laptop", tmp_path / "reference"


def test_a_kept_reference_agrees_to_its_digits_and_no_further(folders):
    results, kept = map(comparison.read, folders)
    assert (results.exact, kept.exact) == (True, False)
    assert comparison.default_rtol(results, results) == 0.0
    rtol = comparison.default_rtol(results, kept)
    assert compare(results, kept, rtol=rtol).none
    assert compare(kept, results, rtol=rtol).none
    assert not compare(results, kept, rtol=rtol / 10).none
    moved = results.measurements.assign(value=results.measurements["value"] * (1 + 2e-9))
    assert len(compare(replace(results, measurements=moved), kept, rtol=rtol).values) > 400


def test_bad_folders_are_told_apart(folders, tmp_path):
    with pytest.raises(SecondLookError, match="holds neither"):
        comparison.read(tmp_path / "nowhere")
    (folders[0] / "tables" / "runs.parquet").unlink()
    with pytest.raises(TableError, match=r"runs\.parquet is missing"):
        comparison.read(folders[0])
    (folders[1] / "verdicts.csv").write_text("paper,surprise\ngptq,1\n")
    with pytest.raises(TableError, match=r"verdicts\.csv"):
        comparison.read(folders[1])


def test_the_command_exits_like_diff(folders, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    run = lambda *arguments: CliRunner().invoke(app, ["diff", *map(str, arguments)])  # noqa: E731
    same = run(*folders)
    assert (same.exit_code, "nothing differs" in same.output) == (0, True)
    assert run(*folders, "--rtol", "0").exit_code == 1
    other = replace(BASE, measurements=measured(*[("a", i, NAN, 1.0) for i in range(40)]))
    write(replace(other, verdicts=judged(("fast", "contradicted", -2.0))), tmp_path / "other")
    write(replace(other, measurements=other.measurements.assign(value=1.5)), tmp_path / "more")
    differs = run(tmp_path / "other", tmp_path / "more")
    assert differs.exit_code == 1
    for piece in ("contradicted −2.0 [−3.0, −1.0]", "supported 2.0 [1.0, 3.0]", "1 verdict, 40 values differ", "0.33"):
        assert piece in differs.output
    assert "gptq/speed  perplexity  40" in differs.output
    assert run(tmp_path / "other", tmp_path / "more", "--all").output.count("perplexity") == 40
    bad = run(tmp_path / "nowhere", folders[1])
    assert (bad.exit_code, "Traceback" in bad.output) == (2, False)


def test_times_are_compared_only_when_asked_for(folders, tmp_path):
    before = comparison.read(folders[0])
    timed = pd.concat([before.measurements, measured(("a", 0, NAN, 5.0), metric="hours")])
    write(replace(before, measurements=timed), tmp_path / "timed")
    arguments = ["diff", str(folders[0]), str(tmp_path / "timed")]
    assert CliRunner().invoke(app, arguments).exit_code == 0
    assert CliRunner().invoke(app, [*arguments, "--timing"]).exit_code == 1
