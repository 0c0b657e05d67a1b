"""Where a result comes from: code, settings, machine, versions."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import resource
import subprocess
import sys
from collections.abc import Iterable
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import secondlook


def config_sha256(config: Any) -> str:
    """Digest of a JSON-like configuration, independent of key order."""
    return hashlib.sha256(canonical(config).encode()).hexdigest()


def files_sha256(files: Iterable[Path]) -> str:
    """Digest of the contents of files, in the given order."""
    return hashlib.sha256("".join(hashlib.sha256(f.read_bytes()).hexdigest() for f in files).encode()).hexdigest()


def canonical(config: Any) -> str:
    """The configuration as one line of JSON with sorted keys."""
    return json.dumps(config, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


@cache
def git_state() -> tuple[str, bool]:
    """Commit of the checkout this package runs from, and whether it has local changes; ("", False) outside git."""
    root = Path(secondlook.__file__).resolve().parents[2]
    # Snakemake hands the state to its jobs, so that 169 of them do not ask git 169 times.
    handed = os.environ.get("SECONDLOOK_GIT_STATE")
    if handed is not None:
        commit, _, dirty = handed.partition(" ")
        return commit, dirty == "dirty"
    try:
        git = ["git", "-C", str(root)]
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        changes = subprocess.run(
            [*git, "status", "--porcelain", "--", "src", "workflows", "Snakefile"],
            capture_output=True,
            text=True,
            check=True,
        )
        return commit, bool(changes.stdout.strip())
    except (OSError, subprocess.CalledProcessError):
        return "", False


def handed_state() -> str:
    """`git_state` as one string, for the environment variable that `git_state` reads."""
    commit, dirty = git_state()
    return f"{commit} {'dirty' if dirty else 'clean'}"


def installed(package: str) -> str:
    """The installed version of a package, or "" when it is not there."""
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


@cache
def processor() -> str:
    """Name of the processor, as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def peak_mb() -> float:
    """Largest resident memory of this process so far, in MB."""
    kilo = 1024 if sys.platform == "darwin" else 1
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 / kilo


def versions() -> dict[str, str]:
    return {
        "python": platform.python_version(),
        "torch": installed("torch"),
        "numpy": installed("numpy"),
        "secondlook": secondlook.__version__,
    }
