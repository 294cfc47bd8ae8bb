"""Pruning inside the language model: all image tokens up to a layer, the budget from there on."""

from __future__ import annotations

import functools
import inspect
from typing import Any, cast

import torch
from torch import Tensor

from ocvtp_kernels import checks
from ocvtp_kernels.selectors.interface import Selector, SelectorAttributes, require_available
from ocvtp_kernels.vlm.decoder_cache import Continuation, require_new, resume
from ocvtp_kernels.vlm.decoder_call import (
    AVAILABLE_FIELDS,
    Images,
    Prefill,
    Settings,
    count_columns,
)
from ocvtp_kernels.vlm.decoder_images import (
    OUTPUTS,
    PIXELS,
    encode,
    grid_of,
    hand_over,
    read_llava_grids,
    read_qwen_grids,
    record_grids,
    reuse_encoded_videos,
    takes_outputs,
)
from ocvtp_kernels.vlm.decoder_masks import read_attended, takes_flat_masks
from ocvtp_kernels.vlm.handle import Handle, Method, Options, Replacement
from ocvtp_kernels.vlm.layer_call import CALL, read_cache, require_known_layer

IGNORED_LABEL = -100
_REPORT = "ocvtp_report"  # an argument that transformers passes on, as CALL


def attach_decoder(
    model: Any, processor: Any, selector: Selector, budget: int, options: Options
) -> Handle:
    """Attaches a selector to the language model of a LLaVA-1.5 or Qwen2.5-VL.

    The prompt keeps all its placeholders. Before layer ``selector.layer`` (2 if it has none) the
    selector chooses from every image's hidden states, with the keys of the layer before (after the
    rotary embedding, KV heads side by side); later layers have the kept columns alone, at their
    original positions. The key-value cache is as long as the prompt below that layer, shorter from
    it on. The output has all columns: a dropped one has the output of the kept one before it, or
    of the first one. Attention weights of the later layers have the kept columns only. With
    labels, dropped tokens and a row's first one are not predicted; no gradient passes through
    merged tokens.

    A prompt none of whose images has more tokens than the budget runs bitwise as the model alone.
    An image cannot be added to a conversation in a cache. Videos are not pruned.

    Args:
        model: a model of either type, with its language model head or without.
        processor: not used.
        selector: chooses the tokens; merged tokens that it returns replace those of its ids.
        budget: T, at least 1.
        options: ``timed``; the others have no meaning here.

    Raises:
        ValueError: the selector or its layer does not fit the model, the model's attention has
            windows, something is attached already, or this transformers has other layers.
    """
    inner = model.base_model
    text = getattr(inner, "language_model", None)
    if text is None:
        raise ValueError(f"model: expected one with a language_model, got {type(inner).__name__}")
    require_available(selector, AVAILABLE_FIELDS)
    layer_types = getattr(text.config, "layer_types", None)
    windows = getattr(text.config, "sliding_window", None) if layer_types is None else None
    if windows is not None or set(layer_types or ()) - {"full_attention"}:
        raise ValueError(
            "model: pruning in the decoder needs full attention in every layer, got windows"
        )
    depth = int(text.config.num_hidden_layers)
    layer = getattr(selector, "layer", SelectorAttributes.layer)
    checks.require_int("layer", layer)
    if not 1 <= layer < depth:
        raise ValueError(f"layer: expected 1 to {depth - 1}, got {layer}")
    layers = list(text.layers[:depth])
    for module in layers:
        require_known_layer(module)
    handle = Handle(options.timed)
    is_qwen, by_name = inner.config.model_type.startswith("qwen"), takes_outputs(inner.forward)

    def forward(original: Method, inner: Any, given: dict[str, Any]) -> Any:
        report = given.pop(_REPORT, None)
        # Read for each call, since a model's attention can be changed.
        flash = takes_flat_masks(inner.language_model)
        settings = Settings(selector, budget, layer, depth, flash, not is_qwen, handle)
        call = _begin(inner, given, settings, by_name)
        if call is None:
            return original(**given)
        if report is not None:
            report.append(call)
        return original(**given, **{CALL: call})

    read_grids = read_qwen_grids if is_qwen else read_llava_grids
    recorded = functools.partial(record_grids, read_grids, handle)
    replacements: list[Replacement] = [
        (inner, "get_image_features", recorded),
        (inner, "forward", forward),
        (layers[layer - 1].self_attn, "forward", _attend),
    ]
    if is_qwen and not by_name:
        replacements.append((inner, "get_video_features", reuse_encoded_videos))
    if model is not inner:
        replacements.append((model, "forward", _forward_with_labels))
    for index, module in enumerate(layers):
        run_layer = functools.partial(_run_layer, index, index == layer - 1)
        replacements.append((module, "forward", run_layer))
    handle.replace_methods(*replacements)
    return handle


def _run_layer(
    index: int, tapped: bool, original: Method, _layer: Any, given: dict[str, Any]
) -> Tensor:
    call = given.pop(CALL, None)
    if call is None:
        return cast(Tensor, original(**given))
    if tapped and isinstance(call, Prefill):
        # For the attention, since a layer that checkpoints gradients drops its cache.
        given[CALL] = call
    return cast(Tensor, call.run(original, index, given.pop("hidden_states"), given))


def _attend(original: Method, _attention: Any, given: dict[str, Any]) -> Any:
    call = given.pop(CALL, None)
    return original(**given) if call is None else call.attend(original, given)


def _forward_with_labels(original: Method, model: Any, given: dict[str, Any]) -> Any:
    labels = given.pop("labels", None)
    if labels is None:
        return original(**given)
    names = inspect.signature(original).parameters
    others = {name: value for name, value in given.items() if name not in names}
    as_dict = given.pop("return_dict", None)
    report: list[Any] = []
    output = original(**given, return_dict=True, **{_REPORT: report})
    for call in report:
        if isinstance(call, Prefill):
            labels = labels.masked_fill(~call.predicted.to(labels.device), IGNORED_LABEL)
    size = model.config.get_text_config().vocab_size
    loss = model.loss_function(logits=output.logits, labels=labels, vocab_size=size, **others)
    output = type(output)(**{"loss": loss, **output})
    return output.to_tuple() if as_dict is False else output


def _begin(
    inner: Any, given: dict[str, Any], settings: Settings, by_name: bool
) -> Prefill | Continuation | None:
    """Encodes a call's images; how it runs through the layers, or None if as the model alone."""
    outputs = given.get(OUTPUTS)
    raw = [modality for modality, name in PIXELS.items() if given.get(name) is not None]
    if raw and outputs is not None:
        return None  # the model raises
    if raw:
        outputs = {modality: encode(inner, given, modality) for modality in raw}
        hand_over(given, outputs, by_name)
    input_ids, cache = given.get("input_ids"), read_cache(given)
    features = getattr((outputs or {}).get("image"), "pooler_output", None)
    if features is None:
        return resume(cache, *_shape(given), settings.flash)
    sizes = [len(feature) for feature in features]
    # The beams of a row share its image objects.
    unique: dict[int, int] = {}
    for image, feature in enumerate(features):
        unique.setdefault(id(feature), image)
    first = list(unique.values())
    if max(sizes, default=0) <= settings.budget:
        ids = [torch.arange(sizes[image], device=features[image].device) for image in first]
        settings.handle.record(torch.stack(ids) if settings.stacked and ids else ids)
        return resume(cache, *_shape(given), settings.flash)
    require_new(cache)
    if input_ids is None:
        raise ValueError("input_ids: needed to find the image tokens, got None")
    is_image = input_ids == inner.config.image_token_id
    attended = read_attended(given.get("attention_mask"), input_ids)
    # The one wait for the device: all counts at once, before the layers run.
    behind = is_image.any(0).flip(0).cumsum(0) == 0
    left_padded = (attended[:, 1:] >= attended[:, :-1]).all()
    tail_of = (behind.sum() * left_padded).expand(len(input_ids))
    placeholders, columns, tails = torch.stack([is_image.sum(1), attended.sum(1), tail_of]).tolist()
    counts = count_columns(placeholders, columns, sizes, settings.budget)
    images = Images(sizes, [grid_of(feature) for feature in features], first)
    by_layer = bool(
        given.get("output_hidden_states", inner.language_model.config.output_hidden_states)
    )
    return Prefill(settings, images, is_image, attended, counts, tails[0], by_layer)


def _shape(given: dict[str, Any]) -> tuple[int, int]:
    tokens = given.get("inputs_embeds")
    tokens = given.get("input_ids") if tokens is None else tokens
    return (1, 0) if tokens is None else (tokens.shape[0], tokens.shape[1])
