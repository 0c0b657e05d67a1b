"""AdaHessian: Adam with the Hessian diagonal in the denominator (Yao et al. 2020, arXiv:2006.00719).

One Hessian-vector product with a random sign vector z shows the curvature of every parameter at once, because
E[z * (H z)] = diag(H). The optimizer averages its size over convolution kernels, smooths its square over the
iterations, and divides the averaged gradient by the root.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from secondlook.curvature.flat import numel, pack, unpack
from secondlook.optimizers.base import Base, check_betas, check_count, check_range

Probe = Sequence[Tensor]


def sign_vectors(like: Sequence[Tensor], generator: torch.Generator | None = None) -> list[Tensor]:
    """One joint draw of independent uniform signs, shaped, typed and placed like the tensors of `like`."""
    device = like[0].device if generator is None else generator.device
    bits = torch.randint(0, 2, (numel(like),), generator=generator, device=device, dtype=torch.int8)
    signs = unpack(bits.mul_(2).sub_(1).to(like[0]), like)
    return [s.to(t) for s, t in zip(signs, like, strict=True)]


def spatial_mean(curvature: Tensor) -> Tensor:
    """Average over the spatial axes of a convolution kernel `[out, in, *space]`, broadcast back (Algorithm 1's blocks).

    Tensors with at most two axes are returned as they are: their blocks have size one.
    """
    if curvature.ndim <= 2:
        return curvature
    return curvature.mean(dim=tuple(range(2, curvature.ndim)), keepdim=True).expand_as(curvature)


def hutchinson_diag(
    grads: Sequence[Tensor],
    params: Sequence[Tensor],
    n_probes: int = 1,
    block: Literal["spatial"] | None = None,
    signed: bool = False,
    *,
    generator: torch.Generator | None = None,
    probes: Sequence[Probe] | None = None,
    retain_graph: bool = True,
) -> list[Tensor]:
    """Estimate the Hessian diagonal from gradients that carry a graph, by Hutchinson's sign vectors.

    Args:
        grads: first derivatives with respect to `params`, computed with `create_graph=True`.
        params: the parameters, of any shapes.
        n_probes: sign vectors to average over; each costs one backward pass.
        block: "spatial" averages over the spatial axes of convolution kernels, None leaves every entry alone.
        signed: True averages z * (H z), which is unbiased for diag(H); False averages |H z| as the released
            code does, which is never less than |diag(H)| in expectation.
        generator: source of the sign vectors; torch's default generator when None.
        probes: the sign vectors themselves, each one tensor a parameter; replaces `n_probes` and `generator`.
        retain_graph: keep the graph for further products.

    Returns:
        One tensor a parameter, of the parameter's shape.

    Raises:
        RuntimeError: a gradient has no graph.
        ValueError: bad `n_probes`, `block`, or probes that do not fit the parameters.
    """
    if block not in ("spatial", None):
        raise ValueError(f"block must be 'spatial' or None, got {block!r}")
    check_count("n_probes", n_probes)
    if not params:
        return []
    _check_graph(grads)
    n_probes = n_probes if probes is None else len(probes)
    mean: Sequence[Tensor] = [] if n_probes == 1 else [torch.zeros_like(p, requires_grad=False) for p in params]
    for i in range(n_probes):
        z = sign_vectors(params, generator) if probes is None else _fitting(probes[i], params)
        keep = retain_graph or i + 1 < n_probes
        products = torch.autograd.grad(grads, params, z, retain_graph=keep, materialize_grads=True)
        sizes = torch._foreach_mul(z, products) if signed else torch._foreach_abs(products)
        if n_probes == 1:
            mean = sizes
        else:
            torch._foreach_add_(mean, sizes, alpha=1 / n_probes)
    return [spatial_mean(d) for d in mean] if block == "spatial" else list(mean)


class AdaHessian(Base):
    """Adam-shaped steps scaled by a running root-mean-square of the Hessian diagonal.

    Call `step()` after `loss.backward(create_graph=True)`; the step frees that graph. With m the average of
    the gradients and v that of the squared curvature D, both bias-corrected, the update is (Algorithm 1)

        w <- w - lr * (m / (sqrt(v)^k + eps) + weight_decay * w).

    Args:
        params: parameters, or groups with options of their own.
        lr: step size.
        betas: decay of the averages of the gradient and of the squared curvature.
        eps: added to the denominator. Where there is no curvature the step is lr * m / eps, so it matters.
        weight_decay: decoupled, multiplied by lr (divide an L2 term by the initial lr to have its counterpart).
        hessian_power: k above, 0 (averaged SGD) to 1.
        spatial_average: average D over the spatial axes of tensors `[out, in, *space]`. Switch it off for
            groups whose tensors of three and more axes are not convolution kernels.
        n_probes: sign vectors a refresh, one backward pass each.
        update_every: steps between refreshes of v. In between no graph is needed, see `wants_graph`.
        generator: source of the sign vectors. By default one of its own, seeded with `torch.initial_seed()`,
            so that `torch.manual_seed` decides the run and the global random state is left alone.
        signed_average: average z * (H z) as printed instead of |H z| as released.
        maximize: ascend instead of descend.

    Raises:
        ValueError: an option is out of range.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 0.15,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-4,
        weight_decay: float = 0.0,
        hessian_power: float = 1.0,
        spatial_average: bool = True,
        n_probes: int = 1,
        update_every: int = 1,
        generator: torch.Generator | None = None,
        *,
        signed_average: bool = False,
        maximize: bool = False,
    ) -> None:
        check_count("n_probes", n_probes)
        check_count("update_every", update_every)
        self.n_probes, self.update_every, self.signed_average = n_probes, update_every, signed_average
        group_options = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "hessian_power": hessian_power,
            "spatial_average": spatial_average,
            "maximize": maximize,
        }
        super().__init__(params, group_options)
        self.generator = self._own_stream(generator)

    def _check(self, options: dict[str, Any]) -> None:
        for name in ("lr", "weight_decay"):
            check_range(name, options[name])
        check_range("eps", options["eps"], low_open=True)
        check_range("hessian_power", options["hessian_power"], high=1, high_open=False)
        check_betas(options["betas"])

    @property
    def wants_graph(self) -> bool:
        """Whether the next step refreshes the curvature and so needs `loss.backward(create_graph=True)`."""
        params = (p for group in self.param_groups for p in group["params"] if p.requires_grad)
        return any(self._due(p) for p in params)

    @torch.no_grad()
    def step(
        self,
        closure: Callable[[], Any] | None = None,
        *,
        probes: Sequence[Probe] | Probe | None = None,
    ) -> Any:
        """Take one step and free the gradients' graph.

        Args:
            closure: re-evaluates the model, calls `backward(create_graph=True)` and returns the loss.
            probes: sign vectors to use if this step refreshes the curvature: one list of tensors a probe (or
                a single such list), a tensor for every parameter that has a gradient, in the groups' order.

        Returns:
            What the closure returned, or None.

        Raises:
            RuntimeError: a gradient has no graph at a refresh, or is sparse.
        """
        loss, params = self._begin(closure)
        curvature: dict[Tensor, Tensor] = {}
        if any(self._due(p) for p in params):
            curvature = dict(zip(params, self._curvature(params, probes), strict=True))
        for p in params:
            p.grad = p.grad.detach()  # the graph holds the parameters: kept alive it would be a leak
        for group in self.param_groups:
            members = [p for p in group["params"] if p.grad is not None]
            if members:
                self._update(group, members, curvature)
        return loss

    def _due(self, p: Tensor) -> bool:
        return self.state[p]["step"] % self.update_every == 0 if p in self.state else True

    def _curvature(self, params: list[Tensor], probes: Sequence[Probe] | Probe | None) -> list[Tensor]:
        if probes is not None and len(probes) and isinstance(probes[0], Tensor):
            probes = [probes]
        return hutchinson_diag(
            [p.grad for p in params],
            params,
            self.n_probes,
            signed=self.signed_average,
            generator=self.generator,
            probes=probes,
            retain_graph=False,
        )

    def _update(self, group: dict[str, Any], params: list[Tensor], curvature: dict[Tensor, Tensor]) -> None:
        together = defaultdict(list)
        for p in params:
            state = self.state[p]
            if not state:
                state |= {"step": 0, "refreshes": 0}
                state |= {name: torch.zeros_like(p) for name in ("exp_avg", "exp_curvature_sq")}
            state["step"] += 1
            state["refreshes"] += bool(curvature)
            together[p.dtype, p.device, state["step"], state["refreshes"]].append(p)
        for (*_, t, refreshes), alike in together.items():
            self._move(group, alike, [curvature[p] for p in alike] if curvature else [], t, refreshes)

    def _move(
        self, group: dict[str, Any], params: list[Tensor], curvature: list[Tensor], t: int, refreshes: int
    ) -> None:
        """Step parameters of one type and age, as one vector: the number of tensors hardly matters."""
        beta1, beta2 = group["betas"]
        lr = float(group["lr"])
        m, v = (self.vectors.gather([self.state[p] for p in params], name) for name in ("exp_avg", "exp_curvature_sq"))
        m.mul_(beta1).add_(pack(p.grad for p in params), alpha=beta1 - 1 if group["maximize"] else 1 - beta1)
        if curvature:
            d = pack(map(spatial_mean, curvature) if group["spatial_average"] else curvature)
            v.mul_(beta2).addcmul_(d, d, value=1 - beta2)

        # Both corrections divide by 1 - beta^t; v's stands inside the power and counts refreshes, not steps.
        denominator = v.sqrt().div_((1 - beta2**refreshes) ** 0.5)
        if group["hessian_power"] != 1:
            denominator.pow_(group["hessian_power"])
        step = m.mul(-lr / (1 - beta1**t)).div_(denominator.add_(group["eps"]))
        if group["weight_decay"]:
            torch._foreach_mul_(params, 1 - lr * group["weight_decay"])
        torch._foreach_add_(params, unpack(step, params))


def _check_graph(grads: Sequence[Tensor]) -> None:
    for i, g in enumerate(grads):
        if not g.requires_grad:
            raise RuntimeError(
                f"gradient {i} of shape {tuple(g.shape)} carries no graph, so it has no curvature; call "
                "loss.backward(create_graph=True) before step(), do not detach the gradient, and leave out "
                "parameters in which the loss is linear"
            )


def _fitting(probe: Probe, params: Sequence[Tensor]) -> list[Tensor]:
    shapes, wanted = [tuple(z.shape) for z in probe], [tuple(p.shape) for p in params]
    if shapes != wanted:
        raise ValueError(f"a probe needs one tensor for each parameter with shapes {wanted}, got {shapes}")
    return [z.to(p) for z, p in zip(probe, params, strict=True)]
