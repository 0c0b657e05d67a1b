"""The block method against explicit power iteration and against a row-by-row reading of its definition."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from secondlook.spectra import StreamingTopEigenvector, oja_top_eigenvector
from secondlook.spectra.random_order_top_eigenvector.experiment import light_rows, planted


def gaussian(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def unit(v):
    return v / v.norm()


def by_hand(rows, blocks, start, c):
    """The definition, one row at a time; returns the vector and the most rows stored."""
    n, d = rows.shape
    z, store, mass, peak, light, first = unit(start), [], 0.0, 0, torch.zeros(d).double(), 0
    ends = [(j + 1) * n // blocks for j in range(blocks)]
    for k, a in enumerate(rows, 1):
        mass += float(a @ a)
        block = next(j for j, end in enumerate(ends) if k <= end)

        def heavy(x, k=k, mass=mass):
            square = float(x @ x)
            return square >= c**2 * (n / k) * (mass - square) / (d * math.log(d) ** 2) * (1 - 1e-12)

        store.append((a, block))
        for x, born in store:
            if not heavy(x) and born == block:
                light += x * (x @ z)
        store = [(x, born) for x, born in store if heavy(x)]
        peak = max(peak, len(store))
        if k == ends[block]:
            z = unit(n / (k - first) * light + sum((x * (x @ z) for x, _ in store), torch.zeros(d).double()))
            light, first = torch.zeros(d).double(), k
    return z, peak


@pytest.mark.parametrize("c", [1.0, 0.3, 3.0])
@pytest.mark.parametrize("seed", range(3))
def test_it_is_what_the_definition_says_row_by_row(c, seed):
    rows, start = gaussian(120, 5, seed=seed), gaussian(5, seed=9)
    rows[torch.randperm(120)[:6]] *= 12.0
    top = StreamingTopEigenvector(5, 4, 120, c, start=start).partial_fit(rows)
    z, peak = by_hand(rows, 4, start, c)
    torch.testing.assert_close(top.vector_, z, rtol=0, atol=1e-12)
    assert top.peak_rows == peak
    assert peak > 0


@settings(deadline=None, max_examples=25)
@given(st.lists(st.integers(0, 60), max_size=8), st.integers(0, 5))
def test_how_the_stream_is_cut_makes_no_difference(cuts, seed):
    rows = gaussian(60, 4, seed=seed)
    rows[seed::17] *= 9.0
    whole = StreamingTopEigenvector(4, 5, 60).partial_fit(rows)
    pieces = StreamingTopEigenvector(4, 5, 60)
    for piece in rows.tensor_split(sorted(cuts)):
        pieces.partial_fit(piece)
    torch.testing.assert_close(pieces.vector_, whole.vector_, rtol=0, atol=1e-12)
    assert pieces.peak_rows == whole.peak_rows


@pytest.mark.parametrize("c", [1.0, math.inf])
def test_blocks_of_the_whole_matrix_are_power_iteration(c):
    A, start, passes = gaussian(40, 6), gaussian(6, seed=1), 7
    top = StreamingTopEigenvector(6, passes, 40 * passes, c, start=start).partial_fit(A.repeat(passes, 1))
    z = start
    for _ in range(passes):
        z = unit(A.T @ (A @ z))
    torch.testing.assert_close(top.vector_, z, rtol=0, atol=1e-10)


def test_the_tangent_shrinks_by_the_gap_at_each_pass():
    A, start, tangents = torch.diag(torch.tensor([3.0, 1, 1])).double(), torch.ones(3).double(), []
    for passes in (1, 2, 3):
        z = (
            StreamingTopEigenvector(3, passes, 3 * passes, math.inf, start=start)
            .partial_fit(A.repeat(passes, 1))
            .vector_
        )
        tangents.append(float(z[1:].norm() / z[0]))
    for passes, tangent in enumerate(tangents, 1):
        assert tangent == pytest.approx(math.sqrt(2) / 9**passes, rel=1e-12)


def test_a_stored_row_weighs_as_much_as_in_the_whole_matrix():
    """Light and heavy rows together are A'A; where there are several blocks only the light part is scaled up."""
    A, start = gaussian(30, 4), gaussian(4, seed=1)
    A[3] *= 40
    top = StreamingTopEigenvector(4, 1, 30, start=start).partial_fit(A)
    assert top.peak_rows >= 1
    torch.testing.assert_close(top.vector_, unit(A.T @ (A @ start)), rtol=0, atol=1e-12)
    top = StreamingTopEigenvector(4, 2, 60, start=start).partial_fit(torch.cat([A, A]))
    light = torch.cat([A[:3], A[4:]])
    step = 2 * light.T @ (light @ unit(start)) + A[3] * (A[3] @ unit(start))
    step = 2 * light.T @ (light @ unit(step)) + 2 * A[3] * (A[3] @ unit(step))
    torch.testing.assert_close(top.vector_, unit(step), rtol=0, atol=1e-12)


def test_the_planted_streams_have_the_gap_and_the_vector_that_they_promise():
    light = light_rows(500, 8, seed=3)
    for heavy in (0, 1, 4):
        _, s, vh = torch.linalg.svd(planted(light, 5.0, heavy).double())
        assert float(s[0] ** 2 / s[1] ** 2) == pytest.approx(5, rel=1e-4)
        assert float(vh[0, 0].abs()) == pytest.approx(1, abs=1e-6)


def test_the_store_finds_the_planted_rows_and_little_else():
    rows = planted(light_rows(3000, 32, seed=0), 9.0, 4)[torch.randperm(3004)].double()
    top = StreamingTopEigenvector(32, 10, 3004, start=gaussian(32)).partial_fit(rows)
    assert len(top._store) == 4
    assert top.peak_rows < 32
    assert (top._store.norm(dim=1) > 50).all()


def test_oja_is_the_product_of_its_factors():
    rows, start, lr = gaussian(40, 3), gaussian(3, seed=1), 0.2
    z = start
    for a in rows:
        z = z + lr * a * (a @ z)
    torch.testing.assert_close(oja_top_eigenvector(rows, lr, start=start), unit(z), rtol=0, atol=1e-12)
    both = oja_top_eigenvector(
        rows.unsqueeze(1).repeat(1, 2, 1), torch.tensor([0.1, lr], dtype=torch.float64), start=start.repeat(2, 1)
    )
    assert both.shape == (2, 2, 3)
    torch.testing.assert_close(both[1, 1], unit(z), rtol=0, atol=1e-12)
    assert oja_top_eigenvector(rows, torch.tensor([0.1])).shape == (1, 3)


def test_a_seed_fixes_the_start_and_no_global_state_is_touched():
    state = torch.get_rng_state()
    rows = gaussian(20, 3)
    a, b, c = (StreamingTopEigenvector(3, 2, 20, seed=s).partial_fit(rows).vector_ for s in (4, 4, 5))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    assert torch.equal(oja_top_eigenvector(rows, 0.1, seed=1), oja_top_eigenvector(rows, 0.1, seed=1))
    assert torch.equal(torch.get_rng_state(), state)


def test_blocks_of_zeros_leave_the_vector_alone():
    start = gaussian(3)
    top = StreamingTopEigenvector(3, 2, 4, start=start).partial_fit(torch.zeros(4, 3))
    torch.testing.assert_close(top.vector_, unit(start))


def test_bad_input():
    rows = gaussian(4, 3)
    for message, call in {
        "dim": lambda: StreamingTopEigenvector(1, 2, 4),
        "blocks": lambda: StreamingTopEigenvector(3, 5, 4),
        "heavy_const": lambda: StreamingTopEigenvector(3, 2, 4, 0.0),
        "start": lambda: StreamingTopEigenvector(3, 2, 4, start=torch.zeros(3)),
        "rows must be \\[m": lambda: StreamingTopEigenvector(3, 2, 4).partial_fit(gaussian(4, 2)),
        "promised": lambda: StreamingTopEigenvector(3, 2, 3).partial_fit(rows),
        "finite": lambda: StreamingTopEigenvector(3, 2, 4).partial_fit(rows / 0),
        "positive": lambda: oja_top_eigenvector(rows, 0.0),
        "\\[n, d\\]": lambda: oja_top_eigenvector(rows[0], 0.1),
    }.items():
        with pytest.raises(ValueError, match=message):
            call()
