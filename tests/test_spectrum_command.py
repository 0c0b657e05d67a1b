"""`secondlook spectrum`, as a user with a model of their own meets it."""

import json
import re
import shlex
import sys
from functools import partial
from pathlib import Path

import pytest

from commands import at_home, output, refusal

MODULE = """
import torch
from torch import nn
from torch.nn import functional as F

def build():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))

def with_loss():
    return build(), F.cross_entropy

def points():
    torch.manual_seed(1)
    return torch.randn(40, 6), torch.randint(0, 3, (40,))

def batches():
    x, y = points()
    return [(x[:10], y[:10]), (x[10:], y[10:])]

def wrong():
    return torch.zeros(3)

def broken():
    raise RuntimeError("no such weights")
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    yield from at_home(tmp_path, monkeypatch, "mynet", MODULE)


run = partial(output, "spectrum")


def test_the_full_treatment(here):
    text = run("mynet:build", "--data", "mynet:points", "--loss", "cross_entropy", "--top", "4", "--density")
    for word in ("83 parameters", "40 points", "certain to lie in", "largest eigenvalue", "spectrum.json"):
        assert word in text
    found = json.loads((here / "spectrum" / "spectrum.json").read_text())
    assert len(found["eigenvalues"]) == 4
    assert found["model"] == "mynet:build"
    assert {row["name"] for row in found["layers"]} == {"0", "2"}
    assert found["density"]["value"]
    for kind in ("png", "svg"):
        assert (here / "spectrum" / f"spectrum.{kind}").stat().st_size > 5000


def test_ways_to_say_the_same(here):
    few = ("--top", "2", "--no-density", "--no-layers", "--out")
    run("mynet:build", "--data", "mynet:points", "--loss", "cross_entropy", *few, "a")
    run("mynet:with_loss", "--data", "mynet:batches", *few, "b", "--quiet")
    run("mynet.py:with_loss", "--data", "mynet.py:points", "--memory", "50 MB", *few, "c")
    values = [[e["value"] for e in json.loads((here / k / "spectrum.json").read_text())["eigenvalues"]] for k in "abc"]
    assert values[0] == pytest.approx(values[1], rel=1e-4)
    assert values[0] == pytest.approx(values[2], rel=1e-4)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["mynet"], "must read module:function"),
        (["yournet:build"], "run the command in the folder where it lies"),
        (["yournet.py:build"], "no file yournet.py"),
        (["mynet:buidl"], "did you mean build"),
        (["mynet:wrong"], "torch.nn.Module"),
        (["mynet:broken"], "no such weights"),
        (["mynet:build"], "--loss cross_entropy"),
        (["mynet:build", "--loss", "crossentropy"], "one of cross_entropy, mse"),
        (["mynet:build", "--loss", "mse"], "outputs of shape (4, 3)"),
        (["mynet:with_loss", "--memory", "lots"], "must read like 2GB"),
        (["mynet:with_loss", "--memory", "10kB"], "allow"),
        (["mynet:with_loss", "--data", "mynet:wrong"], "inputs, targets"),
        (["mynet:with_loss", "--matrix", "fisher"], "'hessian' or 'ggn'"),
    ],
)
def test_mistakes_get_one_plain_line(arguments, said, here, monkeypatch, capsys):
    if "--data" not in arguments:
        arguments = [*arguments, "--data", "mynet:points"]
    assert said in refusal(monkeypatch, capsys, "spectrum", *arguments)
    assert not (here / "spectrum").exists()


def test_the_page_runs(tmp_path, monkeypatch):
    """The example of docs/spectrum.md, file, command and Python, as it stands there."""
    page = (Path(__file__).parents[1] / "docs" / "spectrum.md").read_text()
    file, *examples = re.findall(r"```python\n(.*?)```", page, re.S)
    command = re.search(r"```bash\n(secondlook spectrum [^\n]*)\n", page)[1]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    Path("digits_net.py").write_text(file)
    run(*shlex.split(command)[2:])
    assert json.loads(Path("digits-spectrum/spectrum.json").read_text())["eigenvalues"]
    for python in examples:
        exec(python, {})
    sys.modules.pop("digits_net", None)
