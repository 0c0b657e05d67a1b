"""Reference models: trained, stored with provenance, loaded, and refused when something is off."""

from __future__ import annotations

import hashlib
import json

import pytest
import torch

from secondlook.problems import datasets, zoo
from secondlook.problems.training import accuracy
from secondlook.suite import seals
from secondlook.suite.errors import UnknownName


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Results folder with digits-cnn trained at laptop scale, seed 0."""
    folder = tmp_path_factory.mktemp("results")
    zoo.train("digits-cnn", "laptop", 0, folder)
    return folder


def test_names_follow_the_files():
    assert "digits-cnn" in zoo.names()
    assert zoo.names() == sorted(zoo.names())
    assert not any("_" in name for name in zoo.names())


@pytest.mark.parametrize("name", zoo.names())
def test_every_model_declares_what_is_needed(name):
    module = zoo._module(name)
    assert module.__doc__
    assert {"smoke", "laptop", "gpu"} <= set(module.SCALES)
    for settings in module.SCALES.values():
        assert json.loads(json.dumps(settings)) == settings  # what is stored is what was meant
    model = module.build(module.SCALES["smoke"])
    assert sum(p.numel() for p in model.parameters()) > 0


def test_model_is_trained_and_loads_as_it_was_measured(root):
    facts = zoo.provenance("digits-cnn", root=root)
    data = datasets.load("digits")
    before = torch.get_rng_state()
    model = zoo.load("digits-cnn", root=root, scale="laptop")
    assert torch.equal(before, torch.get_rng_state())
    assert not model.training
    assert accuracy(model, *data.test) == facts["metrics"]["test_accuracy"] > 90
    assert accuracy(model, *data.val) == facts["metrics"]["val_accuracy"]


def test_provenance_is_complete(root):
    weights, record = zoo.paths("digits-cnn", 0, root)
    assert weights == root / "models" / "digits-cnn" / "seed0.safetensors"
    facts = json.loads(record.read_text())
    assert {"git_commit", "dirty", "torch", "python", "threads", "device"} <= set(facts)
    assert (facts["name"], facts["scale"], facts["seed"]) == ("digits-cnn", "laptop", 0)
    assert facts["settings"] == zoo._module("digits-cnn").SCALES["laptop"]
    assert facts["wall_s"] > 0
    assert facts["sha256"] == hashlib.sha256(weights.read_bytes()).hexdigest()
    assert sorted(entry.name for entry in weights.parent.iterdir()) == ["seed0.json", "seed0.safetensors"]


def test_training_is_reproducible_and_seeded(tmp_path):
    for folder, seed in (("a", 0), ("b", 0), ("a", 1)):
        zoo.train("digits-cnn", "smoke", seed, tmp_path / folder)
    weights = [zoo.paths("digits-cnn", s, tmp_path / f)[0].read_bytes() for f, s in (("a", 0), ("b", 0), ("a", 1))]
    assert weights[0] == weights[1]
    assert weights[0] != weights[2]


def test_failed_training_leaves_the_old_model(root, monkeypatch):
    weights, record = zoo.paths("digits-cnn", 0, root)
    before = weights.read_bytes(), record.read_bytes()

    def fails(*_):
        raise RuntimeError("out of luck")

    monkeypatch.setattr(zoo._module("digits-cnn"), "train", fails)
    with pytest.raises(RuntimeError, match="out of luck"):
        zoo.train("digits-cnn", "laptop", 0, root)
    assert (weights.read_bytes(), record.read_bytes()) == before


def test_missing_model_names_the_command(tmp_path):
    with pytest.raises(zoo.ModelMissing, match="run: secondlook train digits-cnn --scale gpu --seed 3"):
        zoo.load("digits-cnn", 3, "gpu", root=tmp_path)


def test_record_of_a_failed_training_is_no_model(tmp_path):
    _, record = zoo.paths("digits-cnn", 0, tmp_path)
    record.parent.mkdir(parents=True)
    seals.write_json(record, {"status": "failed", "note": "RuntimeError: out of luck"})
    with pytest.raises(zoo.ModelMissing, match=r"failed \(RuntimeError: out of luck\); run: secondlook train"):
        zoo.load("digits-cnn", root=tmp_path)


def test_model_of_another_scale_is_refused(root):
    with pytest.raises(zoo.ModelMissing, match=r"trained at scale laptop, not gpu; run: secondlook train"):
        zoo.load("digits-cnn", 0, "gpu", root=root)


def test_corrupt_weights_are_refused(tmp_path):
    zoo.train("digits-cnn", "smoke", 0, tmp_path)
    weights, _ = zoo.paths("digits-cnn", 0, tmp_path)
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(zoo.ModelCorrupt, match=r"sha256.*run: secondlook train digits-cnn --scale smoke --seed 0"):
        zoo.load("digits-cnn", root=tmp_path)
    weights.unlink()
    with pytest.raises(zoo.ModelMissing, match=r"seed0\.safetensors is missing"):
        zoo.load("digits-cnn", root=tmp_path)


def test_unknown_names_and_scales_are_refused(tmp_path):
    with pytest.raises(UnknownName, match=r"did you mean .*digits-cnn"):
        zoo.load("digits-cmm", root=tmp_path)
    with pytest.raises(UnknownName, match="no scale of digits-cnn is called 'galaxy'"):
        zoo.train("digits-cnn", "galaxy", 0, tmp_path)
