"""A Qwen2.5-VL small enough for a test: random weights, real processor, no downloads."""

from __future__ import annotations

import inspect
from typing import Any

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
PAD, IMAGE = WORDS.index("<pad>"), WORDS.index("<|image_pad|>")
WIDTH, DEPTH = 32, 4
PHOTO = "<|vision_start|><|image_pad|><|vision_end|>"


def make_config(**changes: Any) -> Any:
    from transformers import Qwen2_5_VLConfig

    vision = {
        "depth": DEPTH,
        "hidden_size": WIDTH,
        "intermediate_size": 48,
        "num_heads": 4,
        "out_hidden_size": 48,
        "window_size": 56,  # of 2 x 2 merged tokens, so even small images have several
        "fullatt_block_indexes": [1, 3],
    }
    text = {
        "vocab_size": len(WORDS),
        "hidden_size": 48,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "num_key_value_heads": 1,
        "max_position_embeddings": 512,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10000.0,
            "mrope_section": [2, 3, 3],
        },
        "pad_token_id": PAD,
        "bos_token_id": None,
        "eos_token_id": None,
    }
    settings = {
        "image_token_id": IMAGE,
        "video_token_id": WORDS.index("<|video_pad|>"),
        "vision_start_token_id": WORDS.index("<|vision_start|>"),
        "vision_end_token_id": WORDS.index("<|vision_end|>"),
    }
    return Qwen2_5_VLConfig(vision_config=vision, text_config=text, **{**settings, **changes})


def make_model(seed: int = 0, **changes: Any) -> Any:
    from transformers import Qwen2_5_VLForConditionalGeneration

    torch.manual_seed(seed)
    model = Qwen2_5_VLForConditionalGeneration(make_config(**changes)).eval()
    model.generation_config.pad_token_id = PAD
    for name, parameter in model.named_parameters():
        # Fresh weights are so small that every logit would be about the same.
        if parameter.dim() > 1:
            parameter.data.mul_(6 if "visual" in name else 8)
    return model


def make_processor() -> Any:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import PreTrainedTokenizerFast, Qwen2_5_VLProcessor
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    vocabulary = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    vocabulary.pre_tokenizer = WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=vocabulary,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=SPECIAL,
        padding_side="left",
    )
    processor = Qwen2_5_VLProcessor.__new__(Qwen2_5_VLProcessor)
    # The video processor needs torchvision; photos do not need it.
    processor.image_processor = Qwen2VLImageProcessorPil(
        min_pixels=28 * 28, max_pixels=28 * 28 * 80
    )
    processor.tokenizer, processor.video_processor = tokenizer, None
    processor.image_token, processor.video_token = "<|image_pad|>", "<|video_pad|>"
    processor.image_token_id = IMAGE
    processor.video_token_id = WORDS.index("<|video_pad|>")
    processor.chat_template = None
    return processor


def make_photo(width: int, height: int, seed: int = 0) -> Image.Image:
    """Noise of ``width`` by ``height`` merged tokens."""
    size = (height * 28, width * 28, 3)
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, size, dtype=np.uint8))


def make_batch(rows: list[tuple[str, list[Image.Image]]]) -> dict[str, Tensor]:
    """Processed rows of a text, with `PHOTO` in it, and its photos."""
    photos = [photo for _, images in rows for photo in images]
    texts = [text for text, _ in rows]
    batch = make_processor()(text=texts, images=photos or None, padding=True, return_tensors="pt")
    return dict(batch)


def needs_encoded_images() -> pytest.MarkDecorator:
    """Skips where a Qwen2.5-VL can not be handed encoded images, which attaching to it needs."""
    from transformers import Qwen2_5_VLForConditionalGeneration

    names = inspect.signature(Qwen2_5_VLForConditionalGeneration.forward).parameters
    return pytest.mark.skipif(
        "mm_encoder_outputs" not in names,
        reason="attaching to a Qwen2.5-VL needs transformers >= 5.19",
    )


class ByNorm:
    """Keeps the tokens of the largest reference norm: images do not depend on one another."""

    def __init__(self) -> None:
        self.received: list[SelectorInputs] = []

    def __call__(self, inputs: SelectorInputs, budget: int) -> Tensor:
        self.received.append(inputs)
        norms = inputs.reference_tokens.norm(dim=-1)
        return norms.topk(budget, dim=1).indices.sort(dim=1).values


def state_of(model: Any, photo: Any, layer: int) -> tuple[Tensor, Tensor]:
    """One photo alone: reference tokens and merged tokens, in the order of the image."""
    batch = make_batch([(PHOTO, [photo])])
    grid, visual = batch["image_grid_thw"], model.model.visual
    with torch.no_grad():
        output = visual(batch["pixel_values"], grid_thw=grid, output_hidden_states=True)
    _, height, width = (grid[0] // torch.tensor([1, 2, 2])).tolist()
    # Windows of 2 x 2 merged tokens, row by row; each lists its tokens row by row.
    order = [
        row * width + column
        for top in range(0, height, 2)
        for left in range(0, width, 2)
        for row in range(top, min(top + 2, height))
        for column in range(left, min(left + 2, width))
    ]
    reference = torch.zeros(height * width, WIDTH)
    for unit, index in enumerate(order):
        patches = output.hidden_states[layer + 1][4 * unit : 4 * unit + 4]
        reference[index] = patches.sum(0) / 4
    return reference, output.pooler_output


def by_hand(
    model: Any, tokens: list[int], photos: list[Any], kept: list[Tensor], steps: int
) -> tuple[list[int], Tensor]:
    """A row alone, without a cache or padding: greedy tokens and the logits of every step."""
    embed = model.get_input_embeddings()
    embeddings, positions, position, image, column = [], [], 0, 0, 0
    while column < len(tokens):
        if tokens[column] != IMAGE:
            embeddings.append(embed.weight[tokens[column]])
            positions.append([position] * 3)
            position, column = position + 1, column + 1
            continue
        _, features = state_of(model, photos[image], 0)
        height, width = photos[image].height // 28, photos[image].width // 28
        for index in kept[image].tolist():
            embeddings.append(features[index])
            positions.append([position, position + index // width, position + index % width])
        column, image = column + height * width, image + 1
        position += max(height, width)
    answer: list[int] = []
    logits = []
    for _ in range(steps):
        with torch.no_grad():
            hidden = model.model.language_model(
                inputs_embeds=torch.stack(embeddings)[None],
                position_ids=torch.tensor(positions).T[:, None],
                use_cache=False,
            ).last_hidden_state
            logits.append(model.lm_head(hidden[0, -1]))
        answer.append(int(logits[-1].argmax()))
        embeddings.append(embed.weight[answer[-1]])
        positions.append([position] * 3)
        position += 1
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
