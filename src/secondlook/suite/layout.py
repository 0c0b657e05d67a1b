"""Where things lie in a results folder, and whether this version may write there."""

from __future__ import annotations

import json
from pathlib import Path

import secondlook
from secondlook.suite.errors import SecondLookError
from secondlook.suite.files import write_text

FORMAT = 1  # raised when the tables or the folders change their meaning
STAMP = "secondlook.json"
FAILED = ".failed"


def claim(results: Path) -> None:
    """Mark a results folder as ours. Raises `SecondLookError` when another version's results lie there."""
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
        return
    if results.is_dir() and any((results / name).exists() for name in ("tables", "measurements", "papers")):
        raise SecondLookError(
            f"{results} holds results of unknown origin (no {STAMP}); nothing was touched: move the folder away"
        )
    try:
        write_text(stamp, json.dumps({"format": FORMAT, "secondlook": secondlook.__version__}) + "\n")
    except OSError as error:
        raise SecondLookError(f"cannot write to {results} ({error.strerror}); choose another with `results=`") from None


def part(results: Path, kind: str, paper: str, experiment: str, seed: int | None = None) -> Path:
    """One job's table: `kind` is "measurements" or "runs"."""
    suffix = "" if seed is None else f".seed{seed}"
    return results / kind / paper / f"{experiment}{suffix}.parquet"


def mark_failure(output: Path, note: str) -> None:
    """Remember that a job ended without result, so that the next invocation tries it again."""
    write_text(output.with_suffix(FAILED), note + "\n")


def forget_failures(results: Path) -> None:
    """Remove what failed jobs left, so that they run again. What succeeded stays."""
    for marker in (*results.glob(f"runs/*/*{FAILED}"), *results.glob(f"models/*/*{FAILED}")):
        kind = marker.parents[1].name
        if kind == "models":
            marker.with_suffix(".json").unlink(missing_ok=True)
        else:
            for table in ("runs", "measurements"):
                (results / table / marker.parent.name / marker.name).with_suffix(".parquet").unlink(missing_ok=True)
        marker.unlink()
