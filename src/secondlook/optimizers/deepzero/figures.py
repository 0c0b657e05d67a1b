"""The paper's figures, redrawn from the tidy table."""

import pandas as pd
from matplotlib.figure import Figure

from secondlook.suite import plots
from secondlook.suite.cards import Paper

LABELS = {
    "fo": "exact gradients",
    "cge": "CGE",
    "rge": "RGE",
    "cge-float32": "CGE, float32",
    "cge-whole": "CGE, no reuse",
    "non": "trained outside the loop",
    "zo": "in the loop, CGE",
}


def estimates(table: pd.DataFrame, paper: Paper) -> Figure:
    """Cosine against queries; error against mu."""
    table = table[table["experiment"] == "estimators"]
    fig, (left, right) = plots.subplots(1, 2)
    plots.band(left, table, "cosine", paper, methods=["cge", "rge"], labels=LABELS)
    left.set_xscale("log", base=2)
    left.axvline(1, color=plots.MUTED, lw=1, ls=":")
    plots.title(left, "direction")
    left.legend()
    float64 = {**LABELS, "cge": "CGE, float64"}
    plots.band(right, table, "error_by_mu", paper, methods=["cge", "cge-float32"], labels=float64)
    right.set(xscale="log", yscale="log", xlabel=r"$\mu$")
    right.axvline(5e-3, color=plots.INK, ls=(0, (4, 2)), lw=1.2, label=r"published $\mu$")
    plots.title(right, "length of the differences")
    right.legend()
    return fig


def accuracy(table: pd.DataFrame, paper: Paper) -> Figure:
    """Test accuracy by step, a panel for each network, with the published accuracies where there are some."""
    table = table[table["experiment"] == "training"]
    problems = sorted(table["problem"].unique(), key=lambda p: (len(p), p))
    printed = {
        k: v for c in paper.claims if c.id in ("cge-near-first-order", "cge-beats-rge") for k, v in c.published.items()
    }
    fig, axes = plots.subplots(1, len(problems), squeeze=False)
    for ax, problem in zip(axes[0], problems, strict=True):
        rows = table[table["problem"] == problem]
        plots.band(ax, rows, "test_accuracy", paper, methods=["fo", "cge", "rge"], labels=LABELS)
        count = int(rows.loc[rows["metric"] == "parameters", "value"].iloc[0])
        for method in ("fo", "cge", "rge"):
            if problem.startswith("cifar10") and f"{method}_{count}" in printed:
                level = printed[f"{method}_{count}"]
                ax.axhline(level, color=plots.colour(method), ls=(0, (4, 2)), lw=1.2, label=f"published {level:g}")
        plots.title(ax, f"{problem.rsplit('-', 1)[0]}, {count:,} parameters")
        ax.legend(loc="lower right")
    return fig


def work(table: pd.DataFrame, paper: Paper) -> Figure:
    """Work or time of an estimate by number of parameters, and how many times CGE's RGE's is."""
    table = table[table["experiment"] == "cost"]
    metric = "step_time" if (table["metric"] == "step_time").any() else "work"
    rows = table[table["metric"] == metric]
    rows = rows.assign(step=730 + 2970 * (rows["step"] - 1))
    fig, (left, right) = plots.subplots(1, 2)
    plots.band(left, rows, metric, paper, methods=["rge", "cge"], labels=LABELS)
    left.set(xlabel="parameters", yscale="log")
    plots.title(left, "one estimate")
    left.legend()
    wide = rows.pivot_table(index="step", columns="method", values="value")
    right.plot(wide.index, wide["rge"] / wide["cge"], color=plots.INK, marker="o", label="measured")
    hours = next(c for c in paper.claims if c.id == "cge-less-work").published
    sizes = [int(k.removeprefix("cge_")) for k in hours if k.startswith("cge_")]
    ratios = [hours[f"rge_{n}"] / hours[f"cge_{n}"] for n in sizes]
    right.plot(
        sizes, ratios, color=plots.INK, marker="s", mfc="white", ls=(0, (4, 2)), lw=1.2, label="published, hours"
    )
    right.set(xlabel="parameters", ylabel="RGE / CGE", ylim=(0, None))
    plots.title(right, "ratio")
    right.legend(loc="lower right")
    return fig


def correction(table: pd.DataFrame, paper: Paper) -> Figure:
    """Error in time."""
    table = table[table["experiment"] == "burgers"]
    fig, ax = plots.subplots(1, 1, width=6.6)
    labels = {**LABELS, "fo": "in the loop, exact gradients"}
    plots.band(ax, table, "error_in_time", paper, methods=["uncorrected", "non", "fo", "zo"], labels=labels)
    ax.lines[-1].set(linestyle="--", color=plots.INK)  # it lies on the line before
    ax.set(ylim=(0, None))
    plots.title(ax, "Burgers' equation, 32 points")
    ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return fig
