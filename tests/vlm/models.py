"""Tiny random-weight models and processors, made in code: no hub, no files."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from torch import Tensor

from ocvtp_kernels import OCPruner, PrunerConfig
from ocvtp_kernels.selectors.at_random import RandomSelector
from ocvtp_kernels.selectors.oc_pruner import PrunerSelector
from ocvtp_kernels.vlm.layer_call import cache_name

SIDE, PATCH, WIDTH, TEXT_WIDTH, DEPTH, HEADS = 56, 14, 32, 48, 4, 4
NUM_PATCHES = (SIDE // PATCH) ** 2
TALK = "USER : ASSISTANT what is in this picture a cat two dogs yes no red blue ?"
WORDS = TALK.split()
SPECIAL = ["<pad>", "<s>", "</s>", "<unk>", "<image>"]
IMAGE_ID = SPECIAL.index("<image>")
CACHE_NAME = cache_name(transformers.LlamaModel.forward)


def make_tokenizer(words: list[str] = WORDS, special: list[str] = SPECIAL) -> Any:
    vocabulary = {word: index for index, word in enumerate([*special, *words])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=special[4:],
        padding_side="left",
    )


def make_text_config(**changes: Any) -> Any:
    return transformers.LlamaConfig(
        **{
            "hidden_size": TEXT_WIDTH,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "vocab_size": 64,
            "max_position_embeddings": 512,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
        }
        | changes
    )


def make_qwen2_config(**changes: Any) -> Any:
    """A Qwen2 of the same sizes, without an end token: answers of the tests have one length."""
    sizes = make_text_config(eos_token_id=None).to_dict()
    names = [*("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")]
    names += ["num_key_value_heads", "vocab_size", "max_position_embeddings"]
    names += ["pad_token_id", "bos_token_id", "eos_token_id"]
    return transformers.Qwen2Config(**{name: sizes[name] for name in names} | changes)


def make_vision_config(kind: str = "clip", **changes: Any) -> Any:
    """The config of a CLIP, SigLIP, DINOv2 or DINOv2-with-registers tower."""
    sizes: dict[str, Any] = {
        "hidden_size": WIDTH,
        "num_hidden_layers": DEPTH,
        "num_attention_heads": HEADS,
        "image_size": SIDE,
        "patch_size": PATCH,
    } | changes
    if kind == "clip":
        return transformers.CLIPVisionConfig(intermediate_size=64, **sizes)
    if kind == "siglip":
        return transformers.SiglipVisionConfig(intermediate_size=64, **sizes)
    if kind == "dinov2":
        return transformers.Dinov2Config(mlp_ratio=2, **sizes)
    return transformers.Dinov2WithRegistersConfig(mlp_ratio=2, num_register_tokens=4, **sizes)


def make_tower(kind: str = "clip", seed: int = 0, **changes: Any) -> Any:
    torch.manual_seed(seed)
    return spread(transformers.AutoModel.from_config(make_vision_config(kind, **changes)).eval())


def make_llava(kind: str = "clip", seed: int = 0, **changes: Any) -> Any:
    """A tiny LLaVA; on a SigLIP it takes all tokens of the last layer, as such models do."""
    torch.manual_seed(seed)
    prefixed = kind != "siglip"
    config = transformers.LlavaConfig(
        **{
            "vision_config": make_vision_config(kind),
            "text_config": make_text_config(),
            "image_token_index": IMAGE_ID,
            "image_token_id": IMAGE_ID,
            "vision_feature_layer": -2 if prefixed else -1,
            "vision_feature_select_strategy": "default" if prefixed else "full",
        }
        | changes
    )
    return spread(transformers.LlavaForConditionalGeneration(config).eval())


def spread(model: Any) -> Any:
    """Matrices drawn wide enough that tokens differ and greedy answers are no ties."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.normal_(std=1.5 * parameter.shape[1] ** -0.5)
    return model


def make_llava_processor(kind: str = "clip") -> Any:
    prefixed = kind != "siglip"
    # Without torchvision the plain name is this class, and a warning.
    pil = hasattr(transformers, "CLIPImageProcessorPil")
    image_class = getattr(transformers, "CLIPImageProcessorPil" if pil else "CLIPImageProcessor")
    return transformers.LlavaProcessor(
        image_processor=image_class(
            size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}
        ),
        tokenizer=make_tokenizer(),
        patch_size=PATCH,
        vision_feature_select_strategy="default" if prefixed else "full",
        num_additional_image_tokens=1 if prefixed else 0,
        image_token="<image>",
    )


def make_pruner(width: int = WIDTH, seed: int = 0, **changes: Any) -> OCPruner:
    """A pruner for tokens of ``width``; ``changes`` are of its config."""
    torch.manual_seed(seed)
    sizes: dict[str, Any] = {
        "enc_dims": (24, 16),
        "init_dim": 16,
        "init_num": 6,
        "agg_embed_dim": 16,
        "agg_ffn_dim": 32,
    }
    pruner = OCPruner(PrunerConfig(enc_in_dim=width, **sizes | changes)).eval()
    with torch.no_grad():
        for parameter in pruner.parameters():
            if parameter.dim() == 2:
                parameter.mul_(3)
    return pruner


def make_photo(seed: int, size: tuple[int, int] = (90, 70)) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 255, (5, 7, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


BUDGET, NEW = 5, 6
PROMPTS = [
    "USER : <image> what is in this picture ? ASSISTANT :",
    "<image> <image> two dogs ?",
    "USER : red blue ? ASSISTANT :",
]
PHOTOS = [make_photo(seed, (90 + 10 * seed, 70)) for seed in range(3)]
SELECTORS = {
    "pruner": lambda: PrunerSelector(make_pruner()),
    "frozen": lambda: PrunerSelector(make_pruner().freeze()),
    "rows": lambda: PrunerSelector(make_pruner(), importance=False),
    "random": lambda: RandomSelector(1),
}


def prepare(processor: Any, prompts: list[str] | None = None, photos: Any = None) -> Any:
    """Three rows: one image, two images, text alone; padded on the left."""
    return processor(
        text=PROMPTS if prompts is None else prompts,
        images=PHOTOS if photos is None else photos,
        padding=True,
        return_tensors="pt",
    )


@torch.no_grad()
def generate(model: Any, inputs: Any, **kwargs: Any) -> Tensor:
    # Random weights would answer with placeholders too.
    settings = {
        "max_new_tokens": NEW,
        "min_new_tokens": NEW,
        "do_sample": False,
        "suppress_tokens": [IMAGE_ID],
    } | kwargs
    return model.generate(**inputs, **settings)
