"""``generate`` and ``forward`` of a model inside which a prompt loses columns of dropped tokens."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from ocvtp_kernels.selectors.interface import Selector, require_available
from ocvtp_kernels.selectors.oc_pruner import require_fit
from ocvtp_kernels.vlm.columns import (
    IGNORED_LABEL,
    drop_placeholders,
    kept_bounds,
    renumber,
    require_one_sample,
    text_positions,
)
from ocvtp_kernels.vlm.columns.encoder import AVAILABLE_FIELDS, UnitEncoder
from ocvtp_kernels.vlm.columns.prompt import (
    History,
    KeptColumns,
    count_kept,
    new_images,
    next_position,
    positions_of,
    read_filler,
    read_history,
    read_mask,
    recall,
    remember,
    shift_lengths,
)
from ocvtp_kernels.vlm.columns.tower import UnitTower
from ocvtp_kernels.vlm.family import ImageReference, WatchReference
from ocvtp_kernels.vlm.handle import CallRecord, Handle, Options
from ocvtp_kernels.vlm.intercept import Intercepts, watch_layer
from ocvtp_kernels.vlm.layer_call import cached_length, read_cache
from ocvtp_kernels.vlm.replaced import Method
from ocvtp_kernels.vlm.towers import resolve_reference

# Arguments that pruning replaces or uses up; all others are passed on.
_REPLACED = (
    "inputs",
    "input_ids",
    "attention_mask",
    "position_ids",
    "mm_token_type_ids",
    "pixel_values",
    "pixel_values_videos",
    "image_grid_thw",
    "labels",
)


class GivenImages(Protocol):
    """The images of a call."""

    @property
    def sizes(self) -> list[int]:
        """Tokens of each image, row by row."""
        ...

    def encode(self, images: list[int], record: CallRecord) -> tuple[list[Tensor], Any]:
        """Encodes some of the images, given by their indices.

        Returns:
            ids int64 ``[T_i]`` of each, and the encoder's output with those tokens alone.
        """
        ...


class ImageEncoder(Protocol):
    """Encodes images and keeps ``budget`` tokens of each, or all where there are no more."""

    budget: int

    def read(self, model: Any, input_ids: Tensor, given: dict[str, Any]) -> GivenImages:
        """The images of a call.

        Args:
            model: the model.
            input_ids: int64 ``[B, L]``, the whole conversation.
            given: the arguments of the call.

        Raises:
            ValueError: the arguments do not fit each other.
        """
        ...


def attach_to_columns(
    make_tower: Callable[[Any], UnitTower],
    model: Any,
    processor: Any,
    selector: Selector,
    budget: int,
    options: Options,
) -> Handle:
    """Attaches a selector to a model of M-RoPE positions, such as Qwen2.5-VL.

    The processor is unchanged: a prompt has all its placeholders, and `generate` returns it whole
    before the answer. Inside, the columns of the dropped tokens are taken out and the others keep
    their three-dimensional positions. Reference tokens are the mean of the patches of a merged
    token, final tokens the merger's output; there is no importance. `forward` with
    ``pixel_values`` prunes as well, labels too: its logits have the kept columns only, short rows
    padded on the left. A prompt none of whose images has more tokens than the budget runs bitwise
    as the model alone. Videos are not pruned.

    Args:
        make_tower: describes the vision encoder.
        model: with its language model head.
        processor: not used.
        selector: chooses the tokens.
        budget: T, at least 1.
        options: ``newlines`` is not used. ``skip_unused_layers`` takes effect with a selector that
            reads no final tokens: the last block and the mergers then compute the kept tokens
            alone.

    Raises:
        ValueError: the model has no head, the pruner or the reference layer does not fit it,
            something is attached already, or transformers is older than 5.19.
    """
    visual = getattr(getattr(model, "model", None), "visual", None)
    if visual is None:
        raise ValueError(
            f"model: expected one for conditional generation, got {type(model).__name__}"
        )
    require_outputs(model)
    tower = make_tower(visual)
    require_fit(selector, tower.width, one_size=False)
    require_available(selector, AVAILABLE_FIELDS)
    layer = resolve_reference(options.reference_layer, len(tower.blocks))
    encoder = UnitEncoder(make_tower, selector, budget, layer, options)
    pruning = ColumnPruning(encoder, Handle(options.timed))
    pruning.handle.replace_methods(
        (model, "generate", pruning.generate), (model, "forward", pruning.forward)
    )
    return pruning.handle


def require_outputs(model: Any) -> None:
    """Raises ValueError unless a model's forward takes encoded images."""
    if "mm_encoder_outputs" not in inspect.signature(model.forward).parameters:
        raise ValueError(f"model: pruning a {type(model).__name__} needs transformers >= 5.19")


class _Call(NamedTuple):
    """A call after pruning."""

    arguments: dict[str, Any]
    length: int  # kept columns of the prompt, those in the cache included
    history: History  # of the cache, once it holds the prompt


class ColumnPruning:
    """What runs instead of the methods of a model.

    Args:
        encoder: of the images.
        handle: of the selector.
    """

    def __init__(self, encoder: ImageEncoder, handle: Handle) -> None:
        self.encoder, self.handle = encoder, handle

    @torch.no_grad()
    def generate(self, original: Method, model: Any, given: dict[str, Any]) -> Any:
        """As the model's own, with the whole prompt before the answer."""
        prompts = given.get("inputs") if given.get("input_ids") is None else given["input_ids"]
        call = self._prune(model, prompts, given)
        if call is None or prompts is None:
            return original(**given)
        dropped = prompts.shape[1] - call.length
        output = original(**(call.arguments | shift_lengths(model, given, dropped)))
        sequences = output if isinstance(output, Tensor) else output.sequences
        prompts = prompts.to(sequences.device)
        if len(sequences) > len(prompts):
            prompts = prompts.repeat_interleave(len(sequences) // len(prompts), 0)
        sequences = torch.cat([prompts, sequences[:, call.length :]], 1)
        remember(output, given, call.history)
        if isinstance(output, Tensor):
            return sequences
        output.sequences = sequences
        return output

    def forward(self, original: Method, model: Any, given: dict[str, Any]) -> Any:
        """As the model's own, with logits of the kept columns."""
        # Without pixels: text, a later token, or a call by generate, which has encoded the images.
        if given.get("pixel_values") is None:
            return original(**_follow(given))
        if cached_length(read_cache(given)):
            raise NotImplementedError(
                "past_key_values: forward prunes the images of a new prompt only; continue a "
                "conversation with generate"
            )
        call = self._prune(model, given.get("input_ids"), given)
        if call is None:
            return original(**given)
        if isinstance(given.get("logits_to_keep"), Tensor):
            raise NotImplementedError(
                "logits_to_keep: expected a number of last columns, got indices, which dropped "
                "columns do not have"
            )
        output = original(**call.arguments)
        remember(output, given, call.history)
        return output

    def _prune(self, model: Any, input_ids: Tensor | None, given: dict[str, Any]) -> _Call | None:
        """Encodes, selects and drops columns; None where nothing is pruned."""
        cache, encoder = read_cache(given), self.encoder
        if given.get("pixel_values") is None and recall(cache) is None:
            return None
        if input_ids is None:
            raise ValueError("input_ids: needed to find the image tokens, got None")
        given_images = encoder.read(model, input_ids, given)
        sizes = given_images.sizes
        if cached_length(cache) == 0 and max(sizes, default=0) <= encoder.budget:
            ids = [torch.arange(size, device=input_ids.device) for size in sizes]
            self.handle.begin().finish(ids)
            return None
        if cached_length(cache) and given.get("pixel_values_videos") is not None:
            raise NotImplementedError("pixel_values_videos: expected none with past_key_values")
        attended = read_mask(model, input_ids, given)
        is_image = (input_ids == model.config.image_token_id) & attended
        history = read_history(model, input_ids, attended, is_image, sizes, given)
        start = 0 if history is None else history.length
        cached, added, columns = _count(is_image, attended, start)
        images = new_images(sizes, cached, added)
        prompt = positions_of(model, input_ids[:, start:], attended[:, start:], images, given)
        if history is not None:
            prompt = prompt.after(history)
        following = next_position(prompt.positions)
        is_kept, counts = prompt.attended, columns
        outputs = _encode_videos(model, given)
        if images:
            if "image" in outputs:
                raise ValueError("mm_encoder_outputs: expected no images beside pixel_values")
            of_added = [sizes[image] for image in images]
            ids, outputs["image"] = given_images.encode(images, self.handle.begin())
            is_kept = drop_placeholders(is_kept, is_image[:, start:], ids, of_added)
            counts = count_kept(columns, added, ids, of_added)
        filler = read_filler(model)
        kept = prompt.keep(is_kept, counts, filler)
        if history is not None and kept.is_padded and _has_states(model):
            raise NotImplementedError(
                "past_key_values: expected rows that add as many columns each, since layers of "
                "linear attention take padding behind a cache for tokens"
            )
        arguments = {name: value for name, value in given.items() if name not in _REPLACED}
        if outputs:
            arguments["mm_encoder_outputs"] = outputs
        if given.get("labels") is not None:
            labels = given["labels"].gather(1, kept.columns)
            arguments["labels"] = labels.masked_fill(~kept.attended, IGNORED_LABEL)
        if given.get("seq_idx") is not None:
            arguments["seq_idx"] = given["seq_idx"].gather(1, kept.columns)
        arguments |= kept_bounds(given, is_kept, kept.is_padded)
        if history is not None:
            # Cached placeholders need no features any more.
            kept = kept.behind(history, input_ids.masked_fill(is_image, filler))
        arguments |= _tell_samples_apart(model, given, kept) | {"input_ids": kept.input_ids}
        length, axes = input_ids.shape[1], len(kept.positions)
        history = History(kept.columns, kept.attended, length, following, axes)
        return _Call(arguments, kept.input_ids.shape[1], history)


def _follow(given: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a call without images: behind a pruned prompt, with the positions."""
    history = None if given.get("position_ids") is not None else recall(read_cache(given))
    tokens = given.get("inputs_embeds")
    tokens = given.get("input_ids") if tokens is None else tokens
    if history is None or tokens is None:
        return given
    length, (rows, added) = cached_length(read_cache(given)), tokens.shape[:2]
    positions = history.positions_after(length, added, given.get("attention_mask"), rows)
    return given | {"position_ids": positions}


def _encode_videos(model: Any, given: dict[str, Any]) -> dict[str, Any]:
    """What is encoded already, and the videos, which are not pruned."""
    outputs = dict(given.get("mm_encoder_outputs") or {})
    pixels = given.get("pixel_values_videos")
    if pixels is not None:
        grid = given.get("video_grid_thw")
        outputs["video"] = model.model.get_video_features(pixels, grid, return_dict=True)
    return outputs


def _tell_samples_apart(model: Any, given: dict[str, Any], kept: KeptColumns) -> dict[str, Any]:
    """Mask and positions of the kept columns, the row of text positions in front.

    Without a mask transformers reads from that row which samples were packed.
    """
    positions, mask = given.get("position_ids"), given.get("attention_mask")
    # A gap in the row would be read as another sample.
    text = text_positions(kept.attended)
    tells_samples = False
    if positions is not None and mask is None and (positions.ndim == 2 or len(positions) == 4):
        whole = positions if positions.ndim == 2 else positions[0]
        text = renumber(whole, kept.columns, kept.attended)
        # With a cache nothing reads the row, and padding has to be hidden by a mask; states of
        # linear attention never read it.
        is_read = given.get("use_cache") is False and not _has_states(model)
        tells_samples = is_read or not kept.is_padded
        if not tells_samples:
            require_one_sample(whole)
    return {
        "attention_mask": None if tells_samples else kept.attended.to(torch.int64),
        "position_ids": torch.cat([text[None], kept.positions]),
    }


def _has_states(model: Any) -> bool:
    """Whether the language model has layers of linear attention."""
    types = getattr(model.config.get_text_config(), "layer_types", None)
    return "linear_attention" in (types or ())


def find_reference(
    make_tower: Callable[[Any], UnitTower],
    inner: Any,
    layer: int | None,
    selectors: Sequence[Selector],
) -> WatchReference:
    """See `InDecoder.find_reference`."""
    tower = make_tower(inner.visual)
    for selector in selectors:
        require_fit(selector, tower.width, one_size=False)
    resolved = resolve_reference(layer, len(tower.blocks))
    return partial(_watch_reference, make_tower, resolved)


def _watch_reference(
    make_tower: Callable[[Any], UnitTower],
    layer: int,
    inner: Any,
    given: dict[str, Any],
    intercepts: Intercepts,
) -> Callable[[], list[ImageReference]]:
    tower, grid = make_tower(inner.visual), given["image_grid_thw"].cpu()
    sizes = (grid.prod(1) // tower.unit).tolist()
    order = tower.unit_order(tower.arguments(grid, given["pixel_values"].device))
    read = watch_layer(intercepts, tower.blocks[layer])

    def references() -> list[ImageReference]:
        units = tower.average_units(read(), None if order is None else order.argsort())
        return [ImageReference(image) for image in units.split(sizes)]

    return references


def read_grids(inner: Any, given: dict[str, Any]) -> list[tuple[int, int]]:
    """Rows and columns of each image of a call, in merged tokens."""
    merge = inner.config.vision_config.spatial_merge_size
    grids = given["image_grid_thw"].tolist()
    return [(t * h // merge, w // merge) for t, h, w in grids]


def _count(is_image: Tensor, attended: Tensor, start: int) -> tuple[list[int], ...]:
    """Of each row: placeholders before column ``start``, those after, all columns after.

    Read at once, before the encoder runs, as each read waits for the device.
    """
    counts = torch.stack([is_image, attended])[..., start:].sum(2)
    if start == 0:
        added, columns = counts.tolist()
        return [0] * len(added), added, columns
    cached, added, columns = torch.cat([is_image[None, :, :start].sum(2), counts]).tolist()
    return cached, added, columns
