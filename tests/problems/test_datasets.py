"""Data sets: contents, splits, and files that are missing, corrupt or cut off on the way."""

from __future__ import annotations

import gzip
import hashlib
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch

from secondlook.problems import datasets, fetching
from secondlook.problems.datasets import DatasetCorrupt, DatasetMissing
from secondlook.problems.sources import DATASETS, File, Source
from secondlook.suite.errors import UnknownName

BUNDLED = ["digits", "diabetes", "breast-cancer"]
CONTENT = b"some text\n" * 5000


def needs(name: str) -> None:
    if not datasets.is_present(name):
        pytest.skip(f"{name} is not in the data folder")


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """A data set "toy" of one file under an empty data folder; the test sets its address."""
    monkeypatch.setenv("SECONDLOOK_DATA", str(tmp_path / "data"))

    def declare(url: str | None = None, path: str = "toy/toy.txt"):
        file = File(path, hashlib.sha256(CONTENT).hexdigest(), url)
        monkeypatch.setitem(DATASETS, "toy", Source("toy", "a toy", "none", (file,)))
        return tmp_path / "data" / path

    return declare


@pytest.fixture
def server(monkeypatch):
    """A local web server: /whole serves the content, /cut promises it and hangs up half way, /wrong lies.

    What starts with its address counts as encrypted; /moved leads to the content under another name, which does not.
    """
    monkeypatch.setattr(fetching, "SCHEME", "http://127.0.0.1:")

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            body = b"something else" if self.path == "/wrong" else CONTENT
            self.send_response(302 if self.path == "/moved" else 200)
            if self.path == "/moved":
                self.send_header("Location", f"http://localhost:{self.server.server_port}/whole")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[: len(body) // 2] if self.path == "/cut" else body)

        def log_message(self, *_):
            pass

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=httpd.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{httpd.server_port}"
    httpd.shutdown()
    thread.join()
    httpd.server_close()


# ------------------------------------------------------------------------------------------- contents


def test_digits():
    data = datasets.load("digits")
    assert data.train.x.shape[1:] == (1, 8, 8)
    assert data.train.x.dtype == torch.float32
    assert data.train.y.dtype == torch.int64
    assert data.classes == 10
    assert data.train.x.min() == 0
    assert data.train.x.max() == 1
    sizes = [len(part.y) for part in (data.train, data.val, data.test)]
    assert sizes == [1077, 360, 360]
    for part in (data.val, data.test):  # stratified: class shares agree within one row
        expected = torch.bincount(data.train.y, minlength=10) * len(part.y) / sizes[0]
        assert (torch.bincount(part.y, minlength=10) - expected).abs().max() <= 1


@pytest.mark.parametrize("name", ["digits", "diabetes", "breast-cancer", "mnist"])
def test_splits_do_not_overlap_and_cover_all(name):
    needs(name)
    data = datasets.load(name)
    rows = [{row.numpy().tobytes() for row in part.x.flatten(1)} for part in (data.train, data.val, data.test)]
    assert not rows[0] & rows[1]
    assert not rows[0] & rows[2]
    assert not rows[1] & rows[2]
    total = {"digits": 1797, "diabetes": 442, "breast-cancer": 569, "mnist": 70000}[name]
    assert sum(len(part.y) for part in (data.train, data.val, data.test)) == total


@pytest.mark.parametrize("name", BUNDLED)
def test_splits_are_fixed(name):
    first = datasets.load(name)
    datasets._load.cache_clear()
    again = datasets.load(name)
    assert first is not again
    for part in ("train", "val", "test"):
        torch.testing.assert_close(getattr(first, part), getattr(again, part), rtol=0, atol=0)


def test_diabetes_is_standardised_by_its_training_part():
    data = datasets.load("diabetes")
    assert data.train.y.shape == (265, 1)
    assert data.classes == 0
    for tensor in data.train:
        torch.testing.assert_close(tensor.mean(0), torch.zeros(tensor.shape[1]), atol=1e-5, rtol=0)
        torch.testing.assert_close(tensor.std(0, correction=0), torch.ones(tensor.shape[1]), atol=1e-5, rtol=0)
    assert data.test.x.mean(0).abs().max() > 1e-3  # the test part was not used to standardise


def test_mnist_is_the_official_one():
    needs("mnist")
    md5 = {name: hashlib.md5(data).hexdigest() for name, data in fetching.contents("mnist").items()}
    assert md5 == {
        "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
        "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
        "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
        "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
    }
    data = datasets.load("mnist")
    assert data.train.x.shape == (55000, 1, 28, 28)
    assert data.val.x.shape == (5000, 1, 28, 28)
    assert data.train.y[:5].tolist() == [5, 0, 4, 1, 9]  # the well-known first digits
    assert data.test.y[:5].tolist() == [7, 2, 1, 0, 4]


@pytest.mark.slow
def test_cifar10_jpeg():
    needs("cifar10-jpeg")
    data = datasets.load("cifar10-jpeg")
    datasets._load.cache_clear()  # 700 MB
    assert data.train.x.shape == (45000, 3, 32, 32)
    assert data.val.x.shape == (5000, 3, 32, 32)
    assert torch.bincount(data.test.y).tolist() == [1000] * 10
    assert 0.4 < data.test.x.mean() < 0.55  # CIFAR-10's mean pixel is 0.47
    assert data.test.x.max() == 1


@pytest.mark.parametrize(("name", "features", "rows"), [("a8a", 123, 22696), ("w8a", 300, 49749)])
def test_libsvm(name, features, rows):
    needs(name)
    data = datasets.load(name)
    parts = [data.train, data.val] + [data.test] * (name == "w8a")
    assert sum(len(part.y) for part in parts) == rows
    assert data.train.x.shape[1] == data.test.x.shape[1] == features
    assert data.train.x.unique().tolist() == [0, 1]
    assert data.train.y.unique().tolist() == [0, 1]


def test_pydoc_corpus():
    text = datasets.corpus("pydoc")
    assert set(text.vocab) <= {"\n", *map(chr, range(32, 127))}
    assert text.vocab == "".join(sorted(text.vocab))
    total = sum(len(part) for part in (text.train, text.val, text.test))
    assert total > 300_000
    assert abs(len(text.train) - 0.8 * total) <= 1
    assert abs(len(text.val) - 0.1 * total) <= 1
    assert text.train.dtype == torch.int64
    assert "assert" in text.decode(text.train[:20000])


def test_corpus_encodes_and_decodes():
    text = datasets.corpus("pydoc")
    line = "for x in range(3):\n    print(x)"
    assert text.decode(text.encode(line)) == line
    with pytest.raises(ValueError, match="'é' is not in the vocabulary"):
        text.encode("café")


def test_wikitext_trains_on_nothing_of_the_test_text():
    needs("wikitext-2")
    text = datasets.corpus("wikitext-2")
    assert text.decode(text.test).startswith(" \n = Robert <unk> = \n")
    assert len(text.val) == pytest.approx(len(text.train) / 9, abs=1)


def test_shakespeare_is_one_piece():
    needs("tinyshakespeare")
    text = datasets.corpus("tinyshakespeare")
    assert len(text.vocab) == 65
    assert len(text.train) + len(text.val) + len(text.test) == 1115394
    assert text.decode(text.train[:14]) == "First Citizen:"


def test_clusters():
    points = datasets.clusters(1000, 4, 3, std=0.1, spread=10.0, generator=torch.Generator().manual_seed(1))
    assert points.x.shape == (1000, 3)
    assert torch.bincount(points.y).tolist() == [250] * 4
    within = torch.stack([points.x[points.y == k].std(0) for k in range(4)])
    torch.testing.assert_close(within, torch.full((4, 3), 0.1), atol=0.02, rtol=0)
    again = datasets.clusters(1000, 4, 3, std=0.1, spread=10.0, generator=torch.Generator().manual_seed(1))
    assert torch.equal(points.x, again.x)
    with pytest.raises(ValueError, match="k=11"):
        datasets.clusters(10, 11, 2)
    with pytest.raises(ValueError, match="standard deviations"):
        datasets.clusters(10, 2, 2, std=-1.0)


@pytest.mark.parametrize(
    ("call", "asked", "meant"),
    [
        (datasets.load, "digit", "digits"),
        (datasets.corpus, "pydocs", "pydoc"),
        (datasets.fetch, "steplaw", "step-law"),
        (datasets.is_present, "minst", "mnist"),
    ],
)
def test_unknown_names_suggest_the_nearest(call, asked, meant):
    with pytest.raises(UnknownName, match=f"'{asked}'; did you mean .*{meant}"):
        call(asked)


# ------------------------------------------------------------------------------------------- files


def test_listing_is_whole_and_torch_free():
    for name, source in DATASETS.items():
        assert source.name == name
        assert source.about
        assert source.licence
        for file in source.files:
            assert len(file.sha256) == 64
            assert file.url is None or file.url.startswith("https://")
        if len(source.files) > 1:
            assert source.folder
    code = (
        "import sys; from secondlook import problems; from secondlook.problems import fetching, sources, zoo;"
        "zoo.names(); [fetching.is_present(n) for n in sources.DATASETS]; print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize("name", [name for name, source in DATASETS.items() if source.files])
def test_files_in_the_data_folder_are_accepted(name):
    needs(name)
    assert datasets.fetch(name, download=False).exists()


def test_bundled_sets_have_nothing_to_fetch():
    assert datasets.is_present("digits")
    with pytest.raises(ValueError, match="installed package"):
        datasets.fetch("digits")


def test_missing_file_without_address_says_where_to_put_it(toy):
    path = toy()
    assert not datasets.is_present("toy")
    with pytest.raises(DatasetMissing, match=rf"{path} is missing and has no public address.*sha256"):
        datasets.fetch("toy")


def test_missing_file_that_may_not_be_downloaded_names_the_command(toy):
    toy("https://example.org/toy.txt")
    with pytest.raises(DatasetMissing, match="Run `secondlook data toy`"):
        datasets.fetch("toy", download=False)


def test_download_puts_a_verified_file_in_place(toy, server):
    path = toy(f"{server}/whole")
    assert datasets.fetch("toy") == path
    assert path.read_bytes() == CONTENT
    assert [entry.name for entry in path.parent.iterdir()] == ["toy.txt"]
    assert datasets.is_present("toy")


def test_plain_bytes_are_compressed_for_a_gz_name(toy, server):
    path = toy(f"{server}/whole", "toy/toy.txt.gz")
    datasets.fetch("toy")
    assert gzip.decompress(path.read_bytes()) == CONTENT
    assert fetching.contents("toy") == {"toy.txt": CONTENT}


def test_only_https_is_fetched(toy, server, monkeypatch):
    monkeypatch.setattr(fetching, "SCHEME", "https://")
    toy(f"{server}/whole")
    with pytest.raises(DatasetMissing, match="is no https address"):
        datasets.fetch("toy")


@pytest.mark.parametrize("page", ["cut", "wrong", "moved"])
def test_bad_download_leaves_nothing(toy, server, page):
    path = toy(f"{server}/{page}")
    with pytest.raises(DatasetMissing, match=r"could not be downloaded.*secondlook data toy"):
        datasets.fetch("toy")
    assert list(path.parent.iterdir()) == []


@pytest.mark.parametrize("failure", [KeyboardInterrupt, ConnectionError])
def test_interrupted_download_leaves_nothing(toy, failure):
    path = toy("https://example.org/toy.txt")

    def broken(url, temporary, _):
        with open(temporary, "wb") as out:
            out.write(CONTENT[:1000])
        raise failure("half way")

    with pytest.raises(KeyboardInterrupt if failure is KeyboardInterrupt else DatasetMissing, match="half way"):
        fetching._download(path, DATASETS["toy"].files[0], "toy", downloader=broken)
    assert list(path.parent.iterdir()) == []


def test_corrupt_file_is_refused_by_name_digests_and_remedy(toy):
    path = toy("https://example.org/toy.txt")
    path.parent.mkdir(parents=True)
    path.write_bytes(CONTENT[:-1])
    expected, found = hashlib.sha256(CONTENT).hexdigest(), hashlib.sha256(CONTENT[:-1]).hexdigest()
    with pytest.raises(DatasetCorrupt) as error:
        datasets.fetch("toy")
    for part in (str(path), expected, found, "Delete it and run `secondlook data toy`"):
        assert part in str(error.value)
    assert path.exists()  # the user's file is not ours to delete


@pytest.mark.parametrize("damage", [lambda z: z[:-20], lambda z: b"plain", lambda z: z[:20] + b"\0\0\0\0" + z[24:]])
def test_damaged_gzip_is_corrupt(toy, damage):
    path = toy(None, "toy/toy.txt.gz")
    path.parent.mkdir(parents=True)
    path.write_bytes(damage(gzip.compress(CONTENT)))
    with pytest.raises(DatasetCorrupt, match=r"expected .*sha256.*found"):
        datasets.fetch("toy")


def test_gzip_wrapping_does_not_matter(toy):
    path = toy(None, "toy/toy.txt.gz")
    path.parent.mkdir(parents=True)
    for level in (1, 9):
        path.write_bytes(gzip.compress(CONTENT, level, mtime=level))
        assert datasets.fetch("toy") == path
