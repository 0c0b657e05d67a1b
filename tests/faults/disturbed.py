"""Runs of the real DAG that can be killed, and what is looked at afterwards."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Collection
from pathlib import Path

import yaml

from checkout import BIN, Copy
from secondlook.suite import seals


class Running:
    """A Snakemake run in a session of its own, so that signals reach it and its jobs and nobody else."""

    def __init__(self, copy: Copy, *arguments: str, **env: str) -> None:
        self.log = copy.folder / f"run{time.monotonic_ns()}.log"
        environment = os.environ | {"PYTHONPATH": str(copy.folder / "src"), "PATH": f"{BIN}:{os.environ['PATH']}"} | env
        environment.pop("OMP_NUM_THREADS", None)
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                ["snakemake", "--rerun-incomplete", *arguments],
                cwd=copy.folder,
                env=environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def signal(self, kind: signal.Signals) -> None:
        """Send a signal to the whole process group."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, kind)

    def wait(self, seconds: float = 300) -> int | None:
        """The exit status, None when it still runs."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None

    def wait_for(self, happened: Callable[[], object], seconds: float = 120) -> None:
        """Wait until something is so; fails when the run ends before."""
        end = time.monotonic() + seconds
        while not happened():
            assert self.process.poll() is None, f"ended early:\n{self.said}"
            assert time.monotonic() < end, "it did not happen"
            time.sleep(0.02)

    @property
    def jobs(self) -> list[str]:
        """What its jobs are at: the `secondlook` commands alive in its session."""
        found = []
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                session = int(stat.read_text().rsplit(")", 1)[1].split()[3])
                words = stat.with_name("cmdline").read_bytes().decode(errors="replace").split("\0")
            except (OSError, IndexError):
                continue
            command = next((i for i, w in enumerate(words[:3]) if w.endswith("/secondlook")), None)
            if session == self.process.pid and command is not None:
                found.append(words[command + 1])
        return found

    @property
    def said(self) -> str:
        return self.log.read_text(errors="replace")


def snakemake(copy: Copy, results: Path, *options: str, check: bool = True, **env: str) -> subprocess.CompletedProcess:
    """One invocation up to the tables of all papers, in a results folder of its own."""
    return copy.run("snakemake", *arguments(results, *options), check=check, **env)


def arguments(results: Path, *options: str) -> list[str]:
    target = results / "smoke" / "tables" / "measurements.parquet"
    chosen = options or ("--cores", "2")
    return [*chosen, "--rerun-incomplete", "--config", "scale=smoke", f"results={results}", "--", str(target)]


def half_written(folder: Path) -> list[Path]:
    """Files under final names that are not whole."""
    wrong = []
    for path in folder.rglob("*"):
        if path.suffix in (".parquet", ".ipynb") and not path.name.startswith("."):
            try:
                seals.content(path)
            except seals.Damaged:
                wrong.append(path)
    return wrong


def reduced(folder: Path) -> Copy:
    """A checkout in which only two papers are replicated, both of them small."""
    copy = Copy(folder)
    keep_only(copy, ())
    for slug, family in (("demo", "solvers"), ("other", "spectra")):
        copy.run("secondlook", "new", slug, "--family", family)
    return copy


def keep_only(copy: Copy, slugs: Collection[str]) -> None:
    """Take the cards of all other replicated papers out of a checkout."""
    for card in copy.folder.glob("src/secondlook/*/*/card.yaml"):
        text = card.read_text(encoding="utf-8")
        if "\nexperiments:" in text and yaml.safe_load(text)["slug"] not in slugs:
            card.unlink()


def twin(copy: Copy, folder: Path) -> Copy:
    """The same checkout in another folder."""
    other = object.__new__(Copy)
    other.folder = folder
    shutil.copytree(copy.folder, folder, ignore=shutil.ignore_patterns(".snakemake", "results", "run*.log"))
    return other


def foreign_locale() -> str:
    """A locale that writes 0.5 as 0,5, where this machine has one."""
    known = subprocess.run(["locale", "-a"], capture_output=True, text=True).stdout.split()
    return next((name for name in known if name.startswith("de_DE.utf")), "C.UTF-8")
