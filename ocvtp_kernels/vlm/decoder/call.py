"""A prompt whose image tokens are dropped between two layers of its language model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ocvtp_kernels.ops.argmax_gather import gather_tokens
from ocvtp_kernels.selectors.interface import Selector, SelectorInputs, run_selector
from ocvtp_kernels.vlm.columns import (
    drop_placeholders,
    kept_bounds,
    renumber,
    require_one_sample,
    text_positions,
)
from ocvtp_kernels.vlm.decoder.cache import Columns, Layer, remember
from ocvtp_kernels.vlm.decoder.masks import cut_mask, take_positions
from ocvtp_kernels.vlm.handle import CallRecord
from ocvtp_kernels.vlm.layer_call import cache_name, read_cache, with_cache

# The fields of `SelectorInputs` that are available in the decoder.
AVAILABLE_FIELDS = frozenset({"reference_tokens", "final_tokens", "keys", "num_heads", "grid"})


class Images(NamedTuple):
    """The images of a call, in the order of their placeholders."""

    sizes: list[int]  # tokens of each
    grids: list[tuple[int, int]]  # rows and columns of each
    first: list[int]  # indices without the repetitions for other beams


class Settings(NamedTuple):
    """The settings of all calls."""

    selector: Selector
    budget: int
    layer: int  # before which tokens are dropped
    depth: int  # layers


class Shape(NamedTuple):
    """What is known of a prompt's columns before its layers run."""

    counts: list[int]  # columns that each row keeps
    tail: int  # columns behind all images, none of them dropped or padding
    by_layer: bool  # whether every layer's output is returned, and so must have all columns
    num_deep: int  # first layers behind which the model adds features to all image columns


class Prefill:
    """A prompt, layer by layer: all columns before ``layer``, the kept ones from there on.

    Args:
        settings: selector, budget and layer.
        record: of the call.
        report: takes the ids kept of each image, without repetitions for other beams.
        images: of the prompt.
        is_image: bool ``[B, L]``, the placeholders.
        attended: bool ``[B, L]``, False on padding.
        shape: of the prompt.
        flash: see `cut_mask`.
    """

    def __init__(
        self,
        settings: Settings,
        record: CallRecord,
        report: Callable[[list[Tensor]], None],
        images: Images,
        is_image: Tensor,
        attended: Tensor,
        shape: Shape,
        flash: bool,
    ) -> None:
        self._settings, self._images, self._shape = settings, images, shape
        self._record, self._report, self._flash = record, report, flash
        self._is_image, self._attended = is_image, attended
        self._width = max(shape.counts)
        self._padded = min(shape.counts) < self._width
        self._keys: Tensor | None = None
        self._kept: Columns
        self._is_kept: Tensor  # bool [B, L]
        self._output_index: Tensor  # int64 [B, L], the kept column whose output each column has
        self._replaced: dict[str, Any] = {}
        self.predicted: Tensor  # bool [B, L], kept tokens behind another kept one

    def run(self, layer: Layer, index: int, hidden: Tensor, given: dict[str, Any]) -> Tensor:
        """The output of the layer ``index`` for ``hidden`` and its other arguments."""
        start = self._settings.layer
        if index < start:
            return layer(hidden, **given)
        if index == start:
            hidden = self._drop(hidden)
            self._replace(given)
        if index == start or self._returns_all(index - 1):
            hidden = gather_tokens(hidden, self._kept.columns)
        output = layer(hidden, **given | self._replaced)
        return gather_tokens(output, self._output_index) if self._returns_all(index) else output

    def _returns_all(self, index: int) -> bool:
        """Whether the output of a layer has all columns: for who reads it, or adds to it."""
        is_read = self._shape.by_layer or index == self._settings.depth - 1
        return is_read or index < self._shape.num_deep

    def attend(self, attention: Callable[..., Any], given: dict[str, Any]) -> Any:
        """The output of the attention of the layer before ``layer``; stores its keys.

        Args:
            attention: its own forward.
            given: the arguments of the call.
        """
        tap = _KeyTap(read_cache(given))
        output = attention(**with_cache(given, cache_name(attention), tap))
        assert tap.keys is not None
        self._keys = tap.keys.detach()
        return output

    def _drop(self, hidden: Tensor) -> Tensor:
        """Selects the kept columns; returns the hidden states with merged tokens in them."""
        sizes, length = self._images.sizes, hidden.shape[1]
        with self._record.stage("pruner", hidden.device), torch.no_grad():
            # Stable: the placeholders come first, in order.
            flat = (~self._is_image).flatten().int().argsort(stable=True)[: sum(sizes)]
            ids, rows, merged = self._select(hidden.detach(), list(flat.split(sizes)))
            is_kept = drop_placeholders(self._attended, self._is_image, ids, sizes)
            order = is_kept.int().argsort(dim=1, stable=True)[:, length - self._width :]
            valid = is_kept.gather(1, order)
            self._kept = Columns(order, valid, self._padded, length, self._settings.layer)
            # A dropped column has the output of the kept one before it, which predicts the next.
            rank = is_kept.cumsum(1)
            first = self._width - rank[:, -1:]
            self._output_index = (first + rank.clamp_min(1) - 1).clamp_max(self._width - 1)
            self.predicted = is_kept & (rank > 1)
        self._is_kept = is_kept
        self._report([ids[image] for image in self._images.first])
        if not merged:
            return hidden
        flat_hidden = hidden.flatten(0, 1).index_copy(0, torch.cat(rows), torch.cat(merged))
        return flat_hidden.unflatten(0, hidden.shape[:2])

    def _select(
        self, hidden: Tensor, index: list[Tensor]
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Runs the selector on the images of each grid.

        Args:
            hidden: ``[B, L, C]``.
            index: int64 ``[N]`` of each image, its rows among all ``B * L``.

        Returns:
            the kept ids of each image, and of merged tokens the rows and the values.
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
            of_group = torch.stack([index[image] for image in group])
            states = tokens[of_group]
            inputs = SelectorInputs(
                states, states, keys=keys[of_group], num_heads=num_heads, grid=grid
            )
            selected = run_selector(self._settings.selector, inputs, budget)
            for image, kept in zip(group, selected.ids, strict=True):
                ids[image] = kept
            if selected.tokens is not None:
                rows.append(of_group.gather(1, selected.ids).flatten())
                merged.append(selected.tokens.flatten(0, 1).to(hidden.dtype))
        return ids, rows, merged

    def _replace(self, given: dict[str, Any]) -> None:
        """Makes the layers' arguments for the kept columns, and stores these on the cache."""
        kept, cache = self._kept, read_cache(given)
        width = kept.columns.shape[1]
        length = width if cache is None else cache.get_mask_sizes(width, kept.layer)[0]
        self._replaced = {
            "attention_mask": cut_mask(
                given.get("attention_mask"),
                kept.columns,
                kept.valid,
                kept.padded,
                length,
                self._flash,
            ),
            "position_embeddings": tuple(
                take_positions(part, kept.columns) for part in given["position_embeddings"]
            ),
        } | self._tell_samples_apart(given)
        if cache is not None:
            # Without the tail: it may hold speculated tokens, which are cropped if rejected.
            remember(cache, kept.cut(self._shape.tail))

    def _tell_samples_apart(self, given: dict[str, Any]) -> dict[str, Any]:
        """Positions without gaps, and bounds, by which flash attention reads packed samples."""
        positions, kept = given.get("position_ids"), self._kept
        bounds = kept_bounds(given, self._is_kept, kept.padded)
        if positions is None:
            return bounds | {"position_ids": text_positions(kept.valid)}
        if self._flash and kept.padded and given.get("attention_mask") is None:
            require_one_sample(positions)
        return bounds | {"position_ids": renumber(positions, kept.columns, kept.valid)}


class _KeyTap:
    """In place of a layer's cache, or of none: stores the keys that are added to it."""

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
