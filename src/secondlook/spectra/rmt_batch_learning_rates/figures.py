"""The paper's figures, redrawn from the tidy table."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from secondlook.suite import plots
from secondlook.suite.cards import Paper


def line(ax: Axes, rows: pd.DataFrame, label: str, colour: str, style: str = "o-") -> None:
    """Geometric mean and 95% interval over seeds against the step, on two logarithmic axes."""
    rows = rows.dropna(subset=["value"])
    s = plots.summary(rows.assign(value=np.log(rows["value"])), ["step"])
    ax.plot(s["step"], np.exp(s["mean"]), style, color=colour, label=label)
    if s["low"].notna().any():
        ax.fill_between(s["step"].astype(float), np.exp(s["low"]), np.exp(s["high"]), color=colour, alpha=0.18, lw=0)


def finish(ax: Axes, paper: Paper, metric: str, title: str) -> None:
    ax.set(xscale="log", yscale="log", xlabel=paper.metrics[metric].step, ylabel=plots.axis_label(paper, metric))
    ax.set_xscale("log", base=2)
    ax.xaxis.set_major_formatter("{x:g}")
    plots.few_log_ticks(ax, "y")
    ax.legend(fontsize=7.5)
    plots.title(ax, title)


def matrices(table: pd.DataFrame, paper: Paper) -> Figure:
    rows = table[table["metric"] == "top"]
    fig, axes = plots.subplots(1, 2, height=3.6)
    titles = {"hessian": "Hessian: added noise", "ggn": "Gauss-Newton: sample covariance"}
    for ax, (model, title) in zip(axes, titles.items(), strict=True):
        ours = rows[rows["problem"].str.startswith(model)]
        for problem, colour in zip(dict.fromkeys(ours["problem"]), (plots.PALETTE[0], plots.PALETTE[3]), strict=False):
            one = ours[ours["problem"] == problem]
            line(ax, one[one["method"] == "measured"], problem.removeprefix(f"{model}, "), colour, "o")
            law = one[one["method"] == "theory"].groupby("step")["value"].first()
            ax.plot(law.index, law, color=colour, lw=1.2)
        ax.plot([], [], color=plots.INK, lw=1.2, label="limit of large matrices")
        _guide(ax, ours, -0.5 if model == "hessian" else -1)
        finish(ax, paper, "top", title)
    return fig


def _guide(ax: Axes, rows: pd.DataFrame, power: float) -> None:
    """A dotted line of one slope, above the data."""
    steps = np.array(sorted(rows["step"].unique()))[:4]
    height = 1.5 * rows["value"].max()
    ax.plot(steps, height * (steps / steps[0]) ** power, ":", color=plots.MUTED, label=f"slope {power:g}")


def network(table: pd.DataFrame, paper: Paper) -> Figure:
    rows = table[table["metric"] == "inflation"]
    bottom = table[table["metric"] == "bottom"]
    fig, axes = plots.subplots(1, 2, height=3.6, sharey=True)
    for ax, when in zip(axes, ("untrained", "trained"), strict=True):
        one = rows[rows["problem"] == when]
        line(ax, one[one["method"] == "measured"], "largest eigenvalue", plots.PALETTE[0])
        line(ax, bottom[bottom["problem"] == when], "smallest eigenvalue", plots.PALETTE[1], "s-")
        line(ax, one[one["method"] == "theory"], "prediction for the largest", plots.INK, "--")
        fixed = one[(one["method"] == "direction") & (one["value"] > 0)]
        line(ax, fixed, "along a fixed direction (control)", plots.PALETTE[7], "x:")
        finish(ax, paper, "inflation", f"Network, {when}")
    return fig


def rates(table: pd.DataFrame, paper: Paper) -> Figure:
    table = table[table["experiment"] == "rates"]
    fig, axes = plots.subplots(1, 2, height=3.6)
    rows = table[table["metric"] == "rate"]
    limit = table[table["metric"] == "rate_limit"]
    powers = {"sgd": 1.0, "adam": 0.5}
    for ax, (method, power) in zip(axes, powers.items(), strict=True):
        ours = rows[rows["method"] == method].dropna(subset=["value"])
        line(ax, ours, "largest stable rate", plots.colour(method))
        if method == "sgd":
            line(ax, limit, "2 / largest eigenvalue, before training", plots.PALETTE[1], "s--")
        if len(ours):
            first = ours.groupby("step")["value"].mean()
            x = np.array(first.index[:4], dtype=float)
            y = first.iloc[0] * (x / x[0]) ** power
            ax.plot(x, y, ":", color=plots.INK, label=f"claimed slope {power:g}")
        finish(ax, paper, "rate", {"sgd": "SGD", "adam": "Adam"}[method])
    return fig
