"""The step law: the best learning rate and batch size as power laws of model size and tokens.

A table has one row a training run, with columns `N` (non-embedding parameters), `D` (training tokens), `lr`, `bs`
(batch in sequences) and `loss`. A *setting* is a pair (N, D); its runs differ in `lr` and `bs` alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

COLUMNS = ("N", "D", "lr", "bs", "loss")


@dataclass(frozen=True)
class StepLaw:
    """`lr = c N^a D^b` and `batch = c D^b` in tokens.

    `lr` is (c, a, b) and `bs` is (c, b). `boot` holds one row a bootstrap resample, shape `[n_boot, 5]`: log c, a, b of
    the learning rate, log c, b of the batch.
    """

    lr: tuple[float, float, float]
    bs: tuple[float, float]
    boot: np.ndarray

    def predict(self, N: float, D: float) -> tuple[float, float]:
        """Best learning rate and batch size in tokens."""
        return self.lr[0] * N ** self.lr[1] * D ** self.lr[2], self.bs[0] * D ** self.bs[1]


def _check(table: pd.DataFrame) -> None:
    missing = [c for c in COLUMNS if c not in table]
    if missing:
        raise ValueError(f"the table has no column {', '.join(missing)}; it needs {', '.join(COLUMNS)}")
    if not (table[["N", "D", "lr", "bs", "loss"]] > 0).to_numpy().all():
        raise ValueError("N, D, lr, bs and loss must be positive and finite in every row")


def near_best(table: pd.DataFrame, rel_tol: float = 0.0025) -> pd.DataFrame:
    """The runs whose loss is within `rel_tol` of the best of their setting: `loss / L*(N, D) - 1 < rel_tol`."""
    _check(table)
    best = table.groupby(["N", "D"])["loss"].transform("min")
    return table[table["loss"] / best - 1 < rel_tol]


def _least_squares(log_n: np.ndarray, log_d: np.ndarray, log_lr: np.ndarray, log_b: np.ndarray) -> np.ndarray:
    """log lr = a0 + aN log N + aD log D and log B = b0 + bD log D; returns (a0, aN, aD, b0, bD)."""
    one = np.ones_like(log_n)
    of_lr = np.linalg.lstsq(np.stack([one, log_n, log_d], 1), log_lr, rcond=None)[0]
    of_batch = np.linalg.lstsq(np.stack([one, log_d], 1), log_b, rcond=None)[0]
    return np.concatenate([of_lr, of_batch])


def fit_step_law(
    table: pd.DataFrame, rel_tol: float = 0.0025, seq_len: int = 2048, n_boot: int = 1000, seed: int = 0
) -> StepLaw:
    """Fit the law by ordinary least squares on the near-best runs, averaged over bootstrap resamples of them (Sec. 4).

    Args:
        table: one row a run, see the module.
        rel_tol: how near to the best of its setting a run must be to count.
        seq_len: tokens a sequence; batches are regressed in tokens.
        n_boot: bootstrap resamples; 0 fits the rows once.
        seed: of the resampling.

    Raises:
        ValueError: columns are missing, or the kept runs have one model size or one number of tokens only.
    """
    kept = near_best(table, rel_tol)
    if kept["N"].nunique() < 2 or kept["D"].nunique() < 2:
        raise ValueError("the law needs at least two model sizes and two numbers of tokens")
    logs = np.log(np.stack([kept["N"], kept["D"], kept["lr"], kept["bs"] * seq_len]))
    if n_boot == 0:
        boot = _least_squares(*logs)[None]
    else:
        draws = np.random.default_rng(seed).integers(len(kept), size=(n_boot, len(kept)))
        boot = np.stack([_least_squares(*logs[:, rows]) for rows in draws])
    a0, a_n, a_d, b0, b_d = boot.mean(0)
    return StepLaw((float(np.exp(a0)), float(a_n), float(a_d)), (float(np.exp(b0)), float(b_d)), boot)


def loss_gap(table: pd.DataFrame, law: StepLaw, seq_len: int = 2048) -> pd.Series:
    """Loss of the run nearest to the law's (lr, batch), over the best of its setting, minus 1, in percent.

    Nearest in squared distance of natural logs. Indexed by (N, D).
    """
    _check(table)

    def gap(group: pd.DataFrame) -> float:
        lr, batch = law.predict(*group.name)
        distance = np.log(group["lr"] / lr) ** 2 + np.log(group["bs"] * seq_len / batch) ** 2
        return 100 * (group["loss"][distance.idxmin()] / group["loss"].min() - 1)

    return table.groupby(["N", "D"])[["lr", "bs", "loss"]].apply(gap).rename("gap")


@dataclass(frozen=True)
class Bowl:
    """A quadratic fit of loss on x = (log lr, log batch in tokens): its Hessian `[2, 2]`, vertex (lr, batch), R²."""

    hessian: np.ndarray
    vertex: tuple[float, float]
    r2: float

    @property
    def convex(self) -> bool:
        return bool(np.linalg.eigvalsh(self.hessian)[0] > 0)


def bowl(group: pd.DataFrame, rel: float = 0.02, seq_len: int = 2048) -> Bowl:
    """Fit a quadratic to one setting's runs within `rel` of its best loss.

    Raises:
        ValueError: fewer than seven runs are that near, so the six coefficients are not fixed.
    """
    near = group[group["loss"] / group["loss"].min() - 1 < rel]
    if len(near) < 7:
        raise ValueError(f"only {len(near)} runs lie within {rel:.1%} of the best; widen `rel`")
    x = np.log(np.stack([near["lr"], near["bs"] * seq_len], 1))
    centre = x.mean(0)
    u, v = (x - centre).T
    y = near["loss"].to_numpy(float)
    design = np.stack([np.ones_like(u), u, v, u * u / 2, u * v, v * v / 2], 1)
    c = np.linalg.lstsq(design, y, rcond=None)[0]
    hessian = np.array([[c[3], c[4]], [c[4], c[5]]])
    vertex = np.exp(centre - np.linalg.solve(hessian, c[1:3]))
    residual = y - design @ c
    r2 = 1 - residual @ residual / ((y - y.mean()) @ (y - y.mean()))
    return Bowl(hessian, (float(vertex[0]), float(vertex[1])), float(r2))
