"""The networks that are trained, with what, and how a single update is looked at."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from secondlook.optimizers.auon.method import AuON, Muon
from secondlook.optimizers.auon.together import Together
from secondlook.optimizers.pairing import first_stream
from secondlook.problems import datasets
from secondlook.problems.models import CharGPT, mlp
from secondlook.problems.training import History, cosine, cross_entropy, fit, minibatches
from secondlook.problems.zoo.char_gpt import next_character_loss, random_windows, windows

TUNING_SEED = 1000  # nor does tuning see those of the seeds that are reported
MOMENTUM = 0.95


def sgd(params: list[Tensor], lr: float, momentum: float = MOMENTUM) -> SGD:
    """Nesterov momentum as an average of gradients: torch sums them, which is 1 / (1 - momentum) times as much."""
    return SGD(params, lr * (1 - momentum), momentum=momentum, nesterov=momentum > 0)


RULES: dict[str, Callable[..., Optimizer]] = {
    "sgd": sgd,
    "normalised-sgd": partial(AuON, gamma=0.0, normalise=True, aspect=True),
    "auon": AuON,
    "auon-printed": partial(AuON, gamma=1.0, normalise=True, aspect=True),
    "hybrid": partial(AuON, hybrid=True),
    "hybrid-one-step": partial(AuON, hybrid=True, ns_steps=1),
    "muon": partial(Muon, adjust_lr_fn="none"),
    "adamw": partial(AdamW, weight_decay=0.0),
    "torch-muon": partial(torch.optim.Muon, weight_decay=0.0),
}


def hidden(model: nn.Module) -> list[nn.Parameter]:
    """Matrices of all linear layers but the last; embeddings, vectors and the output layer are left out."""
    return [m.weight for m in model.modules() if isinstance(m, nn.Linear)][:-1]


def optimizer(rule: str, model: nn.Module, lr: float, rest_lr: float) -> Together:
    """`rule` for the hidden matrices and Adam for the rest, the same for every rule."""
    matrices = hidden(model)
    among = set(matrices)
    rest = [p for p in model.parameters() if p not in among]
    return Together(RULES[rule](matrices, lr=lr), Adam(rest, rest_lr))


def direction(rule: str, u: Tensor) -> Tensor:
    """What a rule subtracts from a matrix for the momentum `u`, at learning rate 1."""
    w = torch.zeros_like(u, requires_grad=True)
    w.grad = u.clone()
    RULES[rule]([w], lr=1.0, momentum=0.0).step()  # without memory the momentum is the gradient
    return -w.detach()


class _Count(TorchDispatchMode):
    """Counts scalar operations: those of matrix products by their formulas, otherwise one an entry."""

    total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if formula := flop_registry.get(func.overloadpacket):
            self.total += formula(*args, **(kwargs or {}), out_val=out)
        elif not func.is_view:
            # A norm writes one number and reads many; an in-place step on a list returns nothing.
            self.total += max(sum(t.numel() for t in tree_leaves(x) if isinstance(t, Tensor)) for x in (args, out))
        return out


def counted(rule: str, n: int) -> int:
    """Scalar operations of a rule's second step on an n by n matrix; the tensors hold no numbers."""
    w = torch.zeros(n, n, device="meta", requires_grad=True)
    w.grad = torch.zeros_like(w)
    opt = RULES[rule]([w], lr=1.0)
    opt.step()  # makes the state
    with _Count() as count:
        opt.step()
    return count.total


@dataclass(frozen=True)
class Task:
    """A network, its batches, and its loss on them and on held-out data."""

    model: Callable[[torch.Generator], nn.Module]
    batches: Callable[[torch.Generator], Iterator[Any]]
    loss: Callable[[nn.Module, Any], Tensor]
    held_out: dict[str, Any]  # train, val, test: what their loss is evaluated on


def digits(sizes: list[int], batch_size: int, device: str, dtype: torch.dtype = torch.float32) -> Task:
    """A deep tanh network on 8x8 digits; `sizes` are its widths from pixels to classes."""
    data = datasets.load("digits").to(device)
    parts = {name: (getattr(data, name).x.to(dtype), getattr(data, name).y) for name in ("train", "val", "test")}
    return Task(
        lambda g: mlp(sizes, nn.Tanh, g).to(device, dtype),
        lambda g: minibatches(*parts["train"], batch_size, g),
        cross_entropy,
        parts,
    )


def text(corpus: str, size: dict[str, int], batch_size: int, device: str, count: int = 128) -> Task:
    """A character-level transformer; `size` has width, depth, heads and context."""
    source = datasets.corpus(corpus)

    def spread(tokens: Tensor) -> Tensor:
        cut = windows(tokens, size["context"])
        return cut[:: math.ceil(len(cut) / count)].to(device)

    return Task(
        lambda g: CharGPT(len(source.vocab), **size, generator=g).to(device),
        lambda g: random_windows(source.train.to(device), size["context"], batch_size, g),
        next_character_loss,
        {name: spread(getattr(source, name)) for name in ("train", "val", "test")},
    )


@dataclass(frozen=True)
class Recipe:
    """A task trained for `steps` along one cosine."""

    task: Task
    steps: int
    rows: int  # how often a run is looked at
    rest_lr: float  # Adam's, for what is not a hidden matrix
    device: str

    def train(self, arm: str, lr: float, seed: int) -> History:
        """One run with `train_loss`, `val_loss` and `test_loss` in its history.

        `arm` may end in -copy (other random streams). Arms with one seed share weights and batches, so they pair.
        """
        first = first_stream(arm, seed, 2)
        model = self.task.model(torch.Generator().manual_seed(first))

        @torch.no_grad()
        def evaluate(model: nn.Module) -> dict[str, Tensor]:
            model.eval()
            return {f"{part}_loss": self.task.loss(model, data) for part, data in self.task.held_out.items()}

        return fit(
            model,
            optimizer(arm.removesuffix("-copy"), model, lr, self.rest_lr),
            self.task.batches(torch.Generator(self.device).manual_seed(first + 1)),
            self.task.loss,
            steps=self.steps,
            schedule=cosine(self.steps, warmup=self.steps // 20),
            evaluate=evaluate,
            every=max(1, self.steps // self.rows),
        )


def best(history: History) -> dict[str, float]:
    """The row with the lowest validation loss, of a run that did not diverge; all infinite otherwise."""
    if history.diverged:
        return {"val_loss": math.inf, "test_loss": math.inf, "train_loss": math.inf}
    return min(history.rows, key=lambda row: row["val_loss"])
