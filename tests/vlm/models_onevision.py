"""A tiny LLaVA-OneVision of random weights and its processor."""

from __future__ import annotations

from typing import Any

import torch
import transformers

from tests.vlm import models
from tests.vlm.models_next import PINPOINTS

# No word's token.
VIDEO_ID = 63
# Grids of more than 1.21 * 2 * 16 cells are interpolated.
LIMIT = "anyres_max_2"


def make_onevision(seed: int = 0, **changes: Any) -> Any:
    torch.manual_seed(seed)
    config = transformers.LlavaOnevisionConfig(
        **{
            "vision_config": models.make_vision_config("siglip", vision_use_head=False),
            "text_config": models.make_qwen2_config(),
            "image_token_index": models.IMAGE_ID,
            "video_token_index": VIDEO_ID,
            "image_grid_pinpoints": PINPOINTS,
            "vision_aspect_ratio": LIMIT,
        }
        | changes
    )
    return models.spread(transformers.LlavaOnevisionForConditionalGeneration(config).eval())


def make_onevision_processor(limit: str = LIMIT) -> Any:
    from transformers.models.llava_onevision import image_processing_pil_llava_onevision as pil

    kind = transformers.LlavaOnevisionProcessor
    processor: Any = kind.__new__(kind)
    # The video processor needs torchvision; photos do not need it.
    processor.image_processor = pil.LlavaOnevisionImageProcessorPil(
        size={"height": models.SIDE, "width": models.SIDE}, image_grid_pinpoints=PINPOINTS
    )
    processor.tokenizer, processor.video_processor = models.make_tokenizer(), None
    processor.image_token, processor.video_token = "<image>", "<video>"
    processor.image_token_id, processor.video_token_id = models.IMAGE_ID, VIDEO_ID
    processor.num_image_tokens, processor.vision_feature_select_strategy = (
        models.NUM_PATCHES,
        "full",
    )
    processor.vision_aspect_ratio, processor.chat_template = limit, None
    return processor
