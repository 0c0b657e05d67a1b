"""The whole site, built from a synthetic results folder: links, escaping, holes."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import nbformat
import pytest
from synthetic import EVIL, example, fill, hostile

from secondlook.suite import registry, seals
from secondlook.suite.errors import SecondLookError
from secondlook.suite.report import embed, notebooks, site

TEMPLATES = Path(__file__).parents[2] / "notebooks"


class Links(HTMLParser):
    """Ids, links and tags of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.scripts: list[str | None] = []
        self.handlers: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.ids += [found["id"]] if "id" in found else []
        self.links += [found[k] for k in ("href", "src") if k in found]
        self.scripts += [found.get("src")] if tag == "script" else []
        self.handlers += [k for k in found if k.startswith("on")]


@pytest.fixture(scope="module")
def pages(built: Path) -> dict[Path, Links]:
    return {path: Links(path) for path in built.rglob("*.html")}


def test_every_link_resolves(built, pages):
    broken = []
    for path, page in pages.items():
        for link in page.links:
            if link.startswith(("https://", "data:")):
                continue
            file, _, fragment = link.partition("#")
            target = (path.parent / file).resolve() if file else path
            if not target.is_file() or (fragment and fragment not in pages[target].ids):
                broken.append(f"{path.relative_to(built)}: {link}")
    assert broken == []


def test_ids_are_unique(pages):
    assert [p for p, page in pages.items() if len(page.ids) != len(set(page.ids))] == []


def test_nothing_is_fetched_from_elsewhere(built, pages):
    for path, page in pages.items():
        assert all(src and not src.startswith(("http", "//")) for src in page.scripts), path
        text = path.read_text(encoding="utf-8")
        assert not re.search(r'<(?:img|link|script|iframe)[^>]+(?:src|href)="(?:https?:)?//', text), path
    assert not re.search(r"url\(|@import", (built / "assets" / "style.css").read_text(encoding="utf-8"))


def test_hostile_text_stays_text(built, pages):
    texts = {p: p.read_text(encoding="utf-8") for p in pages}
    assert all(EVIL not in text for text in texts.values())
    assert all(page.handlers == [] for page in pages.values())
    assert all(not link.startswith("javascript") for page in pages.values() for link in page.links)
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in texts[built / "papers" / "hostile.html"]
    assert "{{ 7*7 }}" in texts[built / "papers" / "hostile.html"]


def test_every_paper_has_a_page_and_a_row(built, papers):
    index = (built / "index.html").read_text(encoding="utf-8")
    assert len(re.findall(r"<tr data-slug=", index)) == len(papers)
    assert {p.stem for p in (built / "papers").glob("*.html")} == set(papers)
    waiting = (built / "papers" / "adahessian.html").read_text(encoding="utf-8")
    assert "Nobody has taken a second look yet" in waiting
    assert "secondlook new adahessian" in re.sub(r"<[^>]+>", "", waiting)


def test_claims_show_their_evidence(built):
    text = (built / "papers" / "gptq.html").read_text(encoding="utf-8")
    claim = re.search(r'id="claim-better-than-rtn".*?</section>', text, re.S)[0]
    for piece in ("−3.", "&lt; 0", "−17.47", "supported", "It fails, as it must", "25.54"):
        assert piece in claim
    assert "RuntimeError: singular matrix at step 3" in re.search(r'id="claim-crashes".*?</section>', text, re.S)[0]


def test_other_places_stand_beside_ones_own_verdict(built):
    text = (built / "papers" / "gptq.html").read_text(encoding="utf-8")
    shown = {i: re.search(rf'id="claim-{i}".*?</section>', text, re.S)[0] for i in ("better-than-rtn", "crashes")}
    assert "differs from the reference" in shown["better-than-rtn"]
    assert "reference of 2024-11-20, git 0123456, NVIDIA H200" in shown["better-than-rtn"]
    assert "Tested at gpu scale, see below." in shown["crashes"]
    assert re.search(r"gpu</span>.*supported.*0\.50.*\[0\.40, 0\.60\]", shown["crashes"], re.S)
    assert text.count("differs from the reference") == 1
    front = re.sub(r"<[^>]+>", "", (built / "index.html").read_text(encoding="utf-8"))
    assert re.search(r"1 of the \d untested was tested at gpu scale", front)
    assert "1 verdict differs from the suite's own reference: better-than-rtn." in front.replace("&#39;", "'")


def test_missing_pieces_are_visible_holes(built):
    text = re.sub(r"<[^>]+>", "", (built / "papers" / "gptq.html").read_text(encoding="utf-8"))
    for reason in (
        "Experiment broken failed.",
        "Figure lost: not drawn: ValueError",
        "No notebook was executed for this paper",
        "The room holds no definition called nowhere_to_be_found",
    ):
        assert reason in text
    family = (built / "families" / "optimizers.html").read_text(encoding="utf-8")
    assert "sl-hole" in family


def test_figures_are_files_and_tables_are_csv(built):
    text = (built / "papers" / "gptq.html").read_text(encoding="utf-8")
    assert 'src="../figures/gptq/bits.svg"' in text
    rows = (built / "tables" / "papers" / "gptq.csv").read_text().splitlines()
    assert len(rows) == 1 + 5 * (5 * 3 + 2 * 12 + 2 * 2)
    assert all(row.startswith("gptq,") for row in rows[1:])
    assert (built / "tables" / "verdicts-gpu-reference.csv").exists()
    assert (built / "benchmarks" / "compression.csv").exists()


def test_foot_tells_scale_commit_date_and_version(built):
    foot = (built / "index.html").read_text(encoding="utf-8").split("<footer")[1]
    for piece in ("laptop", "0123456789ab", "with local changes", "2025-01-02", "Second Look 0.1.0"):
        assert piece in foot


def test_building_twice_gives_the_same_files(results, papers, built):
    before = {p.relative_to(built): p.read_bytes() for p in built.rglob("*") if p.is_file()}
    site.build(results, "laptop", papers=papers)
    after = {p.relative_to(built): p.read_bytes() for p in built.rglob("*") if p.is_file()}
    assert before == after


def test_empty_results_still_make_a_site(tmp_path):
    index = site.build(tmp_path / "laptop", "laptop")
    text = index.read_text(encoding="utf-8")
    assert len(re.findall(r"<tr data-slug=", text)) == len(registry.papers())
    assert "sl-hole" in text
    assert list(tmp_path.glob("**/.report*")) == []


def test_failed_build_leaves_the_old_site(tmp_path, monkeypatch):
    results = tmp_path / "laptop"
    index = site.build(results, "laptop", papers=[example()])
    before = index.read_text()
    monkeypatch.setattr(site._Builder, "_downloads", lambda self: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        site.build(results, "laptop", papers=[hostile()])
    assert index.read_text() == before
    assert [p.name for p in results.iterdir()] == ["report"]


def test_notebook_runs_and_becomes_the_page(tmp_path, papers):
    results = tmp_path / "laptop"
    fill(results, papers)
    output = results / "notebooks" / "gptq.ipynb"
    parameters = {"paper": "gptq", "scale": "laptop", "results": str(results.resolve())}
    notebooks.execute(TEMPLATES / "paper.ipynb", output, parameters)
    notebook = nbformat.read(output, as_version=4)
    assert not any(o.output_type == "error" for c in notebook.cells for o in c.get("outputs", []))
    assert 'results = ".."' in notebook.cells[1].source
    assert str(tmp_path) not in output.read_text(encoding="utf-8")
    assert all(c.outputs for c in notebook.cells[2:] if c.cell_type == "code")
    page = site.build(results, "laptop", papers=papers).parent / "papers" / "gptq.html"
    text = page.read_text(encoding="utf-8")
    assert "No notebook was executed" not in text
    assert "sl-style" not in text
    assert 'id="toggle-code"' in text
    assert "<math" in text


def test_damaged_notebook_is_a_hole(tmp_path):
    results = tmp_path / "laptop"
    path = results / "notebooks" / "gptq.ipynb"
    path.parent.mkdir(parents=True)
    path.write_text("{not json")
    text = (site.build(results, "laptop", papers=[example()]).parent / "papers" / "gptq.html").read_text()
    assert "The executed notebook gptq.ipynb was changed or damaged" in text
    assert "Claims and verdicts" in text


def test_failing_notebook_leaves_nothing(tmp_path):
    template = tmp_path / "bad.ipynb"
    cell = nbformat.v4.new_code_cell("raise ValueError('on purpose')")
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=[cell], metadata=kernel), template)
    with pytest.raises(SecondLookError, match="on purpose"):
        notebooks.execute(template, tmp_path / "out" / "bad.ipynb", {})
    assert list((tmp_path / "out").iterdir()) == []
    with pytest.raises(SecondLookError, match="is missing"):
        notebooks.execute(tmp_path / "none.ipynb", tmp_path / "out.ipynb", {})


def test_outputs_of_a_strange_notebook_are_escaped(tmp_path):
    v4 = nbformat.v4
    cell = v4.new_code_cell("print('<b>')", outputs=[
        v4.new_output("stream", name="stdout", text=EVIL),
        v4.new_output("error", ename=EVIL, evalue=EVIL, traceback=[EVIL]),
        v4.new_output("execute_result", data={"text/plain": EVIL}),
        v4.new_output("display_data", data={"text/markdown": EVIL}),
    ])  # fmt: skip
    path = tmp_path / "strange.ipynb"
    sealed = {"secondlook": {"seal": seals.BLANK}}
    nbformat.write(v4.new_notebook(cells=[cell, v4.new_markdown_cell(EVIL)], metadata=sealed), path)
    seals.close(path)
    body = embed.body(path)
    assert EVIL not in body
    assert body.count("&lt;script&gt;") >= 4


@pytest.mark.parametrize("name", ["paper", "family", "scoreboard"])
def test_templates_are_clean(name):
    raw = json.loads((TEMPLATES / f"{name}.ipynb").read_text(encoding="utf-8"))
    nbformat.validate(nbformat.from_dict(raw))
    code = [c for c in raw["cells"] if c["cell_type"] == "code"]
    assert code[0]["metadata"]["tags"] == ["parameters"]
    assert all(c["outputs"] == [] and c["execution_count"] is None for c in code)
