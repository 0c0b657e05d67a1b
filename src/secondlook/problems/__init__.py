"""Shared test beds: data sets, models, training, reference models. Each part is imported when first used."""

from __future__ import annotations

import importlib
from types import ModuleType

__all__ = [
    "augment",
    "batches",
    "checkpoint",
    "classifiers",
    "datasets",
    "fetching",
    "images",
    "language",
    "mixtures",
    "models",
    "pairing",
    "side_by_side",
    "sources",
    "tasks",
    "training",
    "tuning",
    "zoo",
]


def __getattr__(name: str) -> ModuleType:
    if name in __all__:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
