"""The runner records what an experiment measures, and what becomes of it."""

import math
import sys
import types

import pytest
import yaml

from secondlook.suite import provenance, runner, timing
from secondlook.suite.cards import Paper
from secondlook.suite.errors import DatasetMissing, SecondLookError, UnknownName

CARD = yaml.safe_load(
    """
slug: fake-paper
title: Fake
family: solvers
year: 2020
fidelity: exact
summary: s
metrics: {m: {label: m, unit: s}}
experiments:
  work: {about: x, scales: {smoke: {seeds: 2, set: {factor: 3}}}}
  breaks: {about: x, scales: {smoke: {seeds: 1}}}
  no_data: {about: x, scales: {smoke: {seeds: 1}}}
"""
)


@pytest.fixture
def paper(monkeypatch):
    module = types.ModuleType("secondlook.solvers.fake_paper.experiment")

    def work(run, *, factor):
        for seed in run.track(run.seeds, "seeds"):
            run.record("m", factor * seed, method="a", problem="p", seed=seed)
            run.record_series("m", [1.0, math.inf], steps=[1, 2], method="b", problem="p", seed=seed)

    def breaks(run):
        run.record("m", 1, method="a", problem="p")
        raise ZeroDivisionError("by design")

    def no_data(run):
        raise DatasetMissing("run `secondlook data x`")

    for function in (work, breaks, no_data):
        function.__module__ = module.__name__
        setattr(module, function.__name__, function)
    for name in ("secondlook.solvers.fake_paper", module.__name__):
        monkeypatch.setitem(sys.modules, name, module)
    return Paper.model_validate(CARD)


def test_measurements_and_provenance(paper, tmp_path):
    job = runner.Job.of(paper, "work", "smoke")
    done, row = runner.run(job, tmp_path)
    assert [r["value"] for r in done.rows if r["method"] == "a"] == [0.0, 3.0]
    assert [r["status"] for r in done.rows if r["method"] == "b" and r["seed"] == 0] == ["ok", "diverged"]
    assert {r["unit"] for r in done.rows} == {"s"}
    assert (row["status"], row["seeds"]) == ("ok", "0 1")
    again, _ = runner.run(job, tmp_path)
    assert again.rows == done.rows


def test_a_crash_and_missing_data_are_rows_not_errors(paper, tmp_path, capsys):
    done, row = runner.run(runner.Job.of(paper, "breaks", "smoke"), tmp_path)
    assert (done.rows, row["status"], row["note"]) == ([], "failed", "ZeroDivisionError: by design")
    assert "Traceback" in capsys.readouterr().err
    _, row = runner.run(runner.Job.of(paper, "no_data", "smoke"), tmp_path)
    assert (row["status"], row["note"]) == ("no-data", "run `secondlook data x`")


def test_jobs_that_do_not_exist_are_refused(paper):
    with pytest.raises(UnknownName, match="did you mean work"):
        runner.Job.of(paper, "werk", "smoke")
    with pytest.raises(SecondLookError, match="its card has smoke"):
        runner.Job.of(paper, "work", "laptop")
    assert runner.Job.of(paper, "work", "smoke", seed=7).seeds == (7,)


def test_an_undeclared_metric_is_refused(paper, tmp_path):
    run = runner.Run("p", "e", "smoke", (0,), "cpu", tmp_path, paper.metrics)
    with pytest.raises(UnknownName, match="metric"):
        run.record("n", 1, method="a", problem="p")


def test_the_digest_does_not_depend_on_key_order():
    assert provenance.config_sha256({"a": 1, "b": [2]}) == provenance.config_sha256({"b": [2], "a": 1})
    assert provenance.config_sha256({"a": 1}) != provenance.config_sha256({"a": 2})


@pytest.fixture
def clock(monkeypatch):
    """A clock that only `clock(seconds)` moves."""
    now = [0.0]
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])

    def pass_by(seconds):
        now[0] += seconds

    return pass_by


def test_a_short_call_is_timed_over_several(clock):
    count = []
    table = timing.interleaved({"short": lambda: (count.append(1), clock(timing.SHORTEST / 4))}, repeats=3)
    assert len(count) == 1 + 3 * 4  # one warms up
    assert table["seconds"].tolist() == pytest.approx([timing.SHORTEST / 4] * 3)


def test_interleaved_alternates_and_keeps_every_repeat(clock):
    order = []
    calls = {name: lambda name=name: (order.append(name), clock(timing.SHORTEST)) for name in "ab"}
    table = timing.interleaved(calls, repeats=3, warmup=1)
    assert order == ["a", "b", "a", "b", "b", "a", "a", "b"]
    assert table.groupby("name").size().to_dict() == {"a": 3, "b": 3}
    with pytest.raises(ValueError, match="repeats"):
        timing.interleaved(calls, repeats=0)
