"""Qwen2-VL, Qwen2.5-VL and Qwen3-VL small enough for a test: random weights, no downloads.

Functions take the ``name`` of a model type, or find it on the model; Qwen2.5-VL is the default.
"""

from __future__ import annotations

import functools
import inspect
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from ocvtp_kernels import OCPruner, PrunerConfig
from ocvtp_kernels.selectors.interface import SelectorInputs

SPECIAL = ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
WORDS = ["<pad>", "</s>", "<unk>", *SPECIAL, "what", "is", "this", "and", "that", "a"]
WORDS += ["cat", "dog", "red", "blue", "?", "."]
PAD, IMAGE, VIDEO = (WORDS.index(word) for word in ("<pad>", *SPECIAL[2:]))
WIDTH, DEPTH = 32, 4
PHOTO = "<|vision_start|><|image_pad|><|vision_end|>"

# How the classes of a model type are called, and its processor.
_CLASSES = {
    "qwen2_vl": ("Qwen2VL", "Qwen2VLProcessor"),
    "qwen2_5_vl": ("Qwen2_5_VL", "Qwen2_5_VLProcessor"),
    "qwen3_vl": ("Qwen3VL", "Qwen3VLProcessor"),
    "qwen3_vl_moe": ("Qwen3VLMoe", "Qwen3VLProcessor"),
    "qwen3_5": ("Qwen3_5", "Qwen3VLProcessor"),
    "qwen3_5_moe": ("Qwen3_5Moe", "Qwen3VLProcessor"),
}
NAMES = tuple(_CLASSES)


def make_config(
    name: str = "qwen2_5_vl",
    *,
    text: dict[str, Any] | None = None,
    vision: dict[str, Any] | None = None,
    **changes: Any,
) -> Any:
    import transformers

    settings = {
        "image_token_id": IMAGE,
        "video_token_id": VIDEO,
        "vision_start_token_id": WORDS.index("<|vision_start|>"),
        "vision_end_token_id": WORDS.index("<|vision_end|>"),
    }
    return getattr(transformers, f"{_CLASSES[name][0]}Config")(
        vision_config={**_vision_settings(name), **(vision or {})},
        text_config={**_text_settings(name), **(text or {})},
        **{**settings, **changes},
    )


def _vision_settings(name: str) -> dict[str, Any]:
    settings: dict[str, Any] = {"depth": DEPTH, "num_heads": 4}
    if name == "qwen2_vl":
        return settings | {"embed_dim": WIDTH, "hidden_size": 48, "mlp_ratio": 2}
    settings |= {"hidden_size": WIDTH, "intermediate_size": 48, "out_hidden_size": 48}
    if name == "qwen2_5_vl":
        # Windows of 2 x 2 merged tokens, so even small images have several.
        return settings | {"window_size": 56, "fullatt_block_indexes": [1, 3]}
    settings |= {"num_position_embeddings": 36}
    return settings if "3_5" in name else settings | {"deepstack_visual_indexes": [0, 2]}


def _text_settings(name: str) -> dict[str, Any]:
    rope = {"rope_type": "default", "rope_theta": 10000.0}
    settings: dict[str, Any] = {
        "vocab_size": len(WORDS),
        "hidden_size": 48,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "num_key_value_heads": 1,
        "max_position_embeddings": 512,
        "pad_token_id": PAD,
        "bos_token_id": None,
        "eos_token_id": None,
    }
    if name.startswith("qwen2"):
        return settings | {"rope_parameters": {**rope, "mrope_section": [2, 3, 3]}}
    settings |= {"head_dim": 16, "rope_parameters": {**rope, "mrope_section": [3, 3, 2]}}
    if "3_5" in name:
        settings |= {
            "rope_parameters": {**rope, "mrope_section": [2, 1, 1], "partial_rotary_factor": 0.5},
            # Linear attention in every other layer, the first one included.
            "full_attention_interval": 2,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 12,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
        }
    if name == "qwen3_5_moe":
        settings |= {"shared_expert_intermediate_size": 32}
    if name.endswith("moe"):
        settings |= {"moe_intermediate_size": 32, "num_experts": 4, "num_experts_per_tok": 2}
    return settings


def make_model(seed: int = 0, *, name: str = "qwen2_5_vl", **changes: Any) -> Any:
    """A model of random weights; ``changes`` are those of `make_config`."""
    import transformers

    torch.manual_seed(seed)
    kind = getattr(transformers, f"{_CLASSES[name][0]}ForConditionalGeneration")
    model = kind(make_config(name, **changes)).eval()
    model.generation_config.pad_token_id = PAD
    for path, parameter in model.named_parameters():
        # Fresh weights are so small that every logit would be about the same.
        if parameter.dim() > 1:
            parameter.data.mul_(6 if "visual" in path else 8)
    return model


def make_processor(name: str = "qwen2_5_vl") -> Any:
    import transformers
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    vocabulary = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    vocabulary.pre_tokenizer = WhitespaceSplit()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=vocabulary,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=SPECIAL,
        padding_side="left",
    )
    kind = getattr(transformers, _CLASSES[name][1])
    processor = kind.__new__(kind)
    side = side_of(name)
    # The video processor needs torchvision; photos do not need it.
    processor.image_processor = Qwen2VLImageProcessorPil(
        patch_size=side // 2, min_pixels=side**2, max_pixels=side**2 * 80
    )
    processor.tokenizer, processor.video_processor = tokenizer, None
    processor.image_token, processor.video_token = "<|image_pad|>", "<|video_pad|>"
    processor.image_token_id, processor.video_token_id = IMAGE, VIDEO
    processor.chat_template = None
    return processor


def side_of(name: str) -> int:
    """Pixels of a merged token's side."""
    return 28 if name.startswith("qwen2") else 32


def make_photo(width: int, height: int, seed: int = 0, name: str = "qwen2_5_vl") -> Image.Image:
    """Noise of ``width`` by ``height`` merged tokens."""
    size = (height * side_of(name), width * side_of(name), 3)
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, size, dtype=np.uint8))


def process(processor: Any, rows: list[tuple[str, list[Image.Image]]]) -> dict[str, Tensor]:
    """Processed rows of a text, with `PHOTO` in it, and its photos."""
    photos = [photo for _, images in rows for photo in images]
    texts = [text for text, _ in rows]
    return dict(processor(text=texts, images=photos or None, padding=True, return_tensors="pt"))


def make_batch(
    rows: list[tuple[str, list[Image.Image]]], name: str = "qwen2_5_vl"
) -> dict[str, Tensor]:
    """The same, by a new processor."""
    return process(make_processor(name), rows)


def needs_encoded_images(name: str = "qwen2_5_vl") -> pytest.MarkDecorator:
    """See `needs_encoded_images_of`, of the classes of a model type."""
    return needs_encoded_images_of(_CLASSES[name][0])


def needs_encoded_images_of(name: str) -> pytest.MarkDecorator:
    """Skips where a model can not be handed encoded images, which attaching to it needs.

    Args:
        name: of its class, without the end.
    """
    import transformers

    kind = getattr(transformers, f"{name}ForConditionalGeneration", None)
    names = [] if kind is None else inspect.signature(kind.forward).parameters
    return pytest.mark.skipif(
        "mm_encoder_outputs" not in names, reason=f"attaching to a {name} needs newer transformers"
    )


class ByNorm:
    """Keeps the tokens of the largest reference norm: images do not depend on one another."""

    def __init__(self) -> None:
        self.received: list[SelectorInputs] = []

    def __call__(self, inputs: SelectorInputs, budget: int) -> Tensor:
        self.received.append(inputs)
        norms = inputs.reference_tokens.norm(dim=-1)
        return norms.topk(budget, dim=1).indices.sort(dim=1).values


class Visual(NamedTuple):
    """An image or a video as the language model gets it."""

    token_id: int  # of its placeholders
    merged: Tensor  # [kept, D]
    deep: list[Tensor]  # of every level of DeepStack [kept, D]
    positions: Tensor  # [3, kept], from that of the first placeholder on
    extent: int  # placeholders
    step: int  # how far later positions are moved on


class Line(NamedTuple):
    """A row as the language model gets it, without padding."""

    embeddings: Tensor  # [L, D]
    positions: Tensor  # [3, L]
    tokens: list[int]  # L
    deep: list[Tensor]  # of every level of DeepStack [visual, D]
    following: int  # position of the next token


def encode(model: Any, pixels: Tensor, grid: Tensor) -> Any:
    """The vision encoder's output for one image or video, with all its states."""
    return model.model.visual(pixels, grid_thw=grid, output_hidden_states=True)


def reference_of(model: Any, states: Tensor, height: int, width: int) -> Tensor:
    """The mean of every unit of four patches, in the order of the image."""
    units = list(range(height * width))
    if model.config.model_type == "qwen2_5_vl":
        # Windows of 2 x 2 merged tokens, row by row; each lists its tokens row by row.
        units = [
            row * width + column
            for top in range(0, height, 2)
            for left in range(0, width, 2)
            for row in range(top, min(top + 2, height))
            for column in range(left, min(left + 2, width))
        ]
    reference = torch.zeros(height * width, WIDTH, dtype=states.dtype)
    for unit, index in enumerate(units):
        reference[index] = states[4 * unit : 4 * unit + 4].sum(0) / 4
    return reference


class Look(NamedTuple):
    """What the vision encoder makes of a photo, in the order of the image."""

    reference: Tensor  # [N, C]
    merged: Tensor  # [N, D]
    deep: list[Tensor]  # of every level of DeepStack [N, D]
    grid: tuple[int, int]  # merged tokens: rows and columns

    def keep(self, ids: Tensor) -> Visual:
        """The photo of which some tokens are left."""
        height, width = self.grid
        positions = torch.stack([torch.zeros_like(ids), ids // width, ids % width])
        deep = [level[ids] for level in self.deep]
        extent, step = height * width, max(height, width)
        return Visual(IMAGE, self.merged[ids], deep, positions, extent, step)


_processor_of = functools.cache(make_processor)


def look(model: Any, photo: Any, layer: int) -> Look:
    """One photo alone; reference tokens are of the layer's output."""
    batch = process(_processor_of(model.config.model_type), [(PHOTO, [photo])])
    grid = batch["image_grid_thw"]
    output = encode(model, batch["pixel_values"].to(model.dtype), grid)
    height, width = (grid[0, 1:] // 2).tolist()
    reference = reference_of(model, output.hidden_states[layer + 1], height, width)
    deep = list(getattr(output, "deepstack_features", None) or [])
    return Look(reference, output.pooler_output, deep, (height, width))


@torch.no_grad()
def state_of(model: Any, photo: Any, layer: int) -> tuple[Tensor, Tensor]:
    """One photo alone: reference tokens and merged tokens, in the order of the image."""
    reference, merged, _, _ = look(model, photo, layer)
    return reference, merged


def see_video(model: Any, pixels: Tensor, grid: Tensor) -> list[Visual]:
    """A video ``[1, 3]`` of which all is kept; of Qwen3-VL, its frames one by one."""
    output = encode(model, pixels, grid)
    frames, height, width = (grid[0] // torch.tensor([1, 2, 2])).tolist()
    interval = int(getattr(model.config.vision_config, "tokens_per_second", 1))
    cells = [
        [frame * interval, row, column]
        for frame in range(frames)
        for row in range(height)
        for column in range(width)
    ]
    positions = torch.tensor(cells).T
    deep = list(getattr(output, "deepstack_features", None) or [])
    size, step = height * width, max(height, width)
    if not model.config.model_type.startswith("qwen3"):
        return [Visual(VIDEO, output.pooler_output, deep, positions, frames * size, step)]
    visuals = []
    for start in range(0, frames * size, size):
        part = slice(start, start + size)
        levels = [level[part] for level in deep]
        visual = Visual(VIDEO, output.pooler_output[part], levels, positions[:, :size], size, step)
        visuals.append(visual)
    return visuals


def lay(model: Any, tokens: list[int], visuals: list[Visual], start: int = 0) -> Line:
    """Tokens, placeholders as often as in the whole prompt, with what is kept in their places."""
    embed = model.get_input_embeddings().weight
    embeddings, kept_tokens = [], []
    positions: list[Tensor] = []
    position, column, remaining = start, 0, list(visuals)
    while column < len(tokens):
        if tokens[column] not in (IMAGE, VIDEO):
            embeddings.append(embed[tokens[column]][None])
            positions.append(torch.full((3, 1), position))
            kept_tokens.append(tokens[column])
            position, column = position + 1, column + 1
            continue
        visual = remaining.pop(0)
        assert tokens[column : column + visual.extent] == [visual.token_id] * visual.extent
        embeddings.append(visual.merged)
        positions.append(position + visual.positions)
        kept_tokens += [visual.token_id] * len(visual.merged)
        column, position = column + visual.extent, position + visual.step
    assert not remaining
    levels = zip(*(visual.deep for visual in visuals), strict=True)
    deep = [torch.cat(level) for level in levels]
    return Line(torch.cat(embeddings), torch.cat(positions, 1), kept_tokens, deep, position)


def join(first: Line, second: Line) -> Line:
    """A row that goes on."""
    deep = first.deep or second.deep
    if first.deep and second.deep:
        deep = [torch.cat(level) for level in zip(first.deep, second.deep, strict=True)]
    return Line(
        torch.cat([first.embeddings, second.embeddings]),
        torch.cat([first.positions, second.positions], 1),
        first.tokens + second.tokens,
        deep,
        second.following,
    )


def logits_of(model: Any, line: Line) -> Tensor:
    """``[L, vocabulary]``, without a cache."""
    arguments: dict[str, Any] = {}
    if line.deep:
        tokens = torch.tensor(line.tokens)
        arguments["visual_pos_masks"] = ((tokens == IMAGE) | (tokens == VIDEO))[None]
        arguments["deepstack_visual_embeds"] = line.deep
    hidden = model.model.language_model(
        inputs_embeds=line.embeddings[None],
        position_ids=line.positions[:, None],
        use_cache=False,
        **arguments,
    ).last_hidden_state
    logits: Tensor = model.lm_head(hidden[0])
    return logits


@torch.no_grad()
def by_hand(
    model: Any, tokens: list[int], photos: list[Any], kept: list[Tensor], steps: int
) -> tuple[list[int], Tensor]:
    """A row alone, without a cache or padding: greedy tokens and the logits of every step."""
    visuals = [look(model, photo, 0).keep(ids) for photo, ids in zip(photos, kept, strict=True)]
    line = lay(model, tokens, visuals)
    answer: list[int] = []
    logits = []
    for _ in range(steps):
        logits.append(logits_of(model, line)[-1])
        answer.append(int(logits[-1].argmax()))
        # A placeholder in an answer is a word as any other.
        embedding = model.get_input_embeddings().weight[answer[-1]][None]
        position = torch.full((3, 1), line.following)
        token = [PAD if answer[-1] in (IMAGE, VIDEO) else answer[-1]]
        line = join(line, Line(embedding, position, token, [], line.following + 1))
    return answer, torch.stack(logits)


def choose(model: Any, photo: Any, budget: int, layer: int = DEPTH // 3) -> Tensor:
    """What `ByNorm` keeps of one photo."""
    reference, _ = state_of(model, photo, layer)
    budget = min(budget, len(reference))
    return reference.norm(dim=-1).topk(budget).indices.sort().values


def make_pruner(width: int = WIDTH) -> OCPruner:
    torch.manual_seed(1)
    config = PrunerConfig(
        enc_in_dim=width, enc_dims=(32, 16), init_dim=16, agg_embed_dim=16, agg_ffn_dim=32
    )
    return OCPruner(config).eval()
