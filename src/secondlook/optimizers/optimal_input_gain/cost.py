"""Multiplications of an iteration, from the sizes alone: lower-order terms are left out."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Sizes:
    """Rows P, inputs N+1 with the constant, hidden units, outputs."""

    rows: int
    inputs: int
    hidden: int
    outputs: int

    @property
    def forward(self) -> int:
        """Hidden units and outputs of all rows."""
        return self.rows * (self.inputs * self.hidden + self.outputs * (self.inputs + self.hidden))

    @property
    def owo(self) -> int:
        """Least squares for the output weights: two products, and a symmetric eigenvalue problem (9 n^3)."""
        n = self.inputs + self.hidden
        return self.rows * (n * (n + 1) // 2 + n * self.outputs) + 9 * n**3

    @property
    def gradient(self) -> int:
        return self.rows * self.hidden * (self.inputs + self.outputs)

    @property
    def gains(self) -> int:
        """The Gauss-Newton matrix of the gains, output by output, and its solution."""
        n = self.inputs
        return self.rows * self.outputs * (self.hidden * n + self.hidden + n + n * (n + 1) // 2) + 9 * n**3

    @property
    def weights(self) -> int:
        return self.hidden * self.inputs + self.outputs * (self.inputs + self.hidden)

    def step(self, algorithm: str, trials: int) -> int:
        """One iteration of a two-stage algorithm that tried so many networks."""
        step = self.gains if algorithm.startswith("oig") else self.gradient  # a line step costs as much as a gradient
        white = algorithm.endswith("hwo")
        if white:  # turn the inputs (or the gradient alone) and back
            turned = self.rows if algorithm.startswith("oig") else self.hidden
            step += self.inputs**2 * (turned + self.hidden)
        return self.gradient + step + trials * (self.forward + self.owo)

    def start(self, algorithm: str) -> int:
        """Before the first iteration: the first least squares and, where inputs are whitened, their matrix."""
        n = self.inputs
        white = self.rows * n * (n + 1) // 2 + 9 * n**3 if algorithm.endswith("hwo") else 0
        return self.forward + self.owo + white

    def lm(self, trials: int) -> int:
        """One iteration of Levenberg-Marquardt: Jacobian, the smaller product of it with itself, Cholesky factors.

        The Jacobian's derivatives by output weights are inputs and hidden outputs, zero elsewhere; a product that
        skips those zeros is counted.
        """
        residuals, hidden = self.rows * self.outputs, self.hidden * self.inputs
        own = self.inputs + self.hidden
        small = min(self.weights, residuals)
        by_weights = residuals * (hidden * (hidden + 1) // 2 + hidden * own) + self.rows * own * (own + 1) // 2
        by_rows = residuals**2 * (hidden + own) // 2
        product = by_weights if self.weights <= residuals else by_rows
        return residuals * (hidden + own + hidden) + product + trials * (small**3 // 6 + small**2 + self.forward)
