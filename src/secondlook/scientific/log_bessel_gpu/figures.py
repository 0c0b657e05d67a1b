"""Error maps, the zero curve, speed by regime and fits by dimension, from the tidy table alone."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from secondlook.suite import plots
from secondlook.suite.cards import Paper

NAMES = {
    "secondlook": "Second Look",
    "scipy": "SciPy",
    "float32": "float32",
    "debye-everywhere": "large-order expansion\neverywhere",
    "textbook-phase": "phase as printed",
    "scipy-again": "SciPy again (control)",
}


def error_maps(table: pd.DataFrame, paper: Paper) -> Figure:
    """One map a function and method; white where there is no finite result."""
    rows = table[table["metric"] == "error"]
    parts = rows["problem"].str.extract(r"(?P<kind>[IK]), v = (?P<v>.*)")
    rows = rows.assign(kind=parts["kind"], v=parts["v"].astype(float))
    methods = ["secondlook", "scipy", "float32", "debye-everywhere"]
    figure, axes = plots.subplots(2, 4, width=2.9, height=2.8, sharex=True, sharey=True, squeeze=False)
    for line, kind in zip(axes, "IK", strict=True):
        for ax, method in zip(line, methods, strict=True):
            one = rows[(rows["kind"] == kind) & (rows["method"] == method)]
            grid = one.pivot(index="v", columns="step", values="value").clip(lower=1e-17)
            image = ax.pcolormesh(
                grid.columns, grid.index, grid, norm=LogNorm(1e-17, 1e-5), cmap="viridis", rasterized=True
            )
            ax.set(xscale="log", yscale="log")
            ax.grid(visible=False)
            plots.title(ax, f"log {kind}: {NAMES[method]}" if kind == "I" else f"log {kind}")
        line[0].set_ylabel("order v")
    for ax in axes[1]:
        ax.set_xlabel("argument x")
    figure.colorbar(image, ax=axes, label=plots.axis_label(paper, "error"), extend="max")
    return figure


def zero_curve(table: pd.DataFrame, paper: Paper) -> Figure:
    """Error against order along x = 0.6627 v (1 + 1/v)."""
    figure, axes = plots.subplots(1, 2, sharey=True)
    for ax, kind in zip(axes, "IK", strict=True):
        for method in ("secondlook", "textbook-phase"):
            one = table[
                (table["metric"] == "zero_error")
                & (table["method"] == method)
                & (table["problem"] == f"{kind}, zero curve")
            ].sort_values("step")
            values = np.maximum(one["value"], 1e-18)
            ax.plot(one["step"], values, "o-", color=plots.colour(method), label=NAMES[method])
        ax.axhline(1e-13, color=plots.MUTED, ls=":", lw=1.2, label="bound of the claim")
        ax.set(xscale="log", yscale="log", xlabel="order v")
        plots.title(ax, f"log {kind}")
    axes[0].set_ylabel(plots.axis_label(paper, "zero_error"))
    axes[1].legend()
    return figure


def speedups(table: pd.DataFrame, paper: Paper) -> Figure:
    """Bars by regime and function; the line at 1 is SciPy."""
    rows = table[(table["metric"] == "speedup") & table["method"].isin(["secondlook", "scipy-again"])]
    figure, ax = plots.subplots(1, 1, width=8.4, height=3.9)
    plots.bars(ax, rows.sort_values("problem"), "speedup", paper, methods=["secondlook", "scipy-again"], labels=NAMES)
    ax.axhline(1, color=plots.INK, lw=1)
    ax.set_xticks(ax.get_xticks(), [t.get_text().replace(" ", "\n") for t in ax.get_xticklabels()])
    plots.published(ax, 35, "abstract, CPU median")
    ax.set_yscale("log")
    ax.legend(loc="upper left", bbox_to_anchor=(0, 0.88))
    return figure


def likelihoods(table: pd.DataFrame, paper: Paper) -> Figure:
    """Share of finite fits by problem; the likelihood stands beside it."""
    rows = table[table["metric"].isin(["finite_fit", "loglik"]) & table["method"].isin(["secondlook", "scipy"])]
    size = rows["problem"].str.extract(r"d = (\d+)")[0].astype(int)
    rows = rows.assign(d=size, kind=rows["problem"].str.split(",").str[0]).sort_values(["kind", "d"])
    figure, axes = plots.subplots(1, 2, width=5.2, height=3.8)
    problems = list(dict.fromkeys(rows["problem"]))
    finite = rows[rows["metric"] == "finite_fit"].groupby(["method", "problem"])["value"].mean()
    for i, method in enumerate(("secondlook", "scipy")):
        at = np.arange(len(problems)) + (i - 0.5) * 0.38
        axes[0].barh(at, finite[method].reindex(problems), 0.36, color=plots.colour(method), label=NAMES[method])
    axes[0].set_yticks(range(len(problems)), [p.replace(", kappa", ",\nkappa") for p in problems])
    axes[0].set_xlabel(plots.axis_label(paper, "finite_fit"))
    axes[0].invert_yaxis()
    axes[0].legend(loc="upper center", bbox_to_anchor=(0.5, 1.16), ncols=2)
    ours = rows[(rows["metric"] == "loglik") & (rows["method"] == "secondlook")]
    for kind, marker in zip(sorted(ours["kind"].unique()), plots.MARKERS, strict=False):
        mean = ours[ours["kind"] == kind].groupby("d")["value"].mean()
        axes[1].plot(mean.index, mean / mean.index, marker=marker, color=plots.colour(kind), label=kind)
    axes[1].set(xscale="log", xlabel="dimension d", ylabel="mean log-likelihood per dimension (nats)")
    axes[1].set_xticks([2048, 8192, 32768], ["2048", "8192", "32768"])
    axes[1].minorticks_off()
    axes[1].legend()
    return figure
