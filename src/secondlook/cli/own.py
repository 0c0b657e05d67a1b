"""The user's own model, loss and data, as the commands that look at them take them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer
from rich.markup import escape
from rich.table import Table

from secondlook.cli.console import err, out
from secondlook.suite.errors import DeviceMissing, SecondLookError
from secondlook.suite.files import write_text
from secondlook.suite.named import load, told

FactoryArgument = Annotated[
    str, typer.Argument(help="`module:function` (or `file.py:function`) that returns the model, or (model, loss).")
]
DataOption = Annotated[
    str,
    typer.Option("--data", help="`module:function` that returns (inputs, targets) or a list of such batches."),
]
LossOption = Annotated[
    str | None, typer.Option(help="cross_entropy, mse, or `module:function`.", show_default="the factory's")
]
MemoryOption = Annotated[str, typer.Option(help="What it may take beside model and data.")]
SeedOption = Annotated[int, typer.Option(help="Seed of all chance.", min=0)]
OwnDeviceOption = Annotated[str, typer.Option("--device", help="cpu, cuda, or auto: where the factory puts the model.")]


class Own(NamedTuple):
    """A module, its loss (a function or the name of one) and its data."""

    model: Any
    loss: Any
    data: Any


def read(factory: str, data: str, loss: str | None, device: str) -> Own:
    """What the user names, loaded and on the device."""
    import torch

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
    return Own(model, criterion, points)


@contextmanager
def computing(memory: str, quiet: bool) -> Iterator[Any]:
    """A progress callback: one line, the stage and how far it is. Errors of the computation become plain ones."""
    import torch

    try:
        with _bar(quiet) as progress:
            yield progress
    except (ValueError, TypeError) as error:
        raise SecondLookError(str(error)) from error
    except torch.OutOfMemoryError as error:
        raise SecondLookError(f"the device's memory is full: pass a --memory below {memory}") from error


def keep(found: Any, figure: Any, folder: Path, name: str, **about: Any) -> None:
    """Write what was found, and what it is about, as NAME.json, and its figure as NAME.png and .svg."""
    import json

    from secondlook.suite import plots

    write_text(folder / f"{name}.json", json.dumps(about | json.loads(found.to_json()), indent=1) + "\n")
    plots.save(figure, folder, name)


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


def table(columns: tuple[str, ...], left: tuple[str, ...] = ()) -> Table:
    """An empty table; numbers go to the right, the columns named in `left` to the left."""
    made = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    for i, column in enumerate(columns):
        made.add_column(column, justify="left" if column in left else "right", no_wrap=i == 0)
    return made


def show_notes(notes: list[str]) -> None:
    for note in notes:
        out.print(f"[yellow]note[/] {escape(note)}", highlight=False)


def _model(found: Any) -> tuple[Any, Any]:
    """Model and loss (or None) from what the factory is or returns."""
    from torch import nn

    made = found if isinstance(found, nn.Module) or not callable(found) else found()
    model, loss = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    if not isinstance(model, nn.Module):
        raise SecondLookError(f"the factory must return a torch.nn.Module, or (model, loss); got {type(made).__name__}")
    return model, loss


@contextmanager
def _bar(quiet: bool) -> Iterator[Any]:
    if quiet:
        yield None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("  {task.description}"), BarColumn(bar_width=28), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=err, transient=True) as bar:
        task = bar.add_task("model", total=None)
        yield lambda stage, done, total: bar.update(task, description=escape(stage), completed=done, total=total)
