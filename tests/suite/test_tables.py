"""Tidy tables: what is refused, and that nothing half-written stays."""

import math

import pandas as pd
import pytest

from secondlook.suite import layout, tables
from secondlook.suite.errors import SecondLookError, TableError
from secondlook.suite.files import write_atomically

ROW = {
    "paper": "a-paper",
    "experiment": "e",
    "problem": "p",
    "method": "m",
    "seed": 0,
    "metric": "x",
    "step": math.nan,
    "value": 1.0,
    "unit": "1",
    "status": "ok",
    "run_id": "r",
}


def test_round_trip(tmp_path):
    path = tmp_path / "m.parquet"
    written = tables.write(pd.DataFrame([ROW]), path, tables.MEASUREMENTS, csv=True)
    pd.testing.assert_frame_equal(tables.read(path, tables.MEASUREMENTS), written)
    pd.testing.assert_frame_equal(tables.read(path.with_suffix(".csv"), tables.MEASUREMENTS), written)


def test_an_empty_table_keeps_its_columns(tmp_path):
    empty = tables.write(pd.DataFrame([]), tmp_path / "m.parquet", tables.MEASUREMENTS)
    assert list(empty.columns) == list(tables.MEASUREMENTS.columns)
    assert tables.collect([tmp_path / "m.parquet"], tables.MEASUREMENTS).empty


@pytest.mark.parametrize(
    "change",
    [
        {"extra": 1},
        {"status": "fine"},
        {"seed": -1},
        {"value": math.nan},
        {"paper": "Not A Slug"},
        {"status": "diverged"},
    ],
)
def test_a_row_that_breaks_the_schema_is_refused(change):
    with pytest.raises(TableError, match="measurements"):
        tables.conform(pd.DataFrame([ROW | change]), tables.MEASUREMENTS)


@pytest.mark.parametrize("content", [b"", b"PAR1 but not really", None])
def test_a_damaged_table_is_named_with_its_remedy(tmp_path, content):
    path = tmp_path / "m.parquet"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(TableError, match=r"m\.parquet.*snakemake"):
        tables.read(path, tables.MEASUREMENTS)


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "f.txt"
    path.write_text("old")

    def breaks(p):
        p.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, breaks)
    assert [p.name for p in tmp_path.iterdir()] == ["f.txt"]
    assert path.read_text() == "old"


def test_a_folder_of_another_version_is_left_alone(tmp_path):
    layout.claim(tmp_path)
    layout.claim(tmp_path)
    (tmp_path / layout.STAMP).write_text('{"format": 0}')
    with pytest.raises(SecondLookError, match=r"format 0.*nothing was touched"):
        layout.claim(tmp_path)
    (tmp_path / layout.STAMP).write_text("garbage")
    with pytest.raises(SecondLookError, match="cannot be read"):
        layout.claim(tmp_path)
    (tmp_path / "unknown" / "tables").mkdir(parents=True)
    with pytest.raises(SecondLookError, match="unknown origin"):
        layout.claim(tmp_path / "unknown")


def test_failed_jobs_are_forgotten_and_good_ones_kept(tmp_path):
    bad, good = (layout.part(tmp_path, "runs", "a-paper", e) for e in ("bad", "good"))
    for path in (bad, good):
        tables.write(pd.DataFrame([]), path, tables.RUNS)
    layout.mark_failure(bad, "it broke")
    layout.forget_failures(tmp_path)
    assert not bad.exists()
    assert good.exists()
