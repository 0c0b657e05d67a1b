"""Small networks in float64 and a bare training loop, for optimizers that watch layers."""

from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from draws import seeded
from secondlook.problems.training import cross_entropy


def drawn(net: nn.Module, seed: int = 0, scale: float = 0.5) -> nn.Module:
    """The network in float64, its parameters drawn from N(0, scale^2)."""
    net, g = net.double(), seeded(seed)
    with torch.no_grad():
        for p in net.parameters():
            p.normal_(0, scale, generator=g)
    return net


def mlp(seed: int = 0) -> nn.Module:
    return drawn(nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3)), seed)


def batches(shape: tuple[int, ...], seed: int = 5) -> Iterator[tuple[Tensor, Tensor]]:
    """Without end: eight inputs of `shape` and labels of three classes."""
    g = seeded(seed)
    for _ in count():
        x = torch.randn(8, *shape, generator=g, dtype=torch.float64)
        yield x, torch.randint(0, 3, (8,), generator=g)


def train(optimizer: Optimizer, model: nn.Module, stream: Iterator[tuple[Tensor, Tensor]], steps: int) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        cross_entropy(model, next(stream)).backward()
        optimizer.step()


def flat(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def assert_resumes(make: Callable[[nn.Module], Optimizer], model: nn.Module, twin: nn.Module, path: Path) -> None:
    """A run saved to `path` and loaded into a twin that started elsewhere goes on bit for bit; inputs `[2, 6, 6]`."""
    optimizer, resumed = make(model), make(twin)
    train(optimizer, model, batches((2, 6, 6)), 3)
    torch.save([model.state_dict(), optimizer.state_dict()], path)
    weights, state = torch.load(path, weights_only=True)
    twin.load_state_dict(weights)
    resumed.load_state_dict(state)
    for o, m in ((optimizer, model), (resumed, twin)):
        train(o, m, batches((2, 6, 6), seed=7), 4)
    assert torch.equal(flat(model), flat(twin))
