"""The paper's figures, redrawn from the tidy table."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from secondlook.suite import plots
from secondlook.suite.cards import Paper

PAIRS = ("0.1-0.9", "1-1", "2-2")
ARMS = ("adamw", *(f"innaprop-{pair}" for pair in PAIRS))
METRICS = ("train_accuracy", "test_accuracy")
NAMES = {pair: f"({pair.replace('-', ', ')})" for pair in PAIRS}
LABELS = {"adamw": "AdamW", "adamw-copy": "AdamW, other start"} | {
    f"innaprop-{pair}": f"INNAprop {name}" for pair, name in NAMES.items()
}


def curves(table: pd.DataFrame, paper: Paper) -> Figure:
    """Accuracies at one learning rate, and with each arm's own; the loss on text where it is measured."""
    texts = (table["metric"] == "test_loss").any()
    rows = table[table["experiment"] == "accuracy"]
    tuned = rows["method"].str.endswith("-tuned") | (rows["method"] == "adamw")
    own = rows[tuned].assign(method=rows["method"].str.removesuffix("-tuned"))
    panels = [
        (part, m, text) for part, text in ((rows, "AdamW's learning rate"), (own, "each its own")) for m in METRICS
    ]
    fig, axes = plots.subplots(1, len(panels) + texts, width=3.7, squeeze=False)
    for ax, (part, metric, text) in zip(axes[0], panels, strict=False):
        plots.band(ax, part, metric, paper, methods=ARMS, labels=LABELS, markers=False)
        ends = part.loc[(part["metric"] == metric) & part["method"].isin(ARMS), ["step", "value"]]
        late = ends["step"] > min(1, 0.5 * ends["step"].max())  # the first epochs would flatten the rest
        ax.set_ylim(ends.loc[late, "value"].quantile(0.02) - 1.5, 100.3)
        if metric == "test_accuracy" and "cifar10-vgg11" in set(part["problem"]):
            plots.published(ax, 90.80, "AdamW, logs")
            plots.published(ax, 91.00, "(2, 2), logs")
        plots.title(ax, text)
    axes[0, 0].legend(loc="lower right")
    if texts:
        rows = table[table["metric"] == "test_loss"]
        plots.bars(
            axes[0, -1], rows, "test_loss", paper, methods=("adamw", "innaprop-0.1-0.9", "innaprop-2-2"), labels=LABELS
        )
        axes[0, -1].set_ylim(0.9 * rows["value"].min(), 1.02 * rows["value"].max())
        plots.title(axes[0, -1], "text")
    return fig


def dampings(table: pd.DataFrame, paper: Paper) -> Figure:
    """Early training accuracy and final test accuracy over both dampings."""
    fig, axes = plots.subplots(1, 2, width=4.2)
    for ax, metric in zip(axes, ("grid_early", "grid_final"), strict=True):
        rows = table[table["metric"] == metric]
        rows = rows.assign(alpha=rows["method"].str.removeprefix("alpha-").astype(float))
        _heat(ax, rows.pivot_table(index="alpha", columns="step", values="value"))
        ax.set(xlabel=r"geometric damping $\beta$", ylabel=r"viscous damping $\alpha$")
        plots.title(ax, plots.axis_label(paper, metric))
    return fig


def _heat(ax: Axes, grid: pd.DataFrame) -> None:
    values = grid.to_numpy()
    low, high = np.nanquantile(values, 0.2), np.nanmax(values)
    ax.imshow(values, cmap="viridis", vmin=low, vmax=high, origin="lower", aspect="auto")
    for (i, j), value in np.ndenumerate(values):
        dark = not value > (low + high) / 2
        ax.text(j, i, f"{value:.1f}", ha="center", va="center", size=8, color="white" if dark else plots.INK)
    ax.set_xticks(range(len(grid.columns)), [f"{b:g}" for b in grid.columns])
    ax.set_yticks(range(len(grid.index)), [f"{a:g}" for a in grid.index])
    ax.grid(visible=False)


def flow(table: pd.DataFrame, paper: Paper) -> Figure:
    """Paths in the valley, the distance of the steps from the flow, and how often the flow turns back."""
    table = table[table["experiment"] == "flow"]
    fig, (left, middle, right) = plots.subplots(1, 3, width=4.0)
    for pair in PAIRS:
        colour = plots.colour(f"innaprop-{pair}")
        for kind, style in (("flow", {"lw": 1.8, "label": NAMES[pair]}), ("euler", {"ls": "", "marker": "."})):
            rows = table[table["method"] == f"{kind}-{pair}"]
            x, y = (rows[rows["metric"] == name].sort_values("step")["value"] for name in ("x", "y"))
            left.plot(x, y, color=colour, **style)
        for kind, style in (("rest", "-"), ("psi-zero", ":")):
            rows = table[(table["metric"] == "flow_error") & (table["method"] == f"{kind}-{pair}")]
            s = plots.summary(rows, ["step"])
            label = NAMES[pair] if kind == "rest" else None if s.empty else f"{NAMES[pair]}, psi from 0"
            middle.plot(s["step"], s["mean"], style, marker="o", color=colour, label=label)
    left.set(xlabel="x", ylabel="y")
    plots.title(left, "flow (lines) and steps (dots)")
    left.legend(loc="best")
    middle.set(xscale="log", yscale="log", xlabel="step size", ylabel=plots.axis_label(paper, "flow_error"))
    low, high = middle.get_ylim()
    middle.set_ylim(low, 15 * high)  # room for the legend
    plots.few_log_ticks(middle, "x")
    plots.title(middle, "distance from the flow")
    middle.legend(loc="upper left", ncols=2, fontsize=8)
    plots.band(right, table, "turns", paper, methods=("flow",))
    right.set_xscale("log")
    plots.few_log_ticks(right, "x")
    plots.title(right, "turns of the flow")
    return fig
