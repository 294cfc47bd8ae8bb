"""Positions and bounds of samples that are packed into a row, once columns are dropped."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ocvtp_kernels.vlm.columns import kept_bounds, move_bounds, renumber, require_one_sample


def keep(is_kept: list[list[int]]) -> tuple[Tensor, Tensor]:
    """Kept columns and which are no padding, of rows of 0 and 1."""
    flags = torch.tensor(is_kept)
    width = int(flags.sum(1).max())
    columns = flags.argsort(dim=1, stable=True)[:, flags.shape[1] - width :]
    return columns, flags.bool().gather(1, columns)


@pytest.mark.parametrize(
    ("positions", "is_kept", "expected"),
    [
        # One sample, of which columns in the middle and the first ones are dropped.
        ([[0, 1, 2, 3, 4]], [[1, 0, 0, 1, 1]], [[0, 1, 2]]),
        ([[0, 1, 2, 3, 4]], [[0, 0, 1, 1, 1]], [[0, 1, 2]]),
        # Several samples; of the second the first columns, of the third all but one.
        ([[0, 1, 2, 0, 1, 2, 0, 1]], [[1, 0, 1, 0, 1, 1, 0, 1]], [[0, 1, 0, 1, 0]]),
        # All columns between two samples are dropped.
        ([[0, 1, 2, 0, 1, 2]], [[1, 1, 0, 0, 0, 1]], [[0, 1, 0]]),
        # A sample of which nothing is left.
        ([[0, 1, 0, 1, 0, 1]], [[1, 1, 0, 0, 1, 1]], [[0, 1, 0, 1]]),
        # A sample that begins anywhere.
        ([[5, 6, 7, 3, 4]], [[1, 0, 1, 1, 1]], [[0, 1, 0, 1]]),
        # Rows that keep different numbers of columns.
        (
            [[0, 1, 2, 0, 1], [0, 0, 1, 2, 3]],
            [[1, 0, 0, 1, 1], [1, 1, 1, 0, 1]],
            [[0, 0, 0, 1], [0, 0, 1, 2]],
        ),
        # The same positions for all rows.
        ([[0, 1, 0, 1]], [[1, 1, 1, 0], [0, 1, 1, 1]], [[0, 1, 0], [0, 0, 1]]),
    ],
)
def test_positions_tell_the_samples_apart(
    positions: list[list[int]], is_kept: list[list[int]], expected: list[list[int]]
) -> None:
    columns, valid = keep(is_kept)
    found = renumber(torch.tensor(positions), columns, valid)
    assert found.tolist() == expected


def test_transformers_reads_the_same_samples() -> None:
    masks = pytest.importorskip("transformers.masking_utils")
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        lengths = torch.randint(1, 6, (4,), generator=generator).tolist()
        positions = torch.cat([torch.arange(length) for length in lengths])[None]
        samples = torch.arange(4).repeat_interleave(torch.tensor(lengths))[None]
        is_kept = torch.rand(positions.shape, generator=generator) < 0.6
        is_kept[0, :1] = True
        columns, valid = keep(is_kept.int().tolist())
        found = masks.find_packed_sequence_indices(renumber(positions, columns, valid))
        kept = samples.gather(1, columns)
        together = kept[0, :, None] == kept[0]
        same = torch.ones_like(together) if found is None else found[0, :, None] == found[0]
        assert torch.equal(together, same)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_bounds_move_with_the_columns(dtype: torch.dtype) -> None:
    is_kept = torch.tensor([[1, 0, 1, 0, 1, 1, 0, 1]]).bool()
    moved = move_bounds(torch.tensor([0, 3, 6, 8], dtype=dtype), is_kept)
    assert moved.tolist() == [0, 2, 4, 5] and moved.dtype == dtype
    rows = torch.tensor([[1, 0, 1, 1], [0, 1, 1, 1]]).bool()
    assert move_bounds(torch.tensor([0, 2, 4, 8]), rows).tolist() == [0, 1, 3, 6]


def test_bounds_of_rows_of_different_lengths_are_refused() -> None:
    is_kept, bounds = torch.ones(1, 4).bool(), torch.tensor([0, 2, 4])
    given = {"cu_seq_lens_q": bounds, "cu_seq_lens_k": None, "max_length_q": 2}
    assert kept_bounds(given, is_kept, False).keys() == {"cu_seq_lens_q"}
    assert kept_bounds({"max_length_q": 2}, is_kept, True) == {}
    with pytest.raises(NotImplementedError, match="cu_seq_lens_q: expected rows that keep as many"):
        kept_bounds(given, is_kept, True)


def test_packed_samples_are_refused_where_nothing_tells_them_apart() -> None:
    require_one_sample(torch.arange(4)[None])
    for packed in ([[0, 1, 0, 1]], [[0, 1, 2, 3], [0, 1, 2, 0]]):
        with pytest.raises(NotImplementedError, match="position_ids: rows of several samples"):
            require_one_sample(torch.tensor(packed))
