"""The paper's figures, redrawn from the tidy table."""

import pandas as pd
from matplotlib.figure import Figure

from secondlook.suite import plots
from secondlook.suite.cards import Paper
from secondlook.suite.errors import NotMeasured

LABELS = {
    "adamw": "AdamW",
    "adamw-half": "AdamW, half the steps",
    "sophia-g": "Sophia-G",
    "sophia-g-half": "Sophia-G, half the steps",
    "sophia-h-half": "Sophia-H, half the steps",
    "gd": "gradient descent",
    "heavy-ball": "heavy ball",
    "adam": "Adam",
    "sign": "sign descent",
    "newton": "Newton",
    "sophia": "Sophia",
    "sophia-averaged": "Sophia, averages",
    "bartlett": "drawn labels (GNB)",
    "true-labels": "true labels",
    "hutchinson": "Gaussian products",
    "sophia-g-quarter": "Sophia-G, quarter",
    "sophia-h": "Sophia-H",
    "sophia-h-quarter": "Sophia-H, quarter",
    "sophia-g-always": "Sophia-G, every step",
}

for _method in ("sophia", "sophia-g", "bartlett", "gd", "heavy-ball", "sophia-g-half", "sophia-averaged", "adamw-half"):
    plots.colour(_method)  # the clear colours to those that share a panel


def curves(table: pd.DataFrame, paper: Paper) -> Figure:
    """Validation loss, and the share of coordinates inside the clipping."""
    table = table[table["experiment"] == "language"]
    if table.empty:
        raise NotMeasured("language models are trained at scale gpu only, see the claim half-the-steps")
    fig, (left, right) = plots.subplots(1, 2)
    arms = [
        a for a in ("adamw", "adamw-half", "sophia-g", "sophia-g-half", "sophia-h-half") if a in set(table["method"])
    ]
    plots.band(left, table, "val_loss", paper, methods=arms, labels=LABELS)
    plots.title(left, "next characters")
    left.legend()
    plots.band(right, table, "win_rate", paper, methods=[a for a in arms if "sophia" in a], labels=LABELS)
    right.axhspan(10, 50, color=plots.GRID, zorder=0)
    right.set_ylim(0, 100)
    plots.title(right, "not clipped")
    right.legend()
    return fig


def condition(table: pd.DataFrame, paper: Paper) -> Figure:
    """Steps against the condition number, a panel for each problem."""
    table = table[table["metric"] == "steps_needed"]
    problems = [p for p in ("quadratic", "log-cosh", "log-cosh-rotated") if p in set(table["problem"])]
    fig, axes = plots.subplots(1, len(problems), width=3.9, squeeze=False, sharey=True)
    rules = ("gd", "heavy-ball", "adam", "sophia", "sophia-averaged")
    for ax, problem in zip(axes[0], problems, strict=True):
        plots.band(ax, table[table["problem"] == problem], "steps_needed", paper, methods=rules, labels=LABELS)
        ax.set(xscale="log", yscale="log")
        plots.title(ax, problem.replace("log-cosh-rotated", "log cosh, turned").replace("-", " "))
    axes[0, -1].set_xlim(axes[0, 0].get_xlim())
    lines, names = axes[0, min(1, len(problems) - 1)].get_legend_handles_labels()
    axes[0, -1].legend(lines, names, loc="lower right")
    return fig


def plane(table: pd.DataFrame, paper: Paper) -> Figure:
    """Paths of four rules."""
    table = table[table["experiment"] == "plane"]
    fig, ax = plots.subplots(1, 1)
    for i, method in enumerate(("gd", "sign", "newton", "sophia")):
        path = table[table["method"] == method].pivot_table(index="step", columns="metric", values="value")
        colour = plots.PALETTE[i]  # one for each: names would share some
        ax.plot(path["sharp_coordinate"], path["flat_coordinate"], color=colour, marker=plots.MARKERS[i], ms=3.5,
                lw=1.2, label=LABELS[method])  # fmt: skip
    ax.plot(*path.iloc[0][["sharp_coordinate", "flat_coordinate"]], marker="x", ms=9, color=plots.INK, zorder=5)
    for a, name in ((ax.set_xlabel, "sharp_coordinate"), (ax.set_ylabel, "flat_coordinate")):
        a(plots.axis_label(paper, name))
    plots.title(ax, "sharp against flat")
    ax.legend(loc="center", bbox_to_anchor=(0.67, 0.82))
    return fig


def estimator(table: pd.DataFrame, paper: Paper) -> Figure:
    """Error of the averaged estimates."""
    table = table[table["experiment"] == "estimator"]
    fig, ax = plots.subplots(1, 1)
    methods = ("bartlett", "true-labels", "hutchinson")
    plots.band(ax, table, "diagonal_error", paper, methods=methods, labels=LABELS)
    ax.set(xscale="log", yscale="log")
    plots.few_log_ticks(ax, "y")
    plots.title(ax, "error of the diagonal")
    ax.legend()
    return fig


def cost(table: pd.DataFrame, paper: Paper) -> Figure:
    """Time of a step over AdamW's."""
    rows = table[table["metric"] == "step_time"]
    base = rows[rows["method"] == "adamw"].set_index("seed")["value"]
    arms = ["sophia-g", "sophia-g-quarter", "sophia-h", "sophia-h-quarter", "sophia-g-always"]
    rows = rows[rows["method"].isin(arms)]
    ratios = rows.assign(value=rows["value"] / rows["seed"].map(base))
    stats = plots.summary(ratios, ["method"]).set_index("method").reindex([a for a in arms if a in set(rows["method"])])
    fig, ax = plots.subplots(1, 1)
    error = [stats["mean"] - stats["low"], stats["high"] - stats["mean"]]
    ax.errorbar(stats["mean"], range(len(stats)), xerr=error, fmt="o", color=plots.INK, capsize=3)
    ax.axvline(1, color=plots.MUTED, lw=1)
    ax.set_yticks(range(len(stats)), [LABELS[m] for m in stats.index])
    ax.set(xlabel="time per step / AdamW's", ylim=(len(stats) - 0.5, -0.5))
    plots.title(ax, "cost of a step")
    return fig
