"""The family's benchmark: the contestants answer the same questions, and a stranger's operator can join."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F

from secondlook.curvature import HessianOperator
from secondlook.spectra import benchmark as family
from secondlook.suite.cards import Metric
from secondlook.suite.runner import Run

TINY = {"points": 20, "hidden": 4, "channels": [2, 2], "block": 3, "top": 1, "probes": 2, "steps": 4, "repeats": 1}


def new_run():
    metrics = {name: Metric.model_validate(m) for name, m in family.METRICS.items()}
    return Run("benchmark-spectra", "benchmark", "smoke", (), "cpu", Path(), metrics)


def values(run, metric, method, workload):
    return [
        row["value"]
        for row in run.rows
        if row["metric"] == metric and row["method"] == method and row["problem"].startswith(f"{workload}:")
    ]


def test_ours_agrees_with_the_dense_hessian_and_with_every_installed_peer():
    run, state = new_run(), torch.get_rng_state()
    family.benchmark(run, **TINY)
    assert torch.equal(torch.get_rng_state(), state)
    assert max(values(run, "dense_error", "secondlook", "extreme")) < 1e-3
    methods = {row["method"] for row in run.rows}
    for peer in methods - {"secondlook"}:
        for workload in ("hvp", "hvp-block", "trace"):
            assert max(values(run, "disagreement", peer, workload)) < 1e-3
    assert len(methods) + len(run.notes) == 3


def test_a_missing_peer_is_noted_and_left_out(monkeypatch):
    monkeypatch.setitem(sys.modules, "curvlinops", None)
    monkeypatch.setitem(sys.modules, "pyhessian", None)
    run = new_run()
    family.benchmark(run, **TINY)
    assert {row["method"] for row in run.rows} == {"secondlook"}
    assert len([note for note in run.notes if "curvlinops" in note]) >= 1


def test_a_strangers_operator_joins(monkeypatch):
    module = SimpleNamespace(
        mine=lambda model, loss, data, params: HessianOperator(model, F.cross_entropy, data, params)
    )
    monkeypatch.setitem(sys.modules, "stranger", module)
    monkeypatch.setitem(sys.modules, "curvlinops", None)
    monkeypatch.setitem(sys.modules, "pyhessian", None)
    run = new_run()
    family.benchmark(run, method="stranger:mine", **TINY)
    assert max(values(run, "disagreement", "stranger:mine", "density")) < 1e-6
    with pytest.raises(ValueError, match="MODULE:FACTORY"):
        family.benchmark(new_run(), method="stranger", **TINY)
