"""Every family benchmark runs at smoke scale and speaks the tables' language."""

import pandas as pd
import pytest

from secondlook.suite import benchmarks, registry, tables
from stand_in_gpu import stand_in_gpu

FAMILIES = [f for f in registry.FAMILIES if registry.benchmark_scales(f)]

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("family", FAMILIES)
def test_it_runs_beside_its_peers(family, tmp_path):
    assert {"smoke", "laptop"} <= set(registry.benchmark_scales(family))
    done, row = benchmarks.run(family, "smoke", tmp_path, "cpu")
    assert row["status"] == "ok", row["note"]
    table = tables.conform(pd.DataFrame(done.rows), tables.MEASUREMENTS)
    assert table["method"].nunique() >= 2, "a benchmark compares"
    declared = registry.benchmark_metrics(family)
    assert {m: declared[m].step is not None for m in table["metric"]} == {
        m: g["step"].notna().all() for m, g in table.groupby("metric")
    }
    assert {m: declared[m].unit for m in table["metric"]} == dict(zip(table["metric"], table["unit"], strict=True))
    assert (table["status"] == "ok").mean() > 0.5
    timed = table[table["unit"].isin(["s", "ms"])]
    assert len(timed)
    tables.conform(pd.DataFrame([row]), tables.RUNS)


@pytest.mark.parametrize("family", [f for f in FAMILIES if f != "optimizers"])  # whose harness trains all on one
def test_it_runs_on_a_gpu(family, tmp_path):
    with stand_in_gpu():
        _, row = benchmarks.run(family, "smoke", tmp_path, "cuda")
    assert row["status"] == "ok", row["note"]
