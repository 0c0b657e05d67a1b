"""Architectures, one a file. Every builder takes an explicit ``generator`` for its weights."""

from __future__ import annotations

import importlib
from typing import Any

from secondlook.problems.models.convnets import convnet, digits_cnn, lenet
from secondlook.problems.models.mlp import mlp
from secondlook.problems.models.resnet import resnet, resnet20, resnet32

_LAZY = {"CharGPT": "char_gpt"}
__all__ = ["CharGPT", "convnet", "digits_cnn", "lenet", "mlp", "resnet", "resnet20", "resnet32"]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
