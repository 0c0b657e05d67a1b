"""The paper's figures, redrawn from the tidy table."""

import pandas as pd
from matplotlib.figure import Figure

from secondlook.suite import plots
from secondlook.suite.cards import Paper

OPTIMIZERS = ("sgd", "adam", "adamw", "adahessian", "adahessian-signed")
LABELS = {
    "sgd": "SGD",
    "adam": "Adam",
    "adamw": "AdamW",
    "adahessian": "AdaHessian",
    "adahessian-signed": "AdaHessian, signed",
    "adahessian-every5": "AdaHessian, every 5th",
    "adahessian-4probes": "AdaHessian, 4 probes",
    "signed": "signed",
    "signed-spatial": "signed, spatial average",
    "absolute": "absolute",
    "absolute-spatial": "absolute, spatial average",
}
ESTIMATES = ("signed", "signed-spatial", "absolute", "absolute-spatial")


def curves(table: pd.DataFrame, paper: Paper) -> Figure:
    """A row for each problem: accuracy and loss at equal epochs, then at equal backward passes."""
    table = table[table["experiment"] == "accuracy"]
    metrics = ("test_accuracy", "train_loss", "test_accuracy_at_cost", "train_loss_at_cost")
    problems = sorted(table["problem"].unique())
    fig, axes = plots.subplots(len(problems), len(metrics), width=3.6, squeeze=False)
    for row, problem in zip(axes, problems, strict=True):
        rows = table[table["problem"] == problem]
        for ax, metric in zip(row, metrics, strict=True):
            plots.band(ax, rows, metric, paper, methods=OPTIMIZERS, labels=LABELS, markers=False)
            if metric.startswith("train_loss"):
                ax.set_yscale("log")
        if problem == "cifar10-resnet20":
            plots.published(row[0], 92.31, "released log")
        plots.title(row[0], f"{problem}, equal epochs")
        plots.title(row[2], "equal backward passes")
        row[0].legend(loc="lower right")
    return fig


def estimator(table: pd.DataFrame, paper: Paper) -> Figure:
    """Error of the diagonal against probes, and the noise of one probe."""
    table = table[table["experiment"] == "estimator"]
    fig, (left, right) = plots.subplots(1, 2)
    plots.band(left, table, "diagonal_error", paper, methods=ESTIMATES, labels=LABELS)
    left.set(xscale="log", yscale="log")
    plots.title(left, "error of the diagonal")
    left.legend()
    plots.bars(right, table, "noise", paper, methods=ESTIMATES, labels=LABELS)
    right.set_yscale("log")
    plots.title(right, "noise of one probe")
    return fig


def sweep(table: pd.DataFrame, paper: Paper) -> Figure:
    """Final accuracy against the factor on the learning rate."""
    table = table[table["experiment"] == "lr_sweep"]
    fig, ax = plots.subplots(1, 1)
    plots.band(ax, table, "sweep_accuracy", paper, methods=("adam", "adahessian"), labels=LABELS)
    ax.set_xscale("log", base=2)
    plots.title(ax, "robustness to the learning rate")
    ax.legend(loc="lower center")
    return fig


def cost(table: pd.DataFrame, paper: Paper) -> Figure:
    """Time of one step."""
    table = table[table["experiment"] == "step_cost"]
    fig, ax = plots.subplots(1, 1)
    arms = ("sgd", "adam", "adamw", "adahessian-every5", "adahessian", "adahessian-4probes")
    plots.bars(ax, table, "step_time", paper, methods=arms, labels=LABELS)
    plots.title(ax, "cost of a step")
    ax.legend()
    return fig
