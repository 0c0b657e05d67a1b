"""What need not be imported."""

from __future__ import annotations

import sys


def spare_grammars() -> None:
    """Keep jsonschema, which Snakemake and nbformat import, from building a grammar of international web addresses.

    It takes two seconds of every process, and no schema here speaks of such addresses. jsonschema passes over a module
    that is not installed, and `None` says so.
    """
    sys.modules.setdefault("rfc3987_syntax", None)  # type: ignore[arg-type]
