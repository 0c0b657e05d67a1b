"""Rules that other packages have, too, agree with theirs to rounding."""

from functools import partial

import pytest

from secondlook.optimizers.peers import RULES, STEPS, Bench

# Its Newton-Schulz steps are in bfloat16, ours in the parameters' precision.
HALF = {("muon", "pytorch_optimizer"): 2e-2, ("muon", "torch.optim"): 2e-2}


@pytest.mark.parametrize(("name", "package"), [(n, p) for n, rule in RULES.items() for p in rule.peers])
def test_agrees_with_a_peer(name, package):
    peer, rule = pytest.importorskip(package), RULES[name]
    ours, theirs = Bench.of(rule.ours, rule, 6, "cpu"), Bench.of(partial(rule.peers[package], peer), rule, 6, "cpu")
    start = [p.detach().clone() for p in ours.params]
    for _ in range(STEPS):
        ours.step()
        theirs.step()
    for p, q, before in zip(ours.params, theirs.params, start, strict=True):
        moved = float((q - before).detach().norm())
        assert moved > 0
        assert float((p - q).detach().norm()) < HALF.get((name, package), 1e-4) * moved
