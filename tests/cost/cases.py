"""Small models with the shapes of the published ones, and torch's own count of what they do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import transformers
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
)

from ocvtp_kernels import PrunerConfig
from ocvtp_kernels.cost.models import LanguageModel, VisionLanguageModel, VisionTower

SMALL = LanguageModel(
    layers=3, width=48, ffn_width=80, heads=6, kv_heads=2, head_width=8, vocabulary=101
)
SMALL_TOWER = VisionTower(
    layers=3, width=32, ffn_width=56, ffn_matrices=2,
    patch_values=3 * 4 * 4, grid=(5, 5), class_tokens=1,
)  # fmt: skip
# Neither side is a whole number of windows, so all four kinds of cut windows are there.
SMALL_WINDOWS = VisionTower(
    layers=4, width=32, ffn_width=44, ffn_matrices=3,
    patch_values=3 * 2 * 2 * 2, grid=(10, 14), merge=2, window=4, full_layers=(1, 3),
)  # fmt: skip
SMALL_PRUNER = PrunerConfig(
    enc_in_dim=32, enc_dims=(40, 28, 24), init_dim=24, agg_embed_dim=24, agg_ffn_dim=36
)
SMALL_LLAVA = VisionLanguageModel(
    name="small LLaVA",
    source="made up",
    image="one crop",
    tower=SMALL_TOWER,
    language=SMALL,
    projector=(32, 48, 48),
    projects_kept_only=True,
    budgets=(7,),
    pruner=SMALL_PRUNER,
)
SMALL_QWEN = replace(
    SMALL_LLAVA,
    name="small Qwen2.5-VL",
    image="one image",
    tower=SMALL_WINDOWS,
    projector=(128, 128, 48),
    projects_kept_only=False,
)


@torch.no_grad()
def counted(call: Callable[[], object]) -> int:
    """FLOPs of ``call`` by the counter in torch, without the outer product of rotary angles."""
    with FlopCounterMode(display=False) as counter:
        call()
    by_module = counter.get_flop_counts()
    rotary = [name for name in by_module if name.split(".")[-1] == "rotary_emb"]
    return counter.get_total_flops() - sum(sum(by_module[name].values()) for name in rotary)


def decoder_settings(language: LanguageModel) -> dict[str, Any]:
    return {
        "num_hidden_layers": language.layers,
        "hidden_size": language.width,
        "intermediate_size": language.ffn_width,
        "num_attention_heads": language.heads,
        "num_key_value_heads": language.kv_heads,
        "head_dim": language.head_width,
        "vocab_size": language.vocabulary,
        "tie_word_embeddings": False,
        "pad_token_id": 0,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }


def decoder(language: LanguageModel, device: str = "cpu", family: str = "Llama") -> nn.Module:
    """A random decoder of the ``transformers`` family named."""
    settings = getattr(transformers, f"{family}Config")(
        **decoder_settings(language), attn_implementation="eager"
    )
    with torch.device(device):
        return getattr(transformers, f"{family}ForCausalLM")(settings).eval()


def run_decoder(model: nn.Module, language: LanguageModel, tokens: int, device: str) -> object:
    """A prefill over embeddings; the mask is given, since building one reads values."""
    return model(
        inputs_embeds=torch.zeros(1, tokens, language.width, device=device),
        attention_mask=torch.zeros(1, 1, tokens, tokens, device=device),
        position_ids=torch.arange(tokens, device=device).unsqueeze(0),
        logits_to_keep=1,
    )


def clip_config(tower: VisionTower, patch: int) -> CLIPVisionConfig:
    return CLIPVisionConfig(
        num_hidden_layers=tower.layers,
        hidden_size=tower.width,
        intermediate_size=tower.ffn_width,
        num_attention_heads=tower.width // 16,
        image_size=tower.grid[0] * patch,
        patch_size=patch,
        attn_implementation="eager",
    )


def small_llava() -> nn.Module:
    config = LlavaConfig(
        vision_config=clip_config(SMALL_TOWER, 4),
        text_config=LlamaConfig(**decoder_settings(SMALL)),
        image_token_id=100,
    )
    config._attn_implementation = "eager"
    return LlavaForConditionalGeneration(config).eval()


def small_qwen() -> nn.Module:
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}
    config = Qwen2_5_VLConfig(
        vision_config={
            "depth": SMALL_WINDOWS.layers,
            "hidden_size": SMALL_WINDOWS.width,
            "intermediate_size": SMALL_WINDOWS.ffn_width,
            "num_heads": 2,
            "patch_size": 2,
            "temporal_patch_size": 2,
            "spatial_merge_size": SMALL_WINDOWS.merge,
            "window_size": SMALL_WINDOWS.window * 2,
            "out_hidden_size": SMALL.width,
            "fullatt_block_indexes": list(SMALL_WINDOWS.full_layers),
        },
        text_config=decoder_settings(SMALL) | {"rope_parameters": rope},
        image_token_id=100,
        vision_start_token_id=99,
    )
    config._attn_implementation = "eager"
    return Qwen2_5_VLForConditionalGeneration(config).eval()


def prompt(vision_tokens: int, text_tokens: int) -> torch.Tensor:
    return torch.tensor([[99] + [100] * vision_tokens + [1] * (text_tokens - 1)])


def small_pixels(tower: VisionTower) -> torch.Tensor:
    return torch.randn(tower.crops, 3, 4 * tower.grid[0], 4 * tower.grid[1])
