"""K-FAC as a baseline for networks of linear layers (Martens and Grosse 2015)."""

import torch
from torch import Tensor, nn

from secondlook.curvature import kronecker
from secondlook.problems.training import cross_entropy


class KFAC(torch.optim.SGD):
    """Heavy ball on the gradient that a Kronecker-factored Fisher preconditions.

    The factors are running averages, fed by every batch; their eigenvectors are found anew every `every` steps.
    Hand `loss` to whoever trains: it feeds the factors.
    """

    def __init__(
        self,
        model: nn.Module,
        lr: float,
        damping: float,
        generator: torch.Generator,
        *,
        decay: float = 0.95,
        every: int = 10,
    ) -> None:
        super().__init__(model.parameters(), lr, momentum=0.9)
        self.model, self.damping, self.generator, self.decay, self.every = model, damping, generator, decay, every
        self.layers, self.steps = kronecker.linear_layers(model), 0
        self.factors: dict[str, tuple[Tensor, Tensor]] = {}

    def sampled(self, model: nn.Module, x: Tensor) -> Tensor:
        """Summed loss of labels drawn from the model's own predictions: its gradients' second moment is the Fisher."""
        scores = model(x)
        labels = torch.multinomial(scores.detach().softmax(-1), 1, generator=self.generator).squeeze(1)
        return nn.functional.cross_entropy(scores, labels, reduction="sum")

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Mean cross-entropy of the batch, which also enters the factors."""
        fresh = kronecker.covariances(model, [batch[0]], self.sampled, self.layers)
        if not self.factors:
            self.factors = fresh
        for name, pair in fresh.items():
            for average, new in zip(self.factors[name], pair, strict=True):
                average.lerp_(new, 1 - self.decay)
        return cross_entropy(model, batch)

    @torch.no_grad()
    def step(self) -> None:
        """Precondition the gradients, then take heavy ball's step."""
        if self.steps % self.every == 0:
            self.blocks = {name: _block(*pair) for name, pair in self.factors.items()}
        self.steps += 1
        params = dict(self.model.named_parameters())
        grads = kronecker.to_matrices(self.layers, {name: p.grad for name, p in params.items()})
        solved = {name: self.blocks[name].solve(g, self.damping) for name, g in grads.items()}
        for name, g in kronecker.to_parameters(self.layers, solved).items():
            params[name].grad = g.contiguous()
        super().step()


def _block(inputs: Tensor, outputs: Tensor) -> kronecker.Block:
    """Eigenvectors in float64: in single precision the solver may fail on factors of low rank."""
    (eig_in, basis_in), (eig_out, basis_out) = (torch.linalg.eigh(x.double()) for x in (inputs, outputs))
    eigenvalues = torch.outer(eig_out, eig_in).clamp_(min=0)
    return kronecker.Block(*(x.to(inputs) for x in (eigenvalues, basis_out, basis_in)))
