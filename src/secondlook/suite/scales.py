"""The four scales a run can have."""

from __future__ import annotations

from dataclasses import dataclass

from secondlook.suite.errors import DeviceMissing, UnknownName


@dataclass(frozen=True)
class Scale:
    """How large a run is and what it runs on. How jobs are cut is the workflow's business (`workflows/scales`)."""

    name: str
    about: str
    needs_gpu: bool = False


_ALL = {
    s.name: s
    for s in (
        Scale("smoke", "plumbing, seconds"),
        Scale("laptop", "2 cores, no download; the default"),
        Scale("gpu", "one GPU, minutes a run, real data", needs_gpu=True),
        Scale("paper", "the published setting, on a cluster", needs_gpu=True),
    )
}
SCALES = tuple(_ALL)


def scale(name: str) -> Scale:
    """The scale of that name; raises `UnknownName` with the nearest ones."""
    if name not in _ALL:
        raise UnknownName("scale", name, SCALES)
    return _ALL[name]


def resolve_device(name: str, wanted: str = "auto") -> str:
    """The device a scale runs on: "cpu" or "cuda". Raises `DeviceMissing` where a GPU is needed and none is there."""
    if wanted not in ("auto", "cpu", "cuda"):
        raise UnknownName("device", wanted, ("auto", "cpu", "cuda"))
    if wanted == "cpu" or (wanted == "auto" and not scale(name).needs_gpu):
        return "cpu"
    import torch

    if torch.cuda.is_available():
        return "cuda"
    raise DeviceMissing(
        f"scale {name!r} on device {wanted!r} needs a CUDA GPU, and torch {torch.__version__} sees none here; "
        "choose `scale=laptop`, or pass `--device cpu` (`--config device=cpu`) to run the same code slowly"
    )
