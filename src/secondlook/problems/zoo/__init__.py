"""Reference models: trained once per seed, stored with their provenance, loaded by many experiments.

    zoo.train("digits-cnn", "laptop", seed=0, root=results)   # writes root/models/digits-cnn/seed0.safetensors, .json
    model = zoo.load("digits-cnn", root=results)               # in evaluation mode

A model is a file of this folder: its name with "_" for "-", with

    SCALES: dict[str, dict]                                    settings per scale
    CHECK: dict                                                laid over the gpu ones to try them in seconds on a CPU
    build(settings) -> nn.Module
    train(settings, seed, device, track) -> (model, metrics)   track(iterable, label) draws progress
"""

from __future__ import annotations

import hashlib
import importlib
import pkgutil
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from secondlook.suite import provenance as circumstances
from secondlook.suite import seals
from secondlook.suite.errors import ModelMissing, SecondLookError, UnknownName
from secondlook.suite.files import write_atomically

if TYPE_CHECKING:
    from torch import nn

__all__ = ["ModelCorrupt", "ModelMissing", "check", "load", "names", "paths", "provenance", "train"]


class ModelCorrupt(SecondLookError):
    """The stored weights are not those that its provenance describes."""


def names() -> list[str]:
    """All reference models, by file name; imports none of them."""
    return sorted(module.name.replace("_", "-") for module in pkgutil.iter_modules(__path__))


def check(name: str) -> str:
    """``name`` itself if there is such a model, else `UnknownName`."""
    if name not in names():
        raise UnknownName("reference model", name, names())
    return name


def paths(name: str, seed: int, root: Path) -> tuple[Path, Path]:
    """Where the weights and the provenance of a model lie under ``root``."""
    stem = Path(root) / "models" / check(name) / f"seed{seed}"
    return stem.with_suffix(".safetensors"), stem.with_suffix(".json")


def train(
    name: str,
    scale: str,
    seed: int,
    root: Path,
    device: str = "cpu",
    track: Callable[..., Iterable[Any]] | None = None,
) -> dict[str, float]:
    """Train a model and store weights and provenance under ``root``; returns its metrics.

    Each file is replaced in one step, the provenance last: it marks a model as complete.
    """
    import torch
    from safetensors.torch import save

    module = _module(name)
    if scale not in module.SCALES:
        raise UnknownName(f"scale of {name}", scale, module.SCALES)
    settings = module.SCALES[scale]
    weights, record = paths(name, seed, root)
    start = time.perf_counter()
    model, metrics = module.train(settings, seed, device, track or (lambda iterable, label="": iterable))
    wall = time.perf_counter() - start

    tensors = {key: value.detach().cpu().contiguous().clone() for key, value in model.state_dict().items()}
    data = save(tensors)
    write_atomically(weights, lambda temporary: temporary.write_bytes(data))
    commit, dirty = circumstances.git_state()
    facts = {
        "status": "ok",
        "name": name,
        "scale": scale,
        "seed": seed,
        "settings": settings,
        "metrics": metrics,
        "wall_s": round(wall, 3),
        "sha256": hashlib.sha256(data).hexdigest(),
        "device": str(device),
        "threads": torch.get_num_threads(),
        "git_commit": commit,
        "dirty": dirty,
        **circumstances.versions(),
    }
    seals.write_json(record, facts)
    return metrics


def load(name: str, seed: int = 0, scale: str | None = None, *, root: Path, device: str = "cpu") -> nn.Module:
    """The trained model in evaluation mode on ``device``, its weights verified.

    ``root`` is a scale's results folder. With ``scale`` given, a model trained at another one is refused.
    Raises `ModelMissing` when it has not been trained, `ModelCorrupt` when weights and provenance disagree.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load as from_bytes

    facts = provenance(name, seed, scale, root=root)
    command = _command(name, seed, facts["scale"])
    if scale not in (None, facts["scale"]):
        raise ModelMissing(
            f"{name} seed {seed} under {root} was trained at scale {facts['scale']}, not {scale}; "
            f"run: {_command(name, seed, scale)}"
        )
    weights, record = paths(name, seed, root)
    if not weights.is_file():
        raise ModelMissing(f"{weights} is missing; run: {command}")
    data = weights.read_bytes()
    if (digest := hashlib.sha256(data).hexdigest()) != facts["sha256"]:
        raise ModelCorrupt(f"{weights}: {record.name} says sha256 {facts['sha256']}, found {digest}; run: {command}")
    model = _module(name).build(facts["settings"])
    try:
        model.load_state_dict(from_bytes(data))
    except (SafetensorError, RuntimeError) as other:
        raise ModelCorrupt(f"{weights} does not hold the weights of {name} ({other}); run: {command}") from None
    return model.to(device).eval()


def provenance(name: str, seed: int = 0, scale: str | None = None, *, root: Path) -> dict[str, Any]:
    """What is known of a trained model: settings, metrics, wall seconds, commit, versions, sha256."""
    _, record = paths(name, seed, root)
    if not record.is_file():
        raise ModelMissing(
            f"reference model {name} seed {seed} is not under {root}; run: {_command(name, seed, scale or 'laptop')}"
        )
    command = _command(name, seed, scale or "laptop")
    try:
        facts = seals.read_json(record)
    except ValueError as damaged:
        raise ModelCorrupt(f"{record} is damaged ({damaged}); run: {command}") from None
    if facts["status"] != "ok":
        raise ModelMissing(f"training of {name} seed {seed} failed ({facts['note']}); run: {command}")
    return facts


def _command(name: str, seed: int, scale: str) -> str:
    return f"secondlook train {name} --scale {scale} --seed {seed}"


def _module(name: str) -> ModuleType:
    return importlib.import_module(f"{__name__}.{check(name).replace('-', '_')}")
