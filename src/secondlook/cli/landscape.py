"""The command that draws the loss around the weights of the user's own model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from secondlook.cli.console import QuietOption, ThreadsOption, out, use_threads
from secondlook.cli.own import (
    DataOption,
    FactoryArgument,
    LossOption,
    MemoryOption,
    OwnDeviceOption,
    SeedOption,
    computing,
    keep,
    read,
    show_notes,
    size,
    table,
)

UNITS = {"cross_entropy": "nats"}


def register(app: typer.Typer) -> None:
    app.command(rich_help_panel="Compute")(landscape)


def landscape(
    factory: FactoryArgument,
    data: DataOption,
    loss: LossOption = None,
    directions: Annotated[str, typer.Option(help="hessian (the top eigenvectors) or random.")] = "hessian",
    line: Annotated[bool, typer.Option("--line", help="Along one direction; else the plane of two.")] = False,
    points: Annotated[int, typer.Option(help="Coordinates along a direction; odd.", min=3)] = 25,
    span: Annotated[float, typer.Option(help="How far to go either way, in lengths of the direction.")] = 1.0,
    normalize: Annotated[
        str, typer.Option(help="filter, layer, none, or auto: filter for random directions, none for eigenvectors.")
    ] = "auto",
    biases: Annotated[
        bool, typer.Option("--biases", help="Let random and normalised directions move biases and batch norm, too.")
    ] = False,
    batch_norm: Annotated[
        str, typer.Option(help="eval (trained statistics), batch (each batch's own) or recompute (at every point).")
    ] = "eval",
    memory: MemoryOption = "2GB",
    tol: Annotated[float, typer.Option(help="Residual of an eigenvector, relative to the largest eigenvalue.")] = 1e-4,
    seed: SeedOption = 0,
    device: OwnDeviceOption = "auto",
    folder: Annotated[Path, typer.Option("--out", help="Folder for landscape.json, .png and .svg.")] = Path(
        "landscape"
    ),
    threads: ThreadsOption = 1,
    quiet: QuietOption = False,
) -> None:
    """The loss around your own model's weights, along Hessian axes or random directions, beside its quadratic model."""
    use_threads(threads)
    limit = size(memory)
    import torch

    from secondlook import curvature
    from secondlook.cli import landscape_figure

    own = read(factory, data, loss, device)
    with computing(memory, quiet) as progress:
        found = curvature.landscape(
            *own,
            directions=directions,
            two_dimensional=not line,
            points=points,
            span=span,
            normalize=None if normalize == "none" else normalize,
            ignore_bias_bn=not biases,
            batch_norm=batch_norm,
            memory=limit,
            tol=tol,
            generator=torch.Generator().manual_seed(seed),
            progress=progress,
        )
    unit = UNITS.get(own.loss) if isinstance(own.loss, str) else None
    keep(found, landscape_figure.draw(found, factory, unit), folder, "landscape", model=factory, data=data, seed=seed)
    if not quiet:
        show(found, factory)
        out.print(f"[dim]{folder}/landscape.json, landscape.png, landscape.svg[/]", highlight=False)


def show(found: Any, name: str) -> None:
    """Axes and extremes as tables."""
    out.print(
        f"[bold]Landscape of {escape(name)}[/]  {found.parameters:,} parameters, {found.points:,} points, "
        f"mean loss {found.loss:.4g} at the weights, {found.dtype} on {found.device}, batch norm: {found.batch_norm}\n",
        highlight=False,
    )
    rows = table(("direction", "length", "slope", "curvature", "eigenvalue, certain to lie in"), left=("direction",))
    for a in found.axes:
        e = a.eigenvalue
        certain = f"{e.value:.6g} [{e.low:.6g}, {e.high:.6g}]" if e else ""
        rows.add_row(a.name, f"{a.length:.4g}", f"{a.slope:.4g}", f"{a.curvature:.6g}", escape(certain))
    out.print(rows)
    finite = found.losses[found.losses.isfinite()]
    at = (found.losses == finite.min()).nonzero()[0].tolist()
    place = ", ".join(f"{found.coordinates[i]:.3g}" for i in at)
    out.print(
        f"\nlowest {float(finite.min()):.4g} at ({place}), highest {float(finite.max()):.4g}, "
        f"{found.losses.numel():,} points in {found.seconds:.1f} s",
        highlight=False,
    )
    show_notes(found.notes)
