"""MKOR against dense inverses, a transcription in NumPy, and its bases alone."""

import copy
import pickle
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from draws import normal
from secondlook.optimizers import MKOR, rank1_inverse_update
from secondlook.optimizers.capture import Use
from secondlook.optimizers.mkor.method import mean_vectors
from secondlook.optimizers.mkor.work import Work
from secondlook.problems.training import cross_entropy
from toys import assert_resumes, batches, drawn, flat, mlp, train

RULES = ["exact", "printed", "package"]


def convolutional(seed=0):
    layers = [nn.Conv2d(2, 4, 3, padding=1, stride=2), nn.BatchNorm2d(4), nn.ReLU(inplace=True)]
    layers += [nn.Conv2d(4, 4, 2, groups=2), nn.Conv2d(4, 4, 1, bias=False), nn.Flatten(), nn.Linear(16, 3)]
    return drawn(nn.Sequential(*layers), seed)


def spd(d=6):
    x = normal(2 * d, d)
    return x.T @ x / d, normal(d, seed=1)


# The three rules.


def test_the_exact_rule_is_the_inverse():
    factor, g = spd()
    updated = rank1_inverse_update(torch.linalg.inv(factor), g, 0.9, "exact")
    expected = torch.linalg.inv(0.9 * factor + 0.1 * torch.outer(g, g))
    assert torch.linalg.norm(updated - expected) < 1e-12 * torch.linalg.norm(expected)


def test_the_exact_rule_does_not_drift():
    """Rounding that is not symmetric would have grown by 0.9^-300 = 5e13."""
    inverse = factor = torch.eye(6, dtype=torch.float64)
    for v in normal(300, 6):
        inverse = rank1_inverse_update(inverse, v, 0.9, "exact")
        factor = 0.9 * factor + 0.1 * torch.outer(v, v)
    assert torch.equal(inverse, inverse.T)
    expected = torch.linalg.inv(factor)
    assert torch.linalg.norm(inverse - expected) < 1e-12 * torch.linalg.norm(expected)


def test_the_package_s_rule_is_the_inverse_of_a_damped_sum():
    factor, g = spd()
    inverse = torch.linalg.inv(factor)
    updated = rank1_inverse_update(inverse, g, 0.95, "package")
    damped = 0.95 * inverse + 0.05 * torch.eye(6, dtype=factor.dtype)
    expected = torch.linalg.inv(torch.linalg.inv(damped) + torch.outer(g, g))
    assert torch.linalg.norm(updated - expected) < 1e-10 * torch.linalg.norm(expected)


def test_the_printed_rule_is_lines_7_and_8():
    factor, g = (x.numpy() for x in spd())
    inverse, k = np.linalg.inv(factor), 0.9
    scale = (1 - k) / (k**2 * (1 + k * (1 - k) * g @ inverse @ g))
    expected = k * inverse + scale * inverse @ np.outer(g, g) @ inverse
    updated = rank1_inverse_update(torch.from_numpy(inverse), torch.from_numpy(g), k, "printed")
    np.testing.assert_allclose(updated, expected, rtol=1e-12)


def test_a_direction_that_is_seen_shrinks_and_by_the_printed_rule_grows():
    """By hand, for g with response 8.57 and gamma 0.9."""
    factor, g = spd()
    inverse = torch.linalg.inv(factor)
    g = g * (8.57 / (g @ inverse @ g)).sqrt()
    response = {rule: (g @ rank1_inverse_update(inverse, g, 0.9, rule) @ g).item() for rule in RULES}
    assert response["exact"] == pytest.approx(4.88, abs=0.005)  # 8.57 / 0.9 without the new vector
    assert response["printed"] == pytest.approx(12.83, abs=0.005)  # 8.57 * 0.9
    assert response["package"] < 1


@pytest.mark.parametrize("rule", RULES[:2])
def test_with_gamma_one_nothing_changes(rule):
    factor, g = spd()
    torch.testing.assert_close(rank1_inverse_update(factor, g, 1.0, rule), factor, rtol=0, atol=0)


def test_what_does_not_fit_is_refused():
    factor, g = spd()
    with pytest.raises(ValueError, match="gamma"):
        rank1_inverse_update(factor, g, 0.0)
    with pytest.raises(ValueError, match="best"):
        rank1_inverse_update(factor, g, 0.5, "best")
    with pytest.raises(ValueError, match=r"\(6, 6\) and \(5,\)"):
        rank1_inverse_update(factor, g[:5], 0.5)


# The vectors.


def test_vectors_are_means_of_inputs_and_of_per_sample_gradients():
    """The gradient of each sample's own loss, one backward pass a sample."""
    model, (x, y) = mlp(), next(batches((5,)))
    seen = []
    for one, label in zip(x, y, strict=True):
        hidden = model[:2](one[None])
        out = model[2](hidden)
        seen.append(torch.autograd.grad(nn.functional.cross_entropy(out, label[None]), out)[0][0])
    hidden = model[:2](x)
    out = model[2](hidden)
    (d,) = torch.autograd.grad(nn.functional.cross_entropy(out, y), out)
    a, g = mean_vectors(model[2], Use(hidden, d))
    torch.testing.assert_close(g, torch.stack(seen).mean(0))
    torch.testing.assert_close(a, torch.cat([hidden.mean(0), torch.ones(1, dtype=a.dtype)]))


def test_vectors_of_convolutions_sequences_and_outliers():
    layer, x = nn.Conv2d(2, 3, 2, bias=False).double(), normal(4, 2, 3, 3)
    d = normal(4, 3, 2, 2, seed=1)
    a, g = mean_vectors(layer, Use(x, d))
    patches = [x[:, :, i : i + 2, j : j + 2].flatten(1) for i in range(2) for j in range(2)]
    torch.testing.assert_close(a, torch.stack(patches).mean((0, 1)))
    torch.testing.assert_close(g, d.mean((2, 3)).sum(0))
    layer, x, d = nn.Linear(2, 3).double(), normal(4, 5, 2), normal(4, 5, 3, seed=1)
    a, g = mean_vectors(layer, Use(x, d))
    torch.testing.assert_close(a[:2], x.mean((0, 1)))
    torch.testing.assert_close(g, d.sum((0, 1)))
    d[0, 0] = 1e6  # clamped a sample, then averaged
    a, g = mean_vectors(layer, Use(1e3 * x.sign(), d))
    torch.testing.assert_close(g, (20 * d).clamp(-100, 100).mean((0, 1)))
    torch.testing.assert_close(a[:2], 100 * x.sign().mean((0, 1)))


# The step.


@pytest.mark.parametrize("rule", RULES)
def test_a_trajectory_agrees_with_a_transcription(rule):
    """Two linear layers by hand: backward pass, vectors, inverses, stabiliser, rescaling and heavy ball in NumPy."""
    model, stream, other = mlp(), batches((5,)), batches((5,))
    optimizer = MKOR(model, "sgd", 0.2, every=2, rule=rule, threshold=1.05, gamma=0.9, stabiliser=0.2, warmup=3)
    w = [np.c_[model[i].weight.detach().numpy(), model[i].bias.detach().numpy()] for i in (0, 2)]
    inverses = [[np.eye(len(m)), np.eye(m.shape[1])] for m in w]
    moment, pulled = [0.0, 0.0], 0
    for t in range(12):
        x, y = next(other)
        a0 = np.c_[x.numpy(), np.ones(8)]
        a1 = np.c_[np.tanh(a0 @ w[0].T), np.ones(8)]
        p = np.exp(a1 @ w[1].T)
        d1 = (p / p.sum(1, keepdims=True) - np.eye(3)[y]) / 8
        d0 = (d1 @ w[1])[:, :-1] * (1 - a1[:, :-1] ** 2)
        for i, (a, d) in enumerate(((a0, d0), (a1, d1))):
            for j, v in enumerate((d.sum(0), a.mean(0))):
                if (t % 2 and t >= 3) or (rule == "package" and t == 0):
                    continue
                m, eye = inverses[i][j], np.eye(len(v))
                if np.abs(m).max() > 1.05:
                    pulled += 1
                    m = eye if rule == "package" else 0.8 * m + 0.2 * eye
                if rule == "package":
                    m = np.linalg.inv(np.linalg.inv(0.9 * m + 0.1 * eye) + np.outer(v, v))
                elif rule == "exact":
                    m = np.linalg.inv(0.9 * np.linalg.inv(m) + 0.1 * np.outer(v, v))
                else:
                    m = 0.9 * m + 0.1 / (0.81 * (1 + 0.09 * v @ m @ v)) * np.outer(m @ v, m @ v)
                inverses[i][j] = m
            g = d.T @ a
            u = inverses[i][0] @ g @ inverses[i][1]
            if rule == "package":
                u *= sum(np.linalg.norm(g[:, s]) for s in (slice(-1), slice(-1, None))) / sum(
                    np.linalg.norm(u[:, s]) for s in (slice(-1), slice(-1, None))
                )
            else:
                u *= np.linalg.norm(g) / np.linalg.norm(u)
            moment[i] = 0.9 * moment[i] + u
            w[i] = w[i] - 0.2 * moment[i]
    assert (pulled > 0) == (rule != "package")
    train(optimizer, model, stream, 12)
    for i, layer in enumerate((model[0], model[2])):
        np.testing.assert_allclose(layer.weight.detach(), w[i][:, :-1], rtol=1e-9, atol=1e-11)
        np.testing.assert_allclose(layer.bias.detach(), w[i][:, -1], rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("rescale", [True, False])
def test_a_layer_s_direction_keeps_the_norm_of_its_gradient(rescale):
    model = convolutional()
    optimizer = MKOR(model, lr=0.0, every=1, rescale=rescale)
    train(optimizer, model, batches((2, 6, 6)), 3)
    for layer in (model[0], model[4], model[6]):
        pairs = [(p.grad, optimizer.directions[p]) for p in layer.parameters()]
        old, new = (torch.cat([pair[i].flatten() for pair in pairs]) for i in (0, 1))
        assert (abs(old.norm() / new.norm() - 1) < 1e-12) == rescale
        assert torch.nn.functional.cosine_similarity(old, new, dim=0) < 1 - 1e-6
    rest = {*model[1].parameters(), *model[3].parameters()}  # batch norm, groups
    assert set(optimizer.directions) == set(model.parameters()) - rest


def test_batch_norm_hides_the_output_factor_of_the_layer_before_it():
    """It takes the mean out of every channel, so the mean output gradient is zero: the inverse stays the identity."""
    model = convolutional()
    optimizer = MKOR(model, lr=0.1, every=1, rule="package")
    train(optimizer, model, batches((2, 6, 6)), 4)
    left, right = (optimizer.state[model[0].weight][key] for key in ("left", "right"))
    torch.testing.assert_close(left, torch.eye(4, dtype=left.dtype))
    assert not torch.allclose(right, torch.eye(len(right), dtype=left.dtype))


@pytest.mark.parametrize("base", ["sgd", "adam"])
def test_without_preconditioning_it_is_its_base(base):
    model = convolutional()
    twin = copy.deepcopy(model)
    optimizer = MKOR(model, base, 0.01)
    optimizer.param_groups[0]["precondition"] = False
    alone = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}[base]
    options = {"momentum": 0.9} if base == "sgd" else {}
    train(optimizer, model, batches((2, 6, 6)), 5)
    train(alone(twin.parameters(), 0.01, **options), twin, batches((2, 6, 6)), 5)
    torch.testing.assert_close(flat(model), flat(twin), rtol=1e-8, atol=1e-10)
    assert not optimizer._hooks.uses


def test_lamb_s_steps_are_as_long_as_the_weights():
    model = mlp()
    before = [p.detach().clone() for p in model.parameters()]
    train(MKOR(model, "lamb", 0.01), model, batches((5,)), 1)
    for old, new in zip(before, model.parameters(), strict=True):
        assert (new - old).norm().item() == pytest.approx(0.01 * old.norm().item(), rel=1e-9)


# What a loop may do.


@pytest.mark.parametrize("base", ["sgd", "adam", "lamb"])
def test_a_resumed_run_continues_bit_for_bit(base, tmp_path):
    make = partial(MKOR, base=base, lr=0.01, every=2)
    assert_resumes(make, convolutional(), convolutional(seed=3), tmp_path / "run.pt")


def test_maximizing_the_loss_is_minimizing_its_negative():
    ends = []
    for sign in (1, -1):
        model, stream = mlp(), batches((5,))
        optimizer = MKOR(model, lr=0.1, every=1, maximize=sign < 0)
        for _ in range(3):
            optimizer.zero_grad()
            (sign * cross_entropy(model, next(stream))).backward()
            optimizer.step()
        ends.append(flat(model))
    assert torch.equal(*ends)


def test_copies_frozen_parameters_and_removal():
    model = mlp()
    model[0].weight.requires_grad_(False)
    model[2].bias.requires_grad_(False)
    optimizer = MKOR(model, lr=0.1, every=1)
    train(optimizer, model, batches((5,)), 2)
    assert set(optimizer.directions) == {model[2].weight}
    assert len(optimizer.state_dict()["state"]) == 2
    for twin in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        net = nn.Sequential(twin.layers["0"], nn.Tanh(), twin.layers["2"])
        before = twin.state[net[2].weight]["left"].clone()
        train(twin, net, batches((5,)), 1)
        assert not torch.equal(twin.state[net[2].weight]["left"], before)
    optimizer.remove()
    cross_entropy(model, next(batches((5,)))).backward()
    assert not optimizer._hooks.uses


def test_work_is_counted_by_operation():
    a, v = normal(6, 6), normal(6)
    with Work() as work:
        a @ v
    assert work.operations == 2 * 36
    with Work() as work:
        a @ a.T + a
    assert work.operations == 2 * 6**3 + 6**2
    counts = []
    for size, device in ((8, "cpu"), (16, "cpu"), (16, "meta")):
        with Work() as work:
            rank1_inverse_update(torch.eye(size, device=device), torch.ones(size, device=device), 0.9)
        counts.append(work.operations)
    assert 3.7 < counts[1] / counts[0] < 4
    assert counts[2] == counts[1]  # no data are needed
    with pytest.raises(NotImplementedError, match="linalg_eigh"), Work():
        torch.linalg.eigh(a @ a.T)
