"""A Qwen2.5-VL with random weights, tiny enough for the CPU, and a prompt with one photo for it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

VISION = {
    "depth": 4,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_heads": 4,
    "out_hidden_size": 48,
    "window_size": 56,  # of 2 x 2 merged tokens, so that a small photo has several
    "fullatt_block_indexes": [1, 3],
}
LANGUAGE = {
    "vocab_size": 20,
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
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": None,
}
IDS = {
    "vision_start_token_id": 1,
    "vision_end_token_id": 2,
    "image_token_id": 3,
    "video_token_id": 4,
}
QUESTION = [5, 6, 7]


def make_qwen(seed: int = 0) -> Any:
    """The model, in evaluation."""
    import transformers

    torch.manual_seed(seed)
    config = transformers.Qwen2_5_VLConfig(vision_config=VISION, text_config=LANGUAGE, **IDS)
    model = transformers.Qwen2_5_VLForConditionalGeneration(config).eval()
    model.generation_config.pad_token_id = LANGUAGE["pad_token_id"]
    return model


def make_prompt(model: Any, width: int, height: int) -> dict[str, Tensor]:
    """A photo of ``width`` by ``height`` merged tokens and a question: what ``generate`` takes."""
    vision = model.config.vision_config
    merged = vision.spatial_merge_size
    patches = width * height * merged**2
    values = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
    image = [IDS["image_token_id"]] * (width * height)
    row = [IDS["vision_start_token_id"], *image, IDS["vision_end_token_id"], *QUESTION]
    input_ids = torch.tensor([row])
    return {
        "input_ids": input_ids,
        "attention_mask": torch.ones_like(input_ids),
        "mm_token_type_ids": (input_ids == IDS["image_token_id"]).long(),
        "pixel_values": torch.randn(patches, values),
        "image_grid_thw": torch.tensor([[1, height * merged, width * merged]]),
    }
