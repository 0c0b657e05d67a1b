"""Cards: what a paper is, what it claims, and how the claims are tested here. Plain data, checked on loading."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from secondlook.suite.errors import CardError
from secondlook.suite.scales import SCALES

Family = Literal[
    "optimizers",
    "spectra",
    "compression",
    "samplers",
    "influence",
    "solvers",
    "scientific",
    "representation",
]
FAMILIES = get_args(Family)
ScaleName = Literal["smoke", "laptop", "gpu", "paper"]
VerdictName = Literal["reproduced", "supported", "inconclusive", "contradicted", "untested"]
VERDICT_NAMES = get_args(VerdictName)


def _function(name: str) -> str:
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or "__" in name:
        raise ValueError(
            f"{name!r} is no name of a function: use lower-case letters, digits and single underscores; it is looked "
            "for in the paper's own room and nowhere else"
        )
    return name


def _entry(name: str) -> str:
    if not re.fullmatch(r"[a-z0-9][a-z0-9-]*", name):
        raise ValueError(f"{name!r} is no name: use lower-case letters, digits and dashes")
    return name


FunctionName = Annotated[str, AfterValidator(_function)]  # of the room's experiment.py or figures.py
EntryName = Annotated[str, AfterValidator(_entry)]  # a data set or a reference model
Slug = Field(pattern=r"^[a-z0-9][a-z0-9-]*$", max_length=80)


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Metric(Strict):
    """A quantity that experiments record."""

    label: str
    unit: str
    step: str | None = None  # what the step column counts
    timing: bool = False  # differs between two runs of the same seed


class ScaleSettings(Strict):
    """One experiment at one scale."""

    seeds: int = Field(ge=1)
    set: dict[str, Any] = {}
    check: dict[str, Any] = {}  # laid over `set` to try the code path in seconds on a CPU; every `gpu` has one
    data: list[EntryName] | None = None  # where it differs from the experiment's
    runtime: int = Field(default=30, ge=1)  # minutes
    mem_mb: int = Field(default=4000, ge=100)


class Experiment(Strict):
    """A function of that name in `experiment.py`, with its settings per scale."""

    about: str
    data: list[EntryName] = []
    models: dict[EntryName, Literal["per-seed", "shared"]] = {}
    scales: dict[ScaleName, ScaleSettings]


class Selector(Strict):
    """Which rows of the tidy table a claim reads. A list admits several values."""

    experiment: str | None = None
    problem: str | list[str] | None = None
    method: str | list[str] | None = None
    seed: int | list[int] | None = None
    metric: str | None = None
    step: float | list[float] | Literal["first", "last"] | None = None


class ClaimTest(Strict):
    """One of a few named forms, evaluated on measurements paired by seed (or problem)."""

    form: Literal["value", "difference", "ratio", "ordering", "slope", "correlation", "bound"]
    experiment: str | None = None
    metric: str | None = None
    of: Selector | list[Selector] | None = None
    minus: Selector | None = None
    over: Selector | None = None
    x: Selector | None = None
    y: Selector | None = None
    is_: Literal["above", "below"] | None = Field(default=None, alias="is")
    than: float | None = None
    target: float | None = None
    tolerance: float | None = Field(default=None, gt=0)
    kind: Literal["spearman", "pearson"] = "spearman"
    pairs: Literal["seed", "problem"] = "seed"
    aggregate: Literal["mean", "median", "min", "max"] | None = None

    @model_validator(mode="after")
    def _complete(self) -> ClaimTest:
        needs = {"difference": ("of", "minus"), "ratio": ("of", "over")}
        xy = self.form == "correlation" and self.of is None
        for field in ("x", "y") if xy else needs.get(self.form, ("of",)):
            if getattr(self, field) is None:
                raise ValueError(f"form {self.form!r} needs `{field}`")
        if (self.form == "ordering") != isinstance(self.of, list):
            raise ValueError("`of` is a list of selectors for form 'ordering' and one selector for every other form")
        if self.form == "ordering" and len(self.of) < 2:
            raise ValueError("an ordering needs at least two selectors in `of`")
        equivalence = self.target is not None
        if equivalence != (self.tolerance is not None):
            raise ValueError("`target` and `tolerance` go together")
        if equivalence and self.form in ("ordering", "correlation", "bound"):
            raise ValueError(f"form {self.form!r} takes no `target`")
        if not equivalence and self.form != "ordering":
            if self.is_ is None:
                raise ValueError("say `is: above` or `is: below` (or give `target` and `tolerance`)")
            if self.than is None and self.form not in ("difference", "ratio"):
                raise ValueError(f"form {self.form!r} needs `than`, the number the effect is compared with")
        return self

    @property
    def threshold(self) -> float:
        """The number an inequality is about: `than`, or the form's neutral value."""
        return self.than if self.than is not None else (1.0 if self.form == "ratio" else 0.0)

    def selectors(self) -> list[Selector]:
        """Every selector, with the test's `experiment` and `metric` filled in."""
        several = self.of if isinstance(self.of, list) else [self.of]
        return [self.fill(s) for s in (*several, self.minus, self.over, self.x, self.y) if s is not None]

    def fill(self, selector: Selector) -> Selector:
        return selector.model_copy(
            update={
                "experiment": selector.experiment or self.experiment,
                "metric": selector.metric or self.metric,
            }
        )


class Control(BaseModel):
    """The same test with parts replaced; it must not come out supported."""

    model_config = ConfigDict(extra="allow", frozen=True)
    why: str


class Claim(Strict):
    """One testable statement of a paper."""

    id: str = Slug
    statement: str
    source: str
    setting: str
    unit: str
    published: dict[str, Any] | None = None
    published_effect: float | None = None
    scales: list[ScaleName] = []
    untested: dict[ScaleName, str] = {}
    as_published: list[ScaleName] = []
    tolerance: float | None = Field(default=None, ge=0)
    tolerance_why: str | None = None
    test: ClaimTest | None = None
    control: Control | None = None
    deterministic: bool = False
    deterministic_why: str | None = None

    @model_validator(mode="after")
    def _honest(self) -> Claim:
        if self.scales and self.test is None:
            raise ValueError("a claim with `scales` needs a `test`")
        if self.scales and self.control is None:
            raise ValueError("a claim with `scales` needs a `control`: the same test, deliberately without the effect")
        if (self.tolerance is not None) != bool(self.tolerance_why):
            raise ValueError("`tolerance` and `tolerance_why` go together")
        if self.deterministic != bool(self.deterministic_why):
            raise ValueError("`deterministic` and `deterministic_why` go together")
        if set(self.as_published) - set(self.scales):
            raise ValueError("`as_published` names a scale that `scales` does not")
        if "laptop" not in self.scales and "laptop" not in self.untested:
            raise ValueError("say in `untested: {laptop: ...}` why the claim is not tested on a laptop")
        if self.control is not None:
            _ = self.control_test
        return self

    @property
    def control_test(self) -> ClaimTest | None:
        """The test of the negative control: the claim's own, with the control's fields merged in."""
        if self.control is None or self.test is None:
            return None
        merged = self.test.model_dump(by_alias=True, exclude_unset=True)
        for field, change in (self.control.model_extra or {}).items():
            both = isinstance(change, dict) and isinstance(merged.get(field), dict)
            merged[field] = {**merged[field], **change} if both else change
        return ClaimTest.model_validate(merged)


class FigureCard(Strict):
    """A function of that name in `figures.py`."""

    caption: str
    redraws: str | None = None


class Equation(Strict):
    """An equation of the paper, shown beside the code that computes it."""

    name: str
    source: str
    tex: str
    code: str | None = None


class Finding(Strict):
    """What the reference results show, and the verdicts the text was written for."""

    text: str
    smoke: dict[str, VerdictName] = {}
    laptop: dict[str, VerdictName] = {}
    gpu: dict[str, VerdictName] = {}
    paper: dict[str, VerdictName] = {}


class Paper(Strict):
    """One of the 169 papers. Without experiments it is known, but not replicated yet."""

    slug: str = Slug
    title: str
    family: Family
    year: int = Field(ge=1900, le=2100)
    arxiv: str | None = None
    code: str | None = None
    licence: str | None = None
    fidelity: Literal["exact", "gpu", "reduced", "mechanism"]
    summary: str

    says: str = ""
    equations: list[Equation] = []
    metrics: dict[str, Metric] = {}
    experiments: dict[FunctionName, Experiment] = {}
    claims: list[Claim] = []
    figures: dict[FunctionName, FigureCard] = {}
    finding: Finding | None = None

    @property
    def room(self) -> str:
        """Name of the paper's folder and module."""
        return self.slug.replace("-", "_")

    @property
    def module(self) -> str:
        return f"secondlook.{self.family}.{self.room}"

    @property
    def replicated(self) -> bool:
        return bool(self.experiments)

    def at(self, scale: str) -> dict[str, ScaleSettings]:
        """The experiments that run at a scale, with their settings."""
        return {name: e.scales[scale] for name, e in self.experiments.items() if scale in e.scales}  # type: ignore[index]

    def data(self, experiment: str, scale: str) -> list[str]:
        """The data sets an experiment reads at a scale."""
        here = self.at(scale)[experiment].data
        return self.experiments[experiment].data if here is None else here

    def claim(self, id: str) -> Claim:
        return next(c for c in self.claims if c.id == id)

    @model_validator(mode="after")
    def _consistent(self) -> Paper:
        seen: set[str] = set()
        for c in self.claims:
            if c.id in seen:
                raise ValueError(f"claim id {c.id!r} stands twice")
            seen.add(c.id)
            for test in (c.test, c.control_test):
                for s in test.selectors() if test else []:
                    if s.experiment not in self.experiments:
                        raise ValueError(
                            f"claim {c.id!r} reads experiment {s.experiment!r}, which the card does not declare"
                        )
                    if s.metric not in self.metrics:
                        raise ValueError(f"claim {c.id!r} reads metric {s.metric!r}, which the card does not declare")
                    for scale in c.scales:
                        if scale not in self.experiments[s.experiment].scales:
                            raise ValueError(
                                f"claim {c.id!r} says scale {scale!r}; experiment {s.experiment!r} has none"
                            )
        if self.finding:
            for scale in SCALES:
                unknown = set(getattr(self.finding, scale)) - seen
                if unknown:
                    raise ValueError(f"finding.{scale} names unknown claims: {', '.join(sorted(unknown))}")
        return self


def load(path: Path) -> Paper:
    """Read one card. Raises `CardError` naming the file, the field and the remedy."""
    try:
        raw = yaml.load(path.read_text(encoding="utf-8"), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except yaml.YAMLError as error:
        where = getattr(error, "problem_mark", None)
        line = f", line {where.line + 1}" if where else ""
        raise CardError(
            f"{path}{line}: not valid YAML ({getattr(error, 'problem', error)}); mend the indentation or quotes there"
        ) from None
    except UnicodeDecodeError as error:
        raise CardError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8") from None
    if not isinstance(raw, dict):
        raise CardError(
            f"{path}: a card is a mapping of fields, this is {type(raw).__name__}; see docs/adding-a-paper.md"
        )
    try:
        paper = Paper.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or "the card as a whole"
        more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
        message = first["msg"].removeprefix("Value error, ")
        raise CardError(
            f"{path}: {field}: {message}{more}; mend the field as docs/adding-a-paper.md describes it"
        ) from None
    if path.parent.name != paper.room or path.parent.parent.name != paper.family:
        raise CardError(
            f"{path}: slug {paper.slug!r} of family {paper.family!r} belongs into "
            f"{paper.family}/{paper.room}/card.yaml; move the folder"
        )
    return paper
