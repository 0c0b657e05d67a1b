"""Every kind of file, emptied, cut off, or with a bit flipped: it is refused by name, or its content is what it was."""

from __future__ import annotations

import gzip
import hashlib
import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
import pandas as pd
import pytest
import torch

from secondlook.problems import checkpoint, fetching, zoo
from secondlook.problems.sources import DATASETS, File, Source
from secondlook.suite import assembly, layout, registry, seals, tables
from secondlook.suite.errors import DatasetCorrupt, TableError
from secondlook.suite.report import embed, evidence

FLIPS = 150  # bits a file, drawn with a seed of their own
TEXT = b"To be, or not to be, that is the question.\n" * 40
ROWS = [
    dict(zip(tables.MEASUREMENTS.columns, row, strict=True))
    for row in [
        ("a-paper", "e", "p", "m", seed, "loss", step, 1 / (1 + seed + step), "1", "ok", "a-paper.e.0123")
        for seed in range(5)
        for step in range(4)
    ]
]
RUN = dict.fromkeys(tables.RUNS.columns, "x") | {
    "paper": "a-paper",
    "status": "ok",
    "dirty": False,
    "wall_s": 1.5,
    "cpu_s": 1.5,
    "peak_mb": math.nan,
    "threads": 1,
}


@dataclass(frozen=True)
class Artefact:
    """A file, how the suite reads it, what a damaged one raises, and whether that names the file."""

    path: Path
    read: Callable[[], Any]
    error: type[Exception]
    named: bool = True


def dataset(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> Artefact:
    monkeypatch.setenv("SECONDLOOK_DATA", str(folder))
    file = File(name, hashlib.sha256(TEXT).hexdigest())
    monkeypatch.setitem(DATASETS, "toy", Source("toy", "a toy", "none", (file,)))
    (folder / name).write_bytes(gzip.compress(TEXT, mtime=0) if name.endswith(".gz") else TEXT)
    return Artefact(folder / name, lambda: fetching.contents("toy"), DatasetCorrupt)


def model(folder: Path, monkeypatch: pytest.MonkeyPatch, suffix: str) -> Artefact:
    module = zoo._module("digits-cnn")
    monkeypatch.setattr(module, "train", lambda settings, *_: (module.build(settings), {"test_accuracy": 90.0}))
    zoo.train("digits-cnn", "smoke", 0, folder)
    path = zoo.paths("digits-cnn", 0, folder)[0].with_suffix(suffix)

    def read() -> Any:
        loaded = zoo.load("digits-cnn", root=folder)
        return loaded.state_dict(), zoo.provenance("digits-cnn", root=folder)

    return Artefact(path, read, zoo.ModelCorrupt)


def training_state(folder: Path, *_: Any) -> Artefact:
    path = folder / "state.safetensors"
    checkpoint.write(path, {"model": {"w": torch.arange(40.0)}, "step": 3, "first": 0.25})
    return Artefact(path, lambda: checkpoint.read(path), ValueError)


def table(folder: Path, _: Any, name: str) -> Artefact:
    path = folder / name
    rows, schema = ([RUN], tables.RUNS) if name.startswith("runs") else (ROWS, tables.MEASUREMENTS)
    tables.write(pd.DataFrame(rows), path.with_suffix(".parquet"), schema, csv=path.suffix == ".csv")
    return Artefact(path, lambda: tables.read(path, schema), TableError)


def notebook(folder: Path, *_: Any) -> Artefact:
    v4, path = nbformat.v4, folder / "a-paper.ipynb"
    cell = v4.new_code_cell("page.claims()", outputs=[v4.new_output("execute_result", {"text/html": "<p>0.125</p>"})])
    sealed = {"secondlook": {"seal": seals.BLANK}}
    nbformat.write(v4.new_notebook(cells=[v4.new_markdown_cell("## Claims"), cell], metadata=sealed), path)
    seals.close(path)
    return Artefact(path, lambda: embed.body(path), seals.Damaged, named=False)  # the page that shows it names it


KINDS = {
    "data set": (dataset, "toy.txt"),
    "compressed data set": (dataset, "toy.txt.gz"),
    "model weights": (model, ".safetensors"),
    "model record": (model, ".json"),
    "training state": (training_state,),
    "measurements": (table, "measurements.parquet"),
    "runs": (table, "runs.parquet"),
    "table as CSV": (table, "measurements.csv"),
    "notebook": (notebook,),
}


@pytest.fixture(params=KINDS)
def artefact(request, tmp_path, monkeypatch) -> Artefact:
    make, *arguments = KINDS[request.param]
    return make(tmp_path, monkeypatch, *arguments)


def same(a: Any, b: Any) -> bool:
    if isinstance(a, pd.DataFrame):
        return a.equals(b)
    if isinstance(a, tuple | list):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def detected(artefact: Artefact, data: bytes) -> bool:
    """Whether the damaged file is refused, and refused properly."""
    artefact.path.write_bytes(data)
    try:
        artefact.read()
    except artefact.error as error:
        message = str(error)
    else:
        return False
    assert not artefact.named or artefact.path.name in message
    return True


@pytest.mark.parametrize("left", [0.0, 0.3, 0.9, -1], ids=["empty", "a third", "most", "all but a byte"])
def test_a_file_cut_off_is_refused_by_name(artefact, left):
    data = artefact.path.read_bytes()
    artefact.read()
    assert detected(artefact, data[: int(left * len(data)) if left >= 0 else left])


def test_a_flipped_bit_is_refused_or_changes_nothing(artefact):
    data, whole = artefact.path.read_bytes(), artefact.read()
    draw = random.Random(0)
    harmless = 0
    for _ in range(FLIPS):
        flipped = bytearray(data)
        flipped[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        if not detected(artefact, flipped):
            harmless += 1
            assert same(artefact.read(), whole)
    # Only a gzip header has bytes that mean nothing to us (time, system); every other file is covered to the last bit.
    assert harmless == 0 or artefact.path.suffix == ".gz"


def test_every_bit_of_a_small_table_is_covered(tmp_path):
    path = tmp_path / "m.parquet"
    tables.write(pd.DataFrame(ROWS[:1]), path, tables.MEASUREMENTS)
    data = bytearray(path.read_bytes())
    for i in range(len(data)):
        data[i] ^= 1
        path.write_bytes(data)
        with pytest.raises(seals.Damaged):
            seals.content(path)
        data[i] ^= 1
    path.write_bytes(data)
    assert len(tables.read(path, tables.MEASUREMENTS)) == 1


def test_a_list_of_digests_that_is_damaged_vouches_for_nothing(tmp_path):
    artefact = table(tmp_path, None, "measurements.csv")
    sums = tmp_path / seals.SUMS
    text = sums.read_text()
    for damaged in ("", text[:40], text.replace("measurements", "measurementz"), text.replace(text[0], "g", 1)):
        sums.write_text(damaged)
        with pytest.raises(TableError, match=r"measurements\.csv"):
            artefact.read()


def test_the_page_of_a_paper_says_what_is_damaged(tmp_path):
    tables.write(pd.DataFrame(ROWS), tmp_path / "tables" / "measurements.parquet", tables.MEASUREMENTS)
    path = tmp_path / "tables" / "measurements.parquet"
    path.write_bytes(path.read_bytes()[:-1])
    found = evidence.of_all(tmp_path, "smoke")
    assert found.measurements.empty
    assert any("tables/measurements.parquet cannot be read" in hole for hole in found.holes)


def test_a_damaged_part_stops_its_paper_and_no_other(tmp_path):
    """`assess` reads the jobs' tables: one damaged part refuses its paper, by name; deleted, it is made again."""
    paper = registry.paper("gptq")
    part = layout.part(tmp_path, "measurements", "gptq", next(iter(paper.at("smoke"))))
    tables.write(pd.DataFrame([]), part, tables.MEASUREMENTS)
    part.write_bytes(part.read_bytes()[:-9] + b"123456789")
    with pytest.raises(TableError, match=rf"{part.name}.*delete it and run snakemake again"):
        assembly.assess(paper, "smoke", tmp_path)
