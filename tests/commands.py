"""The commands on a model of one's own, as a user calls them in the folder of that model."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from secondlook.cli import app, main

invoke = CliRunner().invoke


def at_home(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, text: str) -> Iterator[Path]:
    """A folder, entered, with the user's module in it; the module is forgotten afterwards."""
    (folder / f"{name}.py").write_text(text)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield folder
    sys.modules.pop(name, None)


def output(*arguments: str) -> str:
    """What a command that succeeds prints."""
    done = invoke(app, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def refusal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The plain words, on one line, of a command that refuses."""
    monkeypatch.setattr(sys, "argv", ["secondlook", *arguments])
    with pytest.raises(SystemExit) as exit:
        main()
    assert exit.value.code == 1
    text = capsys.readouterr().err
    assert "Traceback" not in text
    return text.replace("\n", " ")
