"""FOSI: Newton where the curvature is extreme, a first-order optimizer elsewhere (Sivan et al., arXiv:2302.08484).

A short Lanczos run finds the largest (and smallest) eigenpairs of the Hessian. In their span the step is Newton's; in
the orthogonal complement it is the base optimizer's, which no longer meets the extreme curvature and may go faster.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim import SGD, Optimizer

from secondlook.curvature import FunctionOperator, HessianOperator, SymmetricOperator, numel, pack, unpack
from secondlook.curvature.products import derivative
from secondlook.optimizers.base import check_count
from secondlook.optimizers.fosi.averaging import WEIGHTS, Momentum, averaging_of
from secondlook.optimizers.fosi.layout import Layout
from secondlook.optimizers.fosi.spectrum import lanczos_extreme


class FOSI(Optimizer):
    """A base optimizer with Newton steps along the extreme eigenvectors V (rows) of the Hessian, eigenvalues lam.

        g1 = V' V g,  g2 = g - g1,  velocity <- momentum(g1)
        d1 = -alpha V' |lam|^-1 V velocity
        d2 = (1 - V' V) base(g2)
        w <- w + s d2 + d1,  s = |lam_1 / lam_k| clipped to [1, lr_clip]

    At steps `warmup`, `warmup + every`, ... the eigenpairs are found anew; before the first of them, and with
    k = l = 0, the base runs alone. The Hessian is that of `loss_closure`, or without one that of the step's own batch:
    such steps need `loss.backward(create_graph=True)`, and `wants_graph` says which.

    All groups share one V (memory: k + l copies of the model). They are the base's: a schedule of their `lr` acts on
    both parts of the step, which with a constant one is the paper's.

    Args:
        base: any optimizer that follows gradients. Weight decay belongs in the loss, where the Hessian sees it.
        loss_closure: the loss on a fixed batch, 0-d, without `backward`; all products of a refresh use it.
        k, l: number of largest and smallest eigenpairs. Negative ones enter by their size.
        every: steps between refreshes.
        warmup: the step (from 1) of the first refresh; `every` by default.
        alpha: length of the Newton step.
        lr_clip: largest s; by default 3 for SGD, and 1 for all others, whose steps have a length of their own (Adam).
            `math.inf` never clips.
        momentum: how g1 is averaged; by default as the base averages ("none" for plain gradient descent).
        decay: of that average; by default the base's, or 0.9.
        order: Lanczos steps, see `lanczos_extreme`.
        generator: source of the Lanczos start; by default one of its own, seeded with `torch.initial_seed()`.

    Raises:
        ValueError: an option is out of range, or the base has weight decay or maximizes.
    """

    def __init__(
        self,
        base: Optimizer,
        loss_closure: Callable[[], Tensor] | None = None,
        k: int = 10,
        l: int = 0,
        every: int = 100,
        warmup: int | None = None,
        alpha: float = 0.1,
        lr_clip: float | None = None,
        momentum: Momentum | None = None,
        *,
        decay: float | None = None,
        order: int | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        if not isinstance(base, Optimizer):
            raise TypeError(f"base must be a torch.optim.Optimizer, got {type(base).__name__}")
        kind, own = averaging_of(base)
        warmup, momentum = every if warmup is None else warmup, momentum or kind
        lr_clip = (3.0 if isinstance(base, SGD) else 1.0) if lr_clip is None else lr_clip
        decay = own if decay is None else decay
        for name, value in {"k": k, "l": l}.items():
            check_count(name, value, least=0)
        for name, value in {"every": every, "warmup": warmup, "order": 1 if order is None else order}.items():
            check_count(name, value)
        if not 0 < alpha <= 1:
            raise ValueError(f"alpha must lie in (0, 1], got {alpha!r}; 0.1 goes with momentum, 1 without")
        if not lr_clip >= 1:
            raise ValueError(f"lr_clip must be at least 1, got {lr_clip!r}; 1 never changes the base's step")
        if momentum not in WEIGHTS:
            raise ValueError(f"momentum must be one of {', '.join(WEIGHTS)}, got {momentum!r}")
        if not 0 <= decay < 1:
            raise ValueError(f"decay must lie in [0, 1), got {decay!r}; 0.9 is usual")
        self.base, self.loss_closure = base, loss_closure
        self.k, self.l, self.every, self.warmup, self.order = k, l, every, warmup, order
        self.alpha, self.lr_clip, self.weights = alpha, lr_clip, WEIGHTS[momentum](decay)
        self.steps, self.scaling = 0, 1.0
        # Eigenvalues [m] and eigenvectors [m, n], once there are any. Between refreshes g1 lies in their span, so the
        # velocity is known by its coordinates there, [m], and by what the vectors before left outside, [n].
        self.values: Tensor | None = None
        self.vectors: Tensor | None = None
        self.inside: Tensor | None = None
        self.outside: Tensor | None = None
        super().__init__(base.param_groups, base.defaults)
        self._share()
        device = self._params()[0].device
        self.generator = generator or torch.Generator(device).manual_seed(torch.initial_seed())

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        options = {**self.base.defaults, **param_group}
        if options.get("weight_decay"):
            raise ValueError("weight_decay of the base must be 0: add the decay to the loss, where the Hessian sees it")
        if options.get("maximize"):
            raise ValueError("maximize is not supported: hand in the loss with its sign changed")
        if all(param_group is not group for group in self.base.param_groups):
            self.base.add_param_group(param_group)
        if any(p.is_complex() for p in param_group["params"]):
            raise ValueError("complex parameters are not supported; pass torch.view_as_real(parameter)")
        param_group["first_lr"] = param_group["lr"]
        if self.vectors is not None:  # until the next refresh the new parameters are the base's alone
            extra = (0, numel(param_group["params"]))
            self.vectors, self.outside = (F.pad(x, extra) for x in (self.vectors, self.outside))

    @property
    def wants_graph(self) -> bool:
        """Whether the next step differentiates the gradient, so that it needs `backward(create_graph=True)`."""
        return self.loss_closure is None and self._due()

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Refresh the eigenpairs if it is time, then take one step.

        Args:
            closure: clears the gradients, evaluates the loss, calls `backward` (`wants_graph`: with
                `create_graph=True`) and returns the loss.

        Returns:
            What the closure returned, or None.

        Raises:
            RuntimeError: a gradient is sparse, or has no graph where one is needed.
        """
        loss = None if closure is None else torch.enable_grad()(closure)()
        rates = {p: _rate(group) for group in self.param_groups for p in group["params"]}
        layout = Layout([*rates], {i for i, (p, rate) in enumerate(rates.items()) if p.grad is None or not rate})
        present = layout.present
        if any(p.grad.is_sparse for p in present):
            raise RuntimeError("FOSI needs dense gradients; build the embedding with sparse=False")
        if present and self._due():
            self._refresh(layout)
        self.steps += bool(present)
        grads = [p.grad.detach() for p in present]  # a graph holds the parameters: kept alive it would be a leak
        if self.vectors is None or not present:
            _set_gradients(present, grads)
            self.base.step()
            return loss

        V = self.vectors
        g = layout.join(grads).to(V)
        along = V @ g
        a, b = self.weights
        self.inside, self.outside = a * along + b * self.inside, b * self.outside

        before = layout.join(present).to(V)
        _set_gradients(present, layout.split(torch.addmv(g, V.T, along, alpha=-1)))
        self.base.step()
        d2 = layout.join(present).to(V) - before

        # Adam's scaling leaks into the span of V; one pass over V takes that back and makes Newton's step
        d1, leak = (torch.stack([-self.alpha * self.inside / self.values.abs(), V @ d2]) @ V).unbind()
        paces = [rates[p] for p in present]
        d1 = d1 * paces[0] if len(set(paces)) == 1 else layout.join(torch._foreach_mul(layout.split(d1), paces)).to(V)
        after = before + torch.add(d1, d2 - leak, alpha=self.scaling)
        torch._foreach_copy_(present, layout.split(after))
        _set_gradients(present, grads)
        return loss

    def _due(self) -> bool:
        since = self.steps + 1 - self.warmup
        return self.k + self.l > 0 and since >= 0 and since % self.every == 0

    def _refresh(self, layout: Layout) -> None:
        """Find the eigenpairs anew. A gradient that is not finite leaves the old ones: the run has diverged anyway."""
        present = layout.present
        if not bool(torch.stack(torch._foreach_norm([p.grad for p in present])).isfinite().all()):
            return
        values, vectors = lanczos_extreme(self._hessian(present), self.k, self.l, self.order, generator=self.generator)
        # 1 / |lam| is meant for curvature: what is zero up to the rounding of the products stays with the base.
        curved = values.abs() > 100 * torch.finfo(present[0].dtype).eps * values.abs().max()
        large = values[self.l :][curved[self.l :]]
        self.scaling = min(max(float((large[-1] / large[0]).abs()), 1.0), self.lr_clip) if len(large) else 1.0
        dtype = torch.promote_types(present[0].dtype, torch.float32)
        V = layout.join(unpack(vectors[curved].to(dtype), present), lead=1).to(dtype)
        velocity = V.new_zeros(V.shape[1]) if self.vectors is None else self.outside + self.inside @ self.vectors
        self.values, self.vectors, self.inside = values[curved].to(dtype), V, V @ velocity
        self.outside = velocity - self.inside @ V

    def _hessian(self, present: list[Tensor]) -> SymmetricOperator:
        if self.loss_closure is not None:
            return HessianOperator.of_loss(lambda _: self.loss_closure(), present)
        grads = [p.grad for p in present]
        if not any(g.requires_grad for g in grads):
            raise RuntimeError(
                "the gradients carry no graph, so they have no curvature: call loss.backward(create_graph=True) where "
                "`wants_graph` is true, or give FOSI a loss_closure"
            )

        def product(columns: Tensor) -> Tensor:
            return torch.stack([pack(derivative(grads, present, unpack(x, present), False)) for x in columns.T], 1)

        return FunctionOperator(product, numel(present), dtype=present[0].dtype, device=present[0].device)

    def state_dict(self) -> dict[str, Any]:
        """The base's dictionary with the eigenpairs, the velocity, the count of steps and the random stream."""
        own = {name: getattr(self, name) for name in ("steps", "scaling", "values", "vectors", "inside", "outside")}
        return {**self.base.state_dict(), "fosi": own, "generator": self.generator.get_state()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the base, the eigenpairs and the random stream; options of FOSI itself stay as constructed."""
        self.base.load_state_dict({name: state_dict[name] for name in ("state", "param_groups")})
        self._share()
        for name, value in state_dict["fosi"].items():
            if isinstance(value, Tensor):
                value = value.to(self._params()[0].device, copy=True)
            setattr(self, name, value)
        self.generator.set_state(state_dict["generator"].cpu())

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if not name.startswith("_")}

    def _share(self) -> None:
        """Groups and state are the base's, so that schedulers drive it."""
        self.param_groups, self.state = self.base.param_groups, self.base.state

    def _params(self) -> list[Tensor]:
        return [p for group in self.param_groups for p in group["params"]]


def _rate(group: dict[str, Any]) -> float:
    """The learning rate relative to the one the group came with."""
    lr, first = float(group["lr"]), float(group["first_lr"])
    return lr / first if first else float(lr > 0)


def _set_gradients(params: list[Tensor], grads: list[Tensor]) -> None:
    for p, g in zip(params, grads, strict=True):
        p.grad = g
