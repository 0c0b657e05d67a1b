"""Where things lie in a results folder, and whether this version may write there."""

from __future__ import annotations

import json
import os
from pathlib import Path

import secondlook
from secondlook.suite.errors import SecondLookError
from secondlook.suite.files import write_text

FORMAT = 2  # raised when the tables or the folders change their meaning
STAMP = "secondlook.json"
FAILED = ".failed"


def claim(results: Path) -> None:
    """Mark a results folder as ours. Raises `SecondLookError` when another version's results lie there, or when it
    may not be written to.
    """
    stamp = results / STAMP
    if stamp.exists():
        try:
            found = json.loads(stamp.read_text(encoding="utf-8"))["format"]
        except (ValueError, KeyError, OSError) as error:
            raise SecondLookError(f"{stamp} cannot be read ({error}); move {results} away and start afresh") from None
        if found != FORMAT:
            raise SecondLookError(
                f"{results} holds results in format {found}, this version ({secondlook.__version__}) writes {FORMAT}; "
                "nothing was touched: move the folder away, or write elsewhere with `--config results=FOLDER`"
            )
        if not os.access(results, os.W_OK):
            raise SecondLookError(f"cannot write to {results}; choose another with `results=` or `--results`")
        return
    if results.is_dir() and any((results / name).exists() for name in ("tables", "measurements", "papers")):
        raise SecondLookError(
            f"{results} holds results of unknown origin (no {STAMP}); nothing was touched: move the folder away"
        )
    write_text(stamp, json.dumps({"format": FORMAT, "secondlook": secondlook.__version__}) + "\n")


def part(results: Path, kind: str, paper: str, experiment: str, seed: int | None = None) -> Path:
    """One job's table: `kind` is "measurements" or "runs"."""
    suffix = "" if seed is None else f".seed{seed}"
    return results / kind / paper / f"{experiment}{suffix}.parquet"


def mark_failure(output: Path, note: str) -> None:
    """Remember that a job ended without result, so that the next invocation tries it again."""
    write_text(output.with_suffix(FAILED), note + "\n")


def clear_failure(output: Path) -> None:
    """A job that had failed has succeeded."""
    output.with_suffix(FAILED).unlink(missing_ok=True)


def forget_failures(results: Path) -> None:
    """Remove what failed jobs left, so that they run again. What succeeded stays."""
    for marker in (m for where in ("runs/*", "models/*", "data") for m in results.glob(f"{where}/*{FAILED}")):
        if marker.parents[1].name != "runs":
            marker.with_suffix(".json").unlink(missing_ok=True)
        else:
            for table in ("runs", "measurements"):
                (results / table / marker.parent.name / marker.name).with_suffix(".parquet").unlink(missing_ok=True)
        marker.unlink()
