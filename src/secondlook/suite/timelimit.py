"""A time limit for work that may hang."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

MINUTE = 60.0  # seconds


class TimeLimit(BaseException):
    """The work took longer than it may. No `Exception`, so that `except Exception` in the work does not swallow it."""


@contextmanager
def time_limit(minutes: float) -> Iterator[None]:
    """Raise `TimeLimit` in the block once it has run for that long.

    Python code, sleeping and waiting are interrupted; one single call into compiled code ends first. Does nothing
    outside the main thread and where there is no alarm clock (Windows).
    """
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return

    def ring(_: int, frame: FrameType | None) -> None:
        where = f", in {Path(frame.f_code.co_filename).name}, line {frame.f_lineno}" if frame else ""
        raise TimeLimit(f"stopped after {minutes:g} min, its `runtime` in the card{where}")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, minutes * MINUTE)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
