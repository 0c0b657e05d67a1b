"""What all curvature operators of a model share: parameters, streamed data, kept graphs, blocks of vectors.

A subclass writes `_linearise(batch)`, which evaluates the model once and returns a function that multiplies. The
graph behind that function is kept while the parameters do not change, so that a product costs one differentiation
of the gradient and no new forward pass. Blocks of vectors go through the same graph, several at a time by `vmap`.
"""

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, overload

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from secondlook.curvature.flat import numel, pack, unpack
from secondlook.curvature.linear import SymmetricOperator

__all__ = ["CurvatureOperator", "Product", "as_batches", "derivative", "fitting_chunk"]

Product = Callable[[list[Tensor], bool], list[Tensor]]
"""Maps vectors in list form to products in list form; True: every tensor has a leading axis of k vectors."""

# Memory for the intermediate results of a chunk of vectors, in bytes. On CPU about the size of a core's cache: MLPs and
# small CNNs gain up to 5 times from chunks that fit. Beyond it a few vectors at a time are still never slower than one
# by one (measured up to a ResNet-20), so they are taken while their memory stays modest.
CACHE = {"cpu": 4e6, "cuda": 2e9}
LARGEST_CHUNK = 64
FEW, MODEST = 8, 2e9


def derivative(outputs: Sequence[Tensor], inputs: Sequence[Tensor], seeds: Sequence[Tensor], batched: bool) -> list:
    """Vector-Jacobian product of `outputs` with `seeds`, graph kept; zeros where nothing depends on an input.

    With `batched`, every seed and every result has a leading axis of independent vectors.
    """
    live = [(o, s) for o, s in zip(outputs, seeds, strict=True) if o.requires_grad]
    lead = seeds[0].shape[:1] if batched else ()
    if not live:
        return [i.new_zeros(*lead, *i.shape) for i in inputs]
    outs, grads = zip(*live, strict=True)

    def pull(*grads: Tensor) -> tuple[Tensor, ...]:
        result = torch.autograd.grad(outs, inputs, grads, retain_graph=True, allow_unused=True)
        return tuple(torch.zeros_like(i) if r is None else r for i, r in zip(inputs, result, strict=True))

    # Not `is_grads_batched`: its older vmap loops over the vectors in convolutions and pooling.
    return list(torch.func.vmap(pull)(*grads) if batched else pull(*grads))


class CurvatureOperator(SymmetricOperator):
    """A curvature matrix of a model, `[P, P]` in the order of its parameters, as a linear operator.

    Args:
        model: a module, or a function `model(params, inputs) -> outputs` (then `params` must be given). A module's
            mode is left alone: call `eval()` first, or dropout makes every kept graph another matrix.
        params: the parameters the matrix is about; a module's own that require grad by default.
        data: `(inputs, targets)`, or a list of such batches (anything that can be iterated again and again).
        reduction: "mean" when the loss of a batch is a mean over its points (`len(targets)` weighs the batches, so
            that batches give what one big batch gives), "sum" when it is a sum.
        keep: keep the graphs between products; by default when there is one batch. Costs the memory of one
            backward pass a batch. Changing parameters in place (as optimizers do) is noticed and rebuilds them;
            writing through `.data` is not: call `refresh()`.
        chunk: vectors of a block to differentiate at a time; by default chosen by the memory that the graph of the
            first batch takes. 1 keeps memory smallest.
    """

    def __init__(
        self,
        model: Callable[..., Tensor] | None,
        data: Any,
        params: Iterable[Tensor] | None = None,
        *,
        reduction: str = "mean",
        keep: bool | None = None,
        chunk: int | None = None,
    ) -> None:
        if params is None:
            if not isinstance(model, nn.Module):
                raise TypeError("a plain function needs `params`, the list of tensors it is differentiated by")
            params = [p for p in model.parameters() if p.requires_grad]
        # A tensor that does not require grad is replaced by an alias that does: same memory, same version counter.
        self.params = [p if p.requires_grad else p.detach().requires_grad_() for p in params]
        if not self.params:
            raise ValueError("no parameter requires grad: nothing to differentiate by")
        if reduction not in ("mean", "sum"):
            raise ValueError(f"reduction must be 'mean' or 'sum', got {reduction!r}")
        if chunk is not None and chunk < 1:
            raise ValueError(f"chunk must be at least 1, got {chunk}")
        first = self.params[0]
        if any(p.dtype != first.dtype or p.device != first.device for p in self.params):
            raise ValueError("parameters differ in dtype or device: convert the model to one of each")
        super().__init__(numel(self.params), first.dtype, first.device)
        self.model, self.reduction, self.chunk = model, reduction, chunk
        self.batches = as_batches(data)
        self.keep = len(self.batches) == 1 if keep is None else keep
        self._graphs: list[Product] | None = None
        self._stamp: list[tuple[int, int]] = []

    @abstractmethod
    def _linearise(self, index: int, batch: Any) -> Product:
        """The product with the matrix of batch number `index`, through a graph that is built once."""

    def outputs(self, inputs: Any) -> Tensor:
        """The model's outputs."""
        return self.model(inputs) if isinstance(self.model, nn.Module) else self.model(self.params, inputs)

    def refresh(self) -> None:
        """Forget the kept graphs (needed only after writing parameters or data behind autograd's back)."""
        self._graphs = None

    def _products(self) -> Iterator[tuple[float, Product]]:
        """Weight and product of every batch; weights sum to one for means."""
        stamp = [(p._version, p.data_ptr()) for p in self.params]
        if stamp != self._stamp:
            self._graphs, self._stamp = None, stamp
        if self._graphs is None and self.keep:
            self._graphs = [self._build(i, batch) for i, batch in enumerate(self.batches)]
        sizes = [_size(batch) if self.reduction == "mean" else 1 for batch in self.batches]
        total = sum(sizes) if self.reduction == "mean" else 1
        for i, batch in enumerate(self.batches):
            yield sizes[i] / total, self._graphs[i] if self._graphs is not None else self._build(i, batch)

    def _build(self, index: int, batch: Any) -> Product:
        # Fused attention kernels cannot be differentiated twice; the plain ones can.
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
            return self._linearise(index, batch)

    def _apply(self, vectors: list[Tensor]) -> list[Tensor]:
        """The product with one vector; it may alias `vectors`."""
        result: list[Tensor] = []
        for weight, product in self._products():
            part = product(vectors, False)
            part = part if weight == 1 else torch._foreach_mul(part, weight)
            result = torch._foreach_add(result, part) if result else part
        return result

    def graph_bytes(self) -> int:
        """Memory that the kept graph of the first batch takes, the parameters left out."""
        ours = {t.untyped_storage().data_ptr() for t in self.params}
        saved: dict[int, int] = {}

        def note(t: Tensor) -> Tensor:
            storage = t.untyped_storage()
            if storage.data_ptr() not in ours:
                saved[storage.data_ptr()] = storage.nbytes()
            return t

        with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
            self._build(0, self.batches[0])
        return max(1, sum(saved.values()))

    def _columns(self, block: Tensor) -> Tensor:
        rows = block.T.contiguous()
        if len(rows) == 1:
            return pack(self._apply(unpack(rows[0], self.params))).unsqueeze(1)
        out = torch.zeros_like(rows)
        if self.chunk is None:
            self.chunk = fitting_chunk(self.graph_bytes(), self.device)
        for weight, product in self._products():  # the data outside: a graph that is not kept is built only once
            for start in range(0, len(rows), self.chunk):
                part = rows[start : start + self.chunk]
                if len(part) == 1:
                    done = pack(product(unpack(part[0], self.params), False))
                else:
                    done = pack(product(unpack(part, self.params), True), lead=1)
                out[start : start + self.chunk].add_(done, alpha=weight)
        return out.T

    @overload
    def __matmul__(self, x: Tensor) -> Tensor: ...
    @overload
    def __matmul__(self, x: Sequence[Tensor]) -> list[Tensor]: ...
    def __matmul__(self, x: Tensor | Sequence[Tensor]) -> Tensor | list[Tensor]:
        """The product with `[P]`, with a block `[P, k]`, or with a list of tensors shaped like the parameters."""
        if isinstance(x, Tensor):
            if x.ndim == 1 and x.shape == self.shape[:1] and x.dtype == self.dtype:
                return pack(self._apply(unpack(x, self.params)))
            return super().__matmul__(x)
        x = list(x)
        if [t.shape for t in x] != [p.shape for p in self.params]:
            raise ValueError(
                f"the list has shapes {[tuple(t.shape) for t in x]}, "
                f"the parameters {[tuple(p.shape) for p in self.params]}"
            )
        theirs = {t.data_ptr() for t in x}
        return [t.clone() if t.data_ptr() in theirs else t for t in self._apply(x)]


def fitting_chunk(graph: int, device: torch.device) -> int:
    """How many vectors' intermediate results fit into the cache, or a few while memory allows; `graph` in bytes."""
    fitting = min(LARGEST_CHUNK, int(CACHE.get(device.type, CACHE["cuda"]) / graph))
    return max(1, fitting, min(FEW, int(MODEST / graph)))


def as_batches(data: Any) -> Sequence[Any]:
    """One batch as a list of one; several as they are."""
    if data is None:
        return [None]
    if isinstance(data, tuple) and len(data) and isinstance(data[-1], Tensor):
        return [data]
    if iter(data) is data:
        raise TypeError("data is an iterator and would be empty after one product: hand in a list of batches")
    batches = list(data)
    if not batches:
        raise ValueError("data holds no batch")
    return batches


def _size(batch: Any) -> int:
    return 1 if batch is None else len(batch[-1])
