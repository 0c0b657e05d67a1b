"""What a run finds of an earlier one: whether it is still alive, and if not, what it left."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import time
from pathlib import Path

from secondlook.suite.layout import forget_failures

LOCK = ".lock"
SKEW = 10  # seconds by which the clocks of two machines may differ
LONG_AGO = 10**9  # seconds by which a time stamp from the future is moved back

_held: list[int] = []  # open files with a lock on them


def hold(results: Path) -> None:
    """Let others see until this process ends, however it ends, that it works in a claimed folder."""
    if (lock := _open(results)) is not None:
        _lock(lock, fcntl.LOCK_SH)


def recover(results: Path, snakemake: Path) -> None:
    """Hold a claimed folder and, where no other process does, clear what an earlier run left in it.

    The kernel drops a lock with the process that took it, even after `kill -9`. So where nobody holds the folder,
    temporary files are remains, and Snakemake's own lock in the folder `snakemake` is stale. Where the file system has
    no locks that cannot be told, and both stay: `snakemake --unlock` is then the way on.
    """
    lock = _open(results)
    alone = None if lock is None else _lock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    if alone:
        _clear(results)
        _unlock(results, snakemake / "locks")
    if alone is not False:
        forget_failures(results)
    if lock is not None:
        _lock(lock, fcntl.LOCK_SH)


def stop_once() -> None:
    """Let the first Ctrl-C stop this process and ignore more of them, for Snakemake's tidying up bears no second."""

    def stop(*_: object) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, stop)


def _open(results: Path) -> int | None:
    try:
        _held.append(os.open(results / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666))
    except OSError:
        return None
    return _held[-1]


def _lock(file: int, kind: int) -> bool | None:
    """Whether the lock was to be had; None where there are no locks."""
    try:
        fcntl.flock(file, kind)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _clear(results: Path) -> None:
    """Remove temporary files, and make files from the future the oldest of all, in their order.

    Those come from a clock that was wrong. Left alone, what is written now would seem older than what was made from
    its predecessor, and nothing would be made from it again.
    """
    for folder in results.glob(".report.*"):
        shutil.rmtree(folder, ignore_errors=True)
    now = time.time()
    for folder, _, names in os.walk(results):
        for name in names:
            path = os.path.join(folder, name)
            if name.startswith(".") and ".tmp" in name:
                os.unlink(path)
            elif (stamp := os.stat(path).st_mtime) > now + SKEW:
                os.utime(path, (stamp - LONG_AGO, stamp - LONG_AGO))


def _unlock(results: Path, locks: Path) -> None:
    """Remove Snakemake's locks on files of this folder; other folders' stay."""
    for lock in locks.glob("*.lock"):
        if any(Path(line).is_relative_to(results) for line in lock.read_text(encoding="utf-8").splitlines()):
            lock.unlink(missing_ok=True)
