"""Executes notebook templates with papermill, on the interpreter that runs this, whatever kernels are installed."""

from __future__ import annotations

import logging
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from secondlook.suite import seals
from secondlook.suite.errors import SecondLookError
from secondlook.suite.files import write_atomically

START_TIMEOUT, CELL_TIMEOUT = 60, 300  # seconds


def execute(template: Path, output: Path, parameters: dict[str, Any]) -> None:
    """Run a template with parameters and write the executed notebook atomically, sealed.

    The kernel works in the output's folder, and paths among the parameters are made relative to it, so that the
    notebook can be moved with its results folder and run again where it lies.

    Raises:
        SecondLookError: the template is missing, or a cell failed; nothing is written then.
    """
    if not template.exists():
        raise SecondLookError(f"the notebook template {template} is missing; restore it from the repository")
    from papermill.exceptions import PapermillException

    folder = output.resolve().parent
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(prefix="secondlook-") as sockets:
            write_atomically(output, lambda path: _run(template, path, folder, parameters, Path(sockets)))
    except (PapermillException, RuntimeError, TimeoutError) as error:
        raise SecondLookError(f"{template.name} failed: {error}") from error


def _run(template: Path, path: Path, folder: Path, parameters: dict[str, Any], sockets: Path) -> None:
    import nbformat
    import papermill

    logging.getLogger("papermill").setLevel(logging.WARNING)
    notebook = papermill.execute_notebook(
        str(template.resolve()),
        str(path.resolve()),
        parameters={name: _portable(value, folder) for name, value in parameters.items()},
        kernel_name="python3",
        kernel_manager_class=_kernel_manager(sockets),
        progress_bar=False,
        cwd=str(folder),
        start_timeout=START_TIMEOUT,
        execution_timeout=CELL_TIMEOUT,
    )
    for place in ("input_path", "output_path"):  # say nothing of this machine's folders
        notebook.metadata["papermill"].pop(place, None)
    notebook.metadata["secondlook"] = {"seal": seals.BLANK}
    nbformat.write(notebook, path)
    seals.close(path)


def _portable(value: Any, folder: Path) -> Any:
    """A path as seen from the notebook's folder; anything else as it is."""
    path = Path(value) if isinstance(value, str | Path) else None
    if path is not None and path.is_absolute() and path.exists():
        return Path(os.path.relpath(path.resolve(), folder)).as_posix()
    return str(value) if isinstance(value, Path) else value


def _kernel_manager(sockets: Path) -> type:
    """A kernel manager that always starts ipykernel on this very interpreter, and talks to it over `sockets`.

    Files, not ports: another process can take a port between its choice and its use, and the kernel then hangs.
    """
    from jupyter_client.kernelspec import KernelSpec
    from jupyter_client.manager import AsyncKernelManager
    from traitlets import default

    class ThisInterpreter(AsyncKernelManager):
        @default("transport")
        def _over_files(self) -> str:
            return "ipc"

        @default("ip")
        def _in_a_folder_of_its_own(self) -> str:
            return str(sockets / "kernel")

        @property
        def kernel_spec(self) -> KernelSpec:
            command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
            # History in a file would be shared, and locked, between notebooks that run side by side. A kernel that is
            # told to go would print the interrupt as an error.
            quiet = ["--HistoryManager.enabled=False", "--IPKernelApp.log_level=50"]
            return KernelSpec(
                argv=command + quiet, display_name="Python 3", language="python", env={"OMP_NUM_THREADS": "1"}
            )

    return ThisInterpreter
