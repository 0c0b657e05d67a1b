"""The tidy tables: their schemas, and reading and writing them. Every write and every read is checked."""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path

import pandas as pd
import pandera.pandas as pa

from secondlook.suite import seals
from secondlook.suite.cards import VERDICT_NAMES
from secondlook.suite.errors import TableError
from secondlook.suite.files import write_atomically

_slug = pa.Check.str_matches(r"^[a-z0-9][a-z0-9-]*$")


def _text(**kw) -> pa.Column:
    return pa.Column(str, coerce=True, **kw)


def _number(**kw) -> pa.Column:
    return pa.Column(float, coerce=True, nullable=True, **kw)


MEASUREMENTS = pa.DataFrameSchema(
    {
        "paper": _text(checks=_slug),
        "experiment": _text(),
        "problem": _text(),
        "method": _text(),
        "seed": pa.Column("int64", coerce=True, checks=pa.Check.ge(0)),
        "metric": _text(),
        "step": _number(),
        "value": _number(),
        "unit": _text(),
        "status": _text(checks=pa.Check.isin(["ok", "diverged"])),
        "run_id": _text(),
    },
    checks=pa.Check(
        lambda t: t["value"].notna() == (t["status"] == "ok"),
        error="a value is missing exactly when its status is `diverged`",
    ),
    strict=True,
    ordered=True,
    name="measurements",
)

RUNS = pa.DataFrameSchema(
    {
        "run_id": _text(),
        "paper": _text(checks=_slug),
        "experiment": _text(),
        "scale": _text(),
        "seeds": _text(),
        "status": _text(checks=pa.Check.isin(["ok", "failed", "no-data"])),
        "note": _text(),
        "git_commit": _text(),
        "dirty": pa.Column(bool, coerce=True),
        "started_at": _text(),
        "wall_s": _number(),
        "cpu_s": _number(),
        "peak_mb": _number(),
        "device": _text(),
        "threads": pa.Column("int64", coerce=True),
        "processor": _text(),
        "python": _text(),
        "torch": _text(),
        "numpy": _text(),
        "secondlook": _text(),
        "config_sha256": _text(),
        "config": _text(),
    },
    strict=True,
    ordered=True,
    name="runs",
)

VERDICTS = pa.DataFrameSchema(
    {
        "paper": _text(checks=_slug),
        "claim": _text(checks=_slug),
        "scale": _text(),
        "verdict": _text(checks=pa.Check.isin(VERDICT_NAMES)),
        "effect": _number(),
        "low": _number(),
        "high": _number(),
        "n": _number(),
        "unit": _text(),
        "form": _text(),
        "threshold": _text(),
        "published": _number(),
        "p": _number(),
        "p_against": _number(),
        "control_effect": _number(),
        "control_low": _number(),
        "control_high": _number(),
        "control_p": _number(),
        "control_supported": _text(),
        "reason": _text(),
    },
    strict=True,
    ordered=True,
    name="verdicts",
)


def conform(table: pd.DataFrame, schema: pa.DataFrameSchema) -> pd.DataFrame:
    """The table with the schema's columns in order and of its types. Raises `TableError` naming column and cause."""
    columns = list(schema.columns)
    unknown = set(table.columns) - set(columns)
    if unknown:
        raise TableError(f"{schema.name}: unexpected columns {sorted(unknown)}; the schema has {columns}")
    table = table.reindex(columns=columns)
    for name, column in schema.columns.items():
        if str(column.dtype).startswith("str"):
            table[name] = table[name].astype(object).where(table[name].notna(), "").astype(str)
    try:
        return schema.validate(table.reset_index(drop=True))
    except (pa.errors.SchemaError, pa.errors.SchemaErrors) as error:
        raise TableError(f"{schema.name}: {error}") from None


def write(table: pd.DataFrame, path: Path, schema: pa.DataFrameSchema, csv: bool = False) -> pd.DataFrame:
    """Check and write a table as sealed Parquet, and as CSV beside it when asked. Returns the table as written."""
    table = conform(table, schema)
    write_atomically(path, lambda p: _parquet(table, p))
    if csv:
        write_csv(table, path.with_suffix(".csv"))
    return table


def write_csv(table: pd.DataFrame, path: Path, **options: str) -> None:
    """Write a table as CSV, with its digest in the folder's `SHA256SUMS`. `options` are pandas' own."""
    write_atomically(path, lambda p: table.to_csv(p, index=False, lineterminator="\n", **options))
    seals.vouch(path)


def _parquet(table: pd.DataFrame, path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    arrow = pyarrow.Table.from_pandas(table, preserve_index=False)
    sealed = arrow.replace_schema_metadata({**arrow.schema.metadata, "seal": seals.BLANK})
    pyarrow.parquet.write_table(sealed, path)
    seals.close(path)


def read(path: Path, schema: pa.DataFrameSchema) -> pd.DataFrame:
    """Read a Parquet or CSV table, its bytes and its schema checked. Raises `TableError` naming file and remedy."""
    if not path.exists():
        raise TableError(f"{path} is missing; rebuild it with snakemake, or give the results folder with --results")
    try:
        data = io.BytesIO(seals.content(path))
        table = pd.read_csv(data, keep_default_na=True) if path.suffix == ".csv" else pd.read_parquet(data)
        return conform(table, schema)
    except TableError as error:
        raise TableError(
            f"{path} was written by another version or is damaged ({error}); delete it and run snakemake again"
        ) from None
    except Exception as error:
        raise TableError(
            f"{path} cannot be read ({type(error).__name__}: {error}); delete it and run snakemake again"
        ) from None


def collect(parts: Iterable[Path], schema: pa.DataFrameSchema) -> pd.DataFrame:
    """Concatenate job tables in the given order, each checked."""
    frames = [f for f in (read(p, schema) for p in parts) if len(f)]
    empty = pd.DataFrame(columns=list(schema.columns))
    return conform(pd.concat(frames, ignore_index=True) if frames else empty, schema)
