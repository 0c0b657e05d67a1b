"""Nested state (dicts, lists, tensors, numbers) in one safetensors file: tensors as such, the rest as JSON.

No pickle, so a file from elsewhere cannot run code; one file, so it is replaced whole or not at all; sealed, so a
changed byte is noticed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from secondlook.suite import seals
from secondlook.suite.files import write_atomically

__all__ = ["load_optimizer", "read", "write"]


def write(path: Path, state: Any) -> None:
    """Write ``state`` to ``path``, replacing it in one step.

    Dicts (keys: strings or integers), lists, tuples, strings, numbers, booleans, None and tensors; anything
    else is a TypeError that names where it sits.
    """
    tensors: dict[str, torch.Tensor] = {}
    skeleton = json.dumps({"seal": seals.BLANK, "state": _encode(state, "state", tensors)})

    def fill(temporary: Path) -> None:
        temporary.write_bytes(save(tensors, metadata={"state": skeleton}))
        seals.close(temporary)

    write_atomically(Path(path), fill)


def read(path: Path) -> Any:
    """The state in ``path``, tensors on the CPU; ValueError when it is not a checkpoint, or a damaged one."""
    try:
        seals.content(Path(path))
        with safe_open(path, "pt") as file:
            skeleton = json.loads((file.metadata() or {})["state"])
            return _decode(skeleton["state"], file)
    except (SafetensorError, KeyError, ValueError) as wrong:
        raise ValueError(f"{path} is not a checkpoint ({wrong}); delete it to start afresh") from wrong


def load_optimizer(optimizer: torch.optim.Optimizer, saved: Mapping[str, Any]) -> None:
    """``optimizer.load_state_dict`` without its cast of state to the parameters' dtype.

    PyTorch rounds float64 state of float32 parameters; a resumed run would then differ in the last bits.
    """
    optimizer.load_state_dict(saved)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for index, entries in saved["state"].items():
        if not isinstance(index, int):
            continue
        state = optimizer.state[parameters[index]]
        for key, value in entries.items():
            if isinstance(value, torch.Tensor) and state[key].dtype != value.dtype:
                state[key] = value.to(state[key].device)


def _encode(value: Any, place: str, tensors: dict[str, torch.Tensor]) -> Any:
    if isinstance(value, torch.Tensor):
        place = f"{len(tensors)} {place}"
        tensors[place] = value.detach().cpu().contiguous().clone()  # shared memory cannot be saved
        return {"tensor": place}
    if isinstance(value, Mapping):
        pairs = []
        for key, entry in value.items():
            if type(key) not in (str, int):
                raise TypeError(f"{place} has the key {key!r}; a checkpoint holds keys that are strings or integers")
            pairs.append([key, _encode(entry, f"{place}.{key}", tensors)])
        return {"dict": pairs}
    if isinstance(value, (list, tuple)):
        entries = [_encode(entry, f"{place}.{i}", tensors) for i, entry in enumerate(value)]
        return {"tuple": entries} if isinstance(value, tuple) else entries
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"{place} is a {type(value).__name__}; a checkpoint holds tensors, numbers, strings, lists, dicts")


def _decode(value: Any, file: Any) -> Any:
    if isinstance(value, list):
        return [_decode(entry, file) for entry in value]
    if isinstance(value, dict):
        ((kind, inner),) = value.items()
        if kind == "tensor":
            return file.get_tensor(inner)
        if kind == "tuple":
            return tuple(_decode(entry, file) for entry in inner)
        return {key: _decode(entry, file) for key, entry in inner}
    return value
