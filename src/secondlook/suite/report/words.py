"""Claims, settings and vocabulary as a reader would say them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from secondlook.suite.cards import Claim, ClaimTest, Paper, Selector
from secondlook.suite.report.numerals import printed

VERDICTS = {
    "reproduced": "At the published setting, the published number lies in the measured 95% interval "
    "or within the stated tolerance.",
    "supported": "At a reduced setting, the claimed direction holds: one-sided p < 0.05 after Holm's correction, "
    "and the negative control fails the same test.",
    "inconclusive": "The measurements decide neither for nor against the claim.",
    "contradicted": "The opposite of the claim holds, with the same strength of evidence.",
    "untested": "Not tested at this scale; the page says why.",
}
FIDELITIES = {
    "exact": "The published experiment, or a theorem or identity, fits on two cores.",
    "gpu": "The published setting fits on one GPU, in minutes a run.",
    "reduced": "Only a scaled-down setting is possible; the direction of the claim is testable.",
    "mechanism": "A large system; its core algorithm is tested on small synthetic data.",
}
EFFECTS = {
    "value": "mean",
    "difference": "mean difference",
    "ratio": "geometric mean ratio",
    "ordering": "smallest gap",
    "slope": "log–log slope",
    "correlation": "correlation",
    "bound": "worst value, range",
}


def plural(n: int, one: str, many: str | None = None) -> str:
    """`1 claim`, `2 claims`."""
    return f"{n:,} {one if n == 1 else many or one + 's'}"


def unit(name: str) -> str:
    """A unit for display: dimensionless ones have none."""
    return "" if name in ("", "1", "-", "none", "nan") else name


def metric(paper: Paper, name: str | None) -> str:
    """A metric's label."""
    if name is None:
        return ""
    return paper.metrics[name].label if name in paper.metrics else name.replace("_", " ")


def flat(published: dict[str, Any] | None, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Published numbers, nested as a card may write them, as (name, number)."""
    for name, value in (published or {}).items():
        label = f"{prefix}{name}".replace("_", " ")
        if isinstance(value, dict):
            yield from flat(value, f"{label} · ")
        elif isinstance(value, list):
            yield label, ", ".join(map(printed, value))
        else:
            yield label, printed(value)


def expressed(claim: Claim, paper: Paper, which: ClaimTest | None = None) -> tuple[str, str]:
    """A claim's test as (expression, circumstances): what differs between its sides, and what they share.

    For instance `("test accuracy: adahessian − adam > 0.9 points", "digits-cnn, last epoch; paired by seed")`.
    """
    t = which or claim.test
    if t is None:
        return "", ""
    sides = t.selectors()
    terms = [_facts(s, paper) for s in sides]
    shared = {k: v for k, v in terms[0].items() if all(x.get(k) == v for x in terms)}
    name = shared.pop("metric", "")
    names = [" · ".join(v for k, v in x.items() if k not in shared and (not name or k != "metric")) for x in terms]
    names = [n or name or "value" for n in names]
    expression = _expression(t, names, unit(claim.unit))
    if name and names != [name]:
        expression = f"{name}: {expression}"
    aggregate = f"{t.aggregate} of the values of each {t.pairs}" if t.aggregate else ""
    paired = (
        "every value counts"
        if t.form == "bound"
        else f"paired by {t.pairs}"
        if len(sides) > 1
        else f"one value a {t.pairs}"
    )
    return expression, "; ".join(filter(None, [", ".join(shared.values()), aggregate, paired]))


def _facts(s: Selector, paper: Paper) -> dict[str, str]:
    def several(x: Any) -> str:
        return ", ".join(map(str, x)) if isinstance(x, list) else str(x)

    counts = paper.metrics[s.metric].step if s.metric in paper.metrics else None
    facts = {"method": several(s.method) if s.method else "", "metric": metric(paper, s.metric)}
    facts["problem"] = f"on {several(s.problem)}" if s.problem else ""
    if s.step in ("first", "last"):
        facts["step"] = f"{s.step} {counts or 'step'}"
    elif s.step is not None:
        steps = ", ".join(map(printed, s.step)) if isinstance(s.step, list) else printed(s.step)
        facts["step"] = f"{counts or 'step'} {steps}"
    facts["seed"] = f"seed {several(s.seed)}" if s.seed is not None else ""
    facts["experiment"] = f"experiment {s.experiment}" if s.experiment and len(paper.experiments) > 1 else ""
    return {k: v for k, v in facts.items() if v}


def _expression(t: ClaimTest, names: list[str], unit: str) -> str:
    effect = {
        "value": lambda: names[0],
        "difference": lambda: " − ".join(names),
        "ratio": lambda: " ÷ ".join(names),
        "ordering": lambda: " > ".join(names),
        "slope": lambda: f"log–log slope of {names[0]}",
        "correlation": lambda: (
            f"{t.kind.capitalize()} correlation of {' with '.join(names if len(names) > 1 else [names[0], 'its step'])}"
        ),
        "bound": lambda: f"every {names[0]}",
    }[t.form]()
    if t.form == "ordering":
        return effect if not t.threshold else f"{effect}, every gap > {printed(t.threshold)} {unit}".rstrip()
    shown = unit if t.form in ("value", "difference", "bound") else ""
    if t.target is not None:
        return f"{effect} = {printed(t.target)} ± {printed(t.tolerance)} {shown}".rstrip()
    sign = ">" if t.is_ == "above" else "<"
    if t.form == "bound":
        sign = "≥" if t.is_ == "above" else "≤"
    return f"{effect} {sign} {printed(t.threshold)} {shown}".rstrip()
