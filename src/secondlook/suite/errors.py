"""Errors a user can act on: each says what is wrong and what to do about it."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class SecondLookError(Exception):
    """Base of every error the suite raises on purpose; the command line prints it without a traceback."""


class CardError(SecondLookError):
    """A card that cannot be used."""


class UnknownName(SecondLookError):
    """A name that nothing here answers to; the message suggests the nearest ones."""

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        known = sorted(known)
        near = get_close_matches(name, known, n=3, cutoff=0.5) or [k for k in known if name and name in k][:3]
        hint = f"did you mean {', '.join(near)}?" if near else f"known: {', '.join(known[:12])}"
        super().__init__(f"no {kind} is called {name!r}; {hint}")


class DatasetMissing(SecondLookError):
    """A data set that is not on this machine and could not be fetched."""


class DatasetCorrupt(SecondLookError):
    """A data file whose checksum is not the recorded one."""


class ModelMissing(SecondLookError):
    """A reference model that was not trained yet at this scale."""


class CannotWrite(SecondLookError):
    """A disk that is full, or a folder that may not be written to."""


class TableError(SecondLookError):
    """A tidy table that breaks its schema."""


class NotMeasured(SecondLookError):
    """A figure of something that this scale does not measure; raised by figures with the reason."""


class DeviceMissing(SecondLookError):
    """A scale asks for a device this machine does not have."""
