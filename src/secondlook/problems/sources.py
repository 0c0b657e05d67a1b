"""Where each data set comes from: files, public addresses, SHA-256 sums, licences.

No tensor and no network code lives here, so listing the data sets costs nothing.
Sums are of a file's content with any gzip undone: wrapping the same bytes again changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["DATASETS", "File", "Source"]


@dataclass(frozen=True)
class File:
    """One file of a data set.

    ``path`` is relative to the data folder; ``sha256`` is that of the content, gzip undone where the name
    ends in ``.gz``; ``url`` is its public home, or None when no public copy with these very bytes is known.
    A ``.gz`` file whose home serves plain bytes is compressed on arrival.
    """

    path: str
    sha256: str
    url: str | None = None


@dataclass(frozen=True)
class Source:
    """A data set: what it is, whose it is, and its files (none when it comes with an installed package)."""

    name: str
    about: str
    licence: str
    files: tuple[File, ...] = ()
    folder: str | None = None
    """The folder that `fetch` returns, for sets of several files."""


_MNIST = "https://ossci-datasets.s3.amazonaws.com/mnist"
_LIBSVM = "https://www.csie.ntu.edu.tw/~cjlin/libsvmtools/datasets/binary"
_GITHUB = "https://raw.githubusercontent.com"

_SOURCES = (
    Source("digits", "1,797 handwritten digits, 8x8 pixels, with scikit-learn", "CC BY 4.0 (UCI, Alpaydin & Kaynak)"),
    Source("diabetes", "442 patients, 10 features, regression, with scikit-learn", "public (Efron et al., 2004)"),
    Source(
        "breast-cancer", "569 biopsies, 30 features, 2 classes, with scikit-learn", "CC BY 4.0 (UCI, Wolberg et al.)"
    ),
    Source("pydoc", "the language reference that CPython carries in pydoc_data.topics, as characters", "PSF-2.0"),
    Source(
        "mnist",
        "60,000 + 10,000 handwritten digits, 28x28 pixels",
        "CC BY-SA 3.0 (LeCun, Cortes & Burges)",
        tuple(
            File(f"mnist/{name}.gz", digest, f"{_MNIST}/{name}.gz")
            for name, digest in {
                "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
                "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
                "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
                "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
            }.items()
        ),
        folder="mnist",
    ),
    Source(
        "cifar10-jpeg",
        "CIFAR-10 as JPEG copies: 50,000 + 10,000 colour images, 32x32 pixels, slightly lossy",
        "no licence stated (Krizhevsky, 2009)",
        (
            File("cifar10-jpeg/train.parquet", "e029a87ea4023a25dc4ed780602a68772d173edbf29336bcc605b08a0a565086"),
            File("cifar10-jpeg/test.parquet", "466dd431455915ff86f51ab1af7c1fceb2f846cb36db0fe439b34351c42d6493"),
        ),
        folder="cifar10-jpeg",
    ),
    Source(
        "tinyshakespeare",
        "1.1 MB of Shakespeare, the usual character-level corpus",
        "public domain text",
        (
            File(
                "text/tinyshakespeare.txt",
                "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
                f"{_GITHUB}/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
            ),
        ),
    ),
    Source(
        "wikitext-2",
        "validation and test texts of WikiText-2 (its validation text is what is trained on here)",
        "CC BY-SA 3.0 (Merity et al., 2016; Wikipedia)",
        tuple(
            File(
                f"text/wikitext-2.{part}.txt",
                digest,
                f"{_GITHUB}/pytorch/examples/main/word_language_model/data/wikitext-2/{part}.txt",
            )
            for part, digest in {
                "valid": "f0737ed31fc1329026e95cb8b98e19c2a182c39c240ab909dc31abf2f8af58e8",
                "test": "d790b833ef8cf03a90db7bf1271b7520b83c45ce07ba3c1a9699df81e239eca0",
            }.items()
        ),
        folder="text",
    ),
    Source(
        "a8a",
        "Adult census income, 22,696 training rows of 123 binary features, tested on a9a.t (LIBSVM)",
        "CC BY 4.0 (UCI; Platt's encoding)",
        (
            File(
                "libsvm/a8a.gz",
                "d08a37b3fadd4bd3c8b3fc30bdc93b54d7c0f371265c90cbfb931a7efe97cd28",
                f"{_LIBSVM}/a8a",
            ),
            File(
                "libsvm/a9a.t.gz",
                "1f448a153f0320399a7e40836eb207655b0bde0f21fc941cc472193daa9f5de9",
                f"{_LIBSVM}/a9a.t",
            ),
        ),
        folder="libsvm",
    ),
    Source(
        "w8a",
        "Web page classification, 49,749 rows of 300 binary features (LIBSVM)",
        "free for research (Platt, 1998)",
        (
            File(
                "libsvm/w8a.gz",
                "b464b4f6ce6a5d9e181ffc793e19a04751036273722312398ef7673705014902",
                f"{_LIBSVM}/w8a",
            ),
        ),
    ),
    Source(
        "step-law",
        "losses of 1,911 dense and further MoE training runs over learning rate and batch size",
        "as published in step-law/steplaw",
        tuple(
            File(f"tables/step-law/{name}", digest, f"{_GITHUB}/step-law/steplaw/main/data/{name}")
            for name, digest in {
                "dense_lr_bs_loss.csv": "9e46181076c04d450294d75dfe6f72adc416e231e154a07b337e378f9410002c",
                "moe_lr_bs_loss.csv": "653d585244a7b227423007e8b796bc16d76f6d24eb87b1919b8f048a91897b92",
                "1004_fitted_lr_bs_scaling_model_parameters.csv": (
                    "2252afbba5530e6ba6167e8101bd2b9082a018a58cb5922cc8672891a7f4336c"
                ),
            }.items()
        ),
        folder="tables/step-law",
    ),
    Source(
        "clip-mammut",
        "best zero-shot scores of CLIP and MaMMUT models by samples seen, and the models' GFLOPs",
        "tidied from the tables shown in LAION-AI/scaling-laws-for-comparison",
        (
            File("tables/clip-mammut/scores.csv", "d9b697ef83719559147be182af80fa308dcd7bd053e97f93d4ad36e2e7acb501"),
            File(
                "tables/clip-mammut/model_profile.csv",
                "d68c4dcba909deca0c03b421848b56639917bdba9d7fd0811f981586bf5a9df6",
            ),
        ),
        folder="tables/clip-mammut",
    ),
    Source(
        "bci",
        "per-subject scores of motor-imagery pipelines under six protocols",
        "from carraraig/Augmented_Covariance_BCI",
        tuple(
            File(f"tables/bci/MOABB_{name}.csv", digest)
            for name, digest in {
                "3Class": "0852c31bd1cc0cb4b9040ccc520ce34b3acc59e0307339e111c48e44e6fab2fa",
                "3Class_CS": "22dc5c587a8f00b489724275d497a3119e73a64132ea1965b7b2829784580779",
                "lhrh": "6ca2a57f99497a73b29f85bc573ee5296e68aec5d7b40dbcd07782269b77fe27",
                "lhrh_CS": "61b13aa4f804f6ec3f0e349005b750cf3f1c502089550dbba620d466116048cf",
                "rf": "fffcf5ba39db024a8ef9e84e09a40c8170cc9161e731e87025d8e2d8da57cc79",
                "rf_CS": "eb0eb9e177f5cb312ab196ed7f3511c201db6397bbe0230a3e18ec93f08bc15e",
            }.items()
        ),
        folder="tables/bci",
    ),
    Source(
        "ego-facebook",
        "the ego-Facebook graph, 4,039 nodes, 88,234 undirected edges, as a gzipped edge list",
        "SNAP (McAuley & Leskovec, 2012)",
        (
            File(
                "tables/graphs/ego_facebook.txt.gz",
                "0dc15ab6beaa0122fd22c7fb3fc620a3ea23e11095e66d8265883c6f98105d2d",
                f"{_GITHUB}/KyuhanLee/SSumM/master/ego_facebook.txt",
            ),
        ),
    ),
)

DATASETS: dict[str, Source] = {source.name: source for source in _SOURCES}
