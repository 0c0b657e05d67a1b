"""Atomic files: nothing half-written ever stands under a final name."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

from secondlook.suite.errors import CannotWrite

_REFUSALS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM}


def write_atomically(path: Path, write: Callable[[Path], object]) -> Path:
    """Let `write` fill a temporary neighbour of `path`, then rename it. On any error the neighbour is removed.

    Raises `CannotWrite` naming the file when the disk is full, or the folder may not be written to.
    """
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        os.replace(temporary, path)
    except OSError as error:
        raise refusal(error, path) or error from None
    finally:
        if temporary.exists():
            temporary.unlink()
    return path


def write_text(path: Path, text: str) -> Path:
    """Write a UTF-8 text file atomically."""
    return write_atomically(path, lambda p: p.write_text(text, encoding="utf-8"))


def refusal(error: OSError, path: Path | str | None = None) -> CannotWrite | None:
    """The plain error for a disk that is full or not to be written to; None for any other trouble."""
    if error.errno not in _REFUSALS:
        return None
    return CannotWrite(
        f"cannot write {path or error.filename} ({os.strerror(error.errno)}); "
        "make room or choose another folder, then run the same command again: what is finished is kept"
    )
