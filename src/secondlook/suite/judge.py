"""Turns outcomes into verdicts: Holm's correction over a paper's claims, and a negative control beside each."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

from secondlook.suite.cards import Claim, ClaimTest, Paper
from secondlook.suite.claims import Outcome, Unmeasured, evaluate
from secondlook.suite.statistics import holm

ALPHA = 0.05


def judge(paper: Paper, scale: str, measurements: pd.DataFrame, runs: pd.DataFrame) -> pd.DataFrame:
    """The verdicts on one paper's claims at one scale, in the card's order.

    Args:
        paper: the card.
        scale: name of the scale.
        measurements, runs: the tidy tables (of all papers; only this paper's rows are read).

    Returns:
        A frame with the columns of `tables.VERDICTS`, one row a claim.
    """
    table = measurements[measurements["paper"] == paper.slug]
    runs = runs[runs["paper"] == paper.slug]
    found: dict[str, Outcome | str] = {c.id: _outcome(c, scale, table, runs) for c in paper.claims}
    control = {c.id: _control(c, table) if isinstance(found[c.id], Outcome) else None for c in paper.claims}
    p_for, p_against = _adjusted(found, "p_for"), _adjusted(found, "p_against")
    p_control = _adjusted(control, "p_for")
    rows = []
    for c in paper.claims:
        outcome, other = found[c.id], control[c.id]
        row: dict[str, Any] = {
            "paper": paper.slug,
            "claim": c.id,
            "scale": scale,
            "form": c.test.form if c.test else None,
            "unit": c.unit,
            "threshold": requirement(c.test) if c.test else None,
            "published": c.published_effect,
        }
        if isinstance(outcome, Outcome):
            control_holds = _supported(other, p_control.get(c.id)) if isinstance(other, Outcome) else None
            verdict, reason = _verdict(c, scale, outcome, p_for.get(c.id), p_against.get(c.id), control_holds)
            if isinstance(other, str):
                verdict, reason = (
                    ("inconclusive" if verdict in ("supported", "reproduced") else verdict),
                    f"no control: {other}",
                )
            row |= {
                "effect": outcome.effect,
                "low": outcome.low,
                "high": outcome.high,
                "n": outcome.n,
                "p": p_for.get(c.id),
                "p_against": p_against.get(c.id),
            }
            if isinstance(other, Outcome):
                row |= {
                    "control_effect": other.effect,
                    "control_low": other.low,
                    "control_high": other.high,
                    "control_p": p_control.get(c.id),
                    "control_supported": control_holds,
                }
        else:
            verdict, reason = "untested", outcome
        rows.append(row | {"verdict": verdict, "reason": reason})
    return pd.DataFrame(rows)


def requirement(test: ClaimTest) -> str:
    """The test's threshold as a reader would say it."""
    if test.target is not None:
        return f"{test.target:g} ± {test.tolerance:g}"
    sign = ">" if test.form == "ordering" or test.is_ == "above" else "<"
    if test.form == "bound":
        sign = "≤" if test.is_ == "below" else "≥"
    return f"{sign} {test.threshold:g}"


def _outcome(claim: Claim, scale: str, table: pd.DataFrame, runs: pd.DataFrame) -> Outcome | str:
    """What the claim's test found, or the reason why it was not tested."""
    if scale not in claim.scales or claim.test is None:
        default = (
            "smoke runs check the plumbing, not the paper" if scale == "smoke" else f"not testable at scale {scale}"
        )
        return claim.untested.get(scale, default)  # type: ignore[call-overload]
    try:
        return evaluate(claim.test, table, claim.deterministic)
    except Unmeasured as error:
        wanted = {s.experiment for s in claim.test.selectors()}
        notes = runs[runs["experiment"].isin(wanted) & (runs["status"] != "ok")]["note"]
        return "; ".join(dict.fromkeys(notes)) or str(error)
    except ValueError as error:
        return f"the test cannot be evaluated: {error}"


def _control(claim: Claim, table: pd.DataFrame) -> Outcome | str:
    try:
        return evaluate(claim.control_test, table, claim.deterministic)  # type: ignore[arg-type]
    except (Unmeasured, ValueError) as error:
        return str(error)


def _adjusted(outcomes: dict[str, Any], side: str) -> dict[str, float]:
    """Holm-corrected p-values of the claims that have one."""
    p = {id: getattr(o, side) for id, o in outcomes.items() if isinstance(o, Outcome) and getattr(o, side) is not None}
    return dict(zip(p, holm(list(p.values())), strict=True))


def _supported(outcome: Outcome, p: float | None) -> bool:
    return outcome.holds and (p is None or p < ALPHA)


def _verdict(
    claim: Claim,
    scale: str,
    found: Outcome,
    p_for: float | None,
    p_against: float | None,
    control_holds: bool | None,
) -> tuple[str, str]:
    if math.isnan(found.effect):
        return "inconclusive", found.note or "every run diverged"
    if p_for is not None and found.n < 2:
        return "inconclusive", f"{found.n} pair carries no spread to test against"
    if not _supported(found, p_for):
        against = not found.holds if p_against is None else p_against < ALPHA
        return ("contradicted" if against else "inconclusive"), found.note
    if control_holds:
        return (
            "inconclusive",
            "the negative control passes the same test, so the test does not separate the claim from its absence",
        )
    if found.note and claim.test and claim.test.form != "bound":
        return "inconclusive", found.note  # survivors alone support nothing
    if scale in claim.as_published and claim.published_effect is not None and _matches(claim, found):
        return "reproduced", ""
    return "supported", ""


def _matches(claim: Claim, found: Outcome) -> bool:
    """The published number lies in the measured interval, or within the card's tolerance."""
    printed = claim.published_effect
    if claim.tolerance is not None and abs(found.effect - printed) <= claim.tolerance:  # type: ignore[operator]
        return True
    return bool(found.p_for is not None and found.low <= printed <= found.high)  # type: ignore[operator]
