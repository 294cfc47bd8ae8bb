"""A tiny Gemma 3 of random weights and its processor."""

from __future__ import annotations

from typing import Any

import torch
import transformers

from tests.vlm import models

# 2 x 2 patches are a token.
SIDE, TOKENS = 2 * models.SIDE, models.NUM_PATCHES
SPECIAL = [*models.SPECIAL, "<boi>", "<eoi>"]
BOI_ID, EOI_ID = SPECIAL.index("<boi>"), SPECIAL.index("<eoi>")
LAYER_TYPES = ["sliding_attention", "full_attention", "sliding_attention"]
# Columns, fewer than those of an image of 5 tokens.
WINDOW = 6
_VERSION = tuple(map(int, transformers.__version__.split(".")[:2]))
# Whether generate tells the images of a later turn from its text.
TELLS_TURNS = _VERSION >= (5, 23)
# Whether the masks of images reach over the columns of a static cache.
FILLS_STATIC = _VERSION >= (5, 20)


def make_gemma3(seed: int = 0, text: dict[str, Any] | None = None, **changes: Any) -> Any:
    """``text`` and ``changes`` are changes of the two configs."""
    torch.manual_seed(seed)
    sizes: dict[str, Any] = {
        "hidden_size": models.TEXT_WIDTH,
        "intermediate_size": 64,
        "num_hidden_layers": len(LAYER_TYPES),
        "layer_types": LAYER_TYPES,
        "sliding_window": WINDOW,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 12,
        "query_pre_attn_scalar": 12,
        "vocab_size": 64,
        "max_position_embeddings": 512,
        "pad_token_id": 0,
        # No end token: answers of the tests have one length.
        "eos_token_id": None,
        "bos_token_id": None,
    }
    config = transformers.Gemma3Config(
        **{
            "vision_config": models.make_vision_config(
                "siglip", image_size=SIDE, vision_use_head=False
            ),
            "text_config": transformers.Gemma3TextConfig(**sizes | (text or {})),
            "image_token_index": models.IMAGE_ID,
            "boi_token_index": BOI_ID,
            "eoi_token_index": EOI_ID,
            "mm_tokens_per_image": TOKENS,
        }
        | changes
    )
    model = models.spread(transformers.Gemma3ForConditionalGeneration(config).eval())
    with torch.no_grad():
        # The head has the same weights: larger ones would answer with the last word again.
        model.get_input_embeddings().weight.mul_(0.1)
        # Norms of ones as they are made.
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1 and "norm" in name:
                parameter.add_(torch.randn(parameter.shape), alpha=0.3)
    return model


class PhotoProcessor(transformers.Gemma3Processor):  # type: ignore[misc]
    """Takes the photos of several texts in a row too, as other processors do."""

    def __call__(self, images: Any = None, text: Any = None, **given: Any) -> Any:
        if images and not isinstance(images[0], list):
            remaining = iter(images)
            counts = [each.count(self.boi_token) for each in text]
            images = [[next(remaining) for _ in range(count)] for count in counts]
        return super().__call__(images=images, text=text, **given)


def make_gemma3_processor() -> Any:
    from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil

    tokenizer = models.make_tokenizer(special=SPECIAL)
    for name, token in (("image", "<image>"), ("boi", "<boi>"), ("eoi", "<eoi>")):
        setattr(tokenizer, f"{name}_token", token)
        setattr(tokenizer, f"{name}_token_id", tokenizer.convert_tokens_to_ids(token))
    return PhotoProcessor(
        image_processor=Gemma3ImageProcessorPil(size={"height": SIDE, "width": SIDE}),
        tokenizer=tokenizer,
        image_seq_length=TOKENS,
    )
