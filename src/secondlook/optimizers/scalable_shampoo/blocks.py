"""How a tensor is seen by the preconditioner: small axes merged, long ones cut."""

from collections.abc import Sequence

from torch import Tensor


def merged_shape(shape: Sequence[int], size: int) -> tuple[int, ...]:
    """Adjacent axes merged from the left while their product is at most `size`; axes of length 1 vanish.

    >>> merged_shape((64, 3, 3, 3), 128)
    (64, 27)
    >>> merged_shape((10, 12), 128)
    (120,)
    """
    merged, product = [], 1
    for length in shape:
        if product * length <= size:
            product *= length
        else:
            merged.append(product)
            product = length
    return tuple(n for n in [*merged, product] if n > 1)


def blocks(tensor: Tensor, size: int) -> list[Tensor]:
    """Views that tile `tensor` [any shape], merged and then cut along every axis into pieces of at most `size`."""
    shape = merged_shape(tensor.shape, size)
    tiles = [tensor.reshape(shape)]
    for axis, length in enumerate(shape):
        if length > size:
            tiles = [piece for tile in tiles for piece in tile.split(size, axis)]
    return tiles
