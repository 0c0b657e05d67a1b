"""Text from cards and guides to HTML: Markdown, and LaTeX as MathML.

Markdown leaves its formulas as `<span class="sl-tex">$...$</span>`, which Jupyter typesets by itself; `typeset` turns
them into MathML when the site is built, so that no page needs a script.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from functools import cache
from html import unescape

from markdown_it import MarkdownIt
from markdown_it.rules_inline import StateInline
from markupsafe import Markup, escape

_MATH = re.compile(r"\$\$(?P<block>.+?)\$\$|\$(?!\s)(?P<inline>(?:\\.|[^$\\])+?)(?<!\s)\$(?!\d)", re.S)
_NAMESPACE = "{http://www.w3.org/1998/Math/MathML}"
_TAGS = frozenset(
    "math mrow mi mo mn mtext mspace msub msup msubsup mfrac msqrt mroot mover munder munderover mtable mtr mtd "  # noqa: SIM905
    "mstyle mpadded mphantom".split()
)
_ATTRIBUTES = frozenset(
    "display stretchy fence form accent minsize maxsize width columnalign columnspacing rowspacing displaystyle "  # noqa: SIM905
    "scriptlevel linethickness lspace rspace".split()
)
_ACCENTS = {"^": "\u02c6", "~": "\u02dc"}  # as accents, not as the operators of those signs
THIN = "\u2009"
_FIXED = frozenset(("msub", "msup", "msubsup", "mfrac", "mroot", "mover", "munder", "munderover", "mtable", "mtr"))
_LIMITS = frozenset(("arg min", "arg max", "min", "max", "sup", "inf", "lim"))
# First letters (A, a, Greek A, Greek a, 0) of the alphabets that browsers no longer derive from `mathvariant`.
_ALPHABETS = {
    "bold": (0x1D400, 0x1D41A, 0x1D6A8, 0x1D6C2, 0x1D7CE),
    "bold-italic": (0x1D468, 0x1D482, 0x1D71C, 0x1D736, 0x1D7CE),
}


def markdown(text: str) -> Markup:
    """Markdown with `$math$` as HTML, formulas still in LaTeX. Raw HTML in the text is shown, not obeyed."""
    return Markup(_parser().render(text))


def inline(text: str) -> Markup:
    """One line of Markdown with `$math$`, without a paragraph around it."""
    return Markup(_parser().renderInline(text))


def ticked(text: str) -> Markup:
    """Plain text whose `ticks` mark code; nothing else has a meaning, so that error messages stay as they are."""
    return Markup(re.sub(r"`([^`\n]+)`", r"<code>\1</code>", str(escape(text))))


def formula(tex: str, block: bool = False) -> Markup:
    """LaTeX, marked as such, waiting for Jupyter or `typeset`."""
    sign = "$$" if block else "$"
    return Markup('<span class="sl-tex{}">{}{}{}</span>').format(" sl-block" if block else "", sign, tex.strip(), sign)


def typeset(html: str) -> str:
    """Turn every marked formula in a piece of HTML into MathML."""
    return re.sub(
        r'<span class="sl-tex( sl-block)?">\$+(.*?)\$+</span>',
        lambda m: maths(unescape(m[2]), bool(m[1])),
        html,
        flags=re.S,
    )


@cache
def maths(tex: str, block: bool = False) -> Markup:
    """LaTeX as MathML. What cannot be converted is shown as it was written."""
    from latex2mathml.converter import convert

    try:
        tree = ET.fromstring(convert(_prepared(tex), display="block" if block else "inline"))
        _mend(tree, block)
    except Exception:  # the converter raises many kinds; the reader gets the source instead
        return Markup('<code class="tex">{}</code>').format(tex.strip())
    tree.set("xmlns", _NAMESPACE[1:-1])
    tree.set("alttext", " ".join(tex.split()))
    return Markup(ET.tostring(tree, encoding="unicode", short_empty_elements=False))


def _prepared(tex: str) -> str:
    """Spell what the converter does not know in terms that it does, and keep `<` out of its hands."""
    kept: list[str] = []

    def text(match: re.Match[str]) -> str:
        kept.append(f"\\text{{{escape(match[1])}}}")
        return f"\x00{len(kept) - 1}\x00"

    tex = re.sub(r"\\(?:text|textrm|mbox)\s*\{([^{}]*)\}", text, tex.strip())
    for pattern, spelled in (
        (r"<", r"\\lt "),
        (r">", r"\\gt "),
        (r"\\operatorname\*", r"\\operatorname"),
        (r"\\arg\s*\\(min|max)", r"\\operatorname{arg\\,\1}"),
        (r"\\arg(min|max)", r"\\operatorname{arg\\,\1}"),
        (r"\\(begin|end)\{(?:aligned|split|gathered)\}", r"\\\1{align*}"),
        (r"\\operatorname\{([^{}]*)\}", lambda m: r"\operatorname{" + re.sub(r"\\[,;:! ]|\s+", THIN, m[1]) + "}"),
        (r"\\!", ""),
        (r"\\middle\s*\|", r"\\mid "),
        (r"\\[bB]igg?[lrm]?\s*(?:\\\||\\[lr]?Vert(?![A-Za-z]))", r"\\Vert "),
        (r"\\[bB]igg?[lrm]?\s*\\[lr]?vert(?![A-Za-z])", r"\\vert "),
    ):
        tex = re.sub(pattern, spelled, tex)  # type: ignore[arg-type]
    return re.sub("\x00(\\d+)\x00", lambda m: kept[int(m[1])], tex)


def _mend(node: ET.Element, block: bool) -> None:
    """Keep to MathML Core: known tags and attributes only, bold letters as letters, function names as identifiers."""
    tag = node.tag.removeprefix(_NAMESPACE)
    if tag not in _TAGS or node.get("linebreak"):
        raise ValueError(f"no MathML for {tag}")
    variant = node.get("mathvariant", "")
    text = node.text or ""
    if tag in ("mi", "mo", "mn") and ("\\" in text or "&" in text):
        raise ValueError(f"unknown command {text}")
    if tag in ("mi", "mn") and variant in _ALPHABETS:
        node.text = "".join(_letter(c, *_ALPHABETS[variant]) for c in text)
    if tag in ("mfrac", "mroot", "msub", "msup", "mover", "munder") and len(node) != 2:
        raise ValueError(f"{tag} needs two parts")
    if tag == "mo" and len(text) > 1 and text.replace(THIN, "").isalpha():
        tag = "mi"  # `tr` is a name; as an operator it would stand in wide spaces
    if tag == "msub" and block and (node[0].text or "").replace(THIN, " ") in _LIMITS:
        tag = "munder"
    if tag == "mover" and (accent := _ACCENTS.get(node[1].text or "")):
        node[1].text = accent
        node[1].set("stretchy", "false" if (node[0].text or "") else "true")
    if tag == "mspace" and not re.fullmatch(r"-?[\d.]+em", node.get("width", "")):
        node.set("width", "0em")
    kept = {k: v for k, v in node.attrib.items() if k in _ATTRIBUTES}
    if tag == "mi" and variant == "normal":
        kept["mathvariant"] = "normal"
    if align := kept.pop("columnalign", ""):
        kept["style"] = f"text-align:{align if align in ('left', 'right') else 'center'}"
    node.tag = tag
    node.attrib.clear()
    node.attrib.update(kept)
    for child in node:
        _mend(child, block)
    if tag == "mrow" and len(node) > 1 and all(c.tag == "mi" and c.get("mathvariant") == "normal" for c in node):
        node.tag, node.text = "mi", "".join(node.itertext())  # `\mathrm{diag}` is one name
        node[:] = []
    for i in reversed(range(len(node) - 1)):  # `log x` needs the space that `log(x)` does not
        if tag not in _FIXED and _is_name(node[i]) and _first(node[i + 1])[:1] not in ("(", "[", "{", ",", ")"):
            node.insert(i + 1, ET.Element("mspace", width="0.17em"))


def _is_name(node: ET.Element) -> bool:
    """Whether this is a function's name, limits or not."""
    inner = node[0] if node.tag in ("munder", "msub", "msup") and len(node) else node
    return inner.tag == "mi" and bool(re.fullmatch(rf"[A-Za-z{THIN}]{{2,}}", inner.text or ""))


def _first(node: ET.Element) -> str:
    """The first sign that stands in a node."""
    return next((t for t in node.itertext() if t), "")


def _letter(c: str, upper: int, lower: int, greek_upper: int, greek_lower: int, digit: int) -> str:
    for first, last, start in (
        ("A", "Z", upper),
        ("a", "z", lower),
        ("Α", "Ω", greek_upper),
        ("α", "ω", greek_lower),
        ("0", "9", digit),
    ):
        if first <= c <= last:
            return chr(start + ord(c) - ord(first))
    return c


def _math_rule(state: StateInline, silent: bool) -> bool:
    """Markdown-it rule: `$...$` and `$$...$$`, before backslashes and underscores get a meaning."""
    if state.src[state.pos] != "$":
        return False
    match = _MATH.match(state.src, state.pos, state.posMax)
    if not match:
        return False
    if not silent:
        token = state.push("maths", "math", 0)
        token.content, token.markup = match["block"] or match["inline"], "$$" if match["block"] else "$"
    state.pos = match.end()
    return True


@cache
def _parser() -> MarkdownIt:
    parser = MarkdownIt("commonmark", {"html": False, "typographer": True}).enable(
        ["table", "smartquotes", "replacements"]
    )
    parser.disable("image")
    parser.validateLink = lambda address: bool(re.match(r"https?://|#|[\w./-]+\.md(#|$)", address))  # type: ignore[method-assign]
    parser.inline.ruler.before("escape", "maths", _math_rule)
    parser.add_render_rule(
        "maths", lambda self, tokens, i, options, env: formula(tokens[i].content, tokens[i].markup == "$$")
    )
    parser.add_render_rule("fence", lambda self, tokens, i, options, env: _fence(tokens[i].content, tokens[i].info))
    parser.add_render_rule("code_block", lambda self, tokens, i, options, env: _fence(tokens[i].content, ""))
    return parser


def _fence(text: str, info: str) -> str:
    from secondlook.suite.report.source import highlight

    return highlight(text, info.strip() or "text")
