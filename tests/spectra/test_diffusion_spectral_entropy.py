"""Diffusion entropy and information against closed forms, an independent computation and their invariances."""

import importlib
import math
import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from secondlook.spectra import (
    binned_shannon_entropy,
    diffusion_spectral_entropy,
    diffusion_spectral_mutual_information,
    diffusion_spectrum,
)
from secondlook.spectra.diffusion_spectral_entropy import discretise, median_distance, spectral_entropy


def gaussian(n=40, d=5, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_hand(z, sigma, t):
    """The formulas in NumPy, point by point, with a general eigensolver."""
    z = np.asarray(z, float)
    G = np.array([[math.exp(-((a - b) ** 2).sum() / (2 * sigma**2)) for b in z] for a in z])
    G /= sigma * math.sqrt(2 * math.pi)
    degree = np.diag(G.sum(1) ** -0.5)
    e = np.abs(np.linalg.eigvals(degree @ G @ degree)) ** t
    p = e / e.sum() + np.finfo(float).eps
    return float(-(p * np.log2(p)).sum())


@pytest.mark.parametrize("sigma", [0.3, 2.0, 10.0])
@pytest.mark.parametrize("t", [1, 3])
def test_same_as_the_formulas_computed_point_by_point(sigma, t):
    z = gaussian()
    assert abs(diffusion_spectral_entropy(z, sigma, t) - by_hand(z, sigma, t)) < 1e-10


def test_closed_forms():
    assert abs(diffusion_spectral_entropy(torch.ones(64, 3))) < 1e-9  # one eigenvalue 1
    assert diffusion_spectral_entropy(gaussian(64), sigma=1e-6) == pytest.approx(6, abs=1e-9)  # the identity
    # Two points: eigenvalues 1 and (1 - g) / (1 + g).
    g = math.exp(-0.5)
    e = (1 - g) / (1 + g)
    p = torch.tensor([1, e]) / (1 + e)
    assert diffusion_spectral_entropy([[0.0], [3.0]], sigma=3) == pytest.approx(float(-(p * p.log2()).sum()))
    # Two far groups of identical points: two eigenvalues 1, one bit.
    assert diffusion_spectral_entropy(torch.tensor([[0.0]] * 5 + [[1e3]] * 5)) == pytest.approx(1)


def test_the_released_kernel_has_the_spectrum_of_the_plain_walk_and_not_of_its_own():
    z, sigma = torch.cat([gaussian(30), 4 + 3 * gaussian(10, seed=1)]), 2.0
    G = torch.exp(-torch.cdist(z, z).square() / (2 * sigma**2))
    released, row = diffusion_spectrum(z, sigma), diffusion_spectrum(z, sigma, "row")

    def walk(A):
        return torch.linalg.eigvals(A / A.sum(1, keepdim=True)).real.sort().values

    degree = G.sum(1).rsqrt()
    torch.testing.assert_close(released, walk(G), rtol=0, atol=1e-12)
    torch.testing.assert_close(row, walk(degree.unsqueeze(1) * G * degree), rtol=0, atol=1e-12)
    assert (released - row).abs().max() > 1e-3
    assert released[-1] == pytest.approx(1)
    assert row[-1] == pytest.approx(1)


@settings(deadline=None, max_examples=25)
@given(st.integers(2, 20), st.integers(1, 4), st.floats(0.01, 100), st.integers(0, 99))
def test_bounded_and_blind_to_order_place_rotation_and_joint_scale(n, d, sigma, seed):
    z = gaussian(n, d, seed)
    value = diffusion_spectral_entropy(z, sigma)
    assert -1e-9 <= value <= math.log2(n) + 1e-9
    rotation = torch.linalg.qr(gaussian(d, d, seed + 1)).Q
    moved = 5 * (z.flip(0) @ rotation + 7)
    assert diffusion_spectral_entropy(moved, 5 * sigma) == pytest.approx(value, abs=1e-8)
    assert median_distance(moved) == pytest.approx(5 * median_distance(z))


def test_longer_diffusion_forgets():
    values = [diffusion_spectral_entropy(gaussian(), 2.0, t) for t in (0.5, 1, 2, 8)]
    assert values == sorted(values, reverse=True)
    assert spectral_entropy(torch.ones(2, 8)).tolist() == pytest.approx([3, 3])


def information_by_hand(z, y, sigma, repeats, seed):
    total = 0
    for c in sorted(set(y.tolist())):
        rows = [i for i in range(len(y)) if y[i] == c]
        stream = random.Random(seed)
        star = [by_hand(z[stream.sample(range(len(y)), len(rows))], sigma, 1) for _ in range(repeats)]
        total += len(rows) / len(y) * (np.mean(star) - by_hand(z[rows], sigma, 1))
    return total


def test_information_is_the_weighted_difference_of_entropies():
    z = gaussian(30)
    y = (torch.arange(30) % 7).clamp(max=2)
    z[y == 1] += 5
    found = diffusion_spectral_mutual_information(z, y, sigma=2.0, repeats=3, seed=4)
    assert abs(found - information_by_hand(z, y, 2.0, 3, 4)) < 1e-10
    assert found == diffusion_spectral_mutual_information(z.numpy(), y.numpy().reshape(-1, 1), 2.0, repeats=3, seed=4)


def test_information_of_separate_and_of_independent_classes():
    y = torch.arange(80) % 4
    apart = 1e4 * torch.eye(4).double()[y]
    # One eigenvalue 1 for each class that a subset meets, and subsets of 20 meet all four: two bits.
    assert diffusion_spectral_mutual_information(apart, y) == pytest.approx(2)
    values = torch.tensor(
        [diffusion_spectral_mutual_information(gaussian(60, 3, s), y[:60], 1.0, seed=s) for s in range(40)]
    )
    assert values.mean().abs() < 2 * values.std() / len(values) ** 0.5


def test_global_random_state_is_left_alone_and_a_stream_runs_on():
    z, y = gaussian(), torch.arange(40) % 2
    before = random.getstate()
    capped = diffusion_spectral_entropy(z, 2.0, max_n=10)
    diffusion_spectral_mutual_information(z, y)
    assert random.getstate() == before
    assert capped == diffusion_spectral_entropy(z[random.Random(0).sample(range(40), 10)], 2.0)
    stream = random.Random(0)
    assert diffusion_spectral_entropy(z, 2.0, max_n=10, seed=stream) == capped
    assert diffusion_spectral_entropy(z, 2.0, max_n=10, seed=stream) != capped


def test_classes_of_integers_of_a_scalar_and_of_vectors():
    assert discretise(torch.tensor([[3], [1], [3]])).tolist() == [3, 1, 3]
    assert discretise(torch.arange(11).double()).tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 9]
    y = torch.arange(24) % 3
    found = discretise(20 * torch.eye(3).double()[y] + gaussian(24, 3), n_clusters=3)
    assert len({(int(a), int(b)) for a, b in zip(found, y, strict=True)}) == 3


def test_binned_entropy():
    corners = torch.tensor([[0.0, 0], [0, 1], [1, 0], [1, 1]])
    assert binned_shannon_entropy(corners) == 2
    assert binned_shannon_entropy(torch.tensor([[0.0, 9], [0.49, 9], [0.5, 9], [1, 9]])) == 1  # a constant column
    assert binned_shannon_entropy(gaussian(64, 100)) == 6  # saturated
    assert binned_shannon_entropy(torch.linspace(0, 1, 8).unsqueeze(1), bins=4) == 2


def test_the_function_and_the_room_of_one_name_do_not_hide_each_other():
    """The family offers the function; the room of the same name stays importable, whichever comes first."""
    room = importlib.import_module("secondlook.spectra.diffusion_spectral_entropy.method")
    assert importlib.import_module("secondlook.spectra").diffusion_spectral_entropy is room.diffusion_spectral_entropy
    assert importlib.import_module("secondlook.spectra.diffusion_spectral_entropy").discretise is room.discretise


def test_bad_input():
    z = gaussian(4)
    for message, call in {
        "sigma": lambda: diffusion_spectrum(z, 0.0),
        "normalisation": lambda: diffusion_spectrum(z, 1.0, "column"),
        "rows of a matrix": lambda: diffusion_spectral_entropy(torch.ones(3)),
        "flatten the rest": lambda: diffusion_spectral_entropy(torch.ones(3, 2, 2)),
        "finite": lambda: diffusion_spectral_entropy(torch.full((3, 2), torch.nan)),
        "diffusion time": lambda: diffusion_spectral_entropy(z, t=0),
        "max_n": lambda: diffusion_spectral_entropy(z, max_n=0),
        "must match": lambda: diffusion_spectral_mutual_information(z, torch.arange(3)),
        "repeats": lambda: diffusion_spectral_mutual_information(z, torch.arange(4), repeats=0),
        "one row a point": lambda: discretise(torch.tensor(1)),
        "n_clusters": lambda: discretise(torch.rand(4), 0),
        "bins": lambda: binned_shannon_entropy(z, 0),
        "two points": lambda: median_distance(z[:1]),
    }.items():
        with pytest.raises(ValueError, match=message):
            call()


def test_same_as_the_authors_package():
    peer = pytest.importorskip("dse_dsmi")
    z, y = gaussian(100, 6).numpy(), np.arange(100) % 4
    for sigma, t in [(1.0, 1), (3.0, 2), (10.0, 1)]:
        theirs = peer.diffusion_spectral_entropy(z, gaussian_kernel_sigma=sigma, t=t)
        assert abs(diffusion_spectral_entropy(z, sigma, t) - theirs) < 1e-8
    theirs, _ = peer.diffusion_spectral_mutual_information(z, y, gaussian_kernel_sigma=3.0)
    assert abs(diffusion_spectral_mutual_information(z, y, 3.0) - theirs) < 1e-8
