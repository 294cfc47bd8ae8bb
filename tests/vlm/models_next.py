"""A tiny LLaVA-NeXT of random weights and its processor."""

from __future__ import annotations

from typing import Any

import torch
import transformers

from tests.vlm import models

PINPOINTS = [[56, 112], [112, 56], [112, 112], [168, 56], [56, 168]]


def make_llava_next(kind: str = "clip", seed: int = 0, **changes: Any) -> Any:
    """A tiny LLaVA-NeXT; on a SigLIP it takes all tokens of the last layer."""
    torch.manual_seed(seed)
    prefixed = kind != "siglip"
    config = transformers.LlavaNextConfig(
        **{
            "vision_config": models.make_vision_config(kind),
            # No end token: answers of the tests have one length.
            "text_config": models.make_text_config(eos_token_id=None),
            "image_token_index": models.IMAGE_ID,
            "image_grid_pinpoints": PINPOINTS,
            "vision_feature_layer": -2 if prefixed else -1,
            "vision_feature_select_strategy": "default" if prefixed else "full",
        }
        | changes
    )
    return models.spread(transformers.LlavaNextForConditionalGeneration(config).eval())


def make_next_processor(kind: str = "clip") -> Any:
    prefixed = kind != "siglip"
    side = {"height": models.SIDE, "width": models.SIDE}
    return transformers.LlavaNextProcessor(
        image_processor=_find_image_processor()(
            size={"shortest_edge": models.SIDE}, crop_size=side, image_grid_pinpoints=PINPOINTS
        ),
        tokenizer=models.make_tokenizer(),
        patch_size=models.PATCH,
        vision_feature_select_strategy="default" if prefixed else "full",
        num_additional_image_tokens=1 if prefixed else 0,
    )


def _find_image_processor() -> Any:
    """The one that needs no torchvision, which older versions call by the plain name."""
    try:
        from transformers.models.llava_next import image_processing_pil_llava_next as pil
    except ImportError:
        return transformers.LlavaNextImageProcessor
    return pil.LlavaNextImageProcessorPil
