"""Shampoo at scale (Anil et al. 2020, arXiv:2002.09018).

Full-matrix Adagrad divides by the square root of the sum of g g'. Shampoo approximates that sum by a Kronecker product
with one small factor for every axis of a tensor. Here it becomes affordable: tensors are cut into blocks, the
factors' inverse roots are refreshed rarely, and the length of the step comes from a first-order method.
"""

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from secondlook.optimizers.base import Base, check_count, check_range
from secondlook.optimizers.scalable_shampoo.blocks import blocks, merged_shape
from secondlook.optimizers.scalable_shampoo.roots import inverse_pth_root

GRAFTS = ("sgd", "adagrad", "none")
ADAGRAD_EPS = 1e-6
NORM_EPS = 1e-16


class Shampoo(Base):
    """Gradient blocks between the inverse roots of their summed covariances, as long as a first-order step.

    For a block G [m, n] of a matrix's gradient, from L = R = eps I on,

        L <- beta2 L + w G G',  R <- beta2 R + w G'G,  P = L^(-1/4) G R^(-1/4),

    w = 1 when beta2 = 1 (a sum, as in Adagrad), else 1 - beta2. A tensor of k axes has k factors and the power
    -1/(2k). Then, with |.| over the whole tensor and D the first-order direction,

        P <- P |D| / |P|,  mu <- momentum mu + P + weight_decay w,  w <- w - lr (P + weight_decay w + momentum mu),

    the last without `nesterov` being w - lr mu. Tensors whose axes merge into one (see `merged_shape`) have no factors:
    their P is the gradient.

    Args:
        params: parameters, or groups with options of their own; float32 or float64.
        lr: step size, that of the grafted method.
        momentum: decay of the sum of steps, 0 to below 1.
        beta2: decay of the factors, above 0 to 1; 1 sums.
        eps: start of the factors, and ridge relative to their largest eigenvalue.
        block_size: longest axis of a block; smaller axes merge up to it.
        graft: where the length comes from: "sgd" (D is the gradient), "adagrad" (D is the gradient over the root of the
            summed squares), "none" (P as it is).
        start_step: first preconditioned step, counted from 1. Before it, the step is along D.
        root_every: steps between refreshes of the roots, at steps that it divides; the identity until then.
        stats_every: steps between updates of the factors.
        exponent: p of the power -1/p, instead of twice the number of axes.
        nesterov: look ahead along the momentum.
        weight_decay: added to the step before momentum, after preconditioning.
        maximize: ascend instead of descend.

    Raises:
        ValueError: an option is out of range.
    """

    full_precision = True

    def __init__(
        self,
        params: Any,
        lr: float,
        momentum: float = 0.9,
        beta2: float = 1.0,
        eps: float = 1e-6,
        block_size: int = 128,
        graft: str = "sgd",
        start_step: int = 1,
        root_every: int = 1,
        stats_every: int = 1,
        exponent: int | None = None,
        nesterov: bool = True,
        weight_decay: float = 0.0,
        *,
        maximize: bool = False,
    ) -> None:
        options = {"lr": lr, "momentum": momentum, "beta2": beta2, "eps": eps, "block_size": block_size}
        options |= {"graft": graft, "start_step": start_step, "root_every": root_every, "stats_every": stats_every}
        options |= {"exponent": exponent, "nesterov": nesterov, "weight_decay": weight_decay}
        super().__init__(params, options | {"maximize": maximize})

    def _check(self, options: dict[str, Any]) -> None:
        for name in ("lr", "weight_decay"):
            check_range(name, options[name])
        check_range("momentum", options["momentum"], high=1)
        check_range("beta2", options["beta2"], high=1, low_open=True, high_open=False)
        check_range("eps", options["eps"], low_open=True)
        for name in ("block_size", "start_step", "root_every", "stats_every"):
            check_count(name, options[name])
        if options["exponent"] is not None:
            check_count("exponent", options["exponent"])
        if options["graft"] not in GRAFTS:
            raise ValueError(f"graft must be one of {', '.join(GRAFTS)}, got {options['graft']!r}")

    def _begin(self, closure: Callable[[], Any] | None) -> tuple[Any, list[Tensor]]:
        """Also takes every state a step further and finds the P of all groups at once, for they share batches."""
        loss, present = super()._begin(closure)
        group_of = {p: group for group in self.param_groups for p in group["params"]}
        self._directions = self._preconditioned([(group_of[p], self._state(group_of[p], p), p) for p in present])
        return loss, present

    def _update(self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor]) -> None:
        states = [self.state[p] for p in params]
        grafted = self._grafted(group["graft"], states, grads)
        updates = [self._directions.pop(p, g) for p, g in zip(params, grads, strict=True)]
        if group["graft"] != "none":
            lengths, own = (torch.stack(torch._foreach_norm(x)) for x in (grafted, updates))
            updates = torch._foreach_mul(updates, (lengths / (own + NORM_EPS)).unbind())
        early = [s["step"] < group["start_step"] for s in states]
        updates = [d if e else u for d, u, e in zip(grafted, updates, early, strict=True)]
        if group["weight_decay"]:
            updates = torch._foreach_add(updates, params, alpha=group["weight_decay"])
        moment = [s["momentum"] for s in states]
        torch._foreach_mul_(moment, group["momentum"])
        torch._foreach_add_(moment, updates)
        ahead = torch._foreach_add(updates, moment, alpha=group["momentum"]) if group["nesterov"] else moment
        torch._foreach_add_(params, ahead, alpha=-float(group["lr"]))

    def _state(self, group: dict[str, Any], p: Tensor) -> dict[str, Any]:
        """The parameter's state, one step further; factors and roots go by block, then by axis."""
        if p not in self.state:
            state = self.state[p] = {"step": 0, "momentum": torch.zeros_like(p)}
            if group["graft"] == "adagrad":
                state["sum_sq"] = torch.zeros_like(p)
            axes = len(merged_shape(p.shape, group["block_size"]))
            if axes > 1:
                state["axes"] = axes
                lengths = [n for block in blocks(p, group["block_size"]) for n in block.shape]
                state["roots"] = [torch.eye(n, dtype=p.dtype, device=p.device) for n in lengths]
                state["factors"] = [group["eps"] * root for root in state["roots"]]
        self.state[p]["step"] += 1
        return self.state[p]

    @staticmethod
    def _grafted(graft: str, states: list[dict[str, Any]], grads: list[Tensor]) -> list[Tensor]:
        """The first-order directions, D above."""
        if graft != "adagrad":
            return grads
        sum_sq = [s["sum_sq"] for s in states]
        torch._foreach_addcmul_(sum_sq, grads, grads)
        root = torch._foreach_sqrt(sum_sq)
        torch._foreach_add_(root, ADAGRAD_EPS)
        return list(torch._foreach_div(grads, root))

    def _preconditioned(self, factored: list[tuple[dict[str, Any], dict[str, Any], Tensor]]) -> dict[Tensor, Tensor]:
        """P of every tensor with factors, from groups, states and parameters.

        Blocks of one shape, whichever tensor and group they are of, go through in one batch.
        """
        directions, alike = {}, defaultdict(list)
        for group, state, p in factored:
            if "factors" not in state:
                continue
            directions[p] = torch.empty_like(p, memory_format=torch.contiguous_format)
            grad = -p.grad if group["maximize"] else p.grad
            tiles, holes = blocks(grad, group["block_size"]), blocks(directions[p], group["block_size"])
            for j, (tile, hole) in enumerate(zip(tiles, holes, strict=True)):
                mine = slice(j * tile.ndim, (j + 1) * tile.ndim)  # the block's factors and roots
                alike[tile.shape, tile.dtype, tile.device].append((group, state, mine, tile, hole))
        for members in alike.values():
            self._observe(members)
        self._refresh([(group, state) for group, state, _ in factored])
        for members in alike.values():
            found = torch.stack([tile for *_, tile, _ in members])
            for axis in range(found.ndim - 1):  # each turn multiplies the first axis and puts it last
                root = torch.stack([state["roots"][place][axis] for _, state, place, *_ in members])
                found = (found.flatten(2).mT @ root).view(len(members), *found.shape[2:], found.shape[1])
            torch._foreach_copy_([hole for *_, hole in members], list(found.unbind()))
        return directions

    @staticmethod
    def _observe(members: list[tuple]) -> None:
        """Add the blocks' covariances along every axis to their factors."""
        members = [m for m in members if m[1]["step"] % m[0]["stats_every"] == 0]
        if not members:
            return
        tiles = torch.stack([tile for *_, tile, _ in members])
        for axis in range(tiles.ndim - 1):
            unfolded = tiles.movedim(axis + 1, 1).flatten(2)
            factors = [state["factors"][place][axis] for _, state, place, *_ in members]
            found = (unfolded @ unfolded.mT).unbind()
            if any(group["beta2"] != 1 for group, *_ in members):  # otherwise a sum, without weights
                torch._foreach_mul_(factors, [float(group["beta2"]) for group, *_ in members])
                weights = [1.0 if group["beta2"] == 1 else 1 - group["beta2"] for group, *_ in members]
                found = torch._foreach_mul(found, weights)
            torch._foreach_add_(factors, found)

    @staticmethod
    def _refresh(owners: list[tuple[dict[str, Any], dict[str, Any]]]) -> None:
        """Recompute the roots that are due, all factors of one size, power and ridge together."""
        alike = defaultdict(list)
        for group, state in owners:
            if "factors" in state and state["step"] % group["root_every"] == 0:
                p = group["exponent"] or 2 * state["axes"]
                for root, factor in zip(state["roots"], state["factors"], strict=True):
                    alike[factor.shape, factor.dtype, factor.device, p, group["eps"]].append((root, factor))
        for (*_, p, eps), members in alike.items():
            found, _ = inverse_pth_root(torch.stack([factor for _, factor in members]), p, eps)
            torch._foreach_copy_([root for root, _ in members], list(found.unbind()))
