"""Floors against counts by hand."""

import pytest
import torch

from secondlook.suite import floors, timing
from secondlook.suite.floors import Rates, floor


@pytest.fixture
def slow(monkeypatch):
    """A machine of 1000 operations and 100 bytes a second."""
    monkeypatch.setattr(floors, "rates", lambda device: Rates(1e3, 1e2))


def test_arithmetic_and_traffic_by_hand(slow):
    a, b = torch.ones(4, 5), torch.ones(5, 6)
    found = floor(lambda: a @ b, "cpu")
    assert found.flops == 2 * 4 * 5 * 6
    assert found.bytes == 4 * (20 + 30 + 24)
    assert found.seconds == max(found.flops / 1e3, found.bytes / 1e2)
    x = torch.ones(8)
    twice = floor(lambda: x.mul_(2).add_(1), "cpu")
    assert (twice.flops, twice.bytes) == (0, 2 * 4 * 16)
    assert twice.seconds == twice.bytes / 1e2


def test_what_moves_nothing_is_free(slow):
    x = torch.ones(6, 4)
    assert floor(lambda: torch.empty(100) is x.T.reshape(4, 6)[1:].expand(3, 3, 6), "cpu").bytes == 0
    assert floor(lambda: x[:1].expand(1000, 4) + 0, "cpu").bytes == 4 * (24 + 4000)  # at most what is in memory
    rows = torch.tensor([1, 2])
    assert floor(lambda: x[rows], "cpu").bytes == 2 * 4 * 8


def test_derivatives_count(slow):
    w, x = torch.ones(7, 3, requires_grad=True), torch.ones(5, 3)

    def product() -> None:
        (g,) = torch.autograd.grad((x @ w.T).square().sum(), w, create_graph=True)
        torch.autograd.grad(g.sum(), w)

    assert floor(lambda: x @ w.T, "cpu").flops == 210
    assert floor(product, "cpu").flops == 4 * 210  # forwards, backwards, and both again


def test_no_work_beats_its_floor():
    a = torch.ones(600, 600)
    taken = min(timing.seconds(lambda: a @ a) for _ in range(5))
    rates = floors.rates("cpu")
    assert 1e8 < rates.flops < 1e14
    assert 1e8 < rates.bytes < 1e13
    assert floor(lambda: a @ a, "cpu").seconds < 1.5 * taken
