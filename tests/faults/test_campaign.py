"""The long campaign: a paper of each family, on one core and on two, and killed at twenty moments. `make faults`."""

from __future__ import annotations

import json
import random
import shutil
import signal
import time
from collections import Counter
from pathlib import Path

import pytest
from disturbed import Running, foreign_locale, half_written, keep_only, twin
from same import compare, papers_of

from checkout import Copy

pytestmark = [pytest.mark.campaign]
KILLS, SEED = 20, 2024
PAPERS = {
    *("adahessian", "overparametrized-hessian", "gptq", "dpm-solver-v3"),
    *("ekfac-influence", "sinkhorn-newton-sparse", "log-bessel-gpu", "step-law"),
}
LATEST = 0.4  # of the time that an undisturbed run takes: when an invocation is killed at the latest
RUN = ("--cores", "2", "--keep-going", "--config", "scale=smoke")
RESULTS = Path("results") / "smoke"


def finish(copy: Copy, *options: str, **env: str) -> float:
    """A run to its end; returns the seconds it took."""
    start = time.monotonic()
    copy.run("snakemake", "--rerun-incomplete", *(options or RUN), **env)
    return time.monotonic() - start


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> tuple[Copy, float]:
    """A checkout after an undisturbed run on two cores, and the seconds this took."""
    copy = Copy(tmp_path_factory.mktemp("whole"))
    keep_only(copy, PAPERS)
    took = finish(copy, LC_ALL="C", TZ="UTC")
    print(f"\nundisturbed, 2 cores: {took:.0f} s")
    assert not list((copy.folder / RESULTS).glob("runs/*/*.failed"))
    assert papers_of(copy.folder).keys() == PAPERS
    return copy, took


def test_one_core_another_folder_locale_and_time_zone_give_the_same_tables(undisturbed, tmp_path):
    whole, _ = undisturbed
    copy = twin(whole, tmp_path / "elsewhere")
    took = finish(copy, "--cores", "1", *RUN[2:], LC_ALL=foreign_locale(), LANG=foreign_locale(), TZ="Asia/Kathmandu")
    papers = papers_of(whole.folder)
    rows = compare(whole.folder / RESULTS, copy.folder / RESULTS, papers)
    print(f"\n1 core, elsewhere, {foreign_locale()}: {took:.0f} s; {len(papers)} papers, {rows} rows equal")


def test_twenty_kills_change_nothing(undisturbed, tmp_path):
    whole, usual = undisturbed
    copy, draw = twin(whole, tmp_path / "killed"), random.Random(SEED)
    papers = papers_of(whole.folder)
    hit: Counter[str] = Counter()
    kills = invocations = finished = rows = 0
    while kills < KILLS:
        run = Running(copy, *RUN)
        invocations += 1
        ended = run.wait(draw.uniform(2, LATEST * usual))
        if ended is None:
            at = run.jobs or ["building the DAG, or between jobs"]
            run.signal(signal.SIGKILL)
            assert run.wait() == -signal.SIGKILL
            assert half_written(copy.folder / RESULTS) == []
            kills += 1
            hit.update(set(at))
            continue
        assert ended == 0, run.said[-4000:]
        rows += compare(whole.folder / RESULTS, copy.folder / RESULTS, papers)
        finished += 1
        shutil.rmtree(copy.folder / RESULTS)  # and again from nothing
    took = finish(copy)
    rows += compare(whole.folder / RESULTS, copy.folder / RESULTS, papers)
    left = [p for p in (copy.folder / RESULTS).rglob(".*.tmp*")]
    figures = {
        "kills": kills,
        "invocations": invocations + 1,
        "runs finished and compared": finished + 1,
        "alive when killed": dict(hit.most_common()),
        "rows compared": rows,
        "rows different": 0,
        "temporary files left": len(left),
        "last invocation, seconds": round(took),
    }
    print("\n" + json.dumps(figures, indent=1))
    assert left == []
