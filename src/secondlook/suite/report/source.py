"""Reads a method's source without importing it, and colours it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from markupsafe import Markup
from pygments import highlight as _highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import get_lexer_by_name
from pygments.util import ClassNotFound

_FORMAT = HtmlFormatter(cssclass="code", wrapcode=True)


@dataclass(frozen=True)
class Source:
    """A function or class as it stands in a file."""

    file: str
    first: int  # line numbers, counted from 1
    last: int
    text: str  # without its docstring, which is written for another reader

    @property
    def lines(self) -> int:
        return self.text.count("\n") + 1


def find(room: Path, name: str) -> Source | None:
    """The definition of `name` (or `Class.method`) in a room, `method.py` first; None where there is none."""
    for path in _files(room):
        node: ast.AST | None = _tree(path)
        for part in name.split("."):
            node = next((n for n in _definitions(node) if n.name == part), None) if node else None
        if node is not None:
            return _cut(path, node)  # type: ignore[arg-type]
    return None


def docstring(path: Path) -> str:
    """A module's docstring, "" where it has none or does not exist."""
    return (ast.get_docstring(_tree(path)) or "") if path.exists() else ""


@cache
def highlight(text: str, language: str = "python") -> Markup:
    """Source code as HTML with the classes of `style()`."""
    try:
        lexer = get_lexer_by_name(language)
    except ClassNotFound:
        lexer = get_lexer_by_name("text")
    return Markup(_highlight(text, lexer, _FORMAT))


def _files(room: Path) -> list[Path]:
    others = sorted(p for p in room.glob("*.py") if p.name not in ("method.py", "__init__.py"))
    return [p for p in (room / "method.py",) if p.exists()] + others


@cache
def _tree(path: Path) -> ast.Module:
    try:
        return ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError, OSError):
        return ast.Module(body=[], type_ignores=[])


def _definitions(node: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef]:
    for child in getattr(node, "body", []):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield child


def _cut(path: Path, node: ast.FunctionDef | ast.ClassDef) -> Source:
    first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
    lines = path.read_text(encoding="utf-8").splitlines()
    hidden: set[int] = set()
    for inner in ast.walk(node):
        if isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and ast.get_docstring(inner):
            doc = inner.body[0]
            if len(inner.body) > 1:
                after = doc.end_lineno + 1  # the blank line that sets a docstring apart goes with it
                blank = after <= len(lines) and not lines[after - 1].strip()
                hidden |= set(range(doc.lineno, after + blank))
    kept = [lines[i - 1] for i in range(first, node.end_lineno + 1) if i not in hidden]  # type: ignore[operator]
    indent = len(kept[0]) - len(kept[0].lstrip())
    text = "\n".join(line[indent:] if line[:indent].isspace() or not indent else line for line in kept)
    return Source(path.name, first, node.end_lineno or first, text)
