"""Files of data sets: found in the data folder or downloaded into it, and verified either way."""

from __future__ import annotations

import gzip
import hashlib
import logging
import os
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

from secondlook.problems.sources import DATASETS, File, Source
from secondlook.suite.errors import DatasetCorrupt, DatasetMissing, UnknownName

__all__ = ["DatasetCorrupt", "DatasetMissing", "contents", "data_home", "fetch", "is_present", "source"]

SCHEME = "https://"  # nothing is fetched otherwise, not even after a redirect

Downloader = Callable[[str, str, object], None]
"""pooch's call: address, name of the temporary file to fill, pooch (or None)."""


def data_home() -> Path:
    """The data folder: ``SECONDLOOK_DATA`` where it is set, else the user's cache folder."""
    if chosen := os.environ.get("SECONDLOOK_DATA"):
        return Path(chosen).expanduser()
    import pooch

    return Path(pooch.os_cache("secondlook"))


def source(name: str) -> Source:
    """The listing of data set ``name``; `UnknownName` suggests the nearest ones."""
    try:
        return DATASETS[name]
    except KeyError:
        raise UnknownName("data set", name, DATASETS) from None


def is_present(name: str) -> bool:
    """Whether every file of the data set lies in the data folder (their content is not looked at)."""
    home = data_home()
    return all((home / file.path).is_file() for file in source(name).files)


def fetch(name: str, *, download: bool = True) -> Path:
    """Folder of data set ``name`` (or the file, where it is one file), every file present and verified.

    What is missing is downloaded unless ``download`` is False. Raises `DatasetMissing` for a file that cannot
    be had and `DatasetCorrupt` for one that holds other bytes than it should. Nothing half downloaded and
    nothing unverified ever stands under a final name. A data set that comes with an installed package has no
    files: ValueError.
    """
    wanted = source(name)
    if not wanted.files:
        raise ValueError(f"{name} comes with an installed package and has no files to fetch; load it")
    contents(name, download=download)
    return data_home() / (wanted.folder or wanted.files[0].path)


def contents(name: str, *, download: bool = True) -> dict[str, bytes]:
    """The verified content of each file of data set ``name`` by its base name, gzip undone (no ``.gz``)."""
    found = {}
    for file in source(name).files:
        path = data_home() / file.path
        if not path.is_file():
            if not download:
                raise DatasetMissing(f"{path} is missing. Run `secondlook data {name}`.")
            _download(path, file, name)
        try:
            found[path.name.removesuffix(".gz")] = _verified(path, file)
        except DatasetCorrupt as wrong:
            raise DatasetCorrupt(f"{wrong}. Delete it and run `secondlook data {name}`.") from None
    return found


def _verified(path: Path, file: File) -> bytes:
    """The content of ``path``, gzip undone; `DatasetCorrupt` tells both digests when they differ."""
    data = path.read_bytes()
    if file.path.endswith(".gz"):
        try:
            data = gzip.decompress(data)
        except (gzip.BadGzipFile, EOFError, zlib.error) as damaged:
            raise DatasetCorrupt(
                f"{path} is not a whole gzip file ({damaged}); expected content with sha256 {file.sha256}, "
                f"found the file itself with sha256 {hashlib.sha256(data).hexdigest()}"
            ) from None
    if (digest := hashlib.sha256(data).hexdigest()) != file.sha256:
        raise DatasetCorrupt(f"{path} is corrupt: expected sha256 {file.sha256}, found {digest}")
    return data


def _secure(address: str) -> None:
    if not address.startswith(SCHEME):
        raise ValueError(f"{address} is no https address")


def _redirected(response: Any, *_: Any, **__: Any) -> None:
    """Called by requests for every answer: a redirect is followed only when it stays encrypted."""
    if response.is_redirect:
        _secure(urljoin(response.url, response.headers["location"]))


def _download(path: Path, file: File, name: str, downloader: Downloader | None = None) -> None:
    """Download ``file`` to ``path``. pooch fills a temporary file beside it and renames it when all is well."""
    by_hand = f"put the file there yourself (sha256 of its content: {file.sha256})"
    if file.url is None:
        raise DatasetMissing(f"{path} is missing and has no public address: {by_hand}.")
    import pooch

    pooch.get_logger().setLevel(logging.WARNING)
    http = downloader or pooch.HTTPDownloader(timeout=60, hooks={"response": _redirected})

    def checked(url: str, temporary: str, keeper: object) -> None:
        http(url, temporary, keeper)
        partial = Path(temporary)
        data = partial.read_bytes()
        if file.path.endswith(".gz") and not data.startswith(b"\x1f\x8b"):
            partial.write_bytes(gzip.compress(data, mtime=0))
        _verified(partial, file)

    try:
        _secure(file.url)
        pooch.retrieve(file.url, None, fname=path.name, path=path.parent, downloader=checked)
    except (OSError, ValueError, DatasetCorrupt) as failure:  # requests' errors are OSErrors
        raise DatasetMissing(
            f"{path} is missing and could not be downloaded from {file.url}: {failure}. "
            f"Run `secondlook data {name}` where the network is open, or {by_hand}."
        ) from failure
