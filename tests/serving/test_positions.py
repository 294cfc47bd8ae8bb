"""Positions of a pruned prompt, against those of the whole one less the dropped tokens."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ocvtp_kernels.serving.vllm.positions import (
    NUM_DIGITS,
    Span,
    append_places,
    expand_prompt,
    narrow_positions,
    place_tokens,
)
from ocvtp_kernels.vlm.positions import Places, shift_positions

IMAGE, TEXT = 5, 7
# Text in front, grid and number of kept tokens of each image, text behind.
PROMPTS = st.tuples(
    st.lists(
        st.tuples(st.integers(0, 4), st.integers(1, 5), st.integers(1, 5), st.integers(1, 30)),
        max_size=4,
    ),
    st.integers(0, 4),
)


def whole_positions(parts: list[tuple[int, int, int]], behind: int) -> torch.Tensor:
    """Of a prompt with all tokens: text one by one, images by row and column."""
    columns, start = [], 0
    for text, rows, across in parts:
        columns.append((start + torch.arange(text)).expand(3, -1))
        grid = torch.cartesian_prod(torch.arange(rows), torch.arange(across)).reshape(-1, 2)
        start += text
        columns.append(start + torch.cat((torch.zeros(len(grid), 1), grid), 1).long().T)
        start += max(rows, across)
    columns.append((start + torch.arange(behind)).expand(3, -1))
    return torch.cat(columns, 1)


@given(PROMPTS, st.integers(0, 10**6))
def test_kept_tokens_stand_where_they_stood(prompt: Any, seed: int) -> None:
    images, behind = prompt
    torch.manual_seed(seed)
    tokens: list[int] = []
    spans, is_kept, ids_of = [], [], []
    for text, rows, across, budget in images:
        size = rows * across
        ids = torch.randperm(size)[: min(budget, size)].sort().values
        kept = torch.zeros(size, dtype=torch.bool)
        kept[ids] = True
        is_kept += [torch.ones(text, dtype=torch.bool), kept]
        tokens += [TEXT] * text
        spans.append(Span(len(tokens), len(ids), size))
        tokens += [IMAGE] * len(ids)
        ids_of.append(ids)
    tokens += [TEXT] * behind
    is_kept.append(torch.ones(behind, dtype=torch.bool))
    whole = whole_positions([image[:3] for image in images], behind)

    expanded = expand_prompt(tokens, spans)
    assert len(expanded.tokens) == whole.shape[1]
    assert [expanded.tokens[index] for index in expanded.columns] == tokens
    for offset, span in zip(expanded.offsets, spans, strict=True):
        assert expanded.tokens[offset : offset + span.whole] == [IMAGE] * span.whole
    positions = whole[:, expanded.columns]
    for span, ids, (_, _, across, _) in zip(spans, ids_of, images, strict=True):
        places = append_places(torch.zeros(len(ids), 2), ids, across)[:, 2:]
        # In two parts, as chunked prefill has them.
        for part in (slice(0, len(ids) // 2), slice(len(ids) // 2, len(ids))):
            columns = torch.arange(span.offset, span.offset + span.length)[part]
            place_tokens(positions, columns, places[part])
    assert torch.equal(positions, whole[:, torch.cat(is_kept)])


# Text in front of each image, its tokens and how many of them are kept; text behind.
LINES = st.tuples(
    st.lists(st.tuples(st.integers(0, 4), st.integers(1, 700), st.integers(1, 9)), max_size=4),
    st.integers(0, 4),
)


@given(LINES, st.integers(0, 10**6))
def test_tokens_of_one_position_stand_where_attach_has_them(prompt: Any, seed: int) -> None:
    images, behind = prompt
    torch.manual_seed(seed)
    tokens: list[int] = []
    spans, places = [], []
    for text, size, budget in images:
        kept = torch.randperm(size)[: min(budget, size)].sort().values
        places.append(Places(kept, size))
        tokens += [TEXT] * text
        spans.append(Span(len(tokens), len(kept), size))
        tokens += [IMAGE] * len(kept)
    tokens += [TEXT] * behind
    expanded = expand_prompt(tokens, spans)
    sizes = [span.whole for span in spans]
    whole = narrow_positions(len(expanded.tokens), list(zip(expanded.offsets, sizes, strict=True)))
    positions = whole[:, expanded.columns]
    for _ in range(2):  # once more after a request was interrupted
        for span, (kept, _) in zip(spans, places, strict=True):
            digits = append_places(torch.zeros(len(kept), 2), kept, 1)[:, 2:]
            columns = torch.arange(span.offset, span.offset + span.length)
            place_tokens(positions, columns, digits)
    expected = torch.arange(len(tokens))
    if places:
        shift = shift_positions(torch.tensor(tokens)[None] == IMAGE, places)
        expected = expected + shift.columns[0]
        assert len(expanded.tokens) == len(tokens) + shift.following
    assert torch.equal(positions[1], expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_half_precision_holds_places_of_every_image(dtype: torch.dtype) -> None:
    rows, columns = 40_000, 60_000
    ids = torch.randint(rows * columns, (500,), generator=torch.Generator().manual_seed(0))
    features = torch.randn(500, 3).to(dtype)
    carried = append_places(features, ids, columns)
    assert carried.dtype == dtype and carried.shape[1] == 3 + NUM_DIGITS
    assert torch.equal(carried[:, :3], features)
    positions = torch.full((3, 500), 9)
    place_tokens(positions, torch.arange(500), carried[:, 3:])
    want = torch.stack((torch.zeros_like(ids), ids // columns, ids % columns)) + 9
    assert torch.equal(positions, want)
