"""The command that takes the curvature of the user's own model."""

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


def register(app: typer.Typer) -> None:
    app.command(rich_help_panel="Compute")(spectrum)


def spectrum(
    factory: FactoryArgument,
    data: DataOption,
    loss: LossOption = None,
    top: Annotated[int, typer.Option(help="How many of the largest eigenvalues.", min=1)] = 10,
    density: Annotated[bool, typer.Option("--density/--no-density", help="Spectral density.")] = True,
    layers: Annotated[bool, typer.Option("--layers/--no-layers", help="Sharpness of each layer.")] = True,
    matrix: Annotated[str, typer.Option(help="hessian or ggn.")] = "hessian",
    keep_mode: Annotated[
        bool, typer.Option("--keep-mode", help="Leave batch norm as the factory left it; else evaluation mode.")
    ] = False,
    memory: MemoryOption = "2GB",
    tol: Annotated[float, typer.Option(help="Residual of an eigenpair, relative to the largest eigenvalue.")] = 1e-4,
    probes: Annotated[int, typer.Option(help="Random vectors for traces.", min=2)] = 30,
    seed: SeedOption = 0,
    device: OwnDeviceOption = "auto",
    folder: Annotated[Path, typer.Option("--out", help="Folder for spectrum.json, .png and .svg.")] = Path("spectrum"),
    threads: ThreadsOption = 1,
    quiet: QuietOption = False,
) -> None:
    """Eigenvalues, trace, density and layers of your own model's curvature, each saying how wrong it may be."""
    use_threads(threads)
    limit = size(memory)
    import torch

    from secondlook import curvature
    from secondlook.cli import spectrum_figure

    own = read(factory, data, loss, device)
    with computing(memory, quiet) as progress:
        report = curvature.spectrum(
            *own,
            top=top,
            density=density,
            layers=layers,
            matrix=matrix,
            mode="keep" if keep_mode else "eval",
            memory=limit,
            tol=tol,
            probes=probes,
            generator=torch.Generator().manual_seed(seed),
            progress=progress,
        )
    keep(report, spectrum_figure.draw(report, factory), folder, "spectrum", model=factory, data=data, seed=seed)
    if not quiet:
        show(report, factory)
        out.print(f"[dim]{folder}/spectrum.json, spectrum.png, spectrum.svg[/]", highlight=False)


def show(report: Any, name: str) -> None:
    """The report as tables."""
    kind = {"hessian": "Hessian", "ggn": "GGN"}[report.matrix]
    percent = f"{100 * report.level:g}%"
    out.print(
        f"[bold]{kind} of {escape(name)}[/]  {report.parameters:,} parameters, {report.points:,} points, "
        f"mean loss {report.loss:.4g}, {report.dtype} on {report.device}",
        highlight=False,
    )
    span = escape("[{:.4g}, {:.4g}]".format(*report.bounds))
    out.print(f"trace {_interval(report.trace)} at {percent}; all eigenvalues in {span} at {percent}\n")
    rows = table(("rank", "eigenvalue", "certain to lie in", "residual"))
    for rank, e in enumerate(report.eigenvalues, 1):
        rows.add_row(str(rank), f"{e.value:.6g}", escape(f"[{e.low:.6g}, {e.high:.6g}]"), f"{e.residual:.1e}")
    out.print(rows)
    if report.layers:
        out.print()
        rows = table(("layer", "parameters", "largest eigenvalue", f"trace, {percent} interval"), left=("layer",))
        for row in report.layers:
            rows.add_row(escape(row.name), f"{row.parameters:,}", f"{row.eigenvalue.value:.5g}", _interval(row.trace))
        out.print(rows)
    show_notes(report.notes)
    out.print(
        f"[dim]{report.products:,} products, {report.layer_products:,} with layers' blocks, {report.seconds:.1f} s[/]"
    )


def _interval(x: Any) -> str:
    return escape(f"{x.value:.5g} [{x.low:.5g}, {x.high:.5g}]")
