"""The experiments' figures, drawn from the tidy table."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from secondlook.suite import plots
from secondlook.suite.cards import Paper

LABELS = {
    "nesterov": "Nesterov",
    "adagrad": "Adagrad",
    "adam": "Adam",
    "adamw": "AdamW",
    "shampoo": "Shampoo",
    "none": "none",
    "diagonal": "diagonal (Adagrad)",
    "square-roots": "power -1/2",
    "shampoo-1": "Shampoo, roots every step",
    "shampoo-10": "Shampoo, every 10",
    "shampoo-20": "Shampoo, every 20",
    "shampoo-50": "Shampoo, every 50",
    "shampoo-never": "Shampoo, never",
    "shampoo-10-adagrad": "Shampoo, 10, Adagrad's length",
    "shampoo-10-ungrafted": "Shampoo, 10, own length",
    "shampoo-diagonal": "Shampoo, blocks of one entry",
    "newton-float64": "float64",
    "newton-float32": "float32",
    "newton-float32-ridge": "float32, ridge 1e-6",
}
for _method in ("nesterov", "adagrad", "shampoo-1", "shampoo-10", "shampoo-50", "newton-float64", "shampoo"):
    plots.colour(_method)  # the clear colours to those that share a panel


def curves(table: pd.DataFrame, paper: Paper) -> Figure:
    """Loss by step on the quadratic and on the autoencoder."""
    rows = table[table["metric"] == "loss"]
    alive = rows.groupby(["problem", "method", "step"])["seed"].transform("count")
    rows = rows[alive == alive.groupby([rows["problem"], rows["method"]]).transform("max")]  # until the first seed ends
    rows = rows.assign(value=np.log10(rows["value"]))  # one start may rise by decades and come back
    problems = [p for p in ("kronecker", "digits-autoencoder") if p in set(rows["problem"])]
    if not problems:
        raise ValueError("losses by step are measured at scales smoke and laptop only")
    fig, axes = plots.subplots(1, len(problems), width=5.2, squeeze=False)
    for ax, problem in zip(axes[0], problems, strict=True):
        part = rows[rows["problem"] == problem]
        arms = ("nesterov", "adagrad", "adam", "shampoo-1", "shampoo-10", "shampoo-50")
        plots.band(ax, part, "loss", paper, methods=[a for a in arms if a in set(part["method"])], labels=LABELS)
        ax.set_ylabel(f"log10 of {'loss, start = 1' if problem == 'kronecker' else 'mean squared error'}")
        if problem == "kronecker":
            ax.set_xscale("log")
        plots.title(ax, "Kronecker quadratic" if problem == "kronecker" else "digits autoencoder")
        ax.legend()
    return fig


def mathematics(table: pd.DataFrame, paper: Paper) -> Figure:
    """Error of the roots, and condition numbers before and after."""
    fig, (left, right) = plots.subplots(1, 2, width=4.6)
    roots = table[(table["metric"] == "root_error") & (table["problem"] == "power-4")]
    plots.band(left, roots, "root_error", paper, methods=[m for m in LABELS if m.startswith("newton")], labels=LABELS)
    left.set(xscale="log", yscale="log")
    plots.title(left, "error of the inverse 4th root")
    left.legend()
    rows = table[table["metric"] == "condition_number"]
    plots.band(
        right, rows, "condition_number", paper, methods=("none", "diagonal", "shampoo", "square-roots"), labels=LABELS
    )
    right.set(xscale="log", yscale="log", xlabel="condition number of the Hessian", ylabel="after preconditioning")
    plots.title(right, "condition of a Kronecker quadratic")
    right.legend()
    return fig


def refresh(table: pd.DataFrame, paper: Paper) -> Figure:
    """Loss and cost against the steps between refreshes."""
    fig, (left, right) = plots.subplots(1, 2, width=4.6)
    rows = table[table["method"].isin(["shampoo-1", "shampoo-10", "shampoo-50"])]
    rows = rows[rows["metric"].isin(["final_loss", "step_flops"])]
    rows = rows.assign(
        value=np.log10(rows["value"]), every=rows["method"].str.removeprefix("shampoo-").astype(int), arm="Shampoo"
    )
    for ax, metric in ((left, "final_loss"), (right, "step_flops")):
        plots.band(ax, rows, metric, paper, x="every", hue="arm")
        ax.set(xscale="log", xlabel="steps between refreshes", ylabel=f"log10 of {paper.metrics[metric].label}")
    never = table[(table["method"] == "shampoo-never") & (table["metric"] == "final_loss")]["value"]
    left.axhline(np.log10(never).mean(), color=plots.MUTED, ls="--", lw=1.2, label="never refreshed")
    left.legend()
    plots.title(left, "loss on the quadratic")
    plots.title(right, "multiplications of the optimizer")
    return fig
