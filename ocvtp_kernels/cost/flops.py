"""FLOPs and bytes of whole models by formula, exact integers.

Counted are matrix multiplications and convolutions, a multiply-accumulate as 2 FLOPs. Left out is
element-wise work: norms, softmax, activations, gates, rotary angles, biases, argmax, gathers and
table look-ups. One image, batch 1, prefill alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise, zip_longest

from ocvtp_kernels.cost.models import LanguageModel, VisionLanguageModel, VisionTower
from ocvtp_kernels.cost.work import PruneCall
from ocvtp_kernels.ops.bipartite_merge import most_merged
from ocvtp_kernels.pruner.config import PrunerConfig

TEXT_TOKENS = 32  # arXiv 2511.20439, figure 1
FP16_BYTES = 2


def matmul(rows: int, inner: int, columns: int) -> int:
    """FLOPs of ``[rows, inner] @ [inner, columns]``: ``2 rows inner columns``."""
    return 2 * rows * inner * columns


def paper_prefill(language: LanguageModel, tokens: int) -> int:
    """The paper's FLOPs of a prefill: ``2 L (4 n d^2 + 2 n^2 d + 2 n d m)``.

    It takes the FFN for two matrices and every head for one with its own keys, and leaves out the
    vision tower, the projector, the lm_head and the pruner. Source: arXiv 2511.20439; with
    Vicuna-7B and 32 text tokens it gives the paper's 33.76 and 1.95 TFLOPs.

    Args:
        language: the decoder.
        tokens: n, vision and text tokens.
    """
    n, d, m = tokens, language.width, language.ffn_width
    return 2 * language.layers * (4 * n * d * d + 2 * n * n * d + 2 * n * d * m)


def attention_pairs(tokens: int, causal: bool) -> int:
    """Query-key pairs: ``n^2``, or those that a causal mask leaves, ``n (n + 1) / 2``."""
    return tokens * (tokens + 1) // 2 if causal else tokens * tokens


def prefill(language: LanguageModel, tokens: int, causal: bool = False) -> int:
    """FLOPs of all decoder layers over n tokens, lm_head left out.

    ``L (2 n d (2 h + 2 h_kv) + 4 p h + 6 n d m)`` with h the width of all query heads, h_kv that
    of all key heads (so the four projections are q, k, v and the output), p the query-key pairs
    (scores and weighted values) and three matrices in the gated FFN.
    Source: Llama (arXiv 2302.13971), grouped queries (arXiv 2305.13245).

    Args:
        language: the decoder.
        tokens: n, vision and text tokens.
        causal: count only the pairs under the causal mask; else all, as a kernel without block
            skipping computes them.
    """
    queries = language.heads * language.head_width
    keys = language.kv_heads * language.head_width
    projections = matmul(tokens, language.width, 2 * queries + 2 * keys)
    attention = 2 * matmul(1, attention_pairs(tokens, causal), queries)
    ffn = 3 * matmul(tokens, language.width, language.ffn_width)
    return language.layers * (projections + attention + ffn)


def lm_head(language: LanguageModel, positions: int = 1) -> int:
    """FLOPs of the lm_head: ``2 positions d vocabulary``; a prefill needs one position."""
    return matmul(positions, language.width, language.vocabulary)


def kv_cache_bytes(language: LanguageModel, tokens: int, value_bytes: int = FP16_BYTES) -> int:
    """Bytes of the keys and values of n tokens: ``2 L n h_kv value_bytes``, fp16 by default."""
    return 2 * language.layers * tokens * language.kv_heads * language.head_width * value_bytes


def window_pairs(tower: VisionTower) -> int:
    """Query-key pairs of one layer of one crop where attention stays in windows.

    Windows tile the grid of merged patches from the top left and are cut at its far edges, so the
    sum of ``(rows columns)^2`` over windows is a product of two sums over the sides.
    Source: Qwen2.5-VL (arXiv 2502.13923).
    """
    if tower.window is None:
        return (tower.grid[0] * tower.grid[1] + tower.class_tokens) ** 2
    squares = 1
    for side in tower.grid:
        whole, rest = divmod(side, tower.window)
        squares *= whole * tower.window**2 + rest**2
    return squares


def vision_tower(tower: VisionTower, merges: Sequence[int] = ()) -> int:
    """FLOPs of the patch embedding and all layers, over all crops.

    A crop takes ``2 P v w + sum over layers of (8 s w^2 + 4 p w + 2 f s w m)`` with P patches of
    v values, s = P + class tokens, width w, p query-key pairs (all within the crop or within
    windows) and f matrices of width m in the FFN. All layers are counted, also one whose output
    the model does not read. Source: ViT (arXiv 2010.11929).

    Args:
        tower: the tower.
        merges: how many tokens each of the first layers merges before its FFN, at the cost of
            `matching`; of a tower without windows. Source: ToMe (arXiv 2210.09461).
    """
    patches = tower.grid[0] * tower.grid[1]
    tokens = patches + tower.class_tokens
    total = matmul(patches, tower.patch_values, tower.width)
    for layer, merged in zip_longest(range(tower.layers), merges, fillvalue=0):
        is_full = tower.window is None or layer in tower.full_layers
        pairs = tokens**2 if is_full else window_pairs(tower)
        total += matmul(tokens, tower.width, 4 * tower.width) + 2 * matmul(1, pairs, tower.width)
        if merged:
            total += matching(tower, tokens)
            tokens -= merged
        total += tower.ffn_matrices * matmul(tokens, tower.width, tower.ffn_width)
    return tower.crops * total


def matching(tower: VisionTower, tokens: int) -> int:
    """FLOPs of ToMe's cosines of keys, mean over heads: ``2 a b d``.

    Args:
        tower: of key heads of d channels.
        tokens: of a layer, class tokens among them; a of them in A and b in B.
    """
    in_a = most_merged(tokens, tower.class_tokens)
    return matmul(in_a, tower.head_width, tokens - tower.class_tokens - in_a)


def mlp(widths: tuple[int, ...], tokens: int) -> int:
    """FLOPs of Linear layers in a row: ``2 n sum of (in out)``; widths are input to output."""
    return sum(matmul(tokens, before, after) for before, after in pairwise(widths))


def pruner_plain(config: PrunerConfig, tokens: int, slots: int) -> int:
    """FLOPs of the OC-pruner as published (`OCPruner.attend`).

    ``encode + 4 N D^2 + I (2 K D^2 + 4 K N D + 12 K D^2 + 4 K D F)``: the encode MLP, the key and
    value projections, then in each of I iterations the queries, logits and weighted mean, both
    GRU matrices and the FFN. Source: arXiv 2511.20439.

    Args:
        config: widths and iterations.
        tokens: N; slots: K.
    """
    dim = config.slot_dim
    encode = mlp((config.enc_in_dim, *config.enc_dims), tokens)
    keys_and_values = 2 * matmul(tokens, dim, dim)
    attention = matmul(slots, dim, dim) + 2 * matmul(slots, dim, tokens)
    update = 2 * matmul(slots, dim, 3 * dim) + 2 * matmul(slots, dim, config.agg_ffn_dim)
    return encode + keys_and_values + config.agg_num_iter * (attention + update)


def pruner_folded(config: PrunerConfig, tokens: int, slots: int) -> int:
    """FLOPs of the OC-pruner as ``ocvtp::prune`` runs it, on folded weights.

    ``encode + I (2 K D (D + 1) + 2 K N D) + (I - 1) (2 K N D + 12 K D^2 + 4 K D F)``: key and
    value projections vanish, the query gains a row for the per-slot constant, and the last
    iteration stops at its logits. Source: `ocvtp_kernels.pruner.fold`. Folding, once per pruner,
    is not counted.

    Args:
        config: widths and iterations.
        tokens: N; slots: K.
    """
    call = PruneCall(config, 1, tokens, slots, slots, config.enc_in_dim, FP16_BYTES)
    return call.work().flops


def importance(tower: VisionTower) -> int | None:
    """FLOPs of the scores that ``attention_received`` computes again: ``2 s^2 w`` a crop.

    None for a tower with windows: no single layer has all scores there, and gaps are filled by the
    slots' own attention, without a matrix multiplication.
    """
    if tower.window is not None:
        return None
    tokens = tower.grid[0] * tower.grid[1] + tower.class_tokens
    return tower.crops * matmul(tokens, tower.width, tokens)


@dataclass(frozen=True)
class PrefillCost:
    """Cost of one prefill of one image: FLOPs, unless the name says bytes.

    Attributes:
        kept: vision tokens that the language model reads.
        sequence: n, those and the text.
        paper: `paper_prefill`.
        vision, projector, lm_head: the parts of those names.
        language: `prefill` over all query-key pairs; language_causal: under the causal mask.
        pruner_plain, pruner_folded: the two forms of the OC-pruner; 0 where nothing is pruned.
        kv_bytes: `kv_cache_bytes` in fp16.
    """

    kept: int
    sequence: int
    paper: int
    vision: int
    projector: int
    language: int
    language_causal: int
    lm_head: int
    pruner_plain: int
    pruner_folded: int
    kv_bytes: int

    @property
    def total(self) -> int:
        """Everything, with the folded pruner and all query-key pairs."""
        return self.vision + self.pruner_folded + self.projector + self.language + self.lm_head

    @property
    def total_causal(self) -> int:
        """`total` with the decoder's query-key pairs under the causal mask alone."""
        return self.total - self.language + self.language_causal


def cost(
    model: VisionLanguageModel, budget: int | None, text_tokens: int = TEXT_TOKENS
) -> PrefillCost:
    """The cost of ``model`` on its image.

    Args:
        model: dimensions and image.
        budget: T, vision tokens kept by as many slots; None for the unpruned model.
        text_tokens: tokens beside the image's.

    Raises:
        ValueError: the budget is not between 1 and the vision tokens that there are.
    """
    available = model.tower.vision_tokens
    if budget is not None and not 1 <= budget <= available:
        raise ValueError(f"budget: expected 1 to {available}, got {budget}")
    kept = available if budget is None else budget
    sequence = kept + text_tokens
    pruned = budget is not None
    return PrefillCost(
        kept=kept,
        sequence=sequence,
        paper=paper_prefill(model.language, sequence),
        vision=vision_tower(model.tower),
        projector=mlp(model.projector, kept if model.projects_kept_only else available),
        language=prefill(model.language, sequence),
        language_causal=prefill(model.language, sequence, causal=True),
        lm_head=lm_head(model.language),
        pruner_plain=pruner_plain(model.pruner, available, kept) if pruned else 0,
        pruner_folded=pruner_folded(model.pruner, available, kept) if pruned else 0,
        kv_bytes=kv_cache_bytes(model.language, sequence),
    )
