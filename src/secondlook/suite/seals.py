"""Files that vouch for themselves: each carries the SHA-256 of its own bytes, taken while the digest's place is blank.

`BLANK` is written anywhere into the file (Parquet metadata, a JSON field, a notebook's metadata, a safetensors header),
`close` fills it in, and `content` hands the bytes out only when they are those that were written. CSV has no such
place: there `vouch` keeps the digest in a `SHA256SUMS` beside it, which `sha256sum -c` reads as well.
"""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path
from typing import Any

from secondlook.suite.files import write_atomically, write_text

_KEY, _ZEROS = b"secondlook-sha256:", b"0" * 64
BLANK = (_KEY + _ZEROS).decode()
SUMS = "SHA256SUMS"


class Damaged(ValueError):
    """A file whose bytes are not those that were written, or for which nothing vouches."""


def close(path: Path) -> None:
    """Fill in the seal of a file that was just written with `BLANK` in it."""
    data = path.read_bytes()
    at = data.rfind(BLANK.encode())
    if at < 0:
        raise ValueError(f"{path} was written without a place for its seal")
    with path.open("r+b") as file:
        file.seek(at + len(_KEY))
        file.write(sha256(data).hexdigest().encode())


def content(path: Path) -> bytes:
    """The bytes of a sealed file, or of a CSV file. Raises `Damaged`, without the path, when they were changed.

    A CSV file with no `SHA256SUMS` in its folder is handed out as it is: its schema is all that guards it.
    """
    data = path.read_bytes()
    if path.suffix == ".csv":
        sums = path.with_name(SUMS)
        if sums.exists():
            _compare(_listed(sums).get(path.name, f"nothing in {SUMS}"), sha256(data).hexdigest())
        return data
    at = data.rfind(_KEY) + len(_KEY)
    if at < len(_KEY):
        raise Damaged("it is empty, cut off, or not sealed by this version")
    said = data[at : at + 64].decode(errors="replace")
    _compare(said, sha256(data[:at] + _ZEROS + data[at + 64 :]).hexdigest())
    return data


def vouch(path: Path) -> None:
    """Keep the digest of a file in the `SHA256SUMS` of its folder."""
    sums = path.with_name(SUMS)
    listed = {n: d for n, d in (_listed(sums) if sums.exists() else {}).items() if path.with_name(n).exists()}
    listed[path.name] = sha256(path.read_bytes()).hexdigest()
    write_text(sums, "".join(f"{digest}  {name}\n" for name, digest in sorted(listed.items())))


def write_json(path: Path, facts: dict[str, Any]) -> Path:
    """Write a mapping as sealed JSON, atomically."""

    def write(temporary: Path) -> None:
        temporary.write_text(json.dumps(facts | {"seal": BLANK}, indent=2) + "\n", encoding="utf-8")
        close(temporary)

    return write_atomically(path, write)


def read_json(path: Path) -> dict[str, Any]:
    """What `write_json` wrote. Raises `Damaged`."""
    facts = json.loads(content(path))
    if not isinstance(facts, dict):
        raise Damaged("it holds no mapping of facts")
    return {name: value for name, value in facts.items() if name != "seal"}


def _listed(sums: Path) -> dict[str, str]:
    lines = (line.split("  ", 1) for line in sums.read_text(encoding="utf-8", errors="replace").splitlines())
    return {pair[1]: pair[0] for pair in lines if len(pair) == 2}


def _compare(said: str, found: str) -> None:
    if said != found:
        raise Damaged(f"its bytes are not those that were written: sha256 {said} expected, {found} found")
