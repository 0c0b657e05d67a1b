"""Re-analysis of the released losses, and on a GPU a small grid of transformers of one's own."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from secondlook.problems import datasets
from secondlook.representation.step_law.method import StepLaw, bowl, fit_step_law, loss_gap
from secondlook.suite.runner import Run

PRINTED = StepLaw((1.79, -0.713, 0.307), (0.58, 0.571), np.empty((0, 5)))
RELEASED = "released-table"
EXPONENTS = ("lr_exp_N", "lr_exp_D", "bs_exp_D")


def released(folder: Path) -> pd.DataFrame:
    """The dense runs with the smoothed loss, as the released rule uses it."""
    table = pd.read_csv(folder / "dense_lr_bs_loss.csv")
    return table.assign(loss=table["smooth loss"])[["N", "D", "lr", "bs", "loss"]]


def bootstrap_rows(folder: Path) -> np.ndarray:
    """The authors' own bootstrap coefficients, columns as in `StepLaw.boot`."""
    table = pd.read_csv(folder / "1004_fitted_lr_bs_scaling_model_parameters.csv")
    return table[["lr_intercept", "lr_coefN", "lr_coefD", "bs_intercept", "bs_coefD"]].to_numpy()


def setting_name(n: float, d: float) -> str:
    return f"N={n / 1e9:.2f}e9 D={d / 1e9:.1f}e9"


def shuffled_labels(table: pd.DataFrame, seed: int) -> pd.DataFrame:
    """The same losses with the settings' (N, D) labels dealt out at random: nothing is left to regress on."""
    settings = list(table.groupby(["N", "D"]).groups)
    order = np.random.default_rng(seed).permutation(len(settings))
    new = {s: settings[i] for s, i in zip(settings, order, strict=True)}
    labels = np.array([new[s] for s in zip(table["N"], table["D"], strict=True)])
    return table.assign(N=labels[:, 0], D=labels[:, 1])


def law(run: Run, *, n_boot: int, keep: int) -> None:
    """The law from the authors' bootstrap, refitted from their losses, and refitted from shuffled labels."""
    folder = datasets.fetch("step-law")
    table = released(folder)
    fits = {
        "released-bootstrap": bootstrap_rows(folder),
        "refit": fit_step_law(table, n_boot=n_boot).boot,
        "shuffled-labels": fit_step_law(shuffled_labels(table, seed=0), n_boot=n_boot).boot,
        "refit-loose": fit_step_law(table, rel_tol=0.005, n_boot=n_boot).boot,
        "refit-strict": fit_step_law(table, rel_tol=0.001, n_boot=n_boot).boot,
    }
    for method, boot in fits.items():
        record = partial(run.record, method=method, problem=RELEASED)
        mean = boot.mean(0)
        record("lr_const", np.exp(mean[0]))
        record("bs_const", np.exp(mean[3]))
        for metric, column in zip(EXPONENTS, (1, 2, 4), strict=True):
            record(metric, mean[column])
            record(f"{metric}_sd", boot[:, column].std(ddof=1))
            run.record_series(
                f"{metric}_draw",
                boot[:keep, column],
                steps=range(min(keep, len(boot))),
                method=method,
                problem=RELEASED,
            )


def best_constant(table: pd.DataFrame) -> StepLaw:
    """The one (lr, batch) of the grid that would have served all settings best: a baseline chosen in hindsight."""
    grid = np.log(table[["lr", "bs"]].drop_duplicates().to_numpy())
    total = np.zeros(len(grid))
    for _, group in table.groupby(["N", "D"]):
        runs = np.log(group[["lr", "bs"]].to_numpy())
        nearest = ((grid[:, None] - runs) ** 2).sum(-1).argmin(1)
        total += group["loss"].to_numpy()[nearest] / group["loss"].min()
    lr, bs = np.exp(grid[total.argmin()])
    return StepLaw((lr, 0.0, 0.0), (bs * 2048, 0.0), np.empty((0, 5)))


def gap(run: Run) -> None:
    """Loss over the best of each of the 17 settings, for the printed law and for rules that know less."""
    table = released(datasets.fetch("step-law"))
    found = {
        "printed-law": loss_gap(table, PRINTED),
        "refit": loss_gap(table, fit_step_law(table)),
        "constant-rule": loss_gap(table, best_constant(table)),
        "shuffled-labels": loss_gap(table, fit_step_law(shuffled_labels(table, seed=0))),
        "random-run": table.groupby(["N", "D"])["loss"].apply(lambda v: 100 * (v.median() / v.min() - 1)),
    }
    for method, gaps in found.items():
        for setting, value in gaps.items():
            run.record("gap", value, method=method, problem=setting_name(*setting))
    chosen = 536872960, 28_400_000_000  # the setting whose bowl is drawn
    one = table[(table["N"] == chosen[0]) & (table["D"] == chosen[1])]
    for bs, group in one.groupby("bs"):
        ordered = group.sort_values("lr")
        run.record_series(
            "loss", ordered["loss"], steps=ordered["lr"], method=f"batch {bs * 2048:.0f}", problem=setting_name(*chosen)
        )


def convexity(run: Run, *, rel: float) -> None:
    """A quadratic in (log lr, log batch) near the best loss of every setting, and the law of its vertices."""
    table = released(datasets.fetch("step-law"))
    rng = np.random.default_rng(0)
    for (n, d), group in table.groupby(["N", "D"]):
        near = group[group["loss"] / group["loss"].min() - 1 < rel]
        dealt = near.assign(loss=rng.permutation(near["loss"]))
        for method, rows in {"bowl": near, "shuffled-losses": dealt}.items():
            fitted = bowl(rows, rel)
            record = partial(run.record, method=method, problem=setting_name(n, d))
            record("curvature", np.linalg.eigvalsh(fitted.hessian)[0])
            record("r2", fitted.r2)
            if method == "bowl":
                lr, batch = PRINTED.predict(n, d)
                for metric, vertex, printed in (
                    ("best_lr", fitted.vertex[0], lr),
                    ("best_batch", fitted.vertex[1], batch),
                ):
                    record(metric, vertex, step=n)
                    run.record(metric, printed, method="printed-law", problem=setting_name(n, d), step=n)


def grid(
    run: Run, *, corpus: str, widths: list[int], tokens: list[int], lrs: list[float], batches: list[int], context: int
) -> None:
    """Train small character transformers over learning rate and batch size, and fit the law to their losses."""
    import torch

    from secondlook.problems.models.char_gpt import CharGPT
    from secondlook.problems.training import cosine, fit
    from secondlook.problems.zoo.char_gpt import next_character_loss, random_windows, windows

    text = datasets.corpus(corpus)
    train, held_out = text.train.to(run.device), windows(text.val, context)[:256].to(run.device)
    for seed in run.seeds:
        rows = []
        cells = [(w, d, lr, b) for w in widths for d in tokens for lr in lrs for b in batches]
        for width, d, lr, b in run.track(cells, f"seed {seed}"):
            model = CharGPT(
                len(text.vocab), width=width, context=context, generator=torch.Generator().manual_seed(seed)
            ).to(run.device)
            drawn = random_windows(train, context, b, torch.Generator(run.device).manual_seed(seed))
            steps = max(1, d // (b * context))
            history = fit(
                model,
                torch.optim.AdamW(model.parameters(), lr),
                drawn,
                next_character_loss,
                steps=steps,
                schedule=cosine(steps),
            )
            with torch.no_grad():
                loss = float("nan") if history.diverged else float(next_character_loss(model.eval(), held_out))
            n = sum(p.numel() for p in model.blocks.parameters())
            run.record(
                "loss",
                loss,
                method=f"batch {b * context}",
                problem=f"width {width}, {d} characters",
                seed=seed,
                step=lr,
            )
            rows.append({"N": n, "D": d, "lr": lr, "bs": b, "loss": loss})
        table = pd.DataFrame(rows).dropna()
        dealt = shuffled_labels(table, seed)
        for method, losses in {"refit": table, "shuffled-labels": dealt}.items():
            boot = fit_step_law(losses, rel_tol=0.01, seq_len=context, n_boot=200, seed=seed).boot.mean(0)
            for metric, column in zip(EXPONENTS, (1, 2, 4), strict=True):
                run.record(metric, boot[column], method=method, problem=corpus, seed=seed)
