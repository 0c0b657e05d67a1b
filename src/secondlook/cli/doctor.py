"""Examines the machine: versions, device, data, tools."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from pathlib import Path

from secondlook.cli.console import out
from secondlook.suite import provenance, registry


def examine() -> bool:
    """Print what this machine can run. Returns False when the laptop scale itself cannot run."""
    import torch

    from secondlook.problems import fetching, sources

    def line(good: bool | None, what: str, detail: str) -> None:
        sign = {True: "[green]✓[/]", False: "[red]✕[/]", None: "[yellow]–[/]"}[good]
        out.print(f" {sign} {what:<12} {detail}", highlight=False)

    out.print("[bold]Machine[/]")
    line(True, "processor", f"{provenance.processor()}, {os.cpu_count()} cores")
    python_ok = platform.python_version_tuple() >= ("3", "11")
    line(python_ok, "python", f"{platform.python_version()}")
    line(True, "torch", torch.__version__)
    cuda = torch.cuda.is_available()
    device = (
        torch.cuda.get_device_name()
        if cuda
        else "no CUDA GPU: `gpu` and `paper` scales need `--device cpu` (slow) or a cluster"
    )
    line(cuda or None, "gpu", device)
    for tool, why in (("snakemake", "the workflow"), ("jupyter", "notebooks"), ("sbatch", "the slurm profile")):
        path = shutil.which(tool) or shutil.which(tool, path=str(Path(sys.executable).parent))
        line(
            bool(path) if tool != "sbatch" else (True if path else None), tool, path or f"not on PATH: needed for {why}"
        )
    out.print("\n[bold]Peers[/] (optional: pip install 'secondlook\\[peers]')")
    for package in ("curvlinops-for-pytorch", "kronfluence", "POT", "pyhessian", "torch-optimizer"):
        found = provenance.installed(package)
        line(True if found else None, package, found or "not installed; its comparison is left out")
    out.print(f"\n[bold]Data[/] ({fetching.data_home()})")
    for name, source in sources.DATASETS.items():
        there = fetching.is_present(name)
        detail = "ships with a package" if not source.files else ("here" if there else f"run: secondlook data {name}")
        line(True if there else None, name, detail)
    out.print("\n[bold]Scales[/]")
    done = registry.replicated().values()
    for scale, can in {"smoke": python_ok, "laptop": python_ok, "gpu": cuda}.items():
        line(can or (None if scale == "gpu" else False), scale, f"{sum(bool(p.at(scale)) for p in done)} papers")
    return python_ok
