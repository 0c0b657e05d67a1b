"""Times peers against each other: one process, alternating order, every repeat kept."""

from __future__ import annotations

import gc
import math
import sys
import time
from collections.abc import Callable, Mapping

import pandas as pd

SHORTEST = 0.01
"""Seconds below which a call is repeated within one measurement: less is mostly the clock and the scheduler."""


def interleaved(contestants: Mapping[str, Callable[[], object]], repeats: int = 7, warmup: int = 1) -> pd.DataFrame:
    """Time each contestant `repeats` times in alternating order, so that drift of the machine hits all alike.

    On CUDA the device is synchronised around each measurement.

    Returns:
        A frame with columns `name`, `repeat`, `seconds` (of one call; of a short one the mean over several).
    """
    if repeats < 1 or warmup < 0:
        raise ValueError(f"repeats must be at least 1 and warmup at least 0, got {repeats} and {warmup}")
    calls = dict.fromkeys(contestants, 1)
    for _ in range(warmup):
        for name, call in contestants.items():
            calls[name] = math.ceil(SHORTEST / max(seconds(call), SHORTEST / 1000))
    rows = []
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        names = list(contestants)
        for repeat in range(repeats):
            for name in names if repeat % 2 == 0 else reversed(names):
                rows.append({"name": name, "repeat": repeat, "seconds": seconds(contestants[name], calls[name])})
    finally:
        if was_enabled:
            gc.enable()
    return pd.DataFrame(rows)


def seconds(call: Callable[[], object], calls: int = 1) -> float:
    """Wall time of one call, in seconds: the mean over `calls` of them."""
    _synchronise()
    start = time.perf_counter()
    for _ in range(calls):
        call()
    _synchronise()
    return (time.perf_counter() - start) / calls


def _synchronise() -> None:
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.synchronize()
