"""Tiny models of random weights whose images come in tiles, and their processors."""

from __future__ import annotations

from itertools import islice
from typing import Any

import torch
import transformers

from tests.vlm import models

MERGE = 2
UNITS = models.NUM_PATCHES // MERGE**2
INTERNVL = [*models.SPECIAL, "<img>", "</img>", "<video>"]


def make_internvl(seed: int = 0, text: dict[str, Any] | None = None, **vision: Any) -> Any:
    """An InternVL; ``text`` and ``vision`` are changes of the two configs."""
    torch.manual_seed(seed)
    sizes: dict[str, Any] = {
        "hidden_size": models.WIDTH,
        "intermediate_size": 64,
        "num_hidden_layers": models.DEPTH,
        "num_attention_heads": models.HEADS,
        "image_size": [models.SIDE] * 2,
        "patch_size": [models.PATCH] * 2,
        "layer_scale_init_value": 0.7,
    }
    config = transformers.InternVLConfig(
        vision_config=transformers.InternVLVisionConfig(**sizes | vision),
        text_config=models.make_qwen2_config(**text or {}),
        image_token_id=models.IMAGE_ID,
        image_seq_length=UNITS,
        tie_word_embeddings=False,
    )
    model = models.spread(transformers.InternVLForConditionalGeneration(config).eval())
    tower = model.model.vision_tower
    with torch.no_grad():
        # Zeros as they are made: tokens would not know where they are.
        for parameter in (tower.embeddings.cls_token, tower.embeddings.position_embeddings):
            parameter.normal_(std=0.5)
    return model


class WithoutVideos:
    """A processor without one of videos, which needs torchvision."""

    def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
        if argument_name == "video_processor":
            return None
        return super().check_argument_for_proper_class(argument_name, argument)  # type: ignore[misc]


class PhotoProcessor(WithoutVideos, transformers.InternVLProcessor):
    """See `WithoutVideos`."""


def make_internvl_processor() -> Any:
    try:
        from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import (
            GotOcr2ImageProcessorPil as ImageProcessor,
        )
    except ImportError:
        from transformers import GotOcr2ImageProcessor as ImageProcessor
    tokenizer = models.make_tokenizer(special=INTERNVL)
    names = {"start_image_token": "<img>", "end_image_token": "</img>", "video_token": "<video>"}
    for name, token in (names | {"context_image_token": "<image>"}).items():
        setattr(tokenizer, name, token)
        setattr(tokenizer, f"{name}_id", tokenizer.convert_tokens_to_ids(token))
    return PhotoProcessor(
        image_processor=ImageProcessor(
            size={"height": models.SIDE, "width": models.SIDE},
            crop_to_patches=True,
            max_patches=4,
        ),
        tokenizer=tokenizer,
        image_seq_length=UNITS,
    )


# How the classes of a model type are called.
IDEFICS3 = {"idefics3": "Idefics3", "smolvlm": "SmolVLM"}
FAKE, WHOLE = "<fake_token_around_image>", "<global-img>"


def make_idefics3(
    name: str = "idefics3", seed: int = 0, text: dict[str, Any] | None = None, **vision: Any
) -> Any:
    """An Idefics3 or SmolVLM; ``text`` and ``vision`` are changes of the two configs."""
    torch.manual_seed(seed)
    sizes = {"hidden_size": models.WIDTH, "intermediate_size": 64, "image_size": models.SIDE}
    sizes |= {"num_hidden_layers": models.DEPTH, "num_attention_heads": models.HEADS}
    ends = {"bos_token_id": None, "eos_token_id": None}
    config = getattr(transformers, f"{IDEFICS3[name]}Config")(
        vision_config=sizes | {"patch_size": models.PATCH} | vision,
        text_config=models.make_text_config(**ends | (text or {})).to_dict(),
        image_token_id=models.IMAGE_ID,
        scale_factor=MERGE,
        pad_token_id=0,
    )
    kind = getattr(transformers, f"{IDEFICS3[name]}ForConditionalGeneration")
    model = models.spread(kind(config).eval())
    model.generation_config.pad_token_id = 0
    with torch.no_grad():
        for part in model.model.vision_model.modules():
            if isinstance(part, torch.nn.LayerNorm):
                # As they are made, norms hide what is added to all channels.
                part.weight.normal_(1, 0.3)
    return model


class SmolPhotoProcessor(WithoutVideos, transformers.SmolVLMProcessor):
    """See `WithoutVideos`; photos are listed as for Idefics3's, not by the row."""

    def __call__(self, images: Any = None, text: Any = None, **settings: Any) -> Any:
        if images is not None:
            photos = iter(images)
            images = [list(islice(photos, row.count("<image>"))) for row in text]
        return super().__call__(images, text, **settings)


def make_idefics3_processor(
    name: str = "idefics3", special: tuple[str, ...] = (), **changes: Any
) -> Any:
    """Photos of up to 56 pixels are one tile, others are split.

    Args:
        name: of the model type.
        special: tags that are one token each; those of released Idefics3s are several.
        changes: of the image processor's settings.
    """
    kind = IDEFICS3[name]
    pil = hasattr(transformers, f"{kind}ImageProcessorPil")
    images = getattr(transformers, f"{kind}ImageProcessor{'Pil' * pil}")(
        **{"do_resize": False, "max_image_size": {"longest_edge": models.SIDE}} | changes
    )
    parts = ["<", ">", "global", "-", "img"]
    parts += [f"row_{row}_col_{column}" for row in (1, 2) for column in (1, 2)]
    tokenizer = models.make_tokenizer(
        [*models.WORDS, *parts], [*models.SPECIAL, FAKE, "<end_of_utterance>", *special]
    )
    if name == "idefics3":
        return transformers.Idefics3Processor(images, tokenizer, image_seq_len=UNITS)
    from transformers.models.smolvlm import processing_smolvlm

    # Spells the number of a video's frames; the processor is not made without it.
    processing_smolvlm.num2words = processing_smolvlm.num2words or str
    return SmolPhotoProcessor(images, tokenizer, None, image_seq_len=UNITS)
