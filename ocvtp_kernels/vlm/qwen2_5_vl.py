"""Qwen2.5-VL: image tokens are dropped from the prompt, the others keep their positions."""

from __future__ import annotations

import functools
import inspect
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ocvtp_kernels.selectors.interface import Selector, require_available
from ocvtp_kernels.selectors.oc_pruner import require_width
from ocvtp_kernels.vlm.columns import cached_length, drop_placeholders, text_positions
from ocvtp_kernels.vlm.handle import Handle, Method, Options
from ocvtp_kernels.vlm.layer_call import read_cache
from ocvtp_kernels.vlm.qwen_encoder import AVAILABLE_FIELDS, QwenEncoder
from ocvtp_kernels.vlm.qwen_prompt import (
    History,
    count_kept,
    new_images,
    next_position,
    positions_of,
    read_filler,
    read_grids,
    read_history,
    read_mask,
    recall,
    remember,
    shift_lengths,
    take_images,
)
from ocvtp_kernels.vlm.towers import resolve_reference

IGNORED_LABEL = -100

# Arguments that pruning replaces or uses up; all others are passed on.
_REPLACED = (
    "inputs",
    "input_ids",
    "attention_mask",
    "position_ids",
    "mm_token_type_ids",
    "pixel_values",
    "image_grid_thw",
    "labels",
)


def attach_qwen2_5_vl(
    model: Any, processor: Any, selector: Selector, budget: int, options: Options
) -> Handle:
    """Attaches a selector to a ``Qwen2_5_VLForConditionalGeneration``.

    The processor is unchanged: a prompt has all its placeholders, and `generate` returns it whole
    before the answer. Inside, the columns of the dropped tokens are taken out and the others keep
    their three-dimensional positions. Reference tokens are the mean of the 4 patches of a merged
    token, final tokens the merger's output; there is no importance. `forward` with
    ``pixel_values`` prunes as well, labels too: its logits have the kept columns only, short rows
    padded on the left. A prompt none of whose images has more tokens than the budget runs bitwise
    as the model alone. Videos are not pruned.

    Args:
        model: a ``Qwen2_5_VLForConditionalGeneration``.
        processor: not used.
        selector: chooses the tokens.
        budget: T, at least 1.
        options: ``newlines`` is not used. ``skip_unused_layers`` takes effect with a selector that
            reads no final tokens: the last block and the merger then compute the kept tokens alone.

    Raises:
        ValueError: the model is of another type, the pruner or the reference layer does not fit
            it, something is attached already, or transformers is older than 5.19.
    """
    visual = getattr(getattr(model, "model", None), "visual", None)
    if visual is None:
        raise ValueError(
            f"model: expected a Qwen2_5_VLForConditionalGeneration, got {type(model).__name__}"
        )
    if "mm_encoder_outputs" not in inspect.signature(model.forward).parameters:
        raise ValueError("model: pruning a Qwen2.5-VL needs transformers >= 5.19")
    require_width(selector, int(visual.config.hidden_size))
    require_available(selector, AVAILABLE_FIELDS)
    layer = resolve_reference(options.reference_layer, len(visual.blocks))
    handle = Handle(options.timed)
    encoder = QwenEncoder(selector, budget, layer, handle, options)
    handle.replace_methods(
        (model, "generate", functools.partial(_generate, encoder)),
        (model, "forward", functools.partial(_forward, encoder)),
    )
    return handle


class _Call(NamedTuple):
    """A call after pruning."""

    arguments: dict[str, Any]
    length: int  # kept columns of the prompt, those in the cache included
    history: History  # of the cache, once it holds the prompt


@torch.no_grad()
def _generate(encoder: QwenEncoder, original: Method, model: Any, given: dict[str, Any]) -> Any:
    prompts = given.get("inputs") if given.get("input_ids") is None else given["input_ids"]
    call = _prune(model, prompts, given, encoder)
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


def _forward(encoder: QwenEncoder, original: Method, model: Any, given: dict[str, Any]) -> Any:
    # Without pixels: text, a later token, or a call by generate, which has encoded the images.
    if given.get("pixel_values") is None:
        return original(**given)
    if cached_length(read_cache(given)):
        raise NotImplementedError(
            "past_key_values: forward prunes the images of a new prompt only; continue a "
            "conversation with generate"
        )
    call = _prune(model, given.get("input_ids"), given, encoder)
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


def _prune(
    model: Any, input_ids: Tensor | None, given: dict[str, Any], encoder: QwenEncoder
) -> _Call | None:
    """Encodes, selects and drops columns; None where nothing is pruned."""
    cache = read_cache(given)
    if given.get("pixel_values") is None and recall(cache) is None:
        return None
    if input_ids is None:
        raise ValueError("input_ids: needed to find the image tokens, got None")
    grids = read_grids(given)
    unit = model.config.vision_config.spatial_merge_size**2
    sizes = [t * h * w // unit for t, h, w in grids]
    if cached_length(cache) == 0 and max(sizes, default=0) <= encoder.budget:
        encoder.handle.record([torch.arange(size, device=input_ids.device) for size in sizes])
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
    is_kept, width = prompt.attended, max(columns)
    outputs = dict(given.get("mm_encoder_outputs") or {})
    if images:
        if "image" in outputs:
            raise ValueError("mm_encoder_outputs: expected no images beside pixel_values")
        added_sizes = [sizes[image] for image in images]
        pixels = take_images(given["pixel_values"], grids, images)
        added_grids = [grids[image] for image in images]
        ids, outputs["image"] = encoder.encode(model.model, pixels, added_grids)
        is_kept = drop_placeholders(is_kept, is_image[:, start:], ids, added_sizes)
        width = count_kept(columns, added, ids, added_sizes)
    filler = read_filler(model)
    kept = prompt.keep(is_kept, width, filler)
    arguments = {name: value for name, value in given.items() if name not in _REPLACED}
    if outputs:
        arguments["mm_encoder_outputs"] = outputs
    if given.get("labels") is not None:
        labels = given["labels"].gather(1, kept.columns)
        arguments["labels"] = labels.masked_fill(~kept.attended, IGNORED_LABEL)
    if history is not None:
        # Cached placeholders need no features any more.
        kept = kept.behind(history, input_ids.masked_fill(is_image, filler))
    mask = kept.attended.to(torch.int64)
    # From which transformers counts the positions of decoded tokens.
    model.model.rope_deltas = following[:, None] - mask.sum(1, keepdim=True)
    # Flash attention would read gaps in the text row as packed prompts.
    text = text_positions(kept.attended)[None]
    arguments |= {
        "input_ids": kept.input_ids,
        "attention_mask": mask,
        "position_ids": torch.cat([text, kept.positions]),
    }
    history = History(kept.columns, kept.attended, input_ids.shape[1], following)
    return _Call(arguments, kept.input_ids.shape[1], history)


def _count(is_image: Tensor, attended: Tensor, start: int) -> tuple[list[int], ...]:
    """Of each row: placeholders before column ``start``, those after, all columns after.

    Read at once, before the encoder runs, as each read waits for the device.
    """
    parts = (is_image[:, :start], is_image[:, start:], attended[:, start:])
    cached, added, columns = torch.stack([part.sum(1) for part in parts]).tolist()
    return cached, added, columns
