"""What runs leave behind, and who may clear it; disks that take nothing; work that does not end. No DAG is run."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import pandas as pd
import pytest

from secondlook.suite import assembly, layout, recovery, registry, timelimit
from secondlook.suite.errors import CannotWrite, SecondLookError
from secondlook.suite.files import write_atomically
from secondlook.suite.timelimit import TimeLimit, time_limit


def test_only_the_one_who_is_alone_clears_up(tmp_path):
    """What a killed run left goes when nobody works in the folder, and stays while somebody does."""
    results, other = tmp_path / "smoke", tmp_path / "laptop"
    layout.claim(results)
    locks = tmp_path / "state" / "locks"
    locks.mkdir(parents=True)
    (locks / "0.output.lock").write_text(f"{results}/tables/runs.parquet\n")
    (locks / "1.output.lock").write_text(f"{other}/tables/runs.parquet\n")
    remains = results / "runs" / "demo" / ".e.12.tmp.parquet"
    remains.parent.mkdir(parents=True)
    remains.touch()
    code = f"from secondlook.suite import recovery; import pathlib, time; recovery.hold(pathlib.Path({str(results)!r}))"
    alive = subprocess.Popen(
        [sys.executable, "-c", f"{code}; print(flush=True); time.sleep(60)"], stdout=subprocess.PIPE
    )
    try:
        alive.stdout.readline()
        recovery.recover(results, tmp_path / "state")
        assert remains.exists()
        assert len(list(locks.iterdir())) == 2
    finally:
        alive.kill()
        alive.wait()
    while recovery._held:
        os.close(recovery._held.pop())
    recovery.recover(results, tmp_path / "state")
    assert not remains.exists()
    assert [p.name for p in locks.iterdir()] == ["1.output.lock"]


def test_files_from_the_future_become_the_oldest_and_keep_their_order(tmp_path):
    results, now = tmp_path / "smoke", time.time()
    layout.claim(results)
    ages = {"old": now - 1000, "new": now - 1, "tomorrow": now + 86400, "the-day-after": now + 172800}
    for name, stamp in ages.items():
        (results / name).touch()
        os.utime(results / name, (stamp, stamp))
    recovery.recover(results, tmp_path)
    found = {name: (results / name).stat().st_mtime for name in ages}
    assert sorted(found, key=found.get) == ["tomorrow", "the-day-after", "old", "new"]
    assert found["old"] == pytest.approx(ages["old"])
    recovery.recover(results, tmp_path)
    assert found == {name: (results / name).stat().st_mtime for name in ages}


def test_a_folder_that_cannot_be_written_to_is_refused_at_once(tmp_path, monkeypatch):
    layout.claim(tmp_path)
    monkeypatch.setattr(layout.os, "access", lambda path, mode: False)
    with pytest.raises(SecondLookError, match=r"cannot write to .*choose another"):
        layout.claim(tmp_path)


@pytest.mark.parametrize("kind", [errno.ENOSPC, errno.EROFS, errno.EDQUOT])
def test_a_disk_that_takes_nothing_is_told_in_one_line_and_the_old_file_stays(tmp_path, kind):
    path = tmp_path / "table.parquet"
    path.write_text("old")

    def full(temporary: Path) -> None:
        temporary.write_text("half")
        raise OSError(kind, os.strerror(kind), str(temporary))

    with pytest.raises(CannotWrite, match=rf"cannot write .*table\.parquet \({os.strerror(kind)}\).*the same command"):
        write_atomically(path, full)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_no_reason_why_a_figure_cannot_be_drawn(tmp_path, monkeypatch):
    from secondlook.suite import plots

    def full(*_):
        raise CannotWrite("cannot write figure.svg")

    monkeypatch.setattr(plots, "save", full)
    monkeypatch.setattr(registry, "function", lambda *_: lambda table, paper: None)
    with pytest.raises(CannotWrite):
        assembly.draw(registry.paper("gptq"), pd.DataFrame({"a": [1]}), tmp_path / "figures")
    assert list(tmp_path.rglob("*.txt")) == []


def sleep() -> None:
    time.sleep(30)


def compute() -> None:
    while True:
        pass


def swallow() -> None:
    with suppress(Exception):
        time.sleep(30)


def wait() -> None:
    threading.Event().wait(30)


@pytest.mark.parametrize("work", [sleep, compute, swallow, wait])
def test_work_that_hangs_is_stopped(work, monkeypatch):
    monkeypatch.setattr(timelimit, "MINUTE", 0.1)
    start = time.monotonic()
    with pytest.raises(TimeLimit, match=r"stopped after 2 min, its `runtime` in the card"), time_limit(2):
        work()
    assert time.monotonic() - start < 10


def test_work_that_ends_in_time_is_left_alone(monkeypatch):
    monkeypatch.setattr(timelimit, "MINUTE", 0.05)
    with time_limit(2):
        pass
    time.sleep(0.3)
