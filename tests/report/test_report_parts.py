"""The report's parts: numbers, words, formulas, sources, plots, rooms."""

from __future__ import annotations

import base64
import itertools
import math
import shutil
import sys
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path
from subprocess import run

import hypothesis
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from synthetic import EVIL, example

from secondlook.suite import registry
from secondlook.suite.cards import Metric
from secondlook.suite.report import curves, evidence, marks, numerals, prose, source, summaries, words
from secondlook.suite.report.judged import judged
from secondlook.suite.report.room import SECTIONS, Page, open_page
from secondlook.suite.statistics import estimate


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (-0.5, "−0.500"),
        (1234.5, "1234"),
        (1.2e-7, "1.20×10⁻⁷"),
        (math.nan, "–"),
        (None, "–"),
        (-math.inf, "−∞"),
    ],
)
def test_number(value, text):
    assert numerals.number(value) == text


@pytest.mark.parametrize(
    ("triple", "texts"),
    [
        ((1.2345, 1.1, 1.4), ("1.23", "[1.10, 1.40]")),
        ((-0.5, -0.9, 0.1), ("−0.50", "[−0.90, 0.10]")),
        ((123456.7, 123000, 124000), ("123457", "[123000, 124000]")),
        ((1.2e-5, 1e-5, 1.5e-5), ("1.20×10⁻⁵", "[1.00×10⁻⁵, 1.50×10⁻⁵]")),
        ((1.0, 1.0, 1.0), ("1.000", "[1.000, 1.000]")),
        ((5.68, math.nan, math.nan), ("5.68", "")),
        ((math.nan, None, None), ("–", "")),
    ],
)
def test_quantity_has_the_digits_of_its_interval(triple, texts):
    assert numerals.quantity(*triple) == texts


@given(st.floats(-1e9, 1e9), st.floats(0, 1e9))
def test_quantity_never_fails(mean, half):
    shown, interval = numerals.quantity(mean, mean - half, mean + half)
    assert shown
    assert interval.startswith("[")


@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6))
def test_ticks_are_few_and_inside(low, width):
    ticks = numerals.ticks(low, low + width)
    assert len(ticks) <= 6
    assert all(low - 1e-6 * width <= t <= low + width * (1 + 1e-6) for t in ticks)


def test_duration():
    assert [numerals.duration(s) for s in (3.21, 600, 7200, None)] == ["3.2 s", "10 min", "2.0 h", "–"]


@pytest.mark.parametrize(
    "tex",
    [
        r"\hat w_q = \arg\min_{w}\; \tfrac12 (w-w_0)^\top H (w-w_0)",
        r"\begin{aligned} a &= b \\ c &= d \end{aligned}",
        r"\operatorname*{arg\,max}_x \log p(x \mid y), \quad x<y \text{ if } y>0",
        r"\boldsymbol{\theta} \in \mathbb{R}^{n \times n},\ \lVert x \rVert_2^2 \approx \sum_{i=1}^n x_i",
        r"f(x) = \begin{cases} 1 & x > 0 \\ 0 & \text{else} \end{cases}",
    ],
)
def test_formula_becomes_wellformed_mathml(tex):
    tree = ET.fromstring(prose.maths(tex, True))
    assert tree.tag.endswith("math")
    assert "\\" not in "".join(tree.itertext())


def test_bold_letters_are_letters():
    assert "𝜽" in prose.maths(r"\boldsymbol{\theta}")
    assert "𝐖" in prose.maths(r"\mathbf{W}")


@pytest.mark.parametrize("tex", [r"\unknown{x}", r"\frac{1", EVIL + r"\nope"])
def test_formula_that_cannot_be_converted_is_shown_as_written(tex):
    shown = prose.maths(tex)
    assert shown.startswith('<code class="tex">')
    assert "<script" not in shown


@given(st.text(max_size=60))
def test_no_formula_breaks_out(tex):
    tree = ET.fromstring(f"<p>{prose.maths(tex)}</p>".replace("&nbsp;", " ")) if tex.isprintable() else None
    allowed = {"p", "code"} | {f"{{http://www.w3.org/1998/Math/MathML}}{t}" for t in prose._TAGS}
    assert tree is None or {n.tag for n in tree.iter()} <= allowed


def test_markdown_shows_html_and_keeps_formulas_for_later():
    html = prose.markdown(f"**bold** {EVIL} $a_b < c$ costs $5 and $6 [x](javascript:alert(1))")
    assert "<strong>bold</strong>" in html
    assert "<script" not in html
    assert 'href="javascript' not in html
    assert '<span class="sl-tex">$a_b &lt; c$</span>' in html
    assert "$5 and $6" in html
    typeset = prose.typeset(html)
    assert "<msub>" in typeset
    assert "&lt;</mo>" in typeset


def test_source_is_cut_from_the_file_without_its_docstring(tmp_path):
    lines = ["import missing_package", "", "class A:", '    """Doc."""', "", "    @property", "    def b(self):"]
    lines += ['        """Doc."""', "        return 1  # one"]
    (tmp_path / "method.py").write_text("\n".join(lines))
    (tmp_path / "other.py").write_text("def c():\n    return 2\n")
    found = source.find(tmp_path, "A.b")
    assert (found.text, found.first, found.last) == ("@property\ndef b(self):\n    return 1  # one", 6, 9)
    assert source.find(tmp_path, "c").file == "other.py"
    assert source.find(tmp_path, "nowhere") is None
    (tmp_path / "other.py").write_text("def broken(:\n")
    assert source.find(tmp_path / "none", "c") is None


def test_every_equation_of_every_card_shows_its_source():
    missing = [
        f"{p.slug}: {e.code}"
        for p in registry.papers().values()
        for e in p.equations
        if e.code and source.find(registry.room(p), e.code) is None
    ]
    assert missing == []


def test_every_formula_of_every_card_converts():
    failed = [
        f"{p.slug}: {e.tex}"
        for p in registry.papers().values()
        for e in p.equations
        if not prose.maths(e.tex, True).startswith("<math")
    ]
    assert failed == []


def test_claim_in_words():
    paper = example()
    assert words.expressed(paper.claims[0], paper) == (
        "perplexity: gptq − rtn < 0 ppl",
        "bits 3, experiment accuracy; paired by seed",
    )
    assert words.expressed(paper.claim("close-to-float"), paper)[0] == "perplexity: gptq ÷ float = 1.02 ± 0.03"
    assert words.expressed(paper.claim("identity-holds"), paper)[0] == "every residual ≤ 10⁻¹²"
    assert words.expressed(paper.claim("at-scale"), paper) == ("", "")


def test_summary_agrees_with_the_suites_estimate():
    values = [1.0, 2.0, 4.0, math.nan]
    table = pd.DataFrame({"value": values, "seed": range(4), "step": np.nan}).assign(
        experiment="e", metric="m", unit="1", problem="p", method="a"
    )
    row = evidence.summary(table).iloc[0]
    expected = estimate(values[:3])
    assert row["mean"] == pytest.approx(expected.mean)
    assert (row["low"], row["high"]) == pytest.approx((expected.low, expected.high))
    assert (row["count"], row["diverged"]) == (3, 1)


def test_long_series_are_shown_at_few_steps(results):
    blocks = summaries.summaries(evidence.of_paper(results, "laptop", "gptq").measurements, example().metrics)
    loss = next(b for b in blocks if b["metric"] == "loss")
    assert loss["all_steps"] == 12
    assert (loss["columns"][0], loss["columns"][-1]) == (1, 12)
    assert len(loss["columns"]) <= summaries.STEPS


def test_every_kind_of_verdict_is_met(results):
    paper = example()
    found = evidence.of_paper(results, "laptop", "gptq")
    verdicts = {c.id: found.verdict(paper, c)["verdict"] for c in paper.claims}
    assert verdicts == {
        "better-than-rtn": "supported",
        "close-to-float": "reproduced",
        "order-does-not-matter": "contradicted",
        "greedy-is-slower": "inconclusive",
        "identity-holds": "supported",
        "crashes": "untested",
        "at-scale": "untested",
    }


def test_plot_places_effect_control_and_printed_number(results):
    paper = example()
    claim = judged(paper, paper.claims[0], evidence.of_paper(results, "laptop", "gptq"))
    at = {r.label: r.at for r in claim.plot.rows}
    assert at["published"] < at["measured"] < claim.plot.edges[0]
    assert claim.plot.region == (0.0, claim.plot.edges[0])
    assert all(0 <= r.low <= r.at <= r.high <= 100 for r in claim.plot.rows if r.low is not None)
    ratio = judged(paper, paper.claim("close-to-float"), evidence.of_paper(results, "laptop", "gptq"))
    assert ratio.plot.log
    assert len(ratio.plot.edges) == 2


@hypothesis.example([(5e-324, 5e-324)])
@given(st.lists(st.tuples(st.floats(-1e12, 1e12), st.floats(0, 1e6)), min_size=1, max_size=5))
def test_dot_plot_stays_on_its_axis(pairs):
    plot = marks.dot_plot([(str(i), m, m - h, m + h) for i, (m, h) in enumerate(pairs)])
    assert all(-0.1 <= r.at <= 100.1 for r in plot.rows)


def test_results_of_other_scales_stand_beside_ones_own(results):
    paper = example()
    found = evidence.of_paper(results, "laptop", "gptq")
    (here, same), (there, other) = found.verdicts_elsewhere(paper, paper.claims[0])
    assert (here.name, here.here, same["verdict"]) == ("laptop-reference", True, "contradicted")
    assert (there.name, there.here, other["verdict"]) == ("gpu-reference", False, "supported")
    assert there.origin == "reference of 2024-11-20, git 0123456, NVIDIA H200"
    assert list(found.verdicts_elsewhere(paper, paper.claim("at-scale"))) == []


def test_another_verdict_than_the_references_is_marked(results):
    paper, found = example(), evidence.of_paper(results, "laptop", "gptq")
    claims = {c.id: judged(paper, c, found) for c in paper.claims}
    assert [i for i, c in claims.items() if c.differs] == ["better-than-rtn"]
    assert {i: c.tested_at for i, c in claims.items() if c.tested_at} == {"crashes": ["gpu"]}
    # The other scale's reference says otherwise too, but another scale is another experiment.
    assert not judged(paper, paper.claim("crashes"), found).differs


def test_a_verdict_that_the_reference_lacks_is_marked(results):
    paper, found = example(), evidence.of_paper(results, "laptop", "gptq")
    here = next(p for p in found.elsewhere if p.here)
    lost = here.verdicts.assign(verdict="untested", effect=math.nan)
    claim = judged(paper, paper.claim("identity-holds"), replace(found, elsewhere=(replace(here, verdicts=lost),)))
    assert claim.differs
    assert [row["verdict"] for _, row in claim.elsewhere] == ["untested"]


def test_what_was_not_run_here_differs_from_nothing(results, tmp_path):
    shutil.copytree(results.parent / "reference", tmp_path / "reference")
    paper, found = example(), evidence.of_paper(tmp_path / "laptop", "laptop", "gptq")
    claims = [judged(paper, c, found) for c in paper.claims]
    assert not any(c.differs for c in claims)
    assert sum(len(c.tested_at) for c in claims) == 6


def test_ones_own_runs_at_another_scale_come_before_the_reference(results, tmp_path):
    shutil.copytree(results.parent / "reference", tmp_path / "reference")
    for name in ("verdicts", "runs"):
        target = tmp_path / "gpu" / "tables" / f"{name}.parquet"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(tmp_path / "reference" / "gpu" / f"{name}.parquet", target)
    found = evidence.of_paper(tmp_path / "laptop", "laptop", "gptq")
    assert [p.name for p in found.elsewhere] == ["laptop-reference", "gpu"]
    assert found.elsewhere[1].origin.startswith("own run of 2024-11-20")


def test_without_references_nothing_is_shown(results, tmp_path, monkeypatch):
    monkeypatch.setattr(registry, "PACKAGE", tmp_path / "site-packages" / "secondlook")
    shutil.copytree(results / "tables", tmp_path / "laptop" / "tables")
    assert evidence.of_all(tmp_path / "laptop", "laptop").elsewhere == ()


def test_a_reference_without_provenance_still_counts(results, tmp_path):
    shutil.copytree(results.parent / "reference", tmp_path / "reference")
    (tmp_path / "reference" / "gpu" / "runs.csv").unlink()
    found = evidence.of_all(tmp_path / "laptop", "laptop")
    assert [p.origin for p in found.elsewhere if p.scale == "gpu"] == ["reference"]


def test_empty_folder_gives_holes_not_errors(tmp_path):
    found = evidence.of_paper(tmp_path / "laptop", "laptop", "gptq")
    assert len(found.holes) == 3
    page = Page(example(), found)
    assert "snakemake" in found.verdict(page.paper, page.paper.claims[0])["reason"]
    assert found.verdict(page.paper, page.paper.claim("at-scale"))["reason"] == "needs 80 GB of GPU memory"
    for _, name in SECTIONS:
        shown = getattr(page, name)()
        assert shown.html
        assert shown.plain
    assert page.measurements().html.count("sl-hole") == 1


@pytest.mark.parametrize("content", [b"", b"PAR1 not really", None])
def test_damaged_table_is_a_hole(tmp_path, content):
    path = tmp_path / "tables" / "verdicts.parquet"
    path.parent.mkdir()
    if content is None:
        pd.DataFrame({"paper": ["gptq"], "surprise": [1]}).to_parquet(path)
    else:
        path.write_bytes(content)
    found = evidence.of_paper(tmp_path, "laptop", "gptq")
    assert any("verdicts.parquet cannot be read" in h for h in found.holes)
    assert found.verdicts.empty


def test_parts_bring_style_once_and_plain_text(results):
    page = open_page("gptq", results, "laptop")
    head = page._repr_mimebundle_()
    assert '<style class="sl-style">' in head["text/html"]
    claims = page.claims()._repr_mimebundle_()
    assert "<style" not in claims["text/html"]
    assert set(claims) == {"text/html", "text/plain"}


def test_a_room_is_shown_without_importing_it(results):
    code = (
        "import sys; from secondlook.suite.report.room import open_page\n"
        f"page = open_page('gptq', {str(results)!r}, 'laptop')\n"
        "[getattr(page, n)() for n in ('head', 'says', 'claims', 'figures', 'method', 'measurements', 'provenance')]\n"
        "print([m for m in ('torch', 'matplotlib', 'seaborn', 'scipy.stats', 'IPython') if m in sys.modules])"
    )
    done = run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parent)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("steps", "metric", "drawn"),
    [
        (5, Metric(label="loss", unit="nats", step="step"), True),
        (3, Metric(label="loss", unit="nats", step="step"), False),  # dots say more
        (5, Metric(label="loss", unit="nats"), False),
        (5, None, False),
    ],
)
def test_a_benchmarks_metric_over_many_steps_is_drawn(steps, metric, drawn):
    at = itertools.product(("p", "q"), ("adam", "mine <b>"), range(2), range(steps))
    rows = [(p, m, s, float(k + 1), 10.0 ** -(k + s)) for p, m, s, k in at]
    table = pd.DataFrame(rows, columns=["problem", "method", "seed", "step", "value"]).assign(metric="loss")
    figure = curves.drawn(table, metric)
    assert bool(figure) == drawn
    if drawn:
        svg = base64.b64decode(figure.removeprefix("data:image/svg+xml;base64,")).decode()
        assert ET.fromstring(svg).tag.endswith("svg")
        assert figure == curves.drawn(table, metric)
