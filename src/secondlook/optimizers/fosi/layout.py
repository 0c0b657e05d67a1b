"""Vectors over all parameters, of which only some take part in a step."""

from collections.abc import Sequence

from torch import Tensor

from secondlook.curvature import pack, unpack


class Layout:
    """`params` in a row, as one vector of length n; those `absent` (by place) have zeros there."""

    def __init__(self, params: list[Tensor], absent: set[int]) -> None:
        self.params, self.absent = params, absent
        self.present = [p for i, p in enumerate(params) if i not in absent] if absent else params

    def join(self, tensors: Sequence[Tensor], lead: int = 0) -> Tensor:
        """One vector, `[*L, n]`, from tensors `[*L, *shape]` of the parameters present; `lead = len(L)`."""
        if self.absent:
            given, shape = iter(tensors), tensors[0].shape[:lead]
            zeros = self.absent
            tensors = [p.new_zeros(*shape, *p.shape) if i in zeros else next(given) for i, p in enumerate(self.params)]
        return pack(tensors, lead=lead)

    def split(self, flat: Tensor) -> list[Tensor]:
        """The parts of a vector `[n]` that belong to the parameters present, in their shapes and types."""
        parts = zip(self.params, unpack(flat, self.params), strict=True)
        return [part.to(p.dtype) for i, (p, part) in enumerate(parts) if i not in self.absent]
