"""Two-stage training of a network with one hidden layer: a step of its input weights, then least squares for the rest.

Inputs x_p carry a last entry 1; a linear bypass joins the hidden units: y_p = W_oi x_p + W_oh f(W x_p).
The input weights W follow the negative gradient G of the error, multiplied by a matrix R: that is plain descent on
inputs A x_p with R = A'A. Optimal input gains choose R = diag(r) by a small Gauss-Newton system.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from secondlook.optimizers.base import check_count, check_range

ACTIVATIONS: dict[str, Callable[[Tensor], tuple[Tensor, Tensor]]] = {  # f and f' of the nets
    "sigmoid": lambda n: (o := torch.sigmoid(n), o * (1 - o)),
    "tanh": lambda n: (o := torch.tanh(n), 1 - o.square()),
}
HALVINGS = 12


@dataclass(frozen=True)
class Network:
    """Input weights W [Nh, N+1], and output weights Wo [M, N+1+Nh], those of the bypass first.

    With a leading axis, [k, Nh, N+1] and [k, M, N+1+Nh], they are k networks, whose outputs are [k, P, M].
    """

    W: Tensor
    Wo: Tensor
    activation: str = "sigmoid"

    def hidden(self, X: Tensor) -> tuple[Tensor, Tensor]:
        """f and f' of all hidden units, [P, Nh] each, at inputs X [P, N+1]."""
        return ACTIVATIONS[self.activation](X @ self.W.mT)

    def __call__(self, X: Tensor) -> Tensor:
        """Outputs [P, M]."""
        O = self.hidden(X)[0]
        return torch.cat([X.expand(*O.shape[:-1], -1), O], -1) @ self.Wo.mT

    def error(self, X: Tensor, T: Tensor) -> float:
        """Mean over rows of the squared distance to targets T [P, M]."""
        return float((T - self(X)).square().sum(1).mean())


class Fitted(NamedTuple):
    """A network and what a step from it needs: f' of its hidden units [P, Nh], its errors T - Y [P, M], their size."""

    network: Network
    fprime: Tensor
    E: Tensor
    error: float


@dataclass
class History:
    """The network that `fit` ended with, and one entry for the start and each iteration.

    Attributes:
        error: training error.
        trials: networks evaluated in the iteration, more than one where the step had to be halved; 1 for the start.
    """

    network: Network
    error: list[float] = field(default_factory=list)
    trials: list[int] = field(default_factory=list)


def augmented(X: Tensor) -> Tensor:
    """Inputs [P, N] with a last column of ones."""
    return torch.cat([X, X.new_ones(len(X), 1)], 1)


def whitening(R: Tensor, rcond: float = 1e-10) -> Tensor:
    """A [rank, n] with A R A' = I and A'A the inverse of a positive semidefinite R [n, n], without its null space.

    The rank is judged with R scaled to unit diagonal, so that the units of the inputs do not decide it.
    """
    d = R.diagonal().clamp(min=0).sqrt()
    d = torch.where(d > 0, d, 1)
    values, vectors = torch.linalg.eigh(R / d / d[:, None])
    kept = values > rcond * values[-1]
    return (vectors[:, kept] / values[kept].sqrt()).T / d


def solve(H: Tensor, g: Tensor, rcond: float = 1e-10) -> Tensor:
    """x [n, ...] with H x = g, H as in `whitening`; directions in which H vanishes are left alone."""
    A = whitening(H, rcond)
    return A.T @ (A @ g)


def owo(X: Tensor, O: Tensor, T: Tensor, rcond: float = 1e-10) -> Tensor:
    """Output weights [M, N+1+Nh] of least squared error for inputs X [P, N+1], hidden outputs O [P, Nh], targets T."""
    return _least_squares(torch.cat([X, O], 1), T, rcond)


def _least_squares(Z: Tensor, T: Tensor, rcond: float) -> Tensor:
    return solve(Z.T @ Z, Z.T @ T, rcond).T


def gradient(X: Tensor, E: Tensor, W_oh: Tensor, fprime: Tensor) -> Tensor:
    """Negative gradient G [Nh, N+1] of the error by W, for errors E = T - Y [P, M]."""
    return (2 / len(X)) * (fprime * (E @ W_oh)).T @ X


def input_gains(
    X: Tensor, E: Tensor, W_oh: Tensor, fprime: Tensor, G: Tensor, rcond: float = 1e-10
) -> tuple[Tensor, Tensor, Tensor]:
    """Gains r [N+1], the Gauss-Newton matrix H [N+1, N+1] and the gradient g [N+1] of the step W + G diag(r) by r.

    Args:
        X: inputs [P, N+1], whitened or not.
        E: errors T - Y [P, M].
        W_oh: output weights of the hidden units [M, Nh].
        fprime: f' of the hidden units [P, Nh].
        G: negative gradient [Nh, N+1] of the weights that belong to X.
    """
    J = (X * ((fprime * W_oh[:, None]) @ G)).flatten(0, 1)  # derivatives [M P, N+1] of all outputs by the gains
    H, g = (2 / len(X)) * J.T @ J, (2 / len(X)) * J.T @ E.T.flatten()
    return solve(H, g, rcond), H, g


def line_step(X: Tensor, W_oh: Tensor, fprime: Tensor, G: Tensor, D: Tensor) -> Tensor:
    """z D with the step z = <G, D> / h of a one-dimensional Gauss-Newton model along D [Nh, N+1]."""
    h = (2 / len(X)) * ((fprime * (X @ D.T)) @ W_oh.T).square().sum()
    return (G * D).sum() / h * D


def bp(X: Tensor, E: Tensor, W_oh: Tensor, fprime: Tensor, A: Tensor, rcond: float) -> Tensor:
    """Steepest descent."""
    G = gradient(X, E, W_oh, fprime)
    return line_step(X, W_oh, fprime, G, G)


def hwo(X: Tensor, E: Tensor, W_oh: Tensor, fprime: Tensor, A: Tensor, rcond: float) -> Tensor:
    """Hidden weight optimisation: steepest descent on whitened inputs."""
    G = gradient(X, E, W_oh, fprime)
    return line_step(X, W_oh, fprime, G, G @ A.T @ A)


def oig_bp(X: Tensor, E: Tensor, W_oh: Tensor, fprime: Tensor, A: Tensor, rcond: float) -> Tensor:
    """A gain for every input."""
    G = gradient(X, E, W_oh, fprime)
    return G * input_gains(X, E, W_oh, fprime, G, rcond)[0]


def oig_hwo(X: Tensor, E: Tensor, W_oh: Tensor, fprime: Tensor, A: Tensor, rcond: float) -> Tensor:
    """A gain for every whitened input."""
    white = X @ A.T
    G = gradient(white, E, W_oh, fprime)
    return (G * input_gains(white, E, W_oh, fprime, G, rcond)[0]) @ A


ALGORITHMS = {"bp": bp, "hwo": hwo, "oig-bp": oig_bp, "oig-hwo": oig_hwo}


class OIGTrainer:
    """Trains a network with one hidden layer by alternating input weight steps and least squares.

    Args:
        n_hidden: hidden units Nh.
        algorithm: step of the input weights: "oig-bp", "oig-hwo", "bp" or "hwo".
        activation: "sigmoid" or "tanh".
        iterations: pairs of steps.
        rcond: eigenvalues below this part of the largest count as zero, in every linear system.

    A step that does not lower the error, the output weights solved anew, is halved up to 12 times; then nothing moves.

    Raises:
        ValueError: an option is out of range.
    """

    def __init__(
        self,
        n_hidden: int,
        algorithm: str = "oig-bp",
        activation: str = "sigmoid",
        iterations: int = 200,
        rcond: float = 1e-10,
    ) -> None:
        check_count("n_hidden", n_hidden)
        check_count("iterations", iterations, least=0)
        check_range("rcond", rcond, high=1.0)
        for name, value, known in (("algorithm", algorithm, ALGORITHMS), ("activation", activation, ACTIVATIONS)):
            if value not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}")
        self.n_hidden, self.algorithm, self.activation = n_hidden, algorithm, activation
        self.iterations, self.rcond = iterations, rcond

    def start(self, X: Tensor, T: Tensor, generator: torch.Generator | None = None) -> Network:
        """Normal input weights of variance 1/N, biases of variance 1 (for standardised inputs [P, N]), and `owo`."""
        n = X.shape[1]
        W = torch.randn(self.n_hidden, n + 1, generator=generator, dtype=X.dtype, device=X.device)
        W[:, :n] /= n**0.5
        return self.solved(W, augmented(X), T)

    def solved(self, W: Tensor, X: Tensor, T: Tensor) -> Network:
        """The network with input weights W [Nh, N+1] and the best output weights for inputs X [P, N+1]."""
        return self._fitted(W, None, X, T).network

    def _fitted(self, W: Tensor, Wo: Tensor | None, X: Tensor, T: Tensor) -> Fitted:
        """The network with these weights, the best output weights if none are given; hidden units evaluated once."""
        O, fprime = ACTIVATIONS[self.activation](X @ W.T)
        Z = torch.cat([X, O], 1)
        Wo = _least_squares(Z, T, self.rcond) if Wo is None else Wo
        E = T - Z @ Wo.T
        return Fitted(Network(W, Wo, self.activation), fprime, E, float(E.square().sum(1).mean()))

    @torch.no_grad()
    def fit(
        self,
        X: Tensor,
        T: Tensor,
        network: Network | None = None,
        callback: Callable[[int, Network], None] | None = None,
        generator: torch.Generator | None = None,
    ) -> History:
        """Train on inputs X [P, N] and targets T [P, M] from `network`, or from a start drawn by `generator`.

        `callback(iteration, network)` is called at the start (0) and after each iteration.

        Raises:
            ValueError: X and T differ in length, or the network has other sizes than they.
        """
        if X.ndim != 2 or T.ndim != 2 or len(X) != len(T):
            raise ValueError(f"X [P, N] and T [P, M] must have the same rows, got {tuple(X.shape)}, {tuple(T.shape)}")
        if network is None:
            network = self.start(X, T, generator or torch.Generator(X.device).manual_seed(torch.initial_seed()))
        X = augmented(X)
        if network.W.shape[1] != X.shape[1] or len(network.Wo) != T.shape[1]:
            raise ValueError(f"the network takes {network.W.shape[1] - 1} inputs and gives {len(network.Wo)} outputs")
        A = whitening(X.T @ X / len(X), self.rcond)
        here = self._fitted(network.W, network.Wo, X, T)
        history = History(here.network, [here.error], [1])
        if callback:
            callback(0, history.network)
        for iteration in range(1, self.iterations + 1):
            here, trials = self._next(here, X, T, A)
            history.network = here.network
            history.error.append(here.error)
            history.trials.append(trials)
            if callback:
                callback(iteration, history.network)
        return history

    def _next(self, here: Fitted, X: Tensor, T: Tensor, A: Tensor) -> tuple[Fitted, int]:
        """One step of both kinds, and the number of networks tried."""
        W_oh = here.network.Wo[:, X.shape[1] :]
        step = ALGORITHMS[self.algorithm](X, here.E, W_oh, here.fprime, A, self.rcond)
        for trial in range(HALVINGS + 1):
            candidate = self._fitted(here.network.W + step / 2**trial, None, X, T)
            if candidate.error < here.error:
                return candidate, trial + 1
        return here, HALVINGS + 1
