"""What families share whose images come in tiles: columns are dropped inside."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.vlm.families import Line, Seen, largest, words
from tests.vlm.models_tiles import MERGE

FIELDS = frozenset({"reference_tokens", "final_tokens", "importance", "shallow_importance", "keys"})
# Of two tiles and the whole photo, of four and it, and one that is a single tile.
SIZES = [(120, 60), (120, 120), (60, 60), (122, 120)]


def mean_units(states: Tensor) -> Tensor:
    """Patches of tiles ``[P, N, C]``: the mean of every square of them, tile after tile."""
    side = int(states.shape[1] ** 0.5)
    units = []
    for tile in states:
        grid = tile.view(side, side, -1)
        for row in range(0, side, MERGE):
            for column in range(0, side, MERGE):
                square = grid[row : row + MERGE, column : column + MERGE]
                units.append(square.sum((0, 1)) / MERGE**2)
    return torch.stack(units)


def lay(
    model: Any,
    tokens: list[int],
    photos: list[tuple[Tensor, Tensor]],
    image_id: int,
    start: int,
    budget: int,
) -> Seen:
    """A row whose photos are given by reference and final tokens ``[N, ...]`` of all their tiles.

    Args:
        model: of the row.
        tokens: of the whole prompt.
        photos: of each photo.
        image_id: the placeholders' token.
        start: position of the first token.
        budget: tokens kept of a photo.
    """
    kept_ids = [largest(reference, budget) for reference, _ in photos]
    whole = torch.cat([final for _, final in photos]) if photos else None
    is_kept = [
        index in set(ids.tolist())
        for ids, (reference, _) in zip(kept_ids, photos, strict=True)
        for index in range(len(reference))
    ]
    embeddings, kept, positions, seen = [], [], [], 0
    for column, token in enumerate(tokens):
        if token != image_id:
            embeddings.append(words(model, [token], 0).embeddings)
        elif is_kept[seen]:
            assert whole is not None
            embeddings.append(whole[seen : seen + 1])
        seen += token == image_id
        if token != image_id or is_kept[seen - 1]:
            kept.append(token)
            positions.append(start + column)
    assert seen == len(is_kept)
    places = torch.tensor(positions).expand(3, -1)
    line = Line(torch.cat(embeddings), places, kept, [], start + len(tokens))
    return Seen(line, kept_ids)
