"""The stand-in refuses what a GPU refuses, and allows the rest."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from stand_in_gpu import stand_in_gpu


@pytest.fixture
def gpu():
    with stand_in_gpu() as gpu:
        yield gpu


def there(*shape: int) -> torch.Tensor:
    return torch.ones(shape, device="cuda")


REFUSED = {
    "arithmetic": lambda: there(3) + torch.ones(3),
    "a module left behind": lambda: nn.Linear(2, 2)(there(1, 2)),
    "data left behind": lambda: nn.Linear(2, 2).to("cuda")(torch.ones(1, 2)),
    "its indices for the CPU's tensor": lambda: torch.ones(3)[torch.tensor([0, 1], device="cuda")],
    "a stream of the CPU": lambda: torch.randn(3, generator=torch.Generator(), device="cuda"),
    "its stream for the CPU": lambda: torch.randn(3, generator=torch.Generator("cuda")),
    "a stream of the CPU, in place": lambda: there(3).normal_(generator=torch.Generator()),
    "inside a transform": lambda: torch.func.grad(lambda x: (x * torch.ones(3)).sum())(there(3)),
    "numbers of both, stacked": lambda: torch.stack([there(), torch.ones(())]),
}


@pytest.mark.parametrize("call", REFUSED.values(), ids=REFUSED)
def test_two_devices_do_not_meet(gpu, call):
    with pytest.raises(RuntimeError, match=r"expected (all tensors|a generator) on"):
        call()


def test_numpy_does_not_read_its_memory(gpu):
    for read in (torch.Tensor.numpy, np.asarray):
        with pytest.raises(TypeError, match="cpu"):
            read(there(2))
    assert there(2).cpu().numpy().tolist() == [1, 1]


def test_everything_made_of_it_is_there(gpu):
    x = there(2, 3)
    net = copy.deepcopy(nn.BatchNorm1d(3)).to(x)
    made = [
        *(x.double(), x.T, x + 1, x * torch.tensor(2.0), torch.zeros_like(x), x.new_tensor([1.0]), x.to(torch.float64)),
        *(torch.as_tensor([1.0], device="cuda"), torch.randn(2, generator=torch.Generator("cuda"), device="cuda")),
        *(torch.func.vmap(torch.sum)(x), x[torch.tensor([0])], nn.functional.one_hot(x[0].long(), 3), net(x)),
        *(net.running_mean, copy.deepcopy(net).running_mean),
    ]
    w = nn.Parameter(there(3))
    (w * w).sum().backward()
    assert {t.device.type for t in [*made, w.grad]} == {"cuda"}
    assert {t.device.type for t in (x.cpu(), torch.ones(2), x.cpu() + 1)} == {"cpu"}


def test_waits_are_counted(gpu):
    x = there(4)
    (x.sum() * 2).sqrt().exp()
    assert not gpu.waits.total()
    for wait in (x.sum().item, x.tolist, x.nonzero, lambda: x[x > 0], x.cpu, lambda: bool((x > 0).all())):
        before = gpu.waits.total()
        wait()
        assert gpu.waits.total() == before + 1
    torch.ones(3).sum().item()
    assert gpu.waits.total() == before + 1


def test_nothing_of_it_is_left_behind():
    before = torch.Generator, torch.Tensor.device, torch.zeros, torch.cuda.is_available
    with stand_in_gpu():
        assert torch.cuda.is_available()
    assert before == (torch.Generator, torch.Tensor.device, torch.zeros, torch.cuda.is_available)
