"""Magnitudes along motions and along a heart-like signal, and how well they agree, redrawn from the tidy table."""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from secondlook.suite import plots
from secondlook.suite.cards import Paper

MOTIONS = {"modulated-speed": "geodesic, modulated speed", "walking": "walking", "jumping": "jumping"}


def motions(table: pd.DataFrame, paper: Paper) -> Figure:
    """First order above; below the second order and its two parts."""
    fig, axes = plots.subplots(2, len(MOTIONS), width=3.8, height=2.6)
    for (upper, lower), (method, name) in zip(axes.T, MOTIONS.items(), strict=True):
        rows = table[table["method"] == method]
        _line(upper, rows, "first_magnitude", plots.PALETTE[0], "first order")
        plots.title(upper, name)
        _line(lower, rows, "second_magnitude", plots.INK, "second order")
        _line(lower, rows, "along_magnitude", plots.PALETTE[1], "along the geodesic", "--")
        _line(lower, rows, "orthogonal_magnitude", plots.PALETTE[3], "orthogonal to it", ":")
        lower.set_xlabel(paper.metrics["second_magnitude"].step)
        for ax in (upper, lower):
            ax.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3), useMathText=True)
            ax.set_ylim(0, None)
    axes[0, 0].set_ylabel(plots.axis_label(paper, "first_magnitude"))
    axes[1, 0].set_ylabel(plots.axis_label(paper, "second_magnitude"))
    axes[1, 0].set_ylim(0, 1.45 * axes[1, 0].get_ylim()[1])
    axes[1, 0].legend(loc="upper right")
    return fig


def heartbeat(table: pd.DataFrame, paper: Paper) -> Figure:
    """The signal with its planted changes, and the two magnitudes below it."""
    table = table[table["method"] == "heartbeat"]
    kinds = [*dict.fromkeys(table.loc[table["metric"] == "signal", "problem"])]
    fig, axes = plots.subplots(3, len(kinds), width=5.4, height=1.8, sharex=True, squeeze=False)
    shown = {"signal": plots.MUTED, "first_magnitude": plots.PALETTE[0], "second_magnitude": plots.INK}
    for column, kind in zip(axes.T, kinds, strict=True):
        rows = table[table["problem"] == kind]
        for ax, (metric, colour) in zip(column, shown.items(), strict=True):
            _line(ax, rows, metric, colour, None)
            for at in rows.loc[rows["metric"] == "change_time", "value"]:
                ax.axvline(at, color=plots.PALETTE[3], ls=":", lw=1.4)
        plots.title(column[0], f"changes of {kind} (dotted)")
        column[-1].set_xlabel(paper.metrics["signal"].step)
    for ax, metric in zip(axes[:, 0], shown, strict=True):
        ax.set_ylabel(plots.axis_label(paper, metric).replace("-order magnitude (", " order\n("))
    return fig


def agreement(table: pd.DataFrame, paper: Paper) -> Figure:
    """Acceleration against the change of velocity, the share of the orthogonal part, and the detection of changes."""
    fig, (left, middle, right) = plots.subplots(1, 3, width=4.0, height=3.7)
    rows = table[table["metric"].isin(["agreement", "agreement_root"])]
    roots = rows["metric"].map({"agreement": "", "agreement_root": ",\nsquare roots"})
    rows = rows.assign(problem=rows["problem"] + roots, metric="agreement")
    names = {"own": "of the same motion", "another": "of another motion"}
    plots.bars(left, rows, "agreement", paper, methods=list(names), labels=names)
    plots.published(left, 0.948, "walking")
    left.set_ylim(None, 1.6)
    plots.title(left, "second order as acceleration")

    share = table[table["metric"] == "orthogonal_share"]
    share = share.assign(problem=share["method"].str.replace("-", "\n"), method="own")
    plots.bars(middle, share, "orthogonal_share", paper)
    plots.title(middle, "leaving the geodesic")

    scores = {"second-order": "second order", "min-angle": "smallest angle", "raw-difference": "raw second difference"}
    scores["other-events"] = "second order, other events"
    found = table[table["metric"] == "auc"]
    found = found.assign(problem=found["problem"].str.replace(", ", ",\n"))
    plots.bars(right, found, "auc", paper, methods=list(scores), labels=scores)
    right.axhline(0.5, color=plots.MUTED, ls=":", lw=1)
    right.set_ylim(0, 1.45)
    plots.title(right, "finding planted changes of")
    for ax in (left, right):
        ax.legend(fontsize=7.5, loc="upper left")
    return fig


def _line(ax: Axes, rows: pd.DataFrame, metric: str, colour: str, label: str | None, style: str = "-") -> None:
    one = rows[rows["metric"] == metric].sort_values("step")
    ax.plot(one["step"], one["value"], style, color=colour, label=label, lw=1.3)
