"""The `gpu` scale on a stand-in for a GPU: every experiment with its settings, data and models, shrunk by `check`."""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module

import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

from secondlook.cli import app
from secondlook.problems import datasets, fetching, zoo
from secondlook.problems.datasets import Split
from secondlook.suite import registry, runner, tables
from secondlook.suite.claims import select
from secondlook.suite.errors import DeviceMissing, UnknownName
from secondlook.suite.scales import SCALES, resolve_device
from stand_in_gpu import stand_in_gpu

ROWS, CHARACTERS = 32, 2000  # of every part of a data set: evaluating on all of it would take longer than the rest
EXPERIMENTS = [
    pytest.param(paper, name, id=f"{paper.slug}/{name}")
    for paper in registry.replicated().values()
    for name in paper.at("gpu")
]


@pytest.fixture
def small_data(monkeypatch):
    """Data sets cut to their first rows; those with files must have been declared and be here."""
    declared: list[str] = []
    load, corpus, fetch = datasets.load, datasets.corpus, datasets.fetch

    def needs(names: list[str]) -> None:
        declared.extend(names)
        for name in names:
            if not fetching.is_present(name):
                pytest.skip(f"{name} is not in {fetching.data_home()}; `secondlook data {name}` may fetch it")

    def known(name: str) -> str:
        assert name in declared or not fetching.source(name).files, f"declare `data: [{name}]` in the card's gpu line"
        return name

    def few_rows(name: str) -> datasets.Dataset:
        return load(known(name)).map(lambda split: Split(split.x[:ROWS], split.y[:ROWS]))

    def few_characters(name: str) -> datasets.Corpus:
        whole = corpus(known(name))
        return replace(whole, **{part: getattr(whole, part)[:CHARACTERS] for part in ("train", "val", "test")})

    monkeypatch.setattr(datasets, "load", few_rows)
    monkeypatch.setattr(datasets, "corpus", few_characters)
    monkeypatch.setattr(datasets, "fetch", lambda name, **kw: fetch(known(name), **kw))
    return needs


@pytest.fixture
def small_models(monkeypatch, tmp_path):
    """Trains a reference model at gpu scale, shrunk, into the folder it returns."""

    def train(names: list[str]) -> None:
        for name in names:
            model = zoo._module(name)
            assert model.CHECK.keys() <= model.SCALES["gpu"].keys(), f"{name}: CHECK shrinks what is not there"
            monkeypatch.setitem(model.SCALES, "gpu", model.SCALES["gpu"] | model.CHECK)
            zoo.train(name, "gpu", 0, tmp_path, "cuda")

    train.folder = tmp_path
    return train


@pytest.mark.parametrize(("paper", "name"), EXPERIMENTS)
def test_every_experiment_runs_with_its_gpu_settings(paper, name, small_data, small_models):
    settings = paper.at("gpu")[name]
    assert settings.check, f"{paper.slug}: give the gpu settings of {name} a `check` that takes a CPU a second or two"
    small_data(paper.data(name, "gpu"))
    run = runner.Run(paper.slug, name, "gpu", (0,), "cuda", small_models.folder, paper.metrics)
    with stand_in_gpu() as gpu:
        small_models(list(paper.experiments[name].models))
        getattr(import_module(f"{paper.module}.experiment"), name)(run, **settings.set | settings.check)
    assert gpu.operations > 10, "the device of the run is not used"
    table = tables.conform(pd.DataFrame(run.rows), tables.MEASUREMENTS)
    for claim in paper.claims:
        for test in (claim.test, claim.control_test) if "gpu" in claim.scales else ():
            for selector in test.selectors():
                if selector.experiment == name:  # what a claim reads at this scale is measured at this scale
                    select(table, selector.model_copy(update={"step": None, "seed": None}))


def test_auto_takes_the_gpu_where_a_scale_wants_one(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert {s: resolve_device(s) for s in SCALES} == {"smoke": "cpu", "laptop": "cpu", "gpu": "cuda", "paper": "cuda"}
    assert resolve_device("laptop", "cuda") == "cuda"
    assert resolve_device("gpu", "cpu") == "cpu"
    with pytest.raises(UnknownName, match="did you mean cuda"):
        resolve_device("gpu", "cudo")


def test_without_a_gpu_one_message_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for scale, wanted in (("gpu", "auto"), ("paper", "auto"), ("gpu", "cuda"), ("laptop", "cuda")):
        with pytest.raises(DeviceMissing, match=r"needs a CUDA GPU.*`scale=laptop`.*`--device cpu`"):
            resolve_device(scale, wanted)
    done = CliRunner().invoke(app, ["run", "gptq", "speed", "--scale", "gpu", "--results", str(tmp_path / "gpu")])
    assert isinstance(done.exception, DeviceMissing)
    assert not list(tmp_path.glob("**/*.parquet"))
