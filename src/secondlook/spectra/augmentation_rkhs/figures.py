"""Complexity, spectra and errors against the mask ratio, redrawn from the tidy table."""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from secondlook.suite import plots
from secondlook.suite.cards import Paper

MASKS = {"random": "independent", "fixed": "fixed number", "block": "block"}
TARGETS = {"mixed": "degrees 1 to 3", "linear": "degree 1 (control)"}
NETWORKS = {"trained": "pre-trained", "untrained": "untrained (control)"}


def complexity(table: pd.DataFrame, paper: Paper) -> Figure:
    """Complexity against the mask ratio, and the spectra at one ratio."""
    fig, (left, right) = plots.subplots(1, 2)
    kappa, spectrum = (table[table["metric"] == metric] for metric in ("complexity", "eigenvalue"))
    ratios = sorted({float(problem.split()[1]) for problem in spectrum["problem"]})
    shown = ratios[len(ratios) // 2]
    for (kind, name), style, marker in zip(MASKS.items(), ("-", "-", ":"), "osD", strict=True):
        rows = kappa[kappa["method"] == kind].sort_values("step")
        left.plot(rows["step"], rows["value"], style, marker=marker, color=plots.colour(kind), label=name)
        rows = spectrum[(spectrum["method"] == kind) & (spectrum["problem"] == f"ratio {shown:g}")].sort_values("step")
        rows = rows[rows["value"] > 1e-12]  # what masks lose altogether
        right.plot(rows["step"], rows["value"], style, color=plots.colour(kind), label=name)
    left.set(yscale="log", xlabel=paper.metrics["complexity"].step, ylabel=plots.axis_label(paper, "complexity"))
    right.set(xscale="log", yscale="log", xlabel="rank", ylabel=plots.axis_label(paper, "eigenvalue"))
    plots.title(left, "Complexity")
    plots.title(right, f"Spectra at mask ratio {shown:g}")
    left.legend(title="masks")
    return fig


def sweet_spot(table: pd.DataFrame, paper: Paper) -> Figure:
    """Error against the mask ratio: regression on the hypercube, and probes on pre-trained networks."""
    fig, (left, right) = plots.subplots(1, 2)
    for ax, metric, names in ((left, "mse", TARGETS), (right, "test_error", NETWORKS)):
        rows = table[table["metric"] == metric]
        for (arm, name), colour, style in zip(
            names.items(), (plots.PALETTE[0], plots.PALETTE[7]), ("o-", "s:"), strict=True
        ):
            _line(ax, rows[rows["method"] == arm], name, colour, style)
        ax.set_xlabel(paper.metrics[metric].step)
        ax.set_ylabel(plots.axis_label(paper, metric))
        ax.set_ylim(0, None)
        ax.legend()
    plots.title(left, "Regression on the hypercube")
    plots.title(right, "Probes on images")
    return fig


def encoders(table: pd.DataFrame, paper: Paper) -> Figure:
    """Worst error against trace gap for one seed, and the eigenspace found by pre-training."""
    fig, (left, right) = plots.subplots(1, 2)
    mine = table[(table["method"] == "encoder") & (table["seed"] == table["seed"].min())]
    gap, error = (mine[mine["metric"] == metric].set_index("step")["value"] for metric in ("trace_gap", "worst_error"))
    for offset, name, colour in (
        (0, "after power iteration", plots.PALETTE[0]),
        (1, "other eigenfunctions", plots.PALETTE[1]),
    ):
        of = gap.index % 2 == offset
        left.plot(gap[of], error.loc[gap.index][of], "o", ms=3, color=colour, label=name, alpha=0.7)
    left.set(xlabel=plots.axis_label(paper, "trace_gap"), ylabel=plots.axis_label(paper, "worst_error"))
    left.legend()
    plots.title(left, "Random encoders")
    _line(right, table[table["metric"] == "captured"], "network", plots.PALETTE[2], "o-")
    right.axhline(100, color=plots.INK, lw=1, ls="--", label="top eigenfunctions")
    right.set(xlabel=paper.metrics["captured"].step, ylabel=plots.axis_label(paper, "captured"))
    right.legend(loc="lower right")
    plots.title(right, "Contrastive pre-training")
    return fig


def _line(ax: Axes, rows: pd.DataFrame, label: str, colour: str, style: str) -> None:
    """Mean and 95% interval over seeds."""
    stats = plots.summary(rows, ["step"])
    ax.plot(stats["step"], stats["mean"], style, color=colour, label=label, ms=4)
    if stats["low"].notna().any():
        ax.fill_between(stats["step"].astype(float), stats["low"], stats["high"], color=colour, alpha=0.18, lw=0)
