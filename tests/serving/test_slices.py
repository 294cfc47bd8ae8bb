from __future__ import annotations

from itertools import chain, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ocvtp_kernels.serving.vllm.slices import split_runs


@given(st.lists(st.integers(1, 50), max_size=12), st.integers(1, 60))
def test_all_images_in_order_and_none_beyond_the_limit(sizes: list[int], limit: int) -> None:
    runs = [sizes[run] for run in split_runs(sizes, limit)]
    assert list(chain(*runs)) == sizes
    assert all(run and (len(run) == 1 or sum(run) <= limit) for run in runs)
    # As few as there can be in this order.
    assert all(sum(run) + following[0] > limit for run, following in pairwise(runs))


@pytest.mark.parametrize(("limit", "slices"), [(1000, 10), (1152, 5), (5760, 1), (1, 10)], ids=str)
def test_ten_images_of_a_tower(limit: int, slices: int) -> None:
    assert len(list(split_runs([576] * 10, limit))) == slices
