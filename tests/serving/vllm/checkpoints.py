"""Tiny checkpoints of random weights on disk, as a hub has them, each with a pruner in a folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file

from tests.vlm import models, models_onevision, models_qwen, models_tiles

SIDE, CROP = 168, 112  # pixels: 144 tokens of an image, 64 of a crop
UNITS = 16  # of a crop, of four tokens each
WIDTH, HEADS, DEPTH = 64, 4, 6
# vLLM's attention on a CPU takes heads of 32 channels and more.
TEXT = {"hidden_size": 128, "intermediate_size": 128, "max_position_embeddings": 4096}
PRUNER = "ocvtp/pruner.safetensors"
TEMPLATE = (
    "{% for m in messages %}{{ m['role'].upper() }} : {% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}<image> {% else %}{{ c['text'] }} {% endif %}{% endfor %}"
    "{% endfor %}{% if add_generation_prompt %}ASSISTANT :{% endif %}"
)
# A prompt's text, and the numbers of its photos.
Case = tuple[str, list[int]]


@dataclass(frozen=True)
class Checkpoint:
    """A model on disk.

    Attributes:
        folder: where it lies.
        cases: one, two, no and three photos, a case again, and the same text with another photo.
        photos: by number.
    """

    folder: Path
    cases: Sequence[Case]
    photos: Sequence[Image.Image]

    @property
    def pruner(self) -> str:
        return str(self.folder / PRUNER)


def make_checkpoint(name: str, folder: Path) -> Checkpoint:
    """The checkpoint of a family, made in ``folder``."""
    torch.manual_seed(0)
    model, processor, checkpoint = _MAKERS.get(name, _make_qwen)(name, folder)
    model.generation_config.pad_token_id = 0
    model.save_pretrained(folder)
    _release_weights(name, folder / "model.safetensors")
    processor.save_pretrained(folder)
    sizes = {"enc_dims": (48, 32), "init_dim": 32, "init_num": 16, "agg_embed_dim": 32}
    models.make_pruner(WIDTH, seed=1, **sizes).save_checkpoint(checkpoint.pruner)
    return checkpoint


def _release_weights(model: str, path: Path) -> None:
    """Gives weights the names and layouts of released checkpoints, which vLLM knows."""
    tower = "vision_tower." if model == "internvl" else "vision_tower.vision_model."
    # Those of experts that released checkpoints have the other way round.
    transposed = ".experts." if model == "qwen3_vl_moe" else None
    path.parent.joinpath("ocvtp").mkdir()
    weights = {
        name if name.startswith(tower) else name.replace("vision_tower.", tower, 1): (
            tensor.mT.contiguous() if transposed and transposed in name else tensor
        )
        for name, tensor in load_file(path).items()
    }
    save_file(weights, path, metadata={"format": "pt"})


def _vision_config(kind: str, side: int) -> Any:
    return models.make_vision_config(
        kind, hidden_size=WIDTH, num_hidden_layers=DEPTH, num_attention_heads=HEADS, image_size=side
    )


def _text_config() -> Any:
    return models.make_text_config(**TEXT)


def _photo_cases() -> list[Case]:
    question = "USER : <image> what is in this picture ? ASSISTANT :"
    return [
        (question, [0]),
        ("<image> <image> two dogs ?", [1, 2]),
        ("USER : red blue ? ASSISTANT :", []),
        ("USER : a cat <image> and yes <image> no in <image> red or blue ? ASSISTANT :", [3, 0, 4]),
        (question, [0]),
        (question, [4]),
    ]


def _make_llava(name: str, folder: Path) -> tuple[Any, Any, Checkpoint]:
    kind = "siglip" if "siglip" in name else "clip"
    prefixed = kind == "clip"
    vision = _vision_config(kind, SIDE)
    model = models.make_llava(kind, vision_config=vision, text_config=_text_config())
    strategy = "default" if prefixed else "full"
    images = transformers.CLIPImageProcessor(
        size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}
    )
    processor = transformers.LlavaProcessor(
        images,
        models.make_tokenizer(),
        patch_size=models.PATCH,
        vision_feature_select_strategy=strategy,
        num_additional_image_tokens=int(prefixed),
        chat_template=TEMPLATE,
    )
    photos = [models.make_photo(seed, (90 + 100 * seed, 170)) for seed in range(5)]
    return model, processor, Checkpoint(folder, _photo_cases(), photos)


def _make_llava_next(name: str, folder: Path) -> tuple[Any, Any, Checkpoint]:
    pinpoints = [[112, 224], [224, 112], [224, 224], [336, 112], [112, 336]]
    config = transformers.LlavaNextConfig(
        vision_config=_vision_config("clip", CROP),
        text_config=_text_config(),
        image_token_index=models.IMAGE_ID,
        image_grid_pinpoints=pinpoints,
        image_seq_length=64,
    )
    model = models.spread(transformers.LlavaNextForConditionalGeneration(config).eval())
    with torch.no_grad():
        model.model.image_newline.normal_()
    images = transformers.LlavaNextImageProcessor(
        size={"shortest_edge": CROP},
        crop_size={"height": CROP, "width": CROP},
        image_grid_pinpoints=pinpoints,
    )
    processor = transformers.LlavaNextProcessor(
        images,
        models.make_tokenizer(),
        patch_size=models.PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE,
    )
    sizes = [(200, 150), (90, 230), (400, 120), (60, 60), (200, 150)]
    photos = [models.make_photo(seed, size) for seed, size in enumerate(sizes)]
    return model, processor, Checkpoint(folder, _photo_cases(), photos)


def _make_onevision(name: str, folder: Path) -> tuple[Any, Any, Checkpoint]:
    # Of 16 tiles, of which vLLM knows nine without interpolation.
    pinpoints = [[112, 224], [224, 112], [224, 224], [448, 448], [112, 336]]
    model = models_onevision.make_onevision(
        vision_config=_vision_config("siglip", CROP),
        text_config=models.make_qwen2_config(**TEXT, eos_token_id=2),
        image_grid_pinpoints=pinpoints,
        vision_aspect_ratio="anyres_max_9",
        image_seq_length=64,
    )
    with torch.no_grad():
        model.model.image_newline.normal_()
    size = {"height": CROP, "width": CROP}
    tokenizer = models.make_tokenizer(special=[*models.SPECIAL, "<video>"])
    model.config.video_token_index = tokenizer.convert_tokens_to_ids("<video>")
    processor = transformers.LlavaOnevisionProcessor(
        transformers.LlavaOnevisionImageProcessor(size=size, image_grid_pinpoints=pinpoints),
        tokenizer,
        transformers.LlavaOnevisionVideoProcessor(size=size),
        num_image_tokens=64,
        vision_feature_select_strategy="full",
    )
    sizes = [(200, 150), (90, 230), (400, 390), (60, 60), (200, 150)]
    photos = [models.make_photo(seed, size) for seed, size in enumerate(sizes)]
    return model, processor, Checkpoint(folder, _photo_cases(), photos)


def _make_internvl(name: str, folder: Path) -> tuple[Any, Any, Checkpoint]:
    model = models_tiles.make_internvl(
        text=TEXT | {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e6}},
        hidden_size=WIDTH,
        num_hidden_layers=DEPTH,
        num_attention_heads=HEADS,
        image_size=[CROP] * 2,
        attention_bias=True,
    )
    model.config.image_seq_length = UNITS
    named = ("start_image_token", "end_image_token", "video_token", "context_image_token")
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=models.make_tokenizer(special=models_tiles.INTERNVL).backend_tokenizer,
        pad_token="<pad>",
        unk_token="<unk>",
        padding_side="left",
        **dict(zip(named, [*models_tiles.INTERNVL[-3:], "<image>"], strict=True)),
    )
    size = {"height": CROP, "width": CROP}
    processor = transformers.InternVLProcessor(
        transformers.GotOcr2ImageProcessor(size=size, crop_to_patches=True, max_patches=4),
        tokenizer,
        transformers.InternVLVideoProcessor(size=size),
        image_seq_length=UNITS,
    )
    sizes = [(200, 150), (90, 230), (400, 120), (60, 60), (200, 150)]
    photos = [models.make_photo(seed, size) for seed, size in enumerate(sizes)]
    return model, processor, Checkpoint(folder, _photo_cases(), photos)


def _make_qwen(name: str, folder: Path) -> tuple[Any, Any, Checkpoint]:
    section = [4, 6, 6] if name.startswith("qwen2") else [6, 5, 5]
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": section}
    text: dict[str, Any] = {
        "hidden_size": 96,
        "max_position_embeddings": 2048,
        "rope_parameters": rope,
        "eos_token_id": models_qwen.WORDS.index("</s>"),
    }
    if name.startswith("qwen3"):
        text["head_dim"] = 32
        # Which transformers takes for granted, and vLLM asks for.
        rope["mrope_interleaved"] = text["norm_topk_prob"] = True
    if "3_5" in name:
        rope |= {"mrope_section": [3, 3, 2], "partial_rotary_factor": 0.5}
        # Heads that vLLM's kernels for a CPU know; all experts, as bfloat16 may choose others.
        text |= {"linear_key_head_dim": 128, "linear_value_head_dim": 128}
        text |= {"num_experts_per_tok": 4} if name.endswith("moe") else {}
    vision = {"hidden_size": WIDTH, "out_hidden_size": 96}
    if name == "qwen2_vl":
        vision = {"embed_dim": WIDTH, "hidden_size": 96}
    model = models_qwen.make_model(name=name, text=text, vision=vision)
    models.spread(model)
    side = models_qwen.side_of(name)
    pixels = {"min_pixels": side**2, "max_pixels": 160 * side**2}
    made = models_qwen.make_processor(name)
    videos = "Qwen3VLVideoProcessor" if name.startswith("qwen3") else "Qwen2VLVideoProcessor"
    processor = type(made)(
        transformers.Qwen2VLImageProcessor(patch_size=side // 2, **pixels),
        made.tokenizer,
        getattr(transformers, videos)(patch_size=side // 2),
    )
    image = " ".join(models_qwen.SPECIAL[i] for i in (0, 2, 1))
    question = f"what is {image} this cat ?"
    cases: list[Case] = [
        (question, [0]),
        (f"{image} and {image} what ?", [1, 2]),
        ("red cat ?", []),
        (f"a {image} red that {image} dog {image} red dog .", [3, 0, 1]),
        (question, [0]),
        (question, [4]),
        (f"what {image}", [1]),
    ]
    sizes = [(6, 5), (3, 9), (11, 4), (2, 2), (6, 5)]
    photos = [models_qwen.make_photo(*size, seed, name) for seed, size in enumerate(sizes)]
    return model, processor, Checkpoint(folder, cases, photos)


_MAKERS: dict[str, Callable[[str, Path], tuple[Any, Any, Checkpoint]]] = {
    "llava": _make_llava,
    "llava_siglip": _make_llava,
    "llava_next": _make_llava_next,
    "llava_onevision": _make_onevision,
    "internvl": _make_internvl,
}
