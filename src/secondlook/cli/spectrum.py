"""The command that takes the curvature of the user's own model."""

from __future__ import annotations

import os
import re
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from secondlook.cli.console import err, out
from secondlook.cli.work import QuietOption, ThreadsOption, _threads
from secondlook.suite.errors import DeviceMissing, SecondLookError, UnknownName
from secondlook.suite.files import write_text


def register(app: typer.Typer) -> None:
    app.command(rich_help_panel="Compute")(spectrum)


def spectrum(
    factory: Annotated[
        str, typer.Argument(help="`module:function` (or `file.py:function`) that returns the model, or (model, loss).")
    ],
    data: Annotated[
        str, typer.Option(help="`module:function` that returns (inputs, targets) or a list of such batches.")
    ],
    loss: Annotated[
        str | None, typer.Option(help="cross_entropy, mse, or `module:function`.", show_default="the factory's")
    ] = None,
    top: Annotated[int, typer.Option(help="How many of the largest eigenvalues.", min=1)] = 10,
    density: Annotated[bool, typer.Option("--density/--no-density", help="Spectral density.")] = True,
    layers: Annotated[bool, typer.Option("--layers/--no-layers", help="Sharpness of each layer.")] = True,
    matrix: Annotated[str, typer.Option(help="hessian or ggn.")] = "hessian",
    keep_mode: Annotated[
        bool, typer.Option("--keep-mode", help="Leave batch norm as the factory left it; else evaluation mode.")
    ] = False,
    memory: Annotated[str, typer.Option(help="What it may take beside model and data.")] = "2GB",
    tol: Annotated[float, typer.Option(help="Residual of an eigenpair, relative to the largest eigenvalue.")] = 1e-4,
    probes: Annotated[int, typer.Option(help="Random vectors for traces.", min=2)] = 30,
    seed: Annotated[int, typer.Option(help="Seed of all chance.", min=0)] = 0,
    device: Annotated[str, typer.Option(help="cpu, cuda, or auto: where the factory puts the model.")] = "auto",
    folder: Annotated[Path, typer.Option("--out", help="Folder for spectrum.json, .png and .svg.")] = Path("spectrum"),
    threads: ThreadsOption = 1,
    quiet: QuietOption = False,
) -> None:
    """Eigenvalues, trace, density and layers of your own model's curvature, each saying how wrong it may be."""
    _threads(threads)
    limit = size(memory)
    import json

    import torch

    from secondlook import curvature
    from secondlook.cli import spectrum_figure
    from secondlook.suite import plots

    with told("the model", factory):
        model, own = _model(load(factory, "the factory"))
    criterion = loss if loss is not None else own
    if criterion is None:
        raise SecondLookError(
            "no loss: pass --loss cross_entropy or --loss mse, or let the factory return (model, loss)"
        )
    if isinstance(criterion, str) and ":" in criterion:
        criterion = load(criterion, "the loss")
    with told("the data", data):
        points = load(data, "the data function")
        points = points() if callable(points) else points
    if device != "auto":
        if device.startswith("cuda") and not torch.cuda.is_available():
            raise DeviceMissing("no CUDA device is visible here: pass --device cpu")
        model = model.to(device)
    try:
        with _bar(quiet) as progress:
            report = curvature.spectrum(
                model,
                criterion,
                points,
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
    except (ValueError, TypeError) as error:
        raise SecondLookError(str(error)) from error
    except torch.OutOfMemoryError as error:
        raise SecondLookError(f"the device's memory is full: pass a --memory below {memory}") from error
    about = {"model": factory, "data": data, "seed": seed}
    write_text(folder / "spectrum.json", json.dumps(about | json.loads(report.to_json()), indent=1) + "\n")
    plots.save(spectrum_figure.draw(report, factory), folder, "spectrum")
    if not quiet:
        show(report, factory)
        out.print(f"[dim]{folder}/spectrum.json, spectrum.png, spectrum.svg[/]", highlight=False)


def load(spec: str, what: str) -> Any:
    """The object that `module:name` or `file.py:name` names; modules are looked for in the working folder, too."""
    import importlib.util

    module, _, name = spec.rpartition(":")
    if not module or not name:
        raise SecondLookError(f"{what} must read module:function, for instance mynet:build; got {spec!r}")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    with told("the module", module):
        if module.endswith(".py"):
            if not Path(module).is_file():
                raise SecondLookError(f"there is no file {module} to load {what} from")
            found = importlib.util.spec_from_file_location(Path(module).stem, module)
            loaded = importlib.util.module_from_spec(found)
            sys.modules[found.name] = loaded
            found.loader.exec_module(loaded)
        else:
            try:
                loaded = importlib.import_module(module)
            except ModuleNotFoundError as error:
                if error.name is None or not f"{module}.".startswith(f"{error.name}."):
                    raise
                raise SecondLookError(
                    f"no module is called {error.name!r}: run the command in the folder where it lies, "
                    f"or name the file, as in path/to/{module.rpartition('.')[2]}.py:{name}"
                ) from error
    if not hasattr(loaded, name):
        raise UnknownName(f"function in {module}", name, [n for n in vars(loaded) if not n.startswith("_")])
    return getattr(loaded, name)


@contextmanager
def told(what: str, where: str) -> Iterator[None]:
    """An error in the user's own code, in one line that says where."""
    try:
        yield
    except SecondLookError:
        raise
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        at = f"{last.filename}, line {last.lineno}"
        raise SecondLookError(f"{what} of {where} failed: {type(error).__name__}: {error} ({at})") from error


def _model(found: Any) -> tuple[Any, Any]:
    """Model and loss (or None) from what the factory is or returns."""
    from torch import nn

    made = found if isinstance(found, nn.Module) or not callable(found) else found()
    model, loss = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    if not isinstance(model, nn.Module):
        raise SecondLookError(f"the factory must return a torch.nn.Module, or (model, loss); got {type(made).__name__}")
    return model, loss


def size(text: str) -> float:
    """Bytes from `2GB`, `500 MB` or `1e9`."""
    parts = re.fullmatch(r"([0-9.]+(?:e[0-9]+)?)\s*([kmgt]?)i?b?", text.strip().lower())
    try:
        value = float(parts[1]) * 1000.0 ** " kmgt".index(parts[2] or " ")
    except (TypeError, ValueError):
        value = 0
    if value <= 0:
        raise SecondLookError(f"--memory must read like 2GB or 500MB, got {text!r}")
    return value


@contextmanager
def _bar(quiet: bool) -> Iterator[Any]:
    """A progress callback: one line, the stage and its products."""
    if quiet:
        yield None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("  {task.description}"), BarColumn(bar_width=28), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=err, transient=True) as bar:
        task = bar.add_task("model", total=None)
        yield lambda stage, done, total: bar.update(task, description=escape(stage), completed=done, total=total)


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
    table = _table(("rank", "eigenvalue", "certain to lie in", "residual"))
    for rank, e in enumerate(report.eigenvalues, 1):
        table.add_row(str(rank), f"{e.value:.6g}", escape(f"[{e.low:.6g}, {e.high:.6g}]"), f"{e.residual:.1e}")
    out.print(table)
    if report.layers:
        out.print()
        table = _table(("layer", "parameters", "largest eigenvalue", f"trace, {percent} interval"))
        for row in report.layers:
            table.add_row(escape(row.name), f"{row.parameters:,}", f"{row.eigenvalue.value:.5g}", _interval(row.trace))
        out.print(table)
    for note in report.notes:
        out.print(f"[yellow]note[/] {escape(note)}", highlight=False)
    out.print(
        f"[dim]{report.products:,} products, {report.layer_products:,} with layers' blocks, {report.seconds:.1f} s[/]"
    )


def _table(columns: tuple[str, ...]) -> Table:
    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if column == "layer" else "right", no_wrap=i == 0)
    return table


def _interval(x: Any) -> str:
    return escape(f"{x.value:.5g} [{x.low:.5g}, {x.high:.5g}]")
