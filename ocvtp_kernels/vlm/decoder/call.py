"""A prompt whose image tokens are dropped between layers of its language model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ocvtp_kernels.ops.argmax_gather import gather_tokens
from ocvtp_kernels.selectors.interface import SelectorInputs, Stage, run_selector
from ocvtp_kernels.vlm.columns import (
    drop_placeholders,
    kept_bounds,
    renumber,
    require_one_sample,
    text_positions,
)
from ocvtp_kernels.vlm.decoder.cache import Columns, Layer, Rotary, remember
from ocvtp_kernels.vlm.decoder.masks import cut_mask, take_positions
from ocvtp_kernels.vlm.decoder.text import (
    TextRows,
    find_raters,
    largest_keys,
    last_rows,
    project,
    rows_behind,
    text_attention,
)
from ocvtp_kernels.vlm.family import ImageReference
from ocvtp_kernels.vlm.handle import CallRecord
from ocvtp_kernels.vlm.layer_call import cache_name, read_cache, with_cache

# The fields of `SelectorInputs` that are available in the decoder, but for the grid of images whose
# tokens are none.
AVAILABLE_FIELDS = frozenset(
    {
        *("reference_tokens", "final_tokens", "keys", "num_heads", "grid", "text_attention"),
        "text_pivots",
    }
)

StageIds = list[tuple[int, list[Tensor]]]  # of each stage its layer, and the ids of each image


class Images(NamedTuple):
    """The images of a call, in the order of their placeholders."""

    sizes: list[int]  # tokens of each
    grids: list[tuple[int, int] | None]  # rows and columns of each
    references: list[ImageReference | None]
    first: list[int]  # indices without the repetitions for other beams

    def candidates(self, budget: int) -> list[int]:
        """How many tokens of each may be kept: all of an image of no more than the budget."""
        pairs = zip(self.sizes, self.references, strict=True)
        return [
            size if each is None or size <= budget else len(each.tokens) for size, each in pairs
        ]


class Settings(NamedTuple):
    """The settings of all calls."""

    stages: tuple[Stage, ...]
    budget: int  # an image of no more tokens keeps all of them
    depth: int  # layers
    reads: frozenset[str]  # fields of `SelectorInputs` that the selector reads
    text_rows: str  # see `SelectorAttributes`
    text_layer: str
    num_text_pivots: int
    final_norm: Callable[[Tensor], Tensor] | None  # of the language model; None: not asked for
    rotary: Rotary  # of the language model
    renumbers: bool  # whether kept tokens get consecutive positions

    @property
    def reads_text(self) -> bool:
        """Whether attention received from text is read."""
        return "text_attention" in self.reads

    @property
    def reads_pivots(self) -> bool:
        """Whether text pivots are read."""
        return "text_pivots" in self.reads

    @property
    def taps_attention(self) -> bool:
        """Whether the layer before a stage has to tell its keys."""
        reads_attention = self.reads_text and self.text_layer == "before"
        return "keys" in self.reads or self.reads_pivots or reads_attention

    def kept_sizes(self, candidates: Sequence[int], sizes: Sequence[int]) -> list[list[int]]:
        """By stage, the tokens that images keep.

        Args:
            candidates: tokens of each that may be kept.
            sizes: tokens of each.

        Raises:
            ValueError: a stage keeps none.
        """
        by_stage, now = [], list(candidates)
        for stage in self.stages:
            kept = [min(size, stage.count(size)) for size in now]
            if min(kept, default=1) < 1:
                raise ValueError(f"stages: expected at least 1 token of an image, got {kept}")
            now = [
                size if whole <= self.budget else count
                for whole, size, count in zip(sizes, now, kept, strict=True)
            ]
            by_stage.append(now)
        return by_stage


class Shape(NamedTuple):
    """What is known of a prompt's columns before its layers run."""

    sizes: list[list[int]]  # by stage, the tokens that each image keeps
    counts: list[list[int]]  # by stage, the columns that each row keeps
    tail: int  # columns behind all images, none of them dropped or padding
    rows: list[int]  # of each image its row
    num_text: list[int]  # of each row the text that it has behind its images, at least 1
    by_layer: bool  # whether every layer's output is returned, and so must have all columns
    num_deep: int  # first layers behind which the model adds features to all image columns


class ColumnKinds(NamedTuple):
    """What a prompt's columns are: bool ``[B, L]``."""

    is_image: Tensor  # the placeholders
    attended: Tensor  # False on padding
    asked: Tensor  # False on padding and on an answer to learn, which must not choose tokens


class Layout(NamedTuple):
    """The columns of the layers from a stage on."""

    columns: Tensor  # int64 [B, W], index in the whole prompt
    valid: Tensor  # bool [B, W], False: padding
    output_index: Tensor  # int64 [B, L], the kept column whose output each column has
    arguments: dict[str, Any]  # of the layers


class Merged(NamedTuple):
    """Hidden states that a stage replaces."""

    rows: list[Tensor]  # int64, among those of all prompts
    values: list[Tensor]  # [rows, C]


class Prefill:
    """A prompt, layer by layer: from each stage on with fewer columns.

    Args:
        settings: of the selector.
        record: of the call.
        report: takes the ids kept, by stage, of each image, without repetitions for other beams.
        images, kinds, shape: of the prompt.
        flash: see `cut_mask`.
    """

    def __init__(
        self,
        settings: Settings,
        record: CallRecord,
        report: Callable[[StageIds], None],
        images: Images,
        kinds: ColumnKinds,
        shape: Shape,
        flash: bool,
    ) -> None:
        self._settings, self._images, self._shape = settings, images, shape
        self._record, self._report, self._flash = record, report, flash
        self._is_image, self._attended, self._asked = kinds
        self._rows: TextRows | None = None
        device = self._is_image.device
        self._ids = [torch.arange(size, device=device) for size in images.sizes]
        # Layers may run again, for their gradients, so what a stage has done is kept.
        self._layouts: list[Layout | None] = [None]  # before the first stage and behind each
        self._merged: list[Merged] = []  # of each stage
        self._stage_ids: StageIds = []
        self._columns: list[Columns] = []
        self._keys: Tensor | None = None  # [B, heads, W, d] of the layer before the next stage
        self._text_attention: Tensor | None = None  # [B, W], likewise
        self.predicted: Tensor  # bool [B, L], kept tokens behind another kept one

    def run(
        self, layer: Layer, module: Any, index: int, hidden: Tensor, given: dict[str, Any]
    ) -> Tensor:
        """The output of a layer for ``hidden`` and its other arguments.

        Args:
            layer: its own forward.
            module: the layer.
            index: of the layer, from 0.
            hidden: ``[B, L or W, C]``.
            given: its other arguments.
        """
        if index == 0 and self._rows is None and self._settings.reads_text:
            self._rows = self._find_rows(hidden)
        stages = self._settings.stages
        stage = sum(each.layer < index for each in stages)  # the next one
        layout = self._layouts[stage]
        if layout is not None and self._returns_all(index - 1):
            hidden = gather_tokens(hidden, layout.columns)
        if stage < len(stages) and stages[stage].layer == index:
            if stage == len(self._merged):
                self._choose(module, hidden, given)
            hidden = self._leave_out(stage, hidden)
            layout = self._layouts[stage + 1]
        if layout is None:
            return layer(hidden, **given)
        output = layer(hidden, **given | layout.arguments)
        return gather_tokens(output, layout.output_index) if self._returns_all(index) else output

    def _returns_all(self, index: int) -> bool:
        """Whether the output of a layer has all columns: for who reads it, or adds to it."""
        is_read = self._shape.by_layer or index == self._settings.depth - 1
        return is_read or index < self._shape.num_deep

    @torch.no_grad()
    def _find_rows(self, embeddings: Tensor) -> TextRows:
        if self._settings.text_rows == "last":
            return last_rows(self._asked)
        num_text = max(self._shape.num_text)
        return find_raters(embeddings.detach(), self._is_image, self._asked, num_text)

    def attend(self, stage: int, attention: Layer, module: Any, given: dict[str, Any]) -> Any:
        """The output of the attention of the layer before a stage, whose keys this one reads.

        Args:
            stage: from 0.
            attention: its own forward.
            module: the attention.
            given: the arguments of the call.
        """
        if stage < len(self._merged) or not self._drops(stage):
            return attention(**given)
        tap = _KeyTap(read_cache(given))
        output = attention(**with_cache(given, cache_name(attention), tap))
        assert tap.keys is not None
        self._keys = tap.keys.detach()
        if self._settings.reads_text and self._settings.text_layer == "before":
            embeddings = given["position_embeddings"]
            self._score(module, given["hidden_states"], self._keys, embeddings)
        return output

    @torch.no_grad()
    def _score(self, attention: Any, normed: Tensor, keys: Tensor, embeddings: Any) -> None:
        """Notes what the text attends to at a layer of the present columns."""
        assert self._rows is not None
        layout, rows = self._layouts[-1], self._present(self._rows)
        valid = self._attended if layout is None else layout.valid
        with self._record.stage("pruner", normed.device):
            given = (attention, normed.detach(), keys, embeddings, rows, valid)
            self._text_attention = text_attention(*given)

    def _present(self, rows: TextRows) -> TextRows:
        """Rows of the whole prompt in the present columns."""
        layout = self._layouts[-1]
        if layout is None:
            return rows
        return rows._replace(columns=layout.output_index.gather(1, rows.columns))

    def _find_pivots(self) -> Tensor:
        """Of the text pivots of each prompt, largest first, their rows among the present columns
        of all prompts: int64 ``[B, P]``."""
        assert self._keys is not None
        num_text = max(self._shape.num_text)
        rows = self._present(rows_behind(self._is_image, self._asked, num_text))
        columns = largest_keys(self._keys, rows, min(self._settings.num_text_pivots, num_text))
        batch, _, width, _ = self._keys.shape
        return columns + width * torch.arange(batch, device=columns.device)[:, None]

    def _drops(self, stage: int) -> bool:
        """Whether any image loses tokens at a stage."""
        return self._shape.sizes[stage] != [len(ids) for ids in self._ids]

    def _choose(self, module: Any, hidden: Tensor, given: dict[str, Any]) -> None:
        """Chooses what the next stage keeps.

        Args:
            module: the layer behind it.
            hidden: ``[B, W, C]``, of the present columns.
            given: the layer's other arguments.
        """
        stage, stages = len(self._merged), self._settings.stages
        if self._drops(stage):
            self._read_references()
            if self._settings.reads_text and self._settings.text_layer == "behind":
                self._score_behind(module, hidden, given)
            with self._record.stage("pruner", hidden.device), torch.no_grad():
                self._merged.append(self._select(hidden.detach()))
            self._layouts.append(self._lay_out(hidden, given))
            self._keys = self._text_attention = None
        else:
            self._merged.append(Merged([], []))
            self._layouts.append(self._layouts[-1])
        ids = [self._ids[image] for image in self._images.first]
        self._stage_ids.append((stages[stage].layer, ids))
        if stage + 1 == len(stages):
            self._report(self._stage_ids)

    def _leave_out(self, stage: int, hidden: Tensor) -> Tensor:
        """The hidden states of the columns that a stage keeps, with merged tokens in them."""
        before, after = self._layouts[stage : stage + 2]
        if after is before or after is None:
            return hidden
        rows, values = self._merged[stage]
        if values:
            flat = hidden.flatten(0, 1).index_copy(0, torch.cat(rows), torch.cat(values))
            hidden = flat.unflatten(0, hidden.shape[:2])
        columns = after.columns
        return gather_tokens(
            hidden, columns if before is None else before.output_index.gather(1, columns)
        )

    def _read_references(self) -> None:
        """Leaves out tokens that no reference token stands for, of images that lose tokens."""
        if self._merged or "reference_tokens" not in self._settings.reads:
            return
        for image, reference in enumerate(self._images.references):
            assert reference is not None
            if reference.ids is not None and self._images.sizes[image] > self._settings.budget:
                self._ids[image] = reference.ids

    @torch.no_grad()
    def _score_behind(self, module: Any, hidden: Tensor, given: dict[str, Any]) -> None:
        """As `_score`, by queries and keys that a layer makes of the present columns."""
        layout = self._layouts[-1]
        embeddings = (given if layout is None else layout.arguments)["position_embeddings"]
        with self._record.stage("pruner", hidden.device):
            normed = module.input_layernorm(hidden.detach())
            keys = project(module.self_attn, "k", normed, embeddings)
        self._score(module.self_attn, normed, keys, embeddings)

    @torch.no_grad()
    def _lay_out(self, hidden: Tensor, given: dict[str, Any]) -> Layout:
        """The columns that the chosen ids leave."""
        length, width = self._is_image.shape[1], max(self._shape.counts[len(self._layouts) - 1])
        sizes = self._images.sizes
        with self._record.stage("pruner", hidden.device):
            is_kept = drop_placeholders(self._attended, self._is_image, self._ids, sizes)
            columns = is_kept.int().argsort(dim=1, stable=True)[:, length - width :]
            valid = is_kept.gather(1, columns)
            # A dropped column has the output of the kept one before it, which predicts the next.
            rank = is_kept.cumsum(1)
            output_index = (width - rank[:, -1:] + rank.clamp_min(1) - 1).clamp_max(width - 1)
            self.predicted = is_kept & (rank > 1)
        layout = Layout(columns, valid, output_index, {})
        return layout._replace(arguments=self._arguments(layout, is_kept, hidden, given))

    def _select(self, hidden: Tensor) -> Merged:
        """Chooses the ids that each image keeps, images of like sizes together.

        Args:
            hidden: ``[B, W, C]``, of the present columns.
        """
        settings, images, places = self._settings, self._images, self._find_places()
        number = len(self._merged)
        stage, counts = settings.stages[number], self._shape.sizes[number]
        if settings.final_norm is not None:
            hidden = settings.final_norm(hidden)
        pivots = self._find_pivots() if settings.reads_pivots else None
        by_token: dict[str, Tensor] = {"final_tokens": hidden.flatten(0, 1)}
        num_heads = None
        if self._keys is not None and "keys" in settings.reads:
            keys = self._keys.transpose(1, 2)  # [B, W, heads, d]
            num_heads, by_token["keys"] = keys.shape[2], keys.flatten(2).flatten(0, 1)
        if self._text_attention is not None:
            by_token["text_attention"] = self._text_attention.flatten()
        rows, merged = [], []
        groups: dict[Any, list[int]] = {}
        for image, ids in enumerate(self._ids):
            if len(ids) > counts[image]:
                grid = images.grids[image] if len(ids) == images.sizes[image] else None
                # Images of one group have as many pivots too.
                num_pivots = 0 if pivots is None else self._count_pivots(image)
                groups.setdefault((len(ids), counts[image], grid, num_pivots), []).append(image)
        for (size, count, grid, num_pivots), group in groups.items():
            of_group = torch.stack([places[image] for image in group])
            fields: dict[str, Any] = {name: part[of_group] for name, part in by_token.items()}
            fields["reference_tokens"] = fields["final_tokens"]
            if "reference_tokens" in settings.reads:
                fields["reference_tokens"] = torch.stack([self._reference(i) for i in group])
            if pivots is not None:
                text = [pivots[self._shape.rows[image], :num_pivots] for image in group]
                in_order = torch.stack(text).sort(dim=1).values
                fields["text_pivots"] = by_token["final_tokens"][in_order]
            ids = torch.stack([self._ids[image] for image in group])
            if any(images.sizes[image] > size for image in group):
                fields["ids"] = ids
            inputs = SelectorInputs(**fields, num_heads=num_heads, grid=grid)
            selected = run_selector(stage.selector, inputs, count)
            if settings.final_norm is not None and selected.tokens is not None:
                raise ValueError(
                    f"final_norm: expected no tokens of {type(stage.selector).__name__}, whose "
                    "inputs are no hidden states of the layer"
                )
            for image, kept in zip(group, ids.gather(1, selected.ids), strict=True):
                self._ids[image] = kept
            if selected.tokens is not None:
                rows.append(of_group.gather(1, selected.ids).flatten())
                merged.append(selected.tokens.flatten(0, 1).to(hidden.dtype))
        return Merged(rows, merged)

    def _count_pivots(self, image: int) -> int:
        return min(self._settings.num_text_pivots, self._shape.num_text[self._shape.rows[image]])

    def _find_places(self) -> list[Tensor]:
        """Of each image's tokens, their rows among the present columns of all prompts."""
        # Stable: the placeholders come first, in order.
        flat = (~self._is_image).flatten().int().argsort(stable=True)
        whole = flat[: sum(self._images.sizes)].split(self._images.sizes)
        kept = [image[ids] for image, ids in zip(whole, self._ids, strict=True)]
        layout = self._layouts[-1]
        if layout is None:
            return kept
        length, width = self._is_image.shape[1], layout.columns.shape[1]
        present = layout.output_index.flatten()
        return [image // length * width + present[image] for image in kept]

    def _reference(self, image: int) -> Tensor:
        """The reference tokens ``[n, C]`` of the tokens that an image still has."""
        reference, ids = self._images.references[image], self._ids[image]
        assert reference is not None
        index = ids if reference.ids is None else torch.searchsorted(reference.ids, ids)
        return reference.tokens[index]

    def _arguments(
        self, layout: Layout, is_kept: Tensor, hidden: Tensor, given: dict[str, Any]
    ) -> dict[str, Any]:
        """Makes the layers' arguments for the kept columns, and stores these on the cache."""
        number, cache = len(self._layouts) - 1, read_cache(given)
        index, columns, valid = self._settings.stages[number].layer, layout.columns, layout.valid
        width = columns.shape[1]
        padded = min(self._shape.counts[number]) < width
        length = width if cache is None else cache.get_mask_sizes(width, index)[0]
        mask = given.get("attention_mask")
        made = {
            "attention_mask": cut_mask(mask, columns, valid, padded, length, self._flash),
        } | self._tell_samples_apart(given, layout, is_kept, padded)
        dropped = None
        if self._settings.renumbers:
            missing = (self._attended & ~is_kept).cumsum(1)
            dropped = missing[:, -1]
            positions = (given["position_ids"] - missing).gather(1, columns).clamp_min(0)
            made["position_embeddings"] = self._settings.rotary(hidden, positions)
        else:
            whole = given["position_embeddings"]
            made["position_embeddings"] = tuple(take_positions(part, columns) for part in whole)
        if cache is not None:
            # Without the tail: it may hold speculated tokens, which are cropped if rejected.
            kept = Columns(columns, valid, padded, is_kept.shape[1], index, dropped)
            self._columns.append(kept.cut(self._shape.tail))
            remember(cache, self._columns)
        return made

    def _tell_samples_apart(
        self, given: dict[str, Any], layout: Layout, is_kept: Tensor, padded: bool
    ) -> dict[str, Any]:
        """Positions without gaps, and bounds, by which flash attention reads packed samples."""
        positions = given.get("position_ids")
        bounds = kept_bounds(given, is_kept, padded)
        if positions is None:
            return bounds | {"position_ids": text_positions(layout.valid)}
        if self._flash and padded and given.get("attention_mask") is None:
            require_one_sample(positions)
        return bounds | {"position_ids": renumber(positions, layout.columns, layout.valid)}


class _KeyTap:
    """In place of a layer's cache, or of none: stores the keys that are added to it."""

    def __init__(self, cache: Any) -> None:
        self._cache = cache
        self.keys: Tensor | None = None  # [B, heads, W, d], after the rotary embedding

    def update(
        self, keys: Tensor, values: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        self.keys = keys
        if self._cache is None:
            return keys, values
        both: tuple[Tensor, Tensor] = self._cache.update(keys, values, *args, **kwargs)
        return both
