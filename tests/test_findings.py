"""A finding tells what the reference results show; when verdicts change, somebody must look at it again."""

from pathlib import Path

import pytest

from secondlook.suite import assembly, registry, tables

REFERENCE = Path(__file__).resolve().parents[1] / "results" / "reference"
SCALES = [p.parent.name for p in sorted(REFERENCE.glob("*/verdicts.csv"))]


def test_there_are_reference_results():
    assert "laptop" in SCALES


@pytest.mark.parametrize("scale", SCALES)
def test_findings_were_written_for_these_verdicts(scale):
    verdicts = tables.read(REFERENCE / scale / "verdicts.csv", tables.VERDICTS)
    for slug, group in verdicts.groupby("paper"):
        finding = registry.paper(slug).finding
        found = dict(zip(group["claim"], group["verdict"], strict=True))
        assert finding is not None, f"{slug} has verdicts and no finding"
        assert getattr(finding, scale) == found, f"{slug}: read `finding` again, then write `{scale}: {found}`"


@pytest.mark.parametrize("scale", SCALES)
def test_reference_verdicts_follow_from_the_reference_measurements(scale):
    kept = {name: tables.read(REFERENCE / scale / f"{name}.csv", schema) for name, schema in assembly.TABLES.items()}
    again = assembly.judge_all(scale, kept["measurements"], kept["runs"])
    columns = ["paper", "claim", "verdict"]
    assert again[columns].to_dict("records") == kept["verdicts"][columns].to_dict("records")
