"""The paper's kind of figures, redrawn from the tidy table."""

import pandas as pd
from matplotlib.figure import Figure

from secondlook.suite import plots
from secondlook.suite.cards import Paper

LABELS = {
    "vit": "ViT",
    "mixer": "Mixer",
    "resnet": "ResNet",
    "base": "base",
    "sam": "SAM",
    "copy": "base, other start",
    "long": "base, twice the epochs",
}
KINDS = ("resnet", "vit", "mixer")  # the paper's order, flattest first


def gains(table: pd.DataFrame, paper: Paper) -> Figure:
    """Accuracy above the base on clean and on corrupted test images."""
    fig, axes = plots.subplots(1, 2, sharey=True)
    for ax, part in zip(axes, ("clean", "corrupted"), strict=True):
        rows = table[table["metric"] == f"{part}_accuracy"]
        base = rows[rows["method"] == "base"].set_index(["problem", "seed"])["value"]
        gain = rows["value"].to_numpy() - base.reindex(pd.MultiIndex.from_frame(rows[["problem", "seed"]])).to_numpy()
        shown = _ordered(rows.assign(value=gain, metric="gain"))
        plots.bars(ax, shown, "gain", methods=("sam", "long", "copy"), labels=LABELS)
        ax.axhline(0, color=plots.INK, lw=1)
        plots.title(ax, f"{part} test images")
    axes[0].set_ylabel("accuracy above the base (points)")
    fig.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return fig


def sharpness(table: pd.DataFrame, paper: Paper) -> Figure:
    """Largest Hessian eigenvalue at one training loss and at the end."""
    fig, axes = plots.subplots(1, 2, sharey=True)
    kinds = _kinds(table)
    for ax, metric, text in zip(
        axes, ("sharpness", "final_sharpness"), ("at one training loss", "at the end"), strict=True
    ):
        rows = _ordered(table[table["metric"] == metric])
        for i, method in enumerate(("base", "copy", "sam")):
            mine = rows[rows["method"] == method]
            where = mine["problem"].map(kinds.index).astype(float) + 0.2 * (i - 1)
            ax.plot(where, mine["value"], plots.MARKERS[i], color=plots.colour(method), ms=5, label=LABELS[method])
        ax.set_xticks(range(len(kinds)), [LABELS[kind] for kind in kinds])
        ax.set(yscale="log", xlim=(-0.5, len(kinds) - 0.5))
        plots.few_log_ticks(ax, "y")
        ax.grid(axis="x", visible=False)
        plots.title(ax, text)
    axes[0].set_ylabel("largest Hessian eigenvalue")
    fig.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return fig


def active(table: pd.DataFrame, paper: Paper) -> Figure:
    """Active hidden units by block."""
    kinds = [kind for kind in _kinds(table) if kind != "resnet"]
    fig, axes = plots.subplots(1, len(kinds), sharey=True, squeeze=False)
    for ax, kind in zip(axes[0], kinds, strict=True):
        rows = table[table["problem"] == kind]
        plots.band(ax, rows, "active", paper, methods=("base", "copy", "sam"), labels=LABELS, err="bars")
        ax.set_xticks(sorted(rows.loc[rows["metric"] == "active", "step"].astype(int).unique()))
        plots.title(ax, LABELS[kind])
        ax.label_outer()
    axes[0, 0].legend()
    return fig


def _kinds(table: pd.DataFrame) -> list[str]:
    return [kind for kind in KINDS if kind in set(table["problem"])]


def _ordered(rows: pd.DataFrame) -> pd.DataFrame:
    return rows.sort_values("problem", key=lambda names: names.map(KINDS.index), kind="stable")
