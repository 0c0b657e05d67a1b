"""Training curves, and where trained policies stand between cost and risk."""

import pandas as pd
from matplotlib.figure import Figure

from secondlook.suite import plots
from secondlook.suite.cards import Paper

ARMS = {"adam": "Adam", "kfac": "K-FAC"}


def curves(table: pd.DataFrame, paper: Paper) -> Figure:
    """Objective by step, a panel for each cost."""
    problems = sorted(table["problem"].unique())
    fig, axes = plots.subplots(1, len(problems), squeeze=False)
    for ax, problem in zip(axes[0], problems, strict=True):
        rows = table[table["problem"] == problem]
        plots.band(ax, rows, "val_objective", paper, methods=list(ARMS), labels=ARMS)
        band = rows[(rows["metric"] == "objective") & (rows["method"] == "band")]["value"].min()
        ax.axhline(band, color=plots.MUTED, ls=":", label="best band")
        ax.set_yscale("log")
        plots.few_log_ticks(ax, "y")
        ax.legend()
        plots.title(ax, title(problem))
    return fig


def frontier(table: pd.DataFrame, paper: Paper) -> Figure:
    """Cost against risk, a panel for each cost."""
    problems = sorted(table["problem"].unique())
    fig, axes = plots.subplots(1, len(problems), width=5.4, height=4.0, squeeze=False)
    for ax, problem in zip(axes[0], problems, strict=True):
        rows = table[table["problem"] == problem]
        bands = rows[rows["method"] == "band"].pivot_table(index="step", columns="metric", values="value")
        ax.plot(bands["sd"], bands["cost"], "-o", color=plots.MUTED, ms=3, label="delta hedge within a band")
        ends = rows[rows["method"].isin(ARMS)].pivot_table(index=["method", "seed"], columns="metric", values="value")
        worst, best = ends["sd"].max(), min(ends["sd"].min(), bands["sd"].min())
        for arm, label in ARMS.items():
            colour = plots.colour(arm)
            ax.plot(ends.loc[arm, "sd"], ends.loc[arm, "cost"], "o", color=colour, label=label, zorder=3)
            way = rows[rows["method"] == arm].pivot_table(index=["seed", "step"], columns="metric", values="value")
            for _, path in way.dropna(subset=["val_sd"]).groupby("seed"):
                ax.plot(path["val_sd"], path["val_cost"], color=colour, lw=0.7, alpha=0.4)
        right = best + 2.5 * (worst - best)
        for width, point in bands[bands["sd"] < right].iterrows():
            at = {"textcoords": "offset points", "ha": "right", "va": "top", "color": plots.MUTED}
            ax.annotate(f"{width:g}", point[["sd", "cost"]], (-4, -2), **at)
        shown = bands[bands["sd"] < right]["cost"]
        low, high = min(shown.min(), ends["cost"].min()), max(shown.max(), ends["cost"].max())
        ax.set(
            xlim=(best - 0.12 * (right - best), right),
            ylim=(low - 0.15 * (high - low), high + 0.1 * (high - low)),
            xlabel=plots.axis_label(paper, "sd"),
            ylabel=plots.axis_label(paper, "cost"),
        )
        ax.legend()
        plots.title(ax, title(problem))
    return fig


def title(problem: str) -> str:
    """A problem's name in words."""
    return f"costs of {float(problem.removeprefix('heston-').removesuffix('bp')) / 100:g}% a trade"
