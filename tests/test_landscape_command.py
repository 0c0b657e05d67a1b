"""`secondlook landscape`, as a user with a model of their own meets it."""

import json
import re
import shlex
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

from commands import at_home, output, refusal

MODULE = """
import torch
from torch import nn
from torch.nn import functional as F

def build():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3))

def points():
    torch.manual_seed(1)
    return torch.randn(40, 6), torch.randint(0, 3, (40,))

def explosive(outputs, targets):
    return torch.exp(outputs.abs()).mean()
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    yield from at_home(tmp_path, monkeypatch, "mybn", MODULE)


run = partial(output, "landscape")


MINE = ("mybn:build", "--data", "mybn:points", "--loss", "cross_entropy")


def test_a_plane_along_hessian_axes(here):
    text = run(*MINE, "--points", "7", "--span", "0.5")
    for word in ("99 parameters", "eigenvector 1", "certain to lie in", "lowest", "landscape.json"):
        assert word in text
    found = json.loads((here / "landscape" / "landscape.json").read_text())
    assert len(found["losses"]) == len(found["losses"][0]) == 7
    assert found["losses"][3][3] == pytest.approx(found["loss"])
    assert found["coordinates"][0] == -0.5
    assert found["model"] == "mybn:build"
    assert found["axes"][0]["eigenvalue"]["low"] <= found["axes"][0]["eigenvalue"]["value"]
    for kind in ("png", "svg"):
        assert (here / "landscape" / f"landscape.{kind}").stat().st_size > 5000


def test_a_line_in_random_directions(here):
    options = ("--line", "--directions", "random", "--points", "5", "--out")
    lines = {}
    for mode in ("eval", "batch", "recompute"):
        run(*MINE, *options, mode, "--batch-norm", mode, "--quiet")
        lines[mode] = json.loads((here / mode / "landscape.json").read_text())
        assert lines[mode]["batch_norm"] == mode
        assert lines[mode]["normalize"] == "filter"
    assert lines["eval"]["losses"] != pytest.approx(lines["batch"]["losses"], abs=1e-3)
    run(*MINE, *options, "raw", "--normalize", "none", "--biases")
    raw = json.loads((here / "raw" / "landscape.json").read_text())
    assert raw["normalize"] is None
    assert raw["axes"][0]["length"] == pytest.approx(99**0.5, rel=0.3)


def test_what_diverges_is_told_and_drawn(here):
    text = run(*MINE[:4], "mybn:explosive", "--points", "9", "--span", "60")
    assert "not finite" in text
    found = json.loads((here / "landscape" / "landscape.json").read_text())
    assert None in found["losses"][0]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--points", "8"], "odd number"),
        (["--span", "-1"], "span above 0"),
        (["--directions", "steepest"], "'random', 'hessian'"),
        (["--batch-norm", "train"], "eval, batch, recompute"),
        (["--normalize", "model"], "'filter', 'layer'"),
        (["--memory", "lots"], "must read like 2GB"),
        (["--memory", "1kB"], "allow"),
        (["--loss", "mse"], "outputs of shape"),
    ],
)
def test_mistakes_get_one_plain_line(arguments, said, here, monkeypatch, capsys):
    assert said in refusal(monkeypatch, capsys, "landscape", *MINE, *arguments)
    assert not (here / "landscape").exists()


def test_the_page_runs(tmp_path, monkeypatch):
    """The example of docs/landscape.md, file, command and Python, as it stands there."""
    page = (Path(__file__).parents[1] / "docs" / "landscape.md").read_text()
    file, python = re.findall(r"```python\n(.*?)```", page, re.S)
    command = re.search(r"```bash\n(secondlook landscape [^\n]*)\n", page)[1]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    Path("digits_bn.py").write_text(file)
    run(*shlex.split(command)[2:])
    assert json.loads(Path("digits-landscape/landscape.json").read_text())["losses"]
    made = {}
    exec(python, made)
    assert torch.isfinite(made["found"].losses).all()
    sys.modules.pop("digits_bn", None)
