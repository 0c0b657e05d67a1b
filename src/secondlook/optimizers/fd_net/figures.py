"""Loss by evaluations, prediction in time, and error over sub-steps, from the tidy table."""

import numpy as np
import pandas as pd
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from secondlook.suite import plots
from secondlook.suite.cards import Paper

LABELS = {
    "trcg": "trust region, CG",
    "adam": "Adam",
    "lbfgs": "L-BFGS",
    "fd-net": "FD-Net, 3 parameters",
    "forward-euler": "forward Euler, true coefficient",
    "heat-1d": "1-D, 3 parameters",
    "heat-2d": "2-D, tanh, 78 parameters",
}


def optimizers(table: pd.DataFrame, paper: Paper) -> Figure:
    """Loss against gradient evaluations, a panel for each problem."""
    table = table[table["experiment"] == "optimizers"]
    problems = sorted(table["problem"].unique())
    fig, axes = plots.subplots(1, len(problems), squeeze=False, sharey=True)
    for ax, problem in zip(axes[0], problems, strict=True):
        rows = table[(table["problem"] == problem) & (table["metric"] == "relative_loss")]
        stats = plots.summary(rows.assign(value=np.log(rows["value"])), ["method", "step"])
        stats[["mean", "low", "high"]] = np.exp(stats[["mean", "low", "high"]])
        for method in ("trcg", "lbfgs", "adam"):
            s = stats[stats["method"] == method]
            ax.plot(s["step"], s["mean"], color=plots.colour(method), marker="o", ms=3, label=LABELS[method])
            ax.fill_between(s["step"].astype(float), s["low"], s["high"], color=plots.colour(method), alpha=0.18, lw=0)
        ax.axhline(1e-3, color=plots.MUTED, lw=1, ls=":")
        ax.set(xscale="log", yscale="log", xlabel=paper.metrics["relative_loss"].step)
        plots.title(ax, LABELS.get(problem, problem))
    axes[0][0].set_ylabel(plots.axis_label(paper, "relative_loss"))
    axes[0][0].legend(loc="lower left")
    return fig


def prediction(table: pd.DataFrame, paper: Paper) -> Figure:
    """Error in time, a panel for each number of sub-steps."""
    table = table[table["experiment"] == "prediction"]
    problems = sorted(table["problem"].unique(), key=lambda p: int(p.split("-")[0]))
    fig, axes = plots.subplots(1, len(problems), squeeze=False, sharey=True)
    for ax, problem in zip(axes[0], problems, strict=True):
        rows = table[table["problem"] == problem]
        plots.band(ax, rows, "error_in_time", paper, methods=["fd-net", "forward-euler"], labels=LABELS)
        ax.axvline(1, color=plots.MUTED, lw=1, ls=":")
        ax.set_ylim(0, None)
        plots.title(ax, problem.replace("-substeps", " sub-steps a frame"))
    for ax in axes[0][1:]:
        ax.set_ylabel("")
    axes[0][0].legend()
    return fig


def substeps(table: pd.DataFrame, paper: Paper) -> Figure:
    """Error and spectral radius over k Dt / dx^2 and the number of sub-steps, medians over seeds."""
    table = table[table["experiment"] == "substeps"]
    fig, axes = plots.subplots(1, 2, width=4.9)
    for ax, metric in zip(axes, ("swept_error", "spectral_radius"), strict=True):
        rows = table[table["metric"] == metric]
        rows = rows.assign(ratio=rows["problem"].str.removeprefix("ratio-").astype(float))
        grid = rows.pivot_table(index="step", columns="ratio", values="value", aggfunc="median")
        norm = LogNorm(1e-4, 1e3) if metric == "swept_error" else LogNorm(0.9, 20)
        image = ax.imshow(grid, origin="lower", aspect="auto", cmap="viridis_r", norm=norm)
        for (i, j), value in np.ndenumerate(grid.to_numpy()):
            text = f"{value:.3f}" if metric == "spectral_radius" and value < 2 else f"{value:.2g}"
            text = "> 1000" if metric == "swept_error" and value >= 1e3 else text
            ax.text(
                j, i, text, ha="center", va="center", fontsize=7, color="white" if norm(value) > 0.45 else plots.INK
            )
        limit = [np.searchsorted(grid.index, 2 * ratio) - 0.5 for ratio in grid.columns]
        ax.step(np.arange(-0.5, len(limit)), [*limit, limit[-1]], where="post", color=plots.PALETTE[3], lw=2)
        ax.set_xticks(range(grid.shape[1]), [f"{r:g}" for r in grid.columns])
        ax.set_yticks(range(grid.shape[0]), [f"{m:g}" for m in grid.index])
        ax.set(xlabel=r"$k\,\Delta t / \Delta x^2$ between frames", ylabel="sub-steps")
        ax.grid(visible=False)
        fig.colorbar(image, ax=ax, label=plots.axis_label(paper, metric))
        plots.title(ax, "error at 3T" if metric == "swept_error" else "stability")
    return fig
