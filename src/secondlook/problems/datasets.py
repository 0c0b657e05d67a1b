"""Data sets as tensors, split once and for all into training, validation and test parts.

    data = load("digits")           # Dataset: .train/.val/.test are Split(x, y), .classes
    text = corpus("pydoc")          # Corpus: .train/.val/.test token tensors, .vocab
    path = fetch("step-law")        # folder of verified files

Splits are fixed: the same rows on every machine. Loaded tensors are shared, so do not change them in place.
"""

from __future__ import annotations

import functools
import io
import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from secondlook.problems.fetching import (
    DatasetCorrupt,
    DatasetMissing,
    contents,
    data_home,
    fetch,
    is_present,
    source,
)
from secondlook.problems.sources import DATASETS
from secondlook.suite.errors import UnknownName

__all__ = [
    "DATASETS",
    "Corpus",
    "Dataset",
    "DatasetCorrupt",
    "DatasetMissing",
    "Split",
    "clusters",
    "corpus",
    "fetch",
    "is_present",
    "load",
]


class Split(NamedTuple):
    """Inputs ``x`` [N, ...] and targets ``y`` ([N] integer classes, or [N, 1] regression targets)."""

    x: Tensor
    y: Tensor

    def to(self, device: str | torch.device) -> Split:
        return Split(self.x.to(device), self.y.to(device))


@dataclass(frozen=True)
class Dataset:
    """Three disjoint splits; ``classes`` is the number of classes, 0 for regression."""

    name: str
    train: Split
    val: Split
    test: Split
    classes: int

    def to(self, device: str | torch.device) -> Dataset:
        """The same data set with its tensors on ``device``."""
        return self.map(lambda split: split.to(device))

    def map(self, change: Callable[[Split], Split]) -> Dataset:
        """The same data set with every split changed in the same way."""
        return replace(self, train=change(self.train), val=change(self.val), test=change(self.test))


@dataclass(frozen=True)
class Corpus:
    """A text as character tokens: ``train``, ``val``, ``test`` index into ``vocab`` (sorted characters)."""

    name: str
    vocab: str
    train: Tensor
    val: Tensor
    test: Tensor

    def encode(self, text: str) -> Tensor:
        """Tokens of ``text`` [len]; ValueError for a character outside the vocabulary."""
        return _tokens(text, self.vocab)

    def decode(self, tokens: Tensor) -> str:
        """The text behind ``tokens`` [any length]."""
        return "".join(self.vocab[i] for i in tokens.flatten().tolist())


def load(name: str) -> Dataset:
    """Data set ``name`` on the CPU.

    digits (x [N, 1, 8, 8] in [0, 1]), mnist ([N, 1, 28, 28]), cifar10-jpeg ([N, 3, 32, 32]): float32 images, classes in
    y. breast-cancer, a8a, w8a: x [N, features], two classes. diabetes: x [N, 10] and y [N, 1], both
    standardised by the training part. Missing files are downloaded: see `fetch` for its errors.
    """
    if name not in _LOADERS:
        raise UnknownName("data set of vectors or images", name, _LOADERS)
    return _load(name, data_home() if source(name).files else None)


@functools.lru_cache(maxsize=8)
def _load(name: str, home: Path | None) -> Dataset:
    return _LOADERS[name]()


def corpus(name: str) -> Corpus:
    """Text ``name`` as characters, cut in sequence into 80% training, 10% validation and 10% test.

    pydoc: the language reference in ``pydoc_data.topics``, topics in alphabetical order, printable ASCII and
    newlines only. Its text differs between Python versions, so do results on it. tinyshakespeare: the usual
    1.1 MB. wikitext-2: the official validation text, cut 90/10 into training and validation, and the
    official test text (the official training text is not used).
    """
    if name not in _TEXTS:
        raise UnknownName("text", name, _TEXTS)
    return _corpus(name, data_home() if source(name).files else None)


@functools.lru_cache(maxsize=4)
def _corpus(name: str, home: Path | None) -> Corpus:
    parts = _TEXTS[name]()
    vocab = "".join(sorted(set().union(*parts)))
    return Corpus(name, vocab, *(_tokens(part, vocab) for part in parts))


def clusters(
    n: int, k: int, dim: int, std: float = 1.0, spread: float = 3.0, generator: torch.Generator | None = None
) -> Split:
    """``n`` points in ``k`` Gaussian clusters of equal size (give or take one), in random order.

    Centres are drawn from N(0, spread² I), points from N(centre, std² I). x is [n, dim] float32, y [n] the
    cluster. Without a generator, seed 0.
    """
    if not 1 <= k <= n or dim < 1:
        raise ValueError(f"clusters need 1 <= k <= n and dim >= 1, got n={n}, k={k}, dim={dim}")
    if std < 0 or spread < 0:
        raise ValueError(f"std and spread are standard deviations, got {std} and {spread}")
    generator = generator or torch.Generator().manual_seed(0)
    centres = spread * torch.randn(k, dim, generator=generator)
    y = torch.arange(n)[torch.randperm(n, generator=generator)] % k
    return Split(centres[y] + std * torch.randn(n, dim, generator=generator), y)


# ---------------------------------------------------------------------------------------------- splits


def _stratified(x: np.ndarray, y: np.ndarray, name: str) -> Dataset:
    """60/20/20 with the classes in equal shares, seed 0."""
    from sklearn.model_selection import train_test_split

    rest, test = train_test_split(np.arange(len(y)), test_size=0.2, random_state=0, stratify=y)
    train, val = train_test_split(rest, test_size=0.25, random_state=0, stratify=y[rest])
    parts = [_split(x[rows], y[rows]) for rows in (train, val, test)]
    return Dataset(name, *parts, classes=len(np.unique(y)))


def _split(x: np.ndarray, y: np.ndarray) -> Split:
    return Split(torch.from_numpy(np.ascontiguousarray(x, np.float32)), torch.from_numpy(np.asarray(y, np.int64)))


def _standardised(data: Dataset) -> Dataset:
    """Each feature with mean 0 and variance 1 on the training part."""
    std, mean = torch.std_mean(data.train.x, 0, correction=0)
    return data.map(lambda split: Split((split.x - mean) / std, split.y))


def _tail(train: Split, test: Split, name: str, classes: int, held_out: int = 5000) -> Dataset:
    """The last ``held_out`` training rows validate."""
    fit, val = (Split(train.x[rows], train.y[rows]) for rows in (slice(-held_out), slice(-held_out, None)))
    return Dataset(name, fit, val, test, classes)


# ---------------------------------------------------------------------------------------------- loaders


def _digits() -> Dataset:
    from sklearn.datasets import load_digits

    raw = load_digits()
    return _stratified(raw.images[:, None] / 16, raw.target, "digits")


def _breast_cancer() -> Dataset:
    from sklearn.datasets import load_breast_cancer

    return _standardised(_stratified(*load_breast_cancer(return_X_y=True), "breast-cancer"))


def _diabetes() -> Dataset:
    from sklearn.datasets import load_diabetes

    x, y = load_diabetes(return_X_y=True, scaled=False)
    rows = np.random.default_rng(0).permutation(len(y))
    cuts = np.split(rows, [int(0.6 * len(y)), int(0.8 * len(y))])
    both = np.column_stack([x, y])
    both = (both - both[cuts[0]].mean(0)) / both[cuts[0]].std(0)
    table = torch.from_numpy(both.astype(np.float32))
    parts = [Split(table[cut, :-1].contiguous(), table[cut, -1:].contiguous()) for cut in cuts]
    return Dataset("diabetes", *parts, classes=0)


def _mnist() -> Dataset:
    files = contents("mnist")

    def idx(name: str, header: int) -> np.ndarray:
        return np.frombuffer(files[name], np.uint8, offset=header)

    def part(name: str) -> Split:
        images = idx(f"{name}-images-idx3-ubyte", 16).reshape(-1, 1, 28, 28)
        return _split(images / np.float32(255), idx(f"{name}-labels-idx1-ubyte", 8))

    return _tail(part("train"), part("t10k"), "mnist", classes=10)


def _cifar10_jpeg() -> Dataset:
    import pandas as pd
    from PIL import Image

    def part(data: bytes) -> Split:
        table = pd.read_parquet(io.BytesIO(data), columns=["jpeg", "label"])
        pixels = np.empty((len(table), 32, 32, 3), np.uint8)
        for i, jpeg in enumerate(table["jpeg"]):
            pixels[i] = Image.open(io.BytesIO(jpeg))
        images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float().div_(255).contiguous()
        return Split(images, torch.from_numpy(table["label"].to_numpy(np.int64, copy=True)))

    files = contents("cifar10-jpeg")
    return _tail(part(files["train.parquet"]), part(files["test.parquet"]), "cifar10-jpeg", classes=10)


def _svmlight(data: bytes, features: int) -> tuple[np.ndarray, np.ndarray]:
    from sklearn.datasets import load_svmlight_file

    x, y = load_svmlight_file(io.BytesIO(data), n_features=features, zero_based=False, dtype=np.float32)
    return x.toarray(), (y > 0).astype(np.int64)


def _a8a() -> Dataset:
    """The UCI test rows (a9a.t) test; of a8a's own rows a fifth, drawn with seed 0, validates."""
    files = contents("a8a")
    x, y = _svmlight(files["a8a"], 123)
    rows = np.random.default_rng(0).permutation(len(y))
    val, train = np.split(rows, [len(y) // 5])
    return Dataset(
        "a8a", _split(x[train], y[train]), _split(x[val], y[val]), _split(*_svmlight(files["a9a.t"], 123)), 2
    )


def _w8a() -> Dataset:
    return _stratified(*_svmlight(contents("w8a")["w8a"], 300), "w8a")


_LOADERS: dict[str, Callable[[], Dataset]] = {
    "digits": _digits,
    "diabetes": _diabetes,
    "breast-cancer": _breast_cancer,
    "mnist": _mnist,
    "cifar10-jpeg": _cifar10_jpeg,
    "a8a": _a8a,
    "w8a": _w8a,
}


# ---------------------------------------------------------------------------------------------- texts


def _tokens(text: str, vocab: str) -> Tensor:
    points = np.array([ord(c) for c in vocab])
    codes = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    places = np.searchsorted(points, codes).clip(max=len(points) - 1)
    if (wrong := points[places] != codes).any():
        raise ValueError(f"character {chr(codes[wrong][0])!r} is not in the vocabulary {vocab!r}")
    return torch.from_numpy(places.astype(np.int64))


def _cut(text: str, *shares: float) -> tuple[str, ...]:
    """Consecutive pieces ending at the given shares of the text, and the rest."""
    ends = [0, *(int(share * len(text)) for share in shares), len(text)]
    return tuple(text[a:b] for a, b in itertools.pairwise(ends))


def _pydoc() -> tuple[str, ...]:
    from pydoc_data.topics import topics

    text = "\n".join(topics[key] for key in sorted(topics))
    return _cut("".join(c for c in text if c == "\n" or " " <= c <= "~"), 0.8, 0.9)


def _tinyshakespeare() -> tuple[str, ...]:
    return _cut(contents("tinyshakespeare")["tinyshakespeare.txt"].decode(), 0.8, 0.9)


def _wikitext_2() -> tuple[str, ...]:
    files = contents("wikitext-2")
    return *_cut(files["wikitext-2.valid.txt"].decode(), 0.9), files["wikitext-2.test.txt"].decode()


_TEXTS: dict[str, Callable[[], tuple[str, ...]]] = {
    "pydoc": _pydoc,
    "tinyshakespeare": _tinyshakespeare,
    "wikitext-2": _wikitext_2,
}
