"""The tiny LLaVA: 1.4 million parameters, 100 image tokens, a vocabulary of 45 words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from bench.retention.scenes import GRID, PATCH, SIDE, WORDS
from ocvtp_kernels.cost.models import LanguageModel

TOKENS = GRID * GRID
WIDTH = 128
FOLDER = Path(__file__).parent
PRUNER = "ocvtp/pruner.safetensors"  # in the folder of a model
SPECIAL = ("<pad>", "<s>", "</s>", "<unk>", "<image>")
VOCABULARY = {word: index for index, word in enumerate((*SPECIAL, *WORDS))}
END, IMAGE = VOCABULARY["</s>"], VOCABULARY["<image>"]
MEAN, STD = 0.48, 0.27  # of pixels between 0 and 1
PROMPT = "<image> {}"
CHAT_TEMPLATE = """\
{%- for message in messages -%}
{%- if message['content'] is string -%}{{ message['content'] }}
{%- else -%}
{%- for part in message['content'] -%}
{{ '<image> ' if part['type'] == 'image' else part['text'] }}
{%- endfor -%}
{%- endif -%}
{%- endfor -%}"""


def make_processor() -> Any:
    """Pictures to pixels, and words to ids; a prompt is ``<image> what colour is the circle ?``."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit

    words = Tokenizer(WordLevel(VOCABULARY, unk_token="<unk>"))
    words.pre_tokenizer = WhitespaceSplit()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=["<image>"],
        padding_side="left",
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    # What CLIPImageProcessor was called before it needed torchvision.
    pil = getattr(transformers, "CLIPImageProcessorPil", None) or transformers.CLIPImageProcessor
    return transformers.LlavaProcessor(
        pil(
            size={"shortest_edge": SIDE},
            crop_size={"height": SIDE, "width": SIDE},
            image_mean=[MEAN] * 3,
            image_std=[STD] * 3,
        ),
        tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        image_token="<image>",
        chat_template=CHAT_TEMPLATE,
    )


def make_model() -> Any:
    """The model, untrained; weights come from torch's generator."""
    sizes = {"hidden_size": WIDTH, "intermediate_size": 256, "num_attention_heads": 4}
    vision = transformers.CLIPVisionConfig(
        **sizes,
        num_hidden_layers=5,
        image_size=SIDE,
        patch_size=PATCH,
        projection_dim=WIDTH,
        hidden_act="gelu",
    )
    text = transformers.LlamaConfig(
        **sizes,
        num_hidden_layers=4,
        num_key_value_heads=4,
        vocab_size=len(VOCABULARY),
        max_position_embeddings=512,
        pad_token_id=VOCABULARY["<pad>"],
        bos_token_id=VOCABULARY["<s>"],
        eos_token_id=END,
        tie_word_embeddings=False,
    )
    config = transformers.LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=IMAGE,
        image_seq_length=TOKENS,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
    )
    model = transformers.LlavaForConditionalGeneration(config)
    _initialize(model)
    return model


@torch.no_grad()
def _initialize(model: nn.Module) -> None:
    """Larger weights than transformers' 0.02, by fan-in: a model this small learns faster so."""
    for name, weight in model.named_parameters():
        if weight.dim() >= 2 and "embed" not in name:
            is_output = any(part in name for part in ("o_proj", "down_proj", "out_proj", "fc2"))
            weight.normal_(std=(0.35 if is_output else 0.9) * weight[0].numel() ** -0.5)
    inner: Any = model.model
    embeddings = inner.vision_tower.embeddings
    embeddings.patch_embedding.weight.normal_(std=(3 * PATCH * PATCH) ** -0.5)
    embeddings.position_embedding.weight[1:] = 0.5 * _sines()
    embeddings.class_embedding.normal_(std=0.5)
    inner.language_model.embed_tokens.weight.normal_(std=0.5)


def _sines() -> Tensor:
    """Sines and cosines of rows and columns: ``[TOKENS, WIDTH]``."""
    quarter = WIDTH // 4
    frequency = 12 ** -(torch.arange(quarter) / quarter)
    rows, columns = torch.meshgrid(torch.arange(GRID), torch.arange(GRID), indexing="ij")
    angles = torch.cat([place.reshape(-1, 1) * frequency for place in (rows, columns)], 1)
    return torch.cat([angles.sin(), angles.cos()], 1)


def language_of(model: Any) -> LanguageModel:
    """The dimensions of its text model."""
    config = model.config.text_config
    return LanguageModel(
        layers=config.num_hidden_layers,
        width=config.hidden_size,
        ffn_width=config.intermediate_size,
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        head_width=config.hidden_size // config.num_attention_heads,
        vocabulary=config.vocab_size,
    )


def load(folder: str | Path) -> tuple[Any, Any]:
    """A trained model in float32, and its processor."""
    model = transformers.LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    return model.eval(), transformers.AutoProcessor.from_pretrained(folder)
