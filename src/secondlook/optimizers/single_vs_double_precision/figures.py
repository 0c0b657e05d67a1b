"""The paper's figures, redrawn from the tidy table."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from secondlook.suite import plots
from secondlook.suite.cards import Paper

NAMES = {
    "cg32": "conjugate gradients, float32",
    "cg64": "conjugate gradients, float64",
    "rmsprop32": "RMSprop, float32",
    "rmsprop64": "RMSprop, float64",
    "cg-mixed": "float32 network, float64 search",
}
STYLE = {"cg32": ("cg", "--"), "cg64": ("cg", "-"), "rmsprop32": ("adam", "--"), "rmsprop64": ("adam", "-")}
STYLE["cg-mixed"] = ("cg-mixed", ":")


def lines(ax: Axes, rows: pd.DataFrame, paper: Paper) -> None:
    """Geometric mean and 95% interval over seeds of each arm."""
    rows = rows[(rows["metric"] == "curve") & rows["method"].isin(list(NAMES))]
    stats = plots.summary(rows.assign(value=np.log(rows["value"].clip(lower=1e-33))), ["method", "step"])
    for method in (m for m in NAMES if m in set(stats["method"])):
        s = stats[stats["method"] == method]
        name, style = STYLE[method]
        ax.plot(s["step"], np.exp(s["mean"]), style, color=plots.colour(name), label=NAMES[method])
        if s["low"].notna().any():
            low, high = np.exp(s["low"]), np.exp(s["high"])
            ax.fill_between(s["step"].astype(float), low, high, color=plots.colour(name), alpha=0.12, lw=0)
    ax.set(xscale="log", yscale="log", xlabel=paper.metrics["curve"].step)


def curves(table: pd.DataFrame, paper: Paper) -> Figure:
    """Relative error by evaluation: a row for each nonlinearity, a column for each depth."""
    rows = table[table["experiment"] == "tasks"]
    depths = sorted({int(p.split("-")[1]) for p in rows["problem"].unique() if p != "all tasks"})
    fig, axes = plots.subplots(2, len(depths), width=3.3, height=2.7, sharex=True, sharey="row", squeeze=False)
    for across, kind in zip(axes, ("moderate", "strong"), strict=True):
        for ax, depth in zip(across, depths, strict=True):
            lines(ax, rows[rows["problem"] == f"{kind}-{depth}"], paper)
            plots.title(ax, f"{kind}, {depth} hidden layer{'s' * (depth > 1)}")
            if kind == "moderate":
                ax.set_xlabel("")
        across[0].set_ylabel(plots.axis_label(paper, "curve"))
    fig.legend(*axes[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return fig


def failures(table: pd.DataFrame, paper: Paper) -> Figure:
    """Down to rounding: each task's curve, with the first failed line search of float32 marked."""
    rows = table[table["experiment"] == "floor"]
    fig, ax = plots.subplots(1, 1, width=6.4, height=3.8)
    for method in ("cg64", "cg-mixed", "cg32"):
        name, style = ("cg32" if method == "cg32" else STYLE[method][0]), STYLE[method][1]
        for seed, one in rows[rows["method"] == method].groupby("seed"):
            curve = one[one["metric"] == "curve"].sort_values("step")
            values = curve["value"].clip(lower=1e-33)
            label = NAMES[method] if seed == rows["seed"].min() else None
            ax.plot(curve["step"], values, style, color=plots.colour(name), lw=1.2, label=label)
            if method == "cg32" and one.loc[one["metric"] == "failed", "value"].iloc[0]:
                at = one.loc[one["metric"] == "first_failure", "value"].iloc[0]
                height = np.exp(np.interp(at, curve["step"], np.log(values)))
                ax.plot(at, height, "X", color=plots.colour("cg32"), mec=plots.INK, ms=8, ls="", zorder=5)
    ax.plot(
        [], [], "X", color=plots.colour("cg32"), mec=plots.INK, ms=8, ls="", label="first failed line search, float32"
    )
    ax.set(xscale="log", yscale="log", xlabel=paper.metrics["curve"].step, ylabel=plots.axis_label(paper, "curve"))
    ax.legend(loc="lower left")
    return fig
