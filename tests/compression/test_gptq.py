"""GPTQ against a dense float64 reference, its identities and invariances, and the grids it stands on."""

from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from secondlook.compression.gptq import (
    GPTQCalibrator,
    fit_grid,
    gptq_quantize,
    inverse_cholesky,
    obq_quantize,
    output_error,
    quantize_sequential,
    rtn_quantize,
)
from secondlook.compression.gptq.experiment import in_order, shuffled
from secondlook.problems.models.char_gpt import CharGPT
from secondlook.problems.zoo.char_gpt import perplexity, random_windows, windows


def layer(rows=16, columns=24, samples=200, seed=0, dtype=torch.float64):
    """A random weight and the Hessian of correlated inputs."""
    g = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=g, dtype=dtype)
    mixing = torch.randn(columns, columns, generator=g, dtype=dtype)
    inputs = torch.randn(samples, columns, generator=g, dtype=dtype) @ mixing
    return weight, 2 * inputs.T @ inputs / samples


def damped(hessian, percdamp=0.01):
    return hessian + percdamp * hessian.diagonal().mean() * torch.eye(len(hessian), dtype=hessian.dtype)


def dense_reference(weight, hessian, bits, order=None, percdamp=0.01):
    """Fixed-order quantization with the full inverse, downdated by one elimination step a column."""
    W, inverse = weight.clone(), torch.linalg.inv(damped(hessian, percdamp))
    grid = fit_grid(weight, bits)
    codes = torch.zeros_like(W)
    for j in order if order is not None else range(W.shape[1]):
        code = grid.encode(W[:, j : j + 1])
        codes[:, j : j + 1] = code
        step = (W[:, j : j + 1] - grid.decode(code)) / inverse[j, j]
        W -= step * inverse[j]
        inverse = inverse - torch.outer(inverse[:, j], inverse[j]) / inverse[j, j]
    return codes.to(torch.int16)


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("seed", range(3))
def test_integers_equal_the_dense_reference(bits, seed):
    weight, hessian = layer(seed=seed)
    assert torch.equal(gptq_quantize(weight, hessian, bits).integers, dense_reference(weight, hessian, bits))


def test_act_order_equals_the_dense_reference_in_that_order():
    weight, hessian = layer()
    order = torch.argsort(hessian.diagonal(), descending=True).tolist()
    ours = gptq_quantize(weight, hessian, 3, act_order=True)
    assert torch.equal(ours.integers, dense_reference(weight, hessian, 3, order))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"act_order": True},
        {"symmetric": True, "mse": True},
        {"group_size": 8},
        {"group_size": 8, "group_range": "block", "block_size": 12},
        {"group_size": 5, "static_groups": True, "act_order": True},
    ],
)
def test_loss_is_the_damped_quadratic_form(options):
    weight, hessian = layer()
    ours = gptq_quantize(weight, hessian, 3, **options)
    lost = weight - ours.dequantize()
    assert ours.loss == pytest.approx(torch.trace(lost @ damped(hessian) @ lost.T).item(), rel=1e-10)


def test_inverse_cholesky_is_the_upper_factor_of_the_inverse():
    _, hessian = layer()
    U = inverse_cholesky(hessian, 0.01)
    assert torch.equal(U, U.triu())
    torch.testing.assert_close(U.T @ U, torch.linalg.inv(damped(hessian)), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("quantize", [gptq_quantize, obq_quantize])
@pytest.mark.parametrize("symmetric", [False, True])
def test_uncorrelated_inputs_give_round_to_nearest(quantize, symmetric):
    weight, hessian = layer()
    ours = quantize(weight, torch.diag(hessian.diagonal()), 3, symmetric=symmetric)
    assert torch.equal(ours.integers, rtn_quantize(weight, 3, symmetric=symmetric).integers)


@given(st.integers(1, 40), st.sampled_from([None, 4, 7, 32]), st.booleans(), st.integers(0, 5))
@settings(max_examples=30, deadline=None)
def test_block_size_changes_nothing(block_size, group_size, act_order, seed):
    weight, hessian = layer(rows=6, seed=seed)
    one, other = (
        gptq_quantize(weight, hessian, 3, group_size=group_size, act_order=act_order, block_size=size)
        for size in (128, block_size)
    )
    assert torch.equal(one.integers, other.integers)


def test_released_group_ranges_depend_on_the_block_size_unless_blocks_fit_into_groups():
    weight, hessian = layer(columns=64)
    run = partial(gptq_quantize, weight, hessian, 3, group_size=16)
    current = run().integers
    assert torch.equal(run(group_range="block", block_size=16).integers, current)
    assert not torch.equal(run(group_range="block", block_size=64).integers, current)


def test_rows_are_independent():
    weight, hessian = layer()
    order = torch.randperm(len(weight), generator=torch.Generator().manual_seed(1))
    whole = gptq_quantize(weight, hessian, 3).integers
    assert torch.equal(gptq_quantize(weight[order], hessian, 3).integers, whole[order])


def test_scale_of_the_hessian_does_not_matter():
    weight, hessian = layer()
    assert torch.equal(gptq_quantize(weight, 64 * hessian, 3).integers, gptq_quantize(weight, hessian, 3).integers)


def test_act_order_with_constant_diagonal_changes_nothing():
    weight, hessian = layer()
    d = hessian.diagonal().sqrt()
    correlation = hessian / d / d[:, None]
    correlation.diagonal().fill_(1.0)
    ordered = gptq_quantize(weight, correlation, 3, act_order=True).integers
    assert torch.equal(ordered, gptq_quantize(weight, correlation, 3).integers)


def test_dead_inputs_get_weight_zero_and_leave_the_rest_alone():
    weight, hessian = layer()
    hessian[5], hessian[:, 5] = 0, 0
    ours = gptq_quantize(weight, hessian, 4).dequantize()
    assert (ours[:, 5] == 0).all()
    assert ours[:, :5].abs().sum() > 0


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_gptq_and_obq_beat_rounding_on_correlated_inputs(bits):
    weight, hessian = layer(rows=32, columns=48, samples=500)
    rtn, gptq, obq = (
        output_error(weight, q, hessian)
        for q in (
            rtn_quantize(weight, bits),
            gptq_quantize(weight, hessian, bits),
            obq_quantize(weight, hessian, bits),
        )
    )
    assert gptq < 0.7 * rtn
    assert obq < 0.7 * rtn


def greedy_reference(row, hessian, bits):
    """OBQ for one row, inverting what is left of H afresh at every step."""
    H, w, left = damped(hessian), row.clone(), list(range(len(row)))
    grid = fit_grid(row[None], bits)
    codes, loss = torch.zeros_like(row), 0.0
    while left:
        inverse = torch.linalg.inv(H[left][:, left])
        code = grid.encode(w[left][None])
        error = w[left] - grid.decode(code)[0]
        i = int((error**2 / inverse.diagonal()).argmin())
        codes[left[i]], loss = code[0, i], loss + float(error[i] ** 2 / inverse[i, i])
        w[left] -= error[i] / inverse[i, i] * inverse[:, i]
        left.pop(i)
    return codes.to(torch.int16), loss


@pytest.mark.parametrize("cache_bytes", [1, 2**21])
def test_obq_equals_the_greedy_reference(cache_bytes):
    weight, hessian = layer(rows=5, columns=12)
    ours = obq_quantize(weight, hessian, 3, outliers_first=False, cache_bytes=cache_bytes)
    codes, losses = zip(*(greedy_reference(row, hessian, 3) for row in weight), strict=True)
    assert torch.equal(ours.integers, torch.stack(codes))
    assert ours.loss == pytest.approx(sum(losses), rel=1e-9)


def test_obq_loss_is_the_damped_quadratic_form():
    weight, hessian = layer()
    ours = obq_quantize(weight, hessian, 2)
    lost = weight - ours.dequantize()
    assert ours.loss == pytest.approx(torch.trace(lost @ damped(hessian) @ lost.T).item(), rel=1e-9)


@given(st.integers(1, 8), st.booleans(), st.booleans(), st.integers(0, 20))
@settings(max_examples=30, deadline=None)
def test_grids_hold_zero_and_err_by_half_a_step(bits, symmetric, one_signed, seed):
    weight = torch.randn(4, 10, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    weight = weight.abs() if one_signed else weight
    grid = fit_grid(weight, bits, symmetric=symmetric)
    codes = grid.encode(weight)
    assert codes.min() >= 0
    assert codes.max() <= 2**bits - 1
    zeros = torch.zeros_like(weight)
    assert torch.equal(grid.decode(grid.encode(zeros)), zeros)
    if not symmetric:  # symmetric grids and rounded zeros may cut one end by up to a step
        assert ((grid.decode(codes) - weight).abs() <= grid.scale * (1 + 1e-9)).all()


def test_grid_of_zeros_and_range_search():
    grid = fit_grid(torch.zeros(2, 3), 4)
    assert (grid.scale > 0).all()
    assert torch.equal(grid.decode(grid.encode(torch.zeros(2, 3))), torch.zeros(2, 3))
    weight = torch.randn(8, 200, generator=torch.Generator().manual_seed(0))
    full, searched = (fit_grid(weight, 2, mse=mse) for mse in (False, True))
    error = [(g.decode(g.encode(weight)) - weight).abs().pow(2.4).sum() for g in (full, searched)]
    assert error[1] < error[0]


def test_groups_store_one_grid_each_and_cost_bits():
    weight, hessian = layer(columns=24)
    ours = gptq_quantize(weight, hessian, 4, group_size=10)
    assert ours.scale.shape == (16, 3)
    assert ours.group_of.tolist() == [0] * 10 + [1] * 10 + [2] * 4
    assert ours.bits_per_weight == pytest.approx(4 + 3 * 20 / 24)
    torch.testing.assert_close(rtn_quantize(weight, 8, group_size=10).dequantize(), weight, rtol=0, atol=0.02)


def test_calibrator_averages_over_batches():
    x = torch.randn(3, 7, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    seen = GPTQCalibrator(5, dtype=torch.float64)
    seen.add_batch(x[:1])
    seen.add_batch(x[1:])
    flat = x.reshape(-1, 5)
    torch.testing.assert_close(seen.hessian, 2 * flat.T @ flat / 21)


class Residual(nn.Module):
    def __init__(self, width, generator):
        super().__init__()
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        for p in self.parameters():
            nn.init.normal_(p, std=width**-0.5, generator=generator)

    def forward(self, x):
        return x + self.down(torch.relu(self.up(x)))


def tiny_network():
    g = torch.Generator().manual_seed(0)
    blocks = nn.Sequential(*(Residual(12, g) for _ in range(2)), nn.Linear(12, 3))
    x = torch.randn(4, 30, 12, generator=g) @ torch.randn(12, 12, generator=g)
    return blocks.requires_grad_(False), list(x)


@pytest.mark.parametrize("true_sequential", [False, True])
def test_sequential_quantizes_named_blocks_on_quantized_inputs(true_sequential):
    model, batches = tiny_network()
    before = {name: p.clone() for name, p in model.named_parameters()}
    quantized, layers = quantize_sequential(
        model, ["0", "1"], batches, partial(gptq_quantize, bits=3), true_sequential=true_sequential
    )
    assert list(layers) == ["0.up", "0.down", "1.up", "1.down"]
    assert all(torch.equal(before[name], p) for name, p in model.named_parameters()), "the original is untouched"
    assert torch.equal(quantized[2].weight, model[2].weight)
    seen = GPTQCalibrator(12)  # the second block must see what the quantized first block makes of the inputs
    for x in batches:
        seen.add_batch(quantized[0](x))
    again = gptq_quantize(model[1].up.weight, seen.hessian, 3)
    assert torch.equal(again.integers, layers["1.up"].integers)
    assert torch.equal(quantized[1].up.weight, again.dequantize())


def test_true_sequential_lets_a_layer_see_the_quantized_one_before_it():
    model, batches = tiny_network()
    quantize = partial(gptq_quantize, bits=2)
    plain = quantize_sequential(model, ["0"], batches, quantize)
    careful = quantize_sequential(model, ["0"], batches, quantize, true_sequential=True)
    assert torch.equal(plain.layers["0.up"].integers, careful.layers["0.up"].integers)
    seen = GPTQCalibrator(24)
    for x in batches:
        seen.add_batch(torch.relu(careful.model[0].up(x)))
    again = quantize(model[0].down.weight, seen.hessian)
    assert torch.equal(careful.layers["0.down"].integers, again.integers)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bits": 0}, "bits"),
        ({"bits": 2.5}, "bits"),
        ({"group_size": 0}, "group_size"),
        ({"block_size": 0}, "block_size"),
        ({"percdamp": -1.0}, "percdamp"),
        ({"group_range": "row"}, "group_range"),
        ({"static_groups": True}, "static_groups"),
        ({"hessian": torch.eye(3)}, "hessian"),
        ({"hessian": -torch.eye(24)}, "negative diagonal"),
        ({"hessian": torch.full((24, 24), float("nan"))}, "NaN"),
        ({"hessian": torch.ones(24, 24), "percdamp": 0.0}, "raise percdamp"),
        ({"weight": torch.zeros(3)}, "matrix"),
        ({"weight": torch.full((16, 24), float("inf"))}, "infinite"),
    ],
)
def test_bad_input_is_named(change, message):
    weight, hessian = layer()
    with pytest.raises(ValueError, match=message):
        gptq_quantize(**{"weight": weight, "hessian": hessian} | change)


def test_bad_calibration_is_named():
    model, batches = tiny_network()
    quantize = partial(gptq_quantize, bits=2)
    with pytest.raises(ValueError, match="at least one batch"):
        quantize_sequential(model, ["0"], [], quantize)
    with pytest.raises(ValueError, match="at least one block"):
        quantize_sequential(model, [], batches, quantize)
    with pytest.raises(ValueError, match="no inputs"):
        _ = GPTQCalibrator(3).hessian
    with pytest.raises(ValueError, match="features"):
        GPTQCalibrator(3).add_batch(torch.zeros(2, 4))


def test_any_column_order_comes_back_in_place():
    weight, hessian = layer()
    order = torch.argsort(hessian.diagonal(), descending=True)
    ours = in_order(order, weight, hessian, bits=3)
    assert torch.equal(ours.integers, gptq_quantize(weight, hessian, 3, act_order=True).integers)


def test_shuffled_statistics_do_worse_than_rounding():
    weight, hessian = layer(rows=32, columns=48, samples=500)
    wrong = output_error(weight, shuffled(weight, hessian, seed=0, bits=3), hessian)
    assert wrong > output_error(weight, rtn_quantize(weight, 3), hessian)


def char_gpt(seed=0):
    return CharGPT(20, width=16, depth=2, heads=2, context=8, generator=torch.Generator().manual_seed(seed))


def test_char_gpt_is_causal_and_drawn_from_its_generator_alone():
    before = torch.get_rng_state()
    model = char_gpt()
    assert torch.equal(torch.get_rng_state(), before)
    same, other = char_gpt(), char_gpt(1)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), same.parameters(), strict=True))
    assert not torch.equal(model.head.weight, other.head.weight)
    tokens = torch.arange(8)[None]
    changed = tokens.clone()
    changed[0, 5:] = 19
    a, b = model(tokens), model(changed)
    torch.testing.assert_close(a[:, :5], b[:, :5])
    assert not torch.allclose(a[:, 5:], b[:, 5:])
    with pytest.raises(ValueError, match="context"):
        model(torch.zeros(1, 9, dtype=torch.long))
    with pytest.raises(ValueError, match="heads"):
        CharGPT(20, width=15, heads=2)


def test_windows_make_each_character_a_target_once():
    text = torch.arange(17) % 5
    cut = windows(text, 4)
    assert torch.equal(cut[:, 1:].flatten(), text[1:])
    batch = next(random_windows(text, 4, 300, torch.Generator().manual_seed(0)))
    assert batch.shape == (300, 5)
    assert torch.equal((batch[:, :1] + torch.arange(5)) % 5, batch)


def test_perplexity_of_uniform_guesses_is_the_size_of_the_vocabulary():
    model = char_gpt()
    torch.nn.init.zeros_(model.head.weight)
    assert perplexity(model, torch.zeros(3, 9, dtype=torch.long)) == pytest.approx(20, rel=1e-5)


def test_quantizing_char_gpt_touches_its_blocks_only():
    model = char_gpt()
    tokens = torch.randint(20, (16, 8), generator=torch.Generator().manual_seed(0))
    quantized, layers = quantize_sequential(
        model, ["blocks.0", "blocks.1"], [tokens], partial(gptq_quantize, bits=4, group_size=8)
    )
    assert len(layers) == 8
    assert all(w.integers.max() <= 15 for w in layers.values())
    assert torch.equal(quantized.head.weight, model.head.weight)
    assert torch.isfinite(quantized(tokens)).all()
