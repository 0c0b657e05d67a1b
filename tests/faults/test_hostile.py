"""Hostile input: nothing that is read can run code, leave its folder, or break out of its place on a page."""

from __future__ import annotations

import ast
import hashlib
import json
import pickle
import re
import types
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml

import secondlook
from secondlook.problems import checkpoint, zoo
from secondlook.problems.sources import DATASETS
from secondlook.suite import cards, registry, runner, seals, tables
from secondlook.suite.errors import CardError, UnknownName
from secondlook.suite.judge import judge
from secondlook.suite.report import site

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted([*Path(secondlook.__file__).parent.rglob("*.py"), *(ROOT / "workflows").glob("*.smk")])
SCRIPT, HANDLER = "<script>alert(1)</script>", '" onmouseover="alert(1)'
CARD = f"""
slug: evil-paper
title: '{SCRIPT} {HANDLER}'
family: solvers
year: 2020
fidelity: exact
summary: '{SCRIPT} {HANDLER}'
metrics: {{m: {{label: '{SCRIPT}{HANDLER}', unit: '{HANDLER}'}}}}
experiments: {{works: {{about: '{SCRIPT}', scales: {{laptop: {{seeds: 3}}}}}}, breaks: {{about: x, scales: {{laptop: {{seeds: 1}}}}}}}}
claims:
  - id: evil
    statement: '{SCRIPT}'
    source: '{HANDLER}'
    setting: s
    unit: '{HANDLER}'
    scales: [laptop]
    test: {{form: value, experiment: works, metric: m, of: {{method: '{SCRIPT}{HANDLER}'}}, is: above, than: 0}}
    control: {{why: '{SCRIPT}', of: {{method: theirs}}}}
  - id: broken
    statement: An experiment that raises.
    source: s
    setting: s
    unit: s
    scales: [laptop]
    test: {{form: value, experiment: breaks, metric: m, of: {{method: ours}}, is: above, than: 0}}
    control: {{why: c, of: {{method: theirs}}}}
figures: {{f: {{caption: '{SCRIPT}{HANDLER}'}}}}
"""  # noqa: E501


# ---------------------------------------------------------------------------------------------------- code in data


def calls(tree: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    """(dotted name, call) of every call in a module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def python(path: Path) -> ast.AST:
    """A source's tree; of a workflow file the lines that are Python are enough to look at."""
    text = path.read_text(encoding="utf-8")
    return ast.parse(text if path.suffix == ".py" else "")


def test_no_source_can_load_a_pickle_or_unpack_an_archive_or_evaluate_text():
    assert len(SOURCES) > 100
    never = {"pickle", "cPickle", "dill", "joblib", "cloudpickle", "marshal", "shelve", "tarfile", "zipfile"}
    wrong = []
    for path in SOURCES:
        for node in ast.walk(python(path)):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            wrong += [f"{path}: imports {n}" for n in names if n.split(".")[0] in never]
        for name, call in calls(python(path)):
            given = {k.arg: ast.unparse(k.value) for k in call.keywords}
            last = name.split(".")[-1]
            bad = (
                name in ("eval", "exec", "os.system", "os.popen", "torch.save", "torch.jit.load", "pd.read_pickle")
                or (name == "torch.load" and given.get("weights_only") != "True")
                or (name in ("np.load", "numpy.load") and given.get("allow_pickle") != "False")
                or given.get("allow_pickle") == "True"
                or given.get("shell") == "True"
                or last in ("unpack_archive", "extractall", "Untar", "Unzip", "read_pickle", "to_pickle")
                or (name == "yaml.load" and "SafeLoader" not in given.get("Loader", ""))
                or last in ("unsafe_load", "full_load")
            )
            wrong += [f"{path}:{call.lineno}: {ast.unparse(call)[:80]}"] if bad else []
    assert wrong == []
    text = "\n".join(p.read_text(encoding="utf-8") for p in SOURCES if p.suffix == ".smk")
    assert not re.search(r"\b(pickle|joblib|eval|exec|yaml\.load|unpack_archive|extractall)\b", text)


class Bomb:
    """A pickle of this creates a file when it is loaded."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return Path.touch, (self.target,)


@pytest.fixture(params=["pickle", "torch"])
def bomb(request, tmp_path) -> tuple[bytes, Path]:
    """A hostile file, and the file that it creates where it goes off."""
    target, path = tmp_path / "went-off", tmp_path / "bomb.pt"
    if request.param == "torch":
        torch.save(Bomb(target), path)
    else:
        path.write_bytes(pickle.dumps(Bomb(target)))
    data = path.read_bytes()
    return data, target


def test_a_hostile_model_is_refused_even_where_its_record_vouches_for_it(bomb, tmp_path):
    data, target = bomb
    weights, record = zoo.paths("digits-cnn", 0, tmp_path)
    weights.parent.mkdir(parents=True)
    weights.write_bytes(data)
    settings = zoo._module("digits-cnn").SCALES["smoke"]
    facts = {"status": "ok", "scale": "smoke", "settings": settings, "sha256": hashlib.sha256(data).hexdigest()}
    seals.write_json(record, facts)
    with pytest.raises(zoo.ModelCorrupt, match=r"seed0\.safetensors.*run: secondlook train"):
        zoo.load("digits-cnn", root=tmp_path)
    assert not target.exists()


def test_a_hostile_checkpoint_or_table_is_refused(bomb, tmp_path):
    data, target = bomb
    for path, read in (
        (tmp_path / "state.safetensors", checkpoint.read),
        (tmp_path / "m.parquet", lambda p: tables.read(p, tables.MEASUREMENTS)),
        (tmp_path / "m.csv", lambda p: tables.read(p, tables.MEASUREMENTS)),
    ):
        path.write_bytes(data + seals.BLANK.encode())
        seals.close(path)
        with pytest.raises(Exception, match=path.name):
            read(path)
    assert not target.exists()


# ------------------------------------------------------------------------------------------------------- downloads


def test_every_source_has_a_digest_and_every_address_is_encrypted():
    files = [file for source in DATASETS.values() for file in source.files]
    assert len(files) > 10
    for file in files:
        assert re.fullmatch(r"[0-9a-f]{64}", file.sha256)
        assert file.url is None or file.url.startswith("https://")
        assert not Path(file.path).is_absolute()
        assert ".." not in Path(file.path).parts


# ----------------------------------------------------------------------------------------------------------- cards


@pytest.fixture
def room(tmp_path) -> Path:
    path = tmp_path / "solvers" / "evil_paper" / "card.yaml"
    path.parent.mkdir(parents=True)
    return path


@pytest.mark.parametrize("tag", ["!!python/object/apply:os.system ['true']", "!!python/name:os.system", "!x y"])
def test_a_card_cannot_make_objects(room, tag):
    room.write_text(CARD.replace("fidelity: exact", f"fidelity: {tag}"))
    with pytest.raises(CardError, match=r"card\.yaml, line 6: not valid YAML"):
        cards.load(room)


NAMES = ["__import__", "os.system", "_private", "a__b", "../../etc/passwd", "a b", "x;rm -rf .", "$(id)", "Upper", ""]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["experiments", "figures", "models", "data", "slug", "claim"])
def test_a_card_names_nothing_but_what_its_room_may_hold(room, kind, name):
    raw = yaml.safe_load(CARD)
    if kind in ("experiments", "figures"):
        raw[kind][name] = next(iter(raw[kind].values()))
    elif kind == "models":
        raw["experiments"]["works"]["models"] = {name: "shared"}
    elif kind == "data":
        raw["experiments"]["works"]["data"] = [name]
    elif kind == "slug":
        raw["slug"] = name
    else:
        raw["claims"][0]["id"] = name
    room.write_text(yaml.safe_dump(raw))
    with pytest.raises(CardError, match=r"card\.yaml"):
        cards.load(room)


def test_what_a_room_imported_is_not_the_card_s_to_call(monkeypatch):
    paper = cards.Paper.model_validate(yaml.safe_load(CARD))
    module = types.ModuleType("secondlook.solvers.evil_paper.experiment")
    exec("from os import remove as works\nfrom functools import partial\ndef breaks(run): pass", vars(module))
    monkeypatch.setitem(__import__("sys").modules, "secondlook.solvers.evil_paper", module)
    monkeypatch.setitem(__import__("sys").modules, module.__name__, module)
    with pytest.raises(UnknownName, match=r"function in evil_paper/experiment\.py is called 'works'"):
        registry.function(paper, "experiment", "works")
    assert registry.function(paper, "experiment", "breaks").__name__ == "breaks"


# ------------------------------------------------------------------------------------------------------- the report


class Tags(HTMLParser):
    """What a browser would act upon."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.scripts: list[str | None] = []
        self.acts: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        self.scripts += [dict(attrs).get("src")] if tag == "script" else []
        self.acts += [f"{k}={v}" for k, v in attrs if k.startswith("on") or (v or "").startswith("javascript:")]


def test_titles_logs_and_failure_notes_stay_text(tmp_path, monkeypatch, capsys):
    paper = cards.Paper.model_validate(yaml.safe_load(CARD))
    results = tmp_path / "laptop"

    def works(run):
        for seed in run.seeds:
            run.record("m", 1.0 + seed, method=SCRIPT + HANDLER, problem=SCRIPT + HANDLER, seed=seed)
        run.note(SCRIPT + HANDLER)

    def breaks(run):
        raise ValueError(f"{SCRIPT} {HANDLER} [/red] [bold")

    functions = {"works": works, "breaks": breaks}
    monkeypatch.setattr(runner.registry, "function", lambda paper, file, name: functions[name])
    rows, runs = [], []
    for name in functions:
        done, row = runner.run(runner.Job.of(paper, name, "laptop"), results)
        rows, runs = [*rows, *done.rows], [*runs, row]
    measured = tables.write(pd.DataFrame(rows), results / "tables" / "measurements.parquet", tables.MEASUREMENTS)
    ran = tables.write(pd.DataFrame(runs), results / "tables" / "runs.parquet", tables.RUNS)
    verdicts = judge(paper, "laptop", measured, ran)
    tables.write(verdicts, results / "tables" / "verdicts.parquet", tables.VERDICTS)
    figures = results / "figures" / "evil-paper"
    figures.mkdir(parents=True)
    (figures / "f.txt").write_text(f"not drawn: {SCRIPT}{HANDLER}\n")
    seals.write_json(results / "models" / "char-gpt" / "seed0.json", {"status": "failed", "note": SCRIPT + HANDLER})

    index = site.build(results, "laptop", papers=[paper])
    pages = {p: Tags(p) for p in index.parent.rglob("*.html")}
    assert len(pages) > 3
    for path, page in pages.items():
        assert page.acts == [], path
        assert all(src and "/" in src for src in page.scripts), path
    text = (index.parent / "papers" / "evil-paper.html").read_text()
    assert "ValueError: &lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert "&lt;script&gt;" in index.read_text()


def test_a_note_with_markup_in_it_does_not_stop_the_other_experiments(tmp_path, monkeypatch):
    """The terminal has a markup of its own: an unmatched closing tag in an error must not become an error."""
    from typer.testing import CliRunner

    from secondlook import cli

    def breaks(run, **_):
        raise ValueError("[/red] [bold] [/]")

    monkeypatch.setattr(runner.registry, "function", lambda paper, file, name: breaks)
    options = ["--scale", "smoke", "--results", str(tmp_path / "smoke"), "--quiet", "--keep-going"]
    done = CliRunner().invoke(cli.app, ["run", "log-bessel-gpu", *options])
    assert done.exit_code == 0, done.output
    experiments = registry.paper("log-bessel-gpu").at("smoke")
    ran = [tables.read(p, tables.RUNS) for p in tmp_path.glob("smoke/runs/log-bessel-gpu/*.parquet")]
    assert len(ran) == len(experiments)
    assert {note for t in ran for note in t["note"]} == {"ValueError: [/red] [bold] [/]"}


def test_a_file_of_facts_cannot_smuggle_in_a_type(tmp_path):
    path = tmp_path / "seed0.json"
    path.write_text(json.dumps(["not", "a", "mapping", seals.BLANK]))
    seals.close(path)
    with pytest.raises(ValueError, match="mapping"):
        seals.read_json(path)
