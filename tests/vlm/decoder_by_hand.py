"""Pruning before a decoder layer, by hand: a row alone, layer by layer, no cache and no padding."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ocvtp_kernels.selectors.interface import SelectorInputs
from tests.vlm import models_qwen
from tests.vlm.models import make_llava, make_text_config

LAYERS, BUDGET, NEW = 4, 5, 6
# Flash attention, which "flat" stands for, has no static cache.
RUNS = [("sdpa", "dynamic"), ("sdpa", "static"), ("eager", "dynamic"), ("eager", "static")]
RUNS += [("flat", "dynamic")]


class Row(NamedTuple):
    """A prompt: its tokens as vectors, their positions, and its images."""

    vectors: Tensor  # [L, C]
    positions: Tensor  # [3, L]
    images: list[tuple[int, tuple[int, int]]]  # first column, and rows and columns of the grid


class Expected(NamedTuple):
    """The expected output of a row."""

    tokens: list[int]
    logits: Tensor  # [steps, vocabulary]
    ids: list[Tensor]  # of each image
    hidden: Tensor  # [W, C] of the first step, after the last norm
    kept: list[int]  # columns


def copies_for(search: dict[str, Any]) -> int:
    """How often generate gives an image to the model: before transformers 5.19 for every beam."""
    from transformers import LlavaModel

    if "mm_encoder_outputs" in inspect.signature(LlavaModel.forward).parameters:
        return 1
    return int(search.get("num_beams") or search["num_return_sequences"])


def make_deep_llava(**changes: Any) -> Any:
    return make_llava(text_config=make_text_config(num_hidden_layers=LAYERS), **changes)


def make_deep_qwen(**changes: Any) -> Any:
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    stock = models_qwen.make_config().to_dict()
    text = stock["text_config"] | {"num_hidden_layers": LAYERS, "layer_types": None} | changes
    torch.manual_seed(0)
    config = Qwen2_5_VLConfig(**stock | {"text_config": text})
    model = Qwen2_5_VLForConditionalGeneration(config).eval()
    model.generation_config.pad_token_id = models_qwen.PAD
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            parameter.data.mul_(6 if "visual" in name else 8)
    return model


def split_row(
    model: Any, tokens: list[int], image_id: int, features: list[Tensor], grids: list[Any]
) -> Row:
    """A row's vectors and positions; a grid of None is an image placed as text is."""
    embed = model.get_input_embeddings().weight
    vectors: list[Tensor] = []
    positions: list[list[int]] = []
    images = []
    column = position = image = 0
    while column < len(tokens):
        if tokens[column] != image_id:
            vectors.append(embed[tokens[column]])
            positions.append([position] * 3)
            column, position = column + 1, position + 1
            continue
        (height, width), flat = grids[image]
        images.append((column, (height, width)))
        for index, feature in enumerate(features[image]):
            vectors.append(feature)
            row, cell = (index, index) if flat else divmod(index, width)
            shift = [index] * 3 if flat else [0, row, cell]
            positions.append([position + step for step in shift])
        column += height * width
        position += height * width if flat else max(height, width)
        image += 1
    return Row(torch.stack(vectors), torch.tensor(positions).T, images)


@torch.no_grad()
def prune_by_hand(
    model: Any, row: Row, selector: Callable[..., Any], budget: int, layer: int
) -> tuple[Tensor, list[Tensor], list[int]]:
    """The row's last hidden states, the ids of its images, and the columns kept."""
    text = model.model.language_model
    length = len(row.vectors)
    hidden, ids, keys = row.vectors[None], [], torch.empty(0)
    kept = list(range(length))
    for index, block in enumerate(text.layers):
        if index == layer:
            whole = hidden.clone()
            dropped: set[int] = set()
            for start, (height, width) in row.images:
                size = height * width
                if size <= budget:
                    ids.append(torch.arange(size))
                    continue
                tokens = whole[:, start : start + size]
                inputs = SelectorInputs(
                    tokens, tokens, keys=keys[None, start : start + size], grid=(height, width)
                )
                selected = selector(inputs, budget)
                ids.append(selected.ids[0])
                hidden[0, start + selected.ids[0]] = selected.tokens[0]
                dropped |= set(range(start, start + size)) - set((start + ids[-1]).tolist())
            kept = [column for column in range(length) if column not in dropped]
            hidden = hidden[:, kept]
        rotary = rotate_at(text, row.positions[:, kept])
        if index == layer - 1:
            keys = rotated_keys(block, hidden, rotary)
        causal = torch.full((hidden.shape[1],) * 2, -torch.inf).triu(1)[None, None]
        hidden = block(hidden, attention_mask=causal, position_embeddings=rotary).clone()
    return text.norm(hidden)[0], ids, kept


def rotate_at(text: Any, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and sines ``[1, W, d]`` of the positions ``[3, W]``."""
    kind = text.config.model_type
    # A Qwen2 in a LLaVA has positions of one dimension.
    given = positions[:, None] if "qwen" in kind and kind != "qwen2" else positions[:1]
    cos, sin = text.rotary_emb(torch.zeros(1), given)
    return cos, sin


def rotated_keys(block: Any, hidden: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
    """The keys ``[L, heads * d]`` of a layer, heads side by side, for its input."""
    attention = block.self_attn
    keys = attention.k_proj(block.input_layernorm(hidden))[0]
    if rotary[0].ndim == 4:  # Qwen2.5-VL before transformers 5.19 tells the three positions apart
        sections = attention.config.rope_parameters["mrope_section"] * 2
        rotary = tuple(
            torch.cat([three[i % 3] for i, three in enumerate(part.split(sections, -1))], -1)
            for part in rotary
        )
    cos, sin = (part[0] for part in rotary)
    heads = []
    for head in keys.split(attention.head_dim, dim=1):
        low, high = head.chunk(2, dim=1)
        heads.append(head * cos + torch.cat([-high, low], 1) * sin)
    return torch.cat(heads, 1)


@torch.no_grad()
def answer_by_hand(
    model: Any, row: Row, selector: Any, budget: int, banned: Sequence[int] = (), steps: int = NEW
) -> Expected:
    """Greedy decoding; every step computes all of the row again. No ``banned`` token comes."""
    embed = model.get_input_embeddings().weight
    tokens: list[int] = []
    logits = []
    first: Any = None
    for _ in range(steps):
        hidden, ids, kept = prune_by_hand(model, row, selector, budget, selector.layer)
        first = first or (hidden, ids, kept)
        logits.append(model.lm_head(hidden[-1]))
        logits[-1][list(banned)] = -torch.inf
        tokens.append(int(logits[-1].argmax()))
        following = row.positions.max() + 1
        row = row._replace(
            vectors=torch.cat([row.vectors, embed[tokens[-1]][None]]),
            positions=torch.cat([row.positions, following.expand(3, 1)], 1),
        )
    return Expected(tokens, torch.stack(logits), first[1], first[0], first[2])


def loss_by_hand(model: Any, row: Row, labels: list[int], selector: Any, budget: int) -> Tensor:
    """Losses ``[n]`` of the kept columns that have a label and another kept one before."""
    hidden, _, kept = prune_by_hand(model, row, selector, budget, selector.layer)
    logits = model.lm_head(hidden).log_softmax(-1)
    pairs = [(i - 1, labels[c]) for i, c in enumerate(kept) if i and labels[c] >= 0]
    return torch.stack([-logits[before, label] for before, label in pairs])


def attend_flat(
    module: Any, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, **given: Any
) -> tuple[Tensor, None]:
    """Attention as flash attention is called: causal by itself, with a mask of padding or none."""
    assert mask is None or mask.shape == (len(keys), keys.shape[2])
    repeats = queries.shape[1] // keys.shape[1]
    keys, values = (part.repeat_interleave(repeats, 1) for part in (keys, values))
    scores = queries @ keys.transpose(2, 3) * given["scaling"]
    hidden = torch.ones(scores.shape[2:], dtype=torch.bool)
    hidden = hidden.triu(1 + keys.shape[2] - queries.shape[2]).expand_as(scores)
    if mask is not None:
        hidden = hidden | ~mask.bool()[:, None, None]
    weights = scores.masked_fill(hidden, torch.finfo(scores.dtype).min).softmax(-1)
    return (weights @ values).transpose(1, 2), None


def use_attention(model: Any, kind: str) -> None:
    """Makes the language model attend by "sdpa", "eager", or "flat", which is `attend_flat`."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import flash_attention_mask

    AttentionInterface.register("flat", attend_flat)
    AttentionMaskInterface.register("flat", flash_attention_mask)
    model.set_attn_implementation({"text_config": kind})
    inner = model.model
    text = inner.text_model if hasattr(inner, "text_model") else inner.language_model
    assert text.config._attn_implementation == kind
