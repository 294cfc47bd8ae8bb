"""Text whose attention ranks image tokens: which rows of a prompt it is, and what they attend to.

Queries and keys are those of one decoder layer, made by the layer's own modules; no layer returns
its attention.
"""

from __future__ import annotations

import sys
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ocvtp_kernels.dtypes import acc_dtype
from ocvtp_kernels.ops.argmax_gather import gather_tokens
from ocvtp_kernels.vlm.columns import IGNORED_LABEL
from ocvtp_kernels.vlm.decoder.masks import take_positions

Embeddings = tuple[Tensor, Tensor]  # cosines and sines, as the model hands them to its layers
_PROJECTIONS, _ROTATIONS = ("q", "k"), ("apply_rotary_pos_emb", "apply_multimodal_rotary_pos_emb")


class TextRows(NamedTuple):
    """The rows whose attention counts: M of each prompt, some of which may not."""

    columns: Tensor  # int64 [B, M], in the whole prompt
    counts: Tensor  # bool [B, M]


def without_answer(attended: Tensor, is_image: Tensor, labels: Tensor) -> Tensor:
    """The columns in front of an answer to learn: bool ``[B, L]``.

    The answer begins at the first label. A row with one before the end of its images says nothing
    of where it is, and is all a question.

    Args:
        attended: bool ``[B, L]``, False on padding.
        is_image: bool ``[B, L]``, the placeholders.
        labels: int64 ``[B, L]``.
    """
    # Placeholders are no labels, even where they have some.
    is_label = (labels.to(attended.device) != IGNORED_LABEL) & ~is_image
    before = is_label.cumsum(1) == 0
    tells = ~(is_image & ~before).any(1, keepdim=True)
    return attended & (before | ~tells)


def last_rows(asked: Tensor) -> TextRows:
    """The last token of each prompt.

    Args:
        asked: bool ``[B, L]``, False on padding and answers.
    """
    columns = asked.shape[1] - 1 - asked.flip(1).int().argmax(1, keepdim=True)
    return TextRows(columns, torch.ones_like(columns, dtype=torch.bool))


def rows_behind(is_image: Tensor, asked: Tensor, num_text: int) -> TextRows:
    """The text behind the images of each prompt; where there is none, its last token.

    Args:
        is_image: bool ``[B, L]``, the placeholders.
        asked: bool ``[B, L]``, False on padding and answers.
        num_text: M, at least 1: the most text that a prompt has behind its images.
    """
    behind = asked & (is_image.flip(1).cumsum(1).flip(1) == 0)
    last = last_rows(asked).columns
    behind = behind.scatter(1, last, behind.gather(1, last) | ~behind.any(1, keepdim=True))
    columns = behind.int().argsort(dim=1, stable=True)[:, -num_text:]
    return TextRows(columns, behind.gather(1, columns))


def find_raters(embeddings: Tensor, is_image: Tensor, asked: Tensor, num_text: int) -> TextRows:
    """The raters of SparseVLM: text behind the images that is closest to their tokens.

    With image tokens v and text tokens t of a prompt, ``m_t = mean over v of softmax over t of
    (v . t)``; raters are those with ``m_t > mean m``. Where none is, all text behind the images
    rates, and where there is no such text, the prompt's last token that is left. Source: arXiv
    2410.04417.

    Args:
        embeddings: ``[B, L, C]``, what the first decoder layer reads.
        is_image, asked, num_text: as of `rows_behind`.
    """
    columns, is_text = rows_behind(is_image, asked, num_text)
    wide = embeddings.to(acc_dtype(embeddings.dtype))
    logits = wide @ gather_tokens(wide, columns).mT
    share = logits.masked_fill(~is_text[:, None], -torch.inf).softmax(-1)
    closeness = share.masked_fill(~is_image[..., None], 0).sum(1).masked_fill(~is_text, 0)
    mean = closeness.sum(1, keepdim=True) / is_text.sum(1, keepdim=True)
    rates = is_text & (closeness > mean)
    return TextRows(columns, torch.where(rates.any(1, keepdim=True), rates, is_text))


def largest_keys(keys: Tensor, rows: TextRows, count: int) -> Tensor:
    """The columns of some rows by the L1 norm of their keys, largest first, ties to the first.

    Args:
        keys: ``[B, G, W, d]``, after the rotary embedding.
        rows: in these columns; those that do not count come last.
        count: P, at most M.

    Returns:
        int64 ``[B, P]``.
    """
    of_rows = gather_tokens(keys.transpose(1, 2).flatten(2), rows.columns)
    norms = of_rows.to(acc_dtype(keys.dtype)).abs().sum(2).nan_to_num(nan=-1.0)
    order = norms.masked_fill(~rows.counts, -2.0).argsort(dim=1, descending=True, stable=True)
    return rows.columns.gather(1, order[:, :count])


def text_attention(
    attention: Any, normed: Tensor, keys: Tensor, embeddings: Embeddings, rows: TextRows,
    valid: Tensor,
) -> Tensor:  # fmt: skip
    """What every column receives from the rows: float32 or wider ``[B, W]``.

    Args:
        attention: of a decoder layer.
        normed: ``[B, W, C]``, its input.
        keys: ``[B, G, W, d]``, its keys after the rotary embedding.
        embeddings: the rotary embedding of the columns.
        rows: in these columns.
        valid: bool ``[B, W]``, False on padding.
    """
    cos, sin = (take_positions(part, rows.columns) for part in embeddings)
    queries = project(attention, "q", gather_tokens(normed, rows.columns), (cos, sin))
    last = rows.columns.masked_fill(~rows.counts, -1)
    received: Tensor = torch.ops.ocvtp.attention_from_rows(
        queries, keys, last, valid, None, float(attention.scaling)
    )
    return received


def project(attention: Any, name: str, normed: Tensor, embeddings: Embeddings) -> Tensor:
    """Queries (``name`` "q") or keys ("k") ``[B, heads, W, d]``, after the rotary embedding.

    Args:
        attention: of a decoder layer.
        name: "q" or "k".
        normed: ``[B, W, C]``, the attention's input.
        embeddings: the rotary embedding of these columns.
    """
    heads = getattr(attention, f"{name}_proj")(normed).unflatten(-1, (-1, attention.head_dim))
    norm = getattr(attention, f"{name}_norm", None)
    states = (heads if norm is None else norm(heads)).transpose(1, 2)
    cos, sin = embeddings
    functions = vars(sys.modules[type(attention).__module__])
    # The models rotate queries and keys at once: here, one of them and none of the other.
    if cos.ndim == 4:  # Qwen2.5-VL before transformers 5.19 tells three positions apart
        sections = attention.config.rope_parameters["mrope_section"]
        rotated = functions[_ROTATIONS[1]](states, states[:, :0], cos, sin, sections)[0]
    else:
        rotated = functions[_ROTATIONS[0]](states, states[:, :0], cos, sin)[0]
    result: Tensor = rotated
    return result


def require_projections(layer: Any) -> None:
    """Raises ValueError unless `project` can make the queries and keys of a decoder layer."""
    attention = layer.self_attn
    needs = [f"{name}_proj" for name in _PROJECTIONS] + ["head_dim", "scaling"]
    missing = [name for name in needs if not hasattr(attention, name)]
    functions = vars(sys.modules[type(attention).__module__])
    if not any(name in functions for name in _ROTATIONS):
        missing.append(_ROTATIONS[0])
    if not hasattr(layer, "input_layernorm"):
        missing.append("input_layernorm")
    for name in _PROJECTIONS:
        norm = getattr(attention, f"{name}_norm", None)
        weight = getattr(norm, "weight", None)
        if norm is not None and (weight is None or weight.shape != (attention.head_dim,)):
            missing.append(f"{name}_norm of single heads")
    if missing:
        raise ValueError(
            "model: attention received from text is computed from a layer's own modules; "
            f"{type(attention).__name__} has no {', '.join(missing)}"
        )
