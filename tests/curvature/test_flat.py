"""Packing and unpacking parameter lists."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from secondlook.curvature import numel, pack, unpack

shapes = st.lists(st.lists(st.integers(1, 4), max_size=3), min_size=1, max_size=4)


@given(shapes, st.lists(st.integers(1, 3), max_size=2))
def test_round_trip(shapes, lead):
    generator = torch.Generator().manual_seed(0)
    like = [torch.zeros(s) for s in shapes]
    flat = torch.randn(*lead, numel(like), generator=generator)
    parts = unpack(flat, like)
    assert [p.shape for p in parts] == [torch.Size([*lead, *s]) for s in shapes]
    assert torch.equal(pack(parts, lead=len(lead)), flat)


def test_unpack_gives_views_and_pack_a_copy():
    flat = torch.zeros(5)
    parts = unpack(flat, [torch.zeros(2), torch.zeros(3, 1)])
    parts[1].fill_(1)
    assert flat.tolist() == [0, 0, 1, 1, 1]
    pack(parts).fill_(7)
    assert flat.tolist() == [0, 0, 1, 1, 1]


def test_wrong_sizes_are_refused():
    with pytest.raises(ValueError, match="last axis must have 3"):
        unpack(torch.zeros(4), [torch.zeros(3)])
    with pytest.raises(ValueError, match="empty list"):
        pack([])


def test_no_vectors_at_all_keep_their_length():
    assert pack([torch.ones(0, 2, 3), torch.ones(0, 4)], lead=1).shape == (0, 10)
