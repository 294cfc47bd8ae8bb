"""Pruning inside the language model: all image tokens up to a layer, the budget from there on."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from functools import partial
from itertools import accumulate, pairwise
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from ocvtp_kernels import checks
from ocvtp_kernels.selectors.interface import (
    TEXT_LAYERS,
    TEXT_ROWS,
    Selector,
    SelectorAttributes,
    reads_of,
    require_available,
    stages_of,
)
from ocvtp_kernels.vlm.columns import BOUNDS, IGNORED_LABEL, require_one_sample
from ocvtp_kernels.vlm.columns.pruning import require_outputs
from ocvtp_kernels.vlm.columns.tiles import join_features
from ocvtp_kernels.vlm.decoder.cache import Continuation, require_new, resume
from ocvtp_kernels.vlm.decoder.call import (
    AVAILABLE_FIELDS,
    ColumnKinds,
    Images,
    Prefill,
    Settings,
    Shape,
    StageIds,
)
from ocvtp_kernels.vlm.decoder.images import (
    OUTPUTS,
    PIXELS,
    count_columns,
    encode,
    find_image_rows,
    hand_over,
    join_tiles,
    mark_images,
    read_mark,
    require_mark,
    reuse_encoded_videos,
    takes_outputs,
)
from ocvtp_kernels.vlm.decoder.masks import read_attended, takes_flat_masks
from ocvtp_kernels.vlm.decoder.text import require_projections, without_answer
from ocvtp_kernels.vlm.family import InDecoder, Tiles, WatchReference
from ocvtp_kernels.vlm.handle import CallRecord, Handle, Ids, Options
from ocvtp_kernels.vlm.layer_call import (
    CALL,
    language_model_of,
    read_cache,
    require_known_layer,
    rotary_of,
)
from ocvtp_kernels.vlm.replaced import Method, Replacement

_TRAINING = "ocvtp_training"  # an argument that transformers passes on, as CALL


class Training(NamedTuple):
    """What a call with labels tells the inner model, and is told by it."""

    labels: Tensor  # int64 [B, L]
    calls: list[Any]  # how it runs through the layers, if not as the model alone


def attach_to_decoder(
    in_decoder: InDecoder,
    model: Any,
    processor: Any,
    selector: Selector,
    budget: int,
    options: Options,
) -> Handle:
    """Attaches a selector to the language model of a vision-language model.

    The prompt keeps all its placeholders. Before the layer of each of the selector's stages (of
    one that has no schedule: before ``selector.layer``) it chooses from the tokens that every
    image still has, by their hidden states, the keys of the layer before (after the rotary
    embedding, KV heads side by side), the attention received from text, or the vision encoder's
    reference tokens; later layers have the kept columns alone, at their original positions. The
    key-value cache is as long as the prompt below the first stage, shorter from each stage on. The
    output has all columns: a dropped one has the output of the kept one before it, or of the first
    one. Attention weights of the later layers have the kept columns only. With labels, dropped
    tokens and a row's first one are not predicted, and text behind the images that is an answer to
    learn chooses none of them (`without_answer`); no gradient passes through merged tokens.

    A prompt none of whose images has more tokens than the budget runs bitwise as the model alone.
    An image cannot be added to a conversation in a cache. Videos are not pruned.

    Args:
        in_decoder: what the model's family tells.
        model: with its language model head or without.
        processor: read where images come in tiles.
        selector: chooses the tokens; merged tokens that it returns replace those of its ids.
        budget: T, at least 1.
        options: ``timed``, ``reference_layer``, and ``positions``: "consecutive" renumbers what is
            left behind each stage. The others have no meaning here.

    Raises:
        ValueError: the selector or a layer does not fit the model, the model's attention has
            windows, something is attached already, or this transformers has other layers.
    """
    inner = model.base_model
    text = language_model_of(inner)
    if text is None:
        raise ValueError(f"model: expected one with a language_model, got {type(inner).__name__}")
    without_grid = set() if in_decoder.read_grids else {"grid"}
    require_available(selector, AVAILABLE_FIELDS - without_grid)
    layer_types = getattr(text.config, "layer_types", None)
    windows = getattr(text.config, "sliding_window", None) if layer_types is None else None
    if windows is not None or set(layer_types or ()) - {"full_attention"}:
        raise ValueError(
            "model: pruning in the decoder needs full attention in every layer, got windows"
        )
    settings = _read_settings(text, selector, budget, options)
    layers = list(text.layers[: settings.depth])
    for module in layers:
        require_known_layer(module)
        if settings.reads_text:
            require_projections(module)
    watch = None
    if "reference_tokens" in settings.reads:
        chosen = [stage.selector for stage in settings.stages]
        watch = in_decoder.find_reference(inner, options.reference_layer, chosen)
    by_name = takes_outputs(inner.forward)
    tiles = None if in_decoder.read_tiles is None else in_decoder.read_tiles(processor)
    if tiles is not None:
        require_outputs(inner)
    handle = Handle(options.timed)
    pruning = DecoderPruning(in_decoder, tiles, settings, watch, by_name, handle)
    replacements: list[Replacement] = [
        (inner, "get_image_features", pruning.get_image_features),
        (inner, "forward", pruning.forward),
    ]
    tapped = {stage.layer - 1: number for number, stage in enumerate(settings.stages)}
    tapped = tapped if settings.taps_attention else {}
    for index, number in tapped.items():
        replacements.append((layers[index].self_attn, "forward", partial(_attend, number)))
    if not by_name and hasattr(inner, "get_video_features"):
        replacements.append((inner, "get_video_features", reuse_encoded_videos))
    if model is not inner:
        replacements.append((model, "forward", _forward_with_labels))
    for index, module in enumerate(layers):
        replacements.append((module, "forward", partial(_run_layer, index, index in tapped)))
    handle.replace_methods(*replacements)
    return handle


def _read_settings(text: Any, selector: Selector, budget: int, options: Options) -> Settings:
    """What stays the same in all calls."""
    rows = getattr(selector, "text_rows", SelectorAttributes.text_rows)
    layer = getattr(selector, "text_layer", SelectorAttributes.text_layer)
    checks.require_one_of("text_rows", rows, TEXT_ROWS)
    checks.require_one_of("text_layer", layer, TEXT_LAYERS)
    num_pivots = getattr(selector, "num_text_pivots", SelectorAttributes.num_text_pivots)
    normed = getattr(selector, "final_norm", SelectorAttributes.final_norm)
    depth, renumbers = int(text.config.num_hidden_layers), options.positions == "consecutive"
    rotary = rotary_of(text)
    if normed and not hasattr(text, "norm"):
        raise ValueError(
            f"model: expected a language model with a last norm, got {type(text).__name__}"
        )
    return Settings(
        stages_of(selector, budget, depth),
        budget,
        depth,
        reads_of(selector),
        rows,
        layer,
        num_pivots,
        text.norm if normed else None,
        rotary,
        renumbers,
    )


class DecoderPruning:
    """What runs instead of the methods of the inner model.

    Args:
        in_decoder: what the model's family tells.
        tiles: see `InDecoder.read_tiles`.
        settings: of the selector.
        watch: see `mark_images`.
        by_name: whether the model takes encoded images, see `takes_outputs`.
        handle: of the selector.
    """

    def __init__(
        self,
        in_decoder: InDecoder,
        tiles: Tiles | None,
        settings: Settings,
        watch: WatchReference | None,
        by_name: bool,
        handle: Handle,
    ) -> None:
        self.in_decoder, self.tiles, self.settings = in_decoder, tiles, settings
        self.watch, self.by_name, self.handle = watch, by_name, handle

    def get_image_features(self, original: Method, inner: Any, given: dict[str, Any]) -> Any:
        """As the model's own, timed, with what is known of every image on its features."""
        known = (self.in_decoder, self.tiles, self.watch, self.handle)
        return mark_images(*known, original, inner, given)

    def forward(self, original: Method, inner: Any, given: dict[str, Any]) -> Any:
        """As the model's own, which hands the call on to the layers."""
        training: Training | None = given.pop(_TRAINING, None)
        call = self._begin(inner, given, None if training is None else training.labels)
        if self.tiles is not None:
            given = join_features(given)
        if call is None:
            return original(**given)
        if training is not None:
            training.calls.append(call)
        return original(**given, **{CALL: call})

    def _begin(
        self, inner: Any, given: dict[str, Any], labels: Tensor | None
    ) -> Prefill | Continuation | None:
        """Encodes a call's images; how it runs through the layers, or None: as the model alone."""
        outputs, settings = given.get(OUTPUTS), self.settings
        raw = [modality for modality, name in PIXELS.items() if given.get(name) is not None]
        if raw and outputs is not None:
            return None  # the model raises
        if raw:
            outputs = {modality: encode(inner, given, modality) for modality in raw}
            hand_over(given, outputs, self.by_name)
        input_ids, cache = given.get("input_ids"), read_cache(given)
        # Read for each call, since a model's attention can be changed.
        flash, rotary = takes_flat_masks(language_model_of(inner)), settings.rotary
        of_images = (outputs or {}).get("image")
        features = getattr(of_images, "pooler_output", None)
        if features is None:
            return resume(cache, *_shape(given), rotary, flash)
        parts_of = self._split_images(inner, features, input_ids)
        sizes = [sum(map(len, parts)) for parts in parts_of]
        # The beams of a row share its image objects.
        unique: dict[int, int] = {}
        for image, parts in enumerate(parts_of):
            unique.setdefault(id(parts[0]), image)
        first = list(unique.values())
        if max(sizes, default=0) <= settings.budget:
            ids = [torch.arange(sizes[image], device=features[0].device) for image in first]
            self._report(
                self._record_of(features), [(stage.layer, ids) for stage in settings.stages]
            )
            return resume(cache, *_shape(given), rotary, flash)
        require_new(cache)
        if input_ids is None:
            raise ValueError("input_ids: needed to find the image tokens, got None")
        if _reads(given, "output_router_logits", inner):
            raise NotImplementedError(
                "output_router_logits: not supported where layers have different columns"
            )
        if settings.reads_text or settings.reads_pivots:
            _require_whole_rows(given)
        marks = [join_tiles([require_mark(part) for part in parts]) for parts in parts_of]
        references = [mark.reference for mark in marks]
        images = Images(sizes, [mark.grid for mark in marks], references, first)
        is_image = input_ids == inner.config.image_token_id
        attended = read_attended(given.get("attention_mask"), input_ids)
        asked = attended if labels is None else without_answer(attended, is_image, labels)
        # The one wait for the device: all counts at once, before the layers run.
        behind = is_image.flip(1).cumsum(1).flip(1) == 0
        left_padded = (attended[:, 1:] >= attended[:, :-1]).all()
        tail_of = (behind.all(0).sum() * left_padded).expand(len(input_ids))
        text_of = ((behind & asked).sum(1) * is_image.any(1)).clamp_min(1)
        counted = torch.stack([is_image.sum(1), attended.sum(1), tail_of, text_of]).tolist()
        placeholders, columns, tails, num_text = counted
        kept = settings.kept_sizes(images.candidates(settings.budget), sizes)
        rows = find_image_rows(placeholders, sizes)
        shape = Shape(
            kept,
            [count_columns(columns, rows, sizes, each) for each in kept],
            tails[0],
            rows,
            num_text,
            _reads(given, "output_hidden_states", inner),
            len(getattr(of_images, "deepstack_features", None) or ()),
        )
        record = self._record_of(features)
        report = partial(self._report, record)
        columns_of = ColumnKinds(is_image, attended, asked)
        return Prefill(settings, record, report, images, columns_of, shape, flash)

    def _split_images(
        self, inner: Any, features: Sequence[Tensor], input_ids: Tensor | None
    ) -> list[Sequence[Tensor]]:
        """The features of each image: one tensor, or one of every tile."""
        if self.tiles is None or not len(features):
            return [[feature] for feature in features]
        if input_ids is None:
            raise ValueError("input_ids: needed to find the image tokens, got None")
        counts = self.tiles.count_tiles(inner, input_ids, len(features[0]))
        ends = list(accumulate(counts, initial=0))
        if ends[-1] != len(features):
            raise ValueError(
                f"pixel_values: expected the {ends[-1]} tiles of the images in input_ids, got "
                f"{len(features)}"
            )
        return [features[start:end] for start, end in pairwise(ends)]

    def _record_of(self, features: Sequence[Tensor]) -> CallRecord:
        """A record that goes on from that of the encoder, if the features tell it."""
        mark = read_mark(features[0]) if len(features) else None
        return self.handle.begin() if mark is None else mark.record.fork()

    def _report(self, record: CallRecord, stages: StageIds) -> None:
        told: list[tuple[int, Ids]] = [
            (layer, torch.stack(ids) if self.in_decoder.stacked_ids and ids else ids)
            for layer, ids in stages
        ]
        record.finish(told[-1][1], told)


def _reads(given: dict[str, Any], name: str, inner: Any) -> bool:
    """Whether a call asks for an output, by argument or by the language model's config."""
    return bool(given.get(name, getattr(language_model_of(inner).config, name, False)))


def _require_whole_rows(given: dict[str, Any]) -> None:
    """Raises NotImplementedError if rows pack several samples, which have no last token of all."""
    positions = given.get("position_ids")
    if any(given.get(name) is not None for name in BOUNDS):
        raise NotImplementedError(f"{BOUNDS[0]}: not supported by methods that ask the text")
    # Of three rows, all are the rotary embedding's; a fourth in front tells samples apart.
    if positions is None or given.get("attention_mask") is not None:
        return
    if positions.ndim == 2 or len(positions) == 4:
        require_one_sample(positions if positions.ndim == 2 else positions[0])


def _run_layer(
    index: int, tapped: bool, original: Method, layer: Any, given: dict[str, Any]
) -> Tensor:
    call = given.pop(CALL, None)
    if call is None:
        return cast(Tensor, original(**given))
    if tapped and isinstance(call, Prefill):
        # For the attention, since a layer that checkpoints gradients drops its cache.
        given[CALL] = call
    return cast(Tensor, call.run(original, layer, index, given.pop("hidden_states"), given))


def _attend(stage: int, original: Method, attention: Any, given: dict[str, Any]) -> Any:
    call = given.pop(CALL, None)
    return original(**given) if call is None else call.attend(stage, original, attention, given)


def _forward_with_labels(original: Method, model: Any, given: dict[str, Any]) -> Any:
    labels = given.pop("labels", None)
    if labels is None:
        return original(**given)
    names = inspect.signature(original).parameters
    others = {name: value for name, value in given.items() if name not in names}
    as_dict = given.pop("return_dict", None)
    training = Training(labels, [])
    output = original(**given, return_dict=True, **{_TRAINING: training})
    for call in training.calls:
        if isinstance(call, Prefill):
            labels = labels.masked_fill(~call.predicted.to(labels.device), IGNORED_LABEL)
    size = model.config.get_text_config().vocab_size
    loss = model.loss_function(logits=output.logits, labels=labels, vocab_size=size, **others)
    output = type(output)(**{"loss": loss, **output})
    return output.to_tuple() if as_dict is False else output


def _shape(given: dict[str, Any]) -> tuple[int, int]:
    tokens = given.get("inputs_embeds")
    tokens = given.get("input_ids") if tokens is None else tokens
    return (1, 0) if tokens is None else (tokens.shape[0], tokens.shape[1])
