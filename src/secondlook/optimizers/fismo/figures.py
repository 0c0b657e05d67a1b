"""The paper's argument in figures, redrawn from the tidy table."""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from secondlook.suite import plots
from secondlook.suite.cards import Paper

LABELS = {
    "sgd": "momentum SGD",
    "adam": "Adam",
    "adamw": "AdamW",
    "shampoo": "Shampoo",
    "muon": "Muon",
    "muon-copy": "Muon, copy",
    "fismo": "FISMO",
    "fismo-relative": "FISMO, relative factors",
    "fismo-constant": "FISMO, one rate for all",
    "identity": "Muon, exact",
}

for _method in ("fismo", "muon", "fismo-relative", "identity", "fismo-constant"):
    plots.colour(_method)  # the clear colours to those that share a panel


def _per_seed(table: pd.DataFrame, metric: str, how: str) -> pd.DataFrame:
    """One value for each method, seed and step: what was measured in several layers becomes one."""
    rows = table[table["metric"] == metric]
    return rows.groupby(["method", "seed", "step", "metric"], as_index=False)["value"].agg(how)


def conditions(table: pd.DataFrame, paper: Paper) -> Figure:
    """Condition numbers of updates along training, and with the loss in other units."""
    fig, (left, right) = plots.subplots(1, 2, width=4.9, sharey=True)
    ours = ["fismo-relative", "fismo"]
    for ax, metric, methods in (
        (left, "log_condition", ["adam", *ours, "muon", "identity"]),
        (right, "scaled_log_condition", ours),
    ):
        plots.band(ax, _per_seed(table, metric, "median"), metric, paper, methods=methods, labels=LABELS)
    left.set_ylim(bottom=0)
    right.set(xscale="log", ylabel="")
    plots.title(left, "along training")
    plots.title(right, "the loss in other units")
    fig.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=5)
    return fig


def departure(table: pd.DataFrame, paper: Paper) -> Figure:
    """How far the Fisher factors turn Muon's update, by the unit of the loss."""
    fig, ax = plots.subplots(1, 1)
    rows = _per_seed(table, "scaled_departure", "mean")
    rows = rows[rows["method"] == "fismo-svd"].assign(method="fismo")
    plots.band(ax, rows, "scaled_departure", paper, methods=["fismo"], err="bars")
    ax.set(xscale="log", yscale="log")
    plots.title(ax, "FISMO and Muon, both exact")
    return fig


def regression(table: pd.DataFrame, paper: Paper) -> Figure:
    """Loss curves on the regressions."""
    rows = table[(table["experiment"] == "regression") & (table["metric"] == "excess_loss")]
    problems = sorted(rows["problem"].unique(), key=lambda p: float(p.removeprefix("condition-")))
    methods = [m for m in LABELS if m in set(rows["method"]) and not m.endswith("-copy")]
    fig, axes = plots.subplots(1, len(problems), width=6.8, squeeze=False)
    for ax, problem in zip(axes[0], problems, strict=True):
        plots.band(ax, rows[rows["problem"] == problem], "excess_loss", paper, methods=methods, labels=LABELS)
        ax.set_yscale("log")
        plots.title(ax, f"condition number {float(problem.removeprefix('condition-')):g}")
    fig.legend(*axes[0][0].get_legend_handles_labels(), loc="outside right center")
    return fig


def training(table: pd.DataFrame, paper: Paper) -> Figure:
    """Tuning and tuned losses on images and, where it was trained, text."""
    table = table[table["experiment"].isin(["images", "language"])]
    problems = sorted(table["problem"].unique())
    fig, axes = plots.subplots(len(problems), 2, width=4.9, squeeze=False)
    for (left, right), problem in zip(axes, problems, strict=True):
        here = table[table["problem"] == problem]
        methods = [m for m in LABELS if m in set(here["method"])]
        tuned = [m for m in methods if not m.endswith("-copy")]
        plots.band(left, here, "tuning_loss", paper, methods=tuned, labels=LABELS)
        left.set(xscale="log", ylim=(0, 6 * here.loc[here["metric"] == "tuning_loss", "value"].min()))
        left.legend()
        plots.title(left, f"{problem}, while tuning")
        _dots(right, here[here["metric"] == "best_test_loss"], methods)
        right.set_xlabel(plots.axis_label(paper, "best_test_loss"))
        plots.title(right, "tuned, fresh seeds")
    return fig


def _dots(ax: Axes, rows: pd.DataFrame, methods: list[str]) -> None:
    """A mean and its interval for each method, one under the other."""
    stats = plots.summary(rows, ["method"]).set_index("method").reindex(methods)
    error = [stats["mean"] - stats["low"], stats["high"] - stats["mean"]]
    ax.errorbar(stats["mean"], range(len(stats)), xerr=error, fmt="o", color=plots.INK, capsize=3)
    ax.set_yticks(range(len(stats)), [LABELS[m] for m in stats.index])
    ax.set(xlim=(0, None), ylim=(len(stats) - 0.5, -0.5))


def rate(table: pd.DataFrame, paper: Paper) -> Figure:
    """Mean squared gradient norms against the length of the run."""
    fig, ax = plots.subplots(1, 1)
    rows = table[table["metric"] == "mean_sq_gradient"]
    plots.band(ax, rows, "mean_sq_gradient", paper, methods=["fismo", "fismo-constant"], labels=LABELS)
    means = rows[rows["method"] == "fismo"].groupby("step")["value"].mean()
    guide = means.iloc[0] * (means.index.to_numpy() / means.index[0]) ** -0.5
    ax.plot(means.index, guide, color=plots.INK, ls=(0, (4, 2)), lw=1.2, label="slope -0.5 (abstract)")
    ax.set(xscale="log", yscale="log", ylim=(guide.min() / 4, guide.max() * 4))  # a run that blows up leaves the panel
    plots.few_log_ticks(ax)
    plots.title(ax, "matrix factorisation")
    ax.legend()
    return fig
