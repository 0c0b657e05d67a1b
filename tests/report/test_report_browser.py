"""The site in a real browser: Debian's Chromium, driven by Playwright, from `file://`."""

from __future__ import annotations

import shutil

import pytest

playwright = pytest.importorskip("playwright.sync_api", reason="needs `pip install playwright` (no browser download)")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium (`apt-get install chromium`)"),
]
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)  # a fresh profile each launch
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser, built):
    """Open a page of the site; at the end nothing may have been logged or asked of the network."""
    complaints: list[str] = []
    contexts = []

    def open_it(name: str, width: int = 1280, scheme: str = "light"):
        context = browser.new_context(viewport={"width": width, "height": 850}, color_scheme=scheme)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda m: complaints.append(m.text) if m.type in ("error", "warning") else None)
        page.on("pageerror", lambda e: complaints.append(str(e)))
        page.on("dialog", lambda d: complaints.append(f"a dialog says {d.message}"))
        page.on("request", lambda r: complaints.append(r.url) if not r.url.startswith(("file:", "data:")) else None)
        page.on("requestfailed", lambda r: complaints.append(f"failed: {r.url}"))
        page.goto(
            (built / name).as_uri()
            if "#" not in name
            else f"{(built / name.split('#')[0]).as_uri()}#{name.split('#')[1]}"
        )
        return page

    yield open_it
    for context in contexts:
        context.close()
    assert complaints == []


def rows(page) -> list[str]:
    """Slugs of the visible rows, from top to bottom."""
    return page.eval_on_selector_all("#scores tbody tr:not([hidden])", "rows => rows.map(r => r.dataset.slug)")


def test_every_paper_has_a_row(open_page, papers):
    page = open_page("index.html")
    assert len(rows(page)) == len(papers)
    assert page.inner_text("#shown") == f"{len(papers)} papers"
    assert rows(page)[0] == "gptq"


def test_filters_narrow_and_the_address_remembers(open_page, papers):
    page = open_page("index.html")
    page.click(".chip[data-verdict=contradicted]")
    assert rows(page) == ["gptq"]
    assert page.get_attribute(".chip[data-verdict=contradicted]", "aria-pressed") == "true"
    page.click(".chip[data-verdict=contradicted]")
    page.select_option("#filter-family", "compression")
    page.select_option("#filter-fidelity", "exact")
    page.click("th[data-key=title] button")
    expected = sorted(
        (p.title for p in papers.values() if (p.family, p.fidelity) == ("compression", "exact")), key=str.lower
    )
    shown = [papers[s].title for s in rows(page)]
    assert sorted(shown, key=str.lower) == expected
    assert "family=compression" in page.url
    page.reload()
    assert [papers[s].title for s in rows(page)] == shown
    assert page.get_attribute("th[data-key=title]", "aria-sort") == "ascending"
    page.click("#reset")
    assert len(rows(page)) == len(papers)
    assert "family" not in page.url


def test_search_finds_and_says_when_it_does_not(open_page):
    page = open_page("index.html#q=gptq")
    assert rows(page)[0] == "gptq"
    page.fill("#filter-text", "no such paper anywhere")
    assert rows(page) == []
    assert page.is_visible("#empty")
    page.click("#reset-empty")
    assert len(rows(page)) > 100


def test_a_foolish_address_does_no_harm(open_page, papers):
    page = open_page("index.html#family=%3Cscript%3E&sort=nothing&verdict=x.y")
    assert page.input_value("#filter-family") == ""
    assert len(rows(page)) in (0, len(papers))


@pytest.mark.parametrize("key", ["year", "claims", "seconds"])
def test_sorting_by_numbers_starts_at_the_largest(open_page, key):
    page = open_page("index.html")
    page.click(f"th[data-key={key}] button")
    values = page.eval_on_selector_all("#scores tbody tr", f"rows => rows.map(r => Number(r.dataset.{key}))")
    assert values == sorted(values, reverse=True)
    assert page.get_attribute(f"th[data-key={key}]", "aria-sort") == "descending"
    page.click(f"th[data-key={key}] button")
    assert page.get_attribute(f"th[data-key={key}]", "aria-sort") == "ascending"
    page.click(f"th[data-key={key}] button")
    assert page.get_attribute(f"th[data-key={key}]", "aria-sort") == "none"


def test_the_keyboard_reaches_filters_and_headings(open_page):
    page = open_page("index.html")
    page.focus(".chip[data-verdict=supported]")
    page.keyboard.press("Enter")
    assert page.get_attribute(".chip[data-verdict=supported]", "aria-pressed") == "true"
    page.focus("th[data-key=year] button")
    page.keyboard.press("Space")
    assert page.get_attribute("th[data-key=year]", "aria-sort") == "descending"


def test_a_sign_leads_to_its_claim(open_page):
    page = open_page("index.html")
    page.click('a[href="papers/gptq.html#claim-order-does-not-matter"].sign')
    assert page.url.endswith("papers/gptq.html#claim-order-does-not-matter")
    assert "contradicted" in page.inner_text("#claim-order-does-not-matter")


def test_every_control_has_a_name(open_page):
    page = open_page("index.html")
    nameless = page.eval_on_selector_all(
        "a, button, input, select",
        "nodes => nodes.filter(n => !(n.innerText.trim() || n.ariaLabel || n.labels?.length)).map(n => n.outerHTML)",
    )
    assert nameless == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(
    "name", ["index.html", "papers/gptq.html", "papers/hostile.html", "papers/adahessian.html",
             "families/compression.html", "models.html", "adding-a-paper.html"],
)  # fmt: skip
def test_a_phone_needs_no_sideways_scrolling(open_page, name, scheme):
    page = open_page(name, width=390, scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_its_ground(open_page, scheme):
    """Contrast of the quietest text and of every verdict's colour, after WCAG 2: at least 4.5 to 1."""
    page = open_page("index.html", scheme=scheme)
    ratios = page.evaluate(
        """() => {
          const parse = (c) => c.match(/[\\d.]+/g).slice(0, 3).map(Number);
          const linear = (v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
          const light = (c) => parse(c).map((v) => linear(v / 255))
            .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
          const ground = light(getComputedStyle(document.documentElement).backgroundColor);
          return [".sl-quiet", ".hero-lead", ...["reproduced", "supported", "inconclusive", "contradicted", "untested"]
            .map((v) => `.hero-verdicts .sl-${v}`)].map((s) => {
              const ink = light(getComputedStyle(document.querySelector(s)).color);
              return [s, (Math.max(ink, ground) + 0.05) / (Math.min(ink, ground) + 0.05)];
            });
        }"""
    )
    assert [r for r in ratios if r[1] < 4.5] == []


def test_folded_evidence_opens_for_a_link(open_page):
    page = open_page("papers/gptq.html")
    assert page.evaluate("document.querySelectorAll('math').length") > 3
    assert page.evaluate("[...document.images].every(i => i.naturalWidth > 0)")
