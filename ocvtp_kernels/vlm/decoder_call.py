"""A prompt that loses image tokens between two layers of its language model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ocvtp_kernels.ops.argmax_gather import gather_tokens
from ocvtp_kernels.selectors.interface import Evidence, Selector, ask
from ocvtp_kernels.vlm.decoder_cache import Columns, Layer, remember
from ocvtp_kernels.vlm.decoder_masks import cut_mask, take_positions
from ocvtp_kernels.vlm.handle import Handle
from ocvtp_kernels.vlm.layer_call import read_cache, with_cache
from ocvtp_kernels.vlm.qwen_positions import drop_placeholders, text_positions

# What a selector in the decoder can be told.
KNOWN = frozenset({"reference_tokens", "final_tokens", "keys", "num_heads", "grid"})


class Images(NamedTuple):
    """The images of a call, in the order of their placeholders."""

    sizes: list[int]  # tokens of each
    grids: list[tuple[int, int]]  # rows and columns of each
    first: list[int]  # without those that stand there again for another beam


class Settings(NamedTuple):
    """What holds for every call."""

    selector: Selector
    budget: int
    layer: int  # before which tokens are dropped
    depth: int  # layers
    flash: bool
    stacked: bool  # whether the ids of all images are one tensor
    handle: Handle


class Prefill:
    """A prompt's way through the layers: whole up to ``layer``, and what is left of it from there.

    Args:
        settings: selector, budget and layer.
        images: of the prompt.
        is_image: bool ``[B, L]``, the placeholders.
        attended: bool ``[B, L]``, False on padding.
        counts: columns that each row keeps.
        tail: columns behind all images, of which none is dropped or padding on the right.
        by_layer: whether every layer's output is asked for, so that each must have all columns.
    """

    def __init__(
        self,
        settings: Settings,
        images: Images,
        is_image: Tensor,
        attended: Tensor,
        counts: list[int],
        tail: int,
        by_layer: bool,
    ) -> None:
        self._settings, self._images = settings, images
        self._tail, self._by_layer = tail, by_layer
        self._is_image, self._attended = is_image, attended
        self._width, self._padded = max(counts), min(counts) < max(counts)
        self._keys: Tensor | None = None
        self._left: Columns
        self._places: Tensor
        self._replaced: dict[str, Any] = {}
        self.predicted: Tensor  # bool [B, L], kept tokens that another one stands before

    def run(self, layer: Layer, index: int, hidden: Tensor, given: dict[str, Any]) -> Tensor:
        """The output of the layer ``index`` for ``hidden`` and its other arguments."""
        start = self._settings.layer
        if index < start:
            return layer(hidden, **given)
        if index == start:
            hidden = self._choose(hidden)
            self._replace(given)
        if index == start or self._by_layer:
            hidden = gather_tokens(hidden, self._left.columns)
        output = layer(hidden, **given | self._replaced)
        if index == self._settings.depth - 1 or self._by_layer:
            return gather_tokens(output, self._places)
        return output

    def attend(self, attention: Callable[..., Any], name: str, given: dict[str, Any]) -> Any:
        """What the attention of the layer before ``layer`` gives; its keys are remembered.

        Args:
            attention: its own forward.
            name: what it calls the cache.
            given: the arguments of the call.
        """
        tap = _KeyTap(read_cache(given))
        output = attention(**with_cache(given, name, tap))
        assert tap.keys is not None
        self._keys = tap.keys.detach()
        return output

    def _choose(self, hidden: Tensor) -> Tensor:
        """Decides which columns are left, and merges the others into them."""
        sizes, length = self._images.sizes, hidden.shape[1]
        with self._settings.handle.stage("pruner", hidden.device), torch.no_grad():
            # Stable, so the placeholders come first and stay in order.
            flat = (~self._is_image).flatten().int().argsort(stable=True)[: sum(sizes)]
            ids, rows, merged = self._select(hidden.detach(), list(flat.split(sizes)))
            kept = drop_placeholders(self._attended, self._is_image, ids, sizes)
            order = kept.int().argsort(dim=1, stable=True)[:, length - self._width :]
            valid = kept.gather(1, order)
            self._left = Columns(order, valid, self._padded, length, self._settings.layer)
            # A dropped column shows what the kept one before it says, which predicts what follows.
            rank = kept.cumsum(1)
            first = self._width - rank[:, -1:]
            self._places = (first + rank.clamp_min(1) - 1).clamp_max(self._width - 1)
            self.predicted = kept & (rank > 1)
        unique = [ids[image] for image in self._images.first]
        self._settings.handle.record(torch.stack(unique) if self._settings.stacked else unique)
        if not merged:
            return hidden
        whole = hidden.flatten(0, 1).index_copy(0, torch.cat(rows), torch.cat(merged))
        return whole.unflatten(0, hidden.shape[:2])

    def _select(
        self, hidden: Tensor, places: list[Tensor]
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """The ids kept of each image, and which rows of all are merged, into what.

        Args:
            hidden: ``[B, L, C]``.
            places: int64 ``[N]`` of each image, its rows among all ``B * L``.
        """
        assert self._keys is not None
        keys = self._keys.transpose(1, 2)  # [B, L, heads, d]
        num_heads, tokens = keys.shape[2], hidden.flatten(0, 1)
        keys = keys.flatten(2).flatten(0, 1)
        budget, sizes = self._settings.budget, self._images.sizes
        ids = [torch.arange(size, device=hidden.device) for size in sizes]
        rows, merged = [], []
        groups: dict[tuple[int, int], list[int]] = {}
        for image, grid in enumerate(self._images.grids):
            if sizes[image] > budget:
                groups.setdefault(grid, []).append(image)
        for grid, group in groups.items():
            index = torch.stack([places[image] for image in group])
            evidence = Evidence(
                tokens[index], tokens[index], keys=keys[index], num_heads=num_heads, grid=grid
            )
            selected = ask(self._settings.selector, evidence, budget)
            for image, chosen in zip(group, selected.ids, strict=True):
                ids[image] = chosen
            if selected.tokens is not None:
                rows.append(index.gather(1, selected.ids).flatten())
                merged.append(selected.tokens.flatten(0, 1).to(hidden.dtype))
        return ids, rows, merged

    def _replace(self, given: dict[str, Any]) -> None:
        """Makes what layers are given fit the columns that are left, and the cache know of them."""
        left, cache = self._left, read_cache(given)
        width = left.columns.shape[1]
        length = width if cache is None else cache.get_mask_sizes(width, left.layer)[0]
        self._replaced = {
            "attention_mask": cut_mask(
                given.get("attention_mask"),
                left.columns,
                left.valid,
                left.padded,
                length,
                self._settings.flash,
            ),
            "position_embeddings": tuple(
                take_positions(part, left.columns) for part in given["position_embeddings"]
            ),
            # For flash attention, which would take gaps in it for prompts packed into one row.
            "position_ids": text_positions(left.valid),
        }
        if cache is not None:
            # Guessed tokens may be among the tail, and are cropped where they were wrong.
            remember(cache, left.cut(self._tail))


class _KeyTap:
    """Stands for a layer's cache, or for none, and keeps the keys that are put into it."""

    def __init__(self, cache: Any) -> None:
        self._cache = cache
        self.keys: Tensor | None = None  # [B, heads, L, d], after the rotary embedding

    def update(
        self, keys: Tensor, values: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        self.keys = keys
        if self._cache is None:
            return keys, values
        both: tuple[Tensor, Tensor] = self._cache.update(keys, values, *args, **kwargs)
        return both


def count_columns(
    placeholders: list[int], attended: list[int], sizes: Sequence[int], budget: int
) -> list[int]:
    """Columns that each row keeps.

    Args:
        placeholders: of each row.
        attended: columns of each row that are no padding.
        sizes: tokens of each image, row by row.
        budget: tokens kept of each.

    Raises:
        ValueError: the images do not fit the placeholders.
    """
    ends = list(accumulate(placeholders))
    dropped, row, end = [0] * len(ends), 0, 0
    for size in sizes:
        end += size
        while row < len(ends) and ends[row] < end:
            row += 1
        if row == len(ends) or end - size < ends[row] - placeholders[row]:
            break
        dropped[row] += size - min(size, budget)
    else:
        if end == sum(placeholders):
            return [columns - lost for columns, lost in zip(attended, dropped, strict=True)]
    raise ValueError(
        f"input_ids: rows of {placeholders} image placeholders, which are no whole images; "
        f"the images have {list(sizes)} tokens"
    )
