"""The device's relaxation, and training by device time and by delay, from the tidy table."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from secondlook.suite import plots
from secondlook.suite.cards import Paper

DEVICES = {
    "exact": "closed form",
    "simulated": "step by step",
    "average": "mean of noisy readouts",
    "mismatched": "couplings off by 1%",
}
BASES = {"sgd": "gradient descent", "adam": "Adam", "ngd": "natural gradient", "ngd-momentum": "with momentum"}


def geometric(rows: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """Geometric means with 95% intervals."""
    rows = rows[rows["value"] > 0]
    stats = plots.summary(rows.assign(value=np.log(rows["value"])), by)
    stats[["mean", "low", "high"]] = np.exp(stats[["mean", "low", "high"]])
    return stats


def line(ax: Axes, stats: pd.DataFrame, colour: str, label: str, style: str = "-", marker: str = "o") -> None:
    """Means over step with their intervals."""
    ax.plot(stats["step"], stats["mean"], style, color=colour, marker=marker, label=label)
    if stats["low"].notna().any():
        ax.fill_between(stats["step"].astype(float), stats["low"], stats["high"], color=colour, alpha=0.15, lw=0)


def device(table: pd.DataFrame, paper: Paper) -> Figure:
    """Error against time for each condition number, with the bound."""
    rows = table[table["metric"] == "readout_error"]
    problems = sorted(rows["problem"].unique(), key=lambda p: float(p.split("-")[1]))
    fig, axes = plots.subplots(1, len(problems), width=3.4, sharey=True, squeeze=False)
    for ax, problem in zip(axes[0], problems, strict=True):
        stats = geometric(rows[rows["problem"] == problem], ["method", "step"])
        for i, (method, label) in enumerate(DEVICES.items()):
            line(ax, stats[stats["method"] == method], plots.PALETTE[i], label, marker=plots.MARKERS[i])
        times = np.linspace(0, rows["step"].max(), 100)
        ax.plot(times, np.exp(-times), color=plots.INK, ls=(0, (4, 2)), lw=1, label="bound")
        ax.set(yscale="log", xlabel=paper.metrics["readout_error"].step, ylim=(1e-6, 2))
        plots.title(ax, f"condition {problem.split('-')[1]}")
    axes[0][0].set_ylabel(paper.metrics["readout_error"].label)
    handles, labels = axes[0][0].get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside lower center", ncols=5 if len(problems) > 1 else 2)
    return fig


def training(table: pd.DataFrame, paper: Paper) -> Figure:
    """Loss by step, by device time and by delay."""
    table = table[table["experiment"] == "training"]
    fig, axes = plots.subplots(1, 3, width=4.0, height=3.9)
    rows = table[table["metric"] == "train_loss"]
    stats = geometric(rows, ["method", "step"])
    times = sorted(float(m.removeprefix("tngd-t")) for m in rows["method"].unique() if m.startswith("tngd-t"))
    for time, colour in zip(times, plots.sequence(len(times)), strict=True):
        line(axes[0], stats[stats["method"] == f"tngd-t{time:g}"], colour, f"device, t = {time:g}/λ")
    for method, label in BASES.items():
        line(axes[0], stats[stats["method"] == method], plots.colour(method), label, "--", "")
    axes[0].set(yscale="log", xlabel="step", ylabel=plots.axis_label(paper, "train_loss"))
    axes[0].legend(ncols=2, fontsize=7.5, loc="upper center", bbox_to_anchor=(0.5, -0.16))
    plots.title(axes[0], "training")

    finals = geometric(table[table["metric"] == "final_loss"], ["method"]).set_index("method")
    panels = {"loss_by_time": ("device time", ("ngd", "adam")), "loss_by_delay": ("delay", ("ngd", "ngd-momentum"))}
    for ax, (metric, (title, references)) in zip(axes[1:], panels.items(), strict=True):
        stats = geometric(table[(table["metric"] == metric) & (table["method"] == "tngd")], ["step"])
        line(ax, stats, plots.INK, "device")
        for name in references:
            if name in finals.index:
                ref = finals.loc[name]
                ax.axhline(ref["mean"], color=plots.colour(name), ls="--", label=BASES[name])
                if np.isfinite(ref["low"]):
                    ax.axhspan(ref["low"], ref["high"], color=plots.colour(name), alpha=0.12, lw=0)
        ax.set(xlabel=paper.metrics[metric].step, ylabel=plots.axis_label(paper, metric))
        ax.legend(ncols=2, fontsize=7.5, loc="upper center", bbox_to_anchor=(0.5, -0.16))
        plots.title(ax, title)
    axes[1].set_xscale("symlog", linthresh=0.03)
    axes[1].set_xticks([0.0, *times], [f"{t:g}" for t in (0.0, *times)])
    axes[1].set_xlim(left=-0.005)
    axes[2].set_xticks(sorted(table.loc[table["metric"] == "loss_by_delay", "step"].unique()))
    return fig
