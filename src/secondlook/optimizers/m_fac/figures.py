"""The paper's figures, redrawn from the tidy table."""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from secondlook.suite import plots
from secondlook.suite.cards import Paper

LABELS = {
    "magnitude": "magnitude",
    "diagonal": "diagonal Fisher",
    "mfac-block": "M-FAC, blocks",
    "mfac-gradual": "M-FAC, recomputed",
    "setup": "static setup",
    "product": "static product",
    "static": "static product",
    "dynamic": "dynamic step",
    "dense": "dense product",
    "static-entries": "static, entries",
    "static-float32": "static, float32",
    "dynamic-float32": "dynamic, float32",
    "sgd": "SGD",
    "adam": "Adam",
    "adahessian": "AdaHessian",
}


def _label(method: str) -> str:
    return LABELS.get(method) or f"M-FAC, {method.removeprefix('mfac-')} gradients"


def _windows(table: pd.DataFrame) -> list[str]:
    """The M-FAC arms that are named by their number of gradients, smallest first."""
    arms = [m for m in table["method"].unique() if m.removeprefix("mfac-").isdigit()]
    return sorted(arms, key=lambda m: int(m.removeprefix("mfac-")))


def _lines(ax: Axes, table: pd.DataFrame, metric: str, paper: Paper, methods: list[str]) -> None:
    plots.band(ax, table, metric, paper, methods=methods, labels={m: _label(m) for m in methods})


def pruned(table: pd.DataFrame, paper: Paper) -> Figure:
    """A row for each network: criteria, then numbers of gradients."""
    table = table[table["experiment"] == "pruning"]
    windows = _windows(table)
    problems = sorted(table["problem"].unique())
    fig, axes = plots.subplots(len(problems), 2, squeeze=False)
    for (left, right), problem in zip(axes, problems, strict=True):
        rows = table[table["problem"] == problem]
        _lines(left, rows, "pruned_accuracy", paper, ["magnitude", "diagonal", "mfac-block", windows[-1]])
        _lines(right, rows, "pruned_accuracy", paper, [*windows, "mfac-gradual"])
        dense = rows.loc[rows["metric"] == "dense_accuracy", "value"].mean()
        for ax in (left, right):
            ax.axhline(dense, color=plots.MUTED, ls=":", lw=1.2, label="before pruning")
            ax.legend(loc="lower left")
        plots.title(left, f"{problem}, by criterion")
        plots.title(right, "by number of gradients")
    return fig


def scaled(table: pd.DataFrame, paper: Paper) -> Figure:
    """Times over d and over m, and errors over the damping."""
    fig, (by_d, by_m, errors) = plots.subplots(1, 3)
    _lines(by_d, table, "product_time", paper, ["static", "dynamic", "dense"])
    plots.title(by_d, "a product")
    plots.band(by_m, table, "setup_time", paper, methods=["setup", "product"], labels=LABELS)
    plots.title(by_m, "setup and product by m")
    arms = ["static", "dynamic", "static-entries", "static-float32", "dynamic-float32"]
    labels = {m: _label(m) for m in arms} | {"static": "static, float64", "dynamic": "dynamic, float64"}
    plots.band(errors, table, "inverse_error", paper, methods=arms, labels=labels)
    plots.title(errors, "error against dense algebra")
    for ax in (by_d, by_m, errors):
        ax.set(xscale="log", yscale="log")
        ax.legend()
    plots.few_log_ticks(by_m, "x")
    return fig


def trained(table: pd.DataFrame, paper: Paper) -> Figure:
    """Loss and accuracy by epoch, loss by time, and the time of one step."""
    curves = table[table["experiment"] == "training"]
    times = table[table["metric"] == "step_time"]
    arms = ["sgd", "adam", *_windows(curves)]
    fig, axes = plots.subplots(2, 2)
    (by_epoch, by_time), (acc, cost) = axes
    _lines(by_epoch, curves, "train_loss", paper, arms)
    _lines(acc, curves, "test_accuracy", paper, arms)
    every = times.groupby("method")["value"].mean()
    # Proportional to the seconds of an epoch, for all arms take as many steps.
    rows = curves[curves["method"].isin(every.index)].copy()
    rows["step"] *= rows["method"].map(every) / every["sgd"]
    _lines(by_time, rows, "train_loss", paper, arms)
    by_time.set_xlabel("time (epochs of SGD)")
    by_time.set_xscale("log")
    for ax in (by_epoch, by_time):
        ax.set_yscale("log")
    all_arms = ["sgd", "adam", "adahessian", *_windows(times)]
    plots.bars(cost, times, "step_time", paper, methods=all_arms, labels={m: _label(m) for m in all_arms})
    cost.set_yscale("log")
    by_epoch.legend()
    cost.legend()
    for ax, text in zip(axes.flat, ("by epoch", "by time", "test accuracy", "one step"), strict=True):
        plots.title(ax, text)
    return fig
