"""The dimensions of the vision-language models whose cost is counted, and where they are stated."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from ocvtp_kernels.pruner.config import PrunerConfig

# The shares of the tokens that the paper keeps on LLaVA-1.5 (arXiv 2511.20439).
LLAVA_TOKENS = 576
LLAVA_BUDGETS = (64, 128, 192)


@dataclass(frozen=True)
class LanguageModel:
    """A decoder with grouped-query attention and a gated FFN; widths in channels.

    Attributes:
        layers: L; width: d; ffn_width: m.
        heads: query heads; kv_heads: key and value heads; head_width: channels of a head.
        vocabulary: rows of the lm_head.
    """

    layers: int
    width: int
    ffn_width: int
    heads: int
    kv_heads: int
    head_width: int
    vocabulary: int


@dataclass(frozen=True)
class VisionTower:
    """A vision transformer with as many key heads as query heads; widths in channels.

    Attributes:
        layers, width, ffn_width: of the transformer.
        ffn_matrices: 2 for a plain FFN, 3 for a gated one.
        patch_values: elements of one patch, the input of the patch embedding.
        grid: rows and columns of patches in one crop.
        crops: crops that go through the tower, each on its own.
        class_tokens: tokens beside the patches of a crop; they take part and are dropped after.
        merge: patches along one side of the square that becomes one vision token.
        window: patches along one side of an attention window; None where all attend to all.
        full_layers: layers without windows, where there are windows.
        head_width: channels of a head.
    """

    layers: int
    width: int
    ffn_width: int
    ffn_matrices: int
    patch_values: int
    grid: tuple[int, int]
    crops: int = 1
    class_tokens: int = 0
    merge: int = 1
    window: int | None = None
    full_layers: tuple[int, ...] = ()
    head_width: int = 64

    @property
    def patches(self) -> int:
        """Patches of all crops."""
        return self.crops * self.grid[0] * self.grid[1]

    @property
    def vision_tokens(self) -> int:
        """N, what the language model reads of an unpruned image."""
        return self.patches // self.merge**2


@dataclass(frozen=True)
class VisionLanguageModel:
    """One model on one image.

    Attributes:
        name: as it is called; source: where its dimensions are published.
        image: the image counted, and what is assumed about it.
        tower, language: its two transformers.
        projector: widths of the projector (or merger), input to output.
        projects_kept_only: whether the tokens are chosen before the projector runs.
        budgets: T, tokens kept.
        pruner: shapes of the OC-pruner in front of it.
    """

    name: str
    source: str
    image: str
    tower: VisionTower
    language: LanguageModel
    projector: tuple[int, ...]
    projects_kept_only: bool
    budgets: tuple[int, ...]
    pruner: PrunerConfig = field(default_factory=PrunerConfig)


CLIP_L_336 = VisionTower(
    layers=24, width=1024, ffn_width=4096, ffn_matrices=2,
    patch_values=3 * 14 * 14, grid=(24, 24), class_tokens=1,
)  # fmt: skip

VICUNA_7B = LanguageModel(
    layers=32, width=4096, ffn_width=11008, heads=32, kv_heads=32, head_width=128, vocabulary=32064
)

VICUNA_13B = LanguageModel(
    layers=40, width=5120, ffn_width=13824, heads=40, kv_heads=40, head_width=128, vocabulary=32064
)

LLAVA_7B = VisionLanguageModel(
    name="LLaVA-1.5-7B",
    source="llava-hf/llava-1.5-7b-hf (config.json)",
    image="one crop of 336x336 pixels",
    tower=CLIP_L_336,
    language=VICUNA_7B,
    projector=(1024, 4096, 4096),
    projects_kept_only=True,
    budgets=LLAVA_BUDGETS,
)

LLAVA_13B = replace(
    LLAVA_7B,
    name="LLaVA-1.5-13B",
    source="llava-hf/llava-1.5-13b-hf (config.json)",
    language=VICUNA_13B,
    projector=(1024, 5120, 5120),
)

LLAVA_NEXT_7B = replace(
    LLAVA_7B,
    name="LLaVA-NeXT-7B",
    source="llava-hf/llava-v1.6-vicuna-7b-hf (config.json)",
    image="as in arXiv 2511.20439, 672x672 pixels: five crops of 336x336 in one sequence, without"
    " newline tokens",
    tower=replace(CLIP_L_336, crops=5),
    budgets=(160, 320, 640),
)

# 64 x 80 patches make 1280 tokens, the upper end of the range that the model's card suggests.
QWEN_TOWER = VisionTower(
    layers=32, width=1280, ffn_width=3420, ffn_matrices=3,
    patch_values=3 * 2 * 14 * 14, grid=(64, 80), merge=2, window=8, full_layers=(7, 15, 23, 31),
)  # fmt: skip

QWEN_DECODER = LanguageModel(
    layers=28, width=3584, ffn_width=18944, heads=28, kv_heads=4, head_width=128, vocabulary=152064
)

QWEN_7B = VisionLanguageModel(
    name="Qwen2.5-VL-7B",
    source="Qwen/Qwen2.5-VL-7B-Instruct (config.json)",
    image="chosen here: 1120x896 pixels, 80x64 patches, merged 2x2; LLaVA-1.5's shares are kept."
    " No pruner of this model is published: the one counted is LLaVA's with an input as wide as"
    " this tower, on the mean of each token's four patches",
    tower=QWEN_TOWER,
    language=QWEN_DECODER,
    projector=(4 * 1280, 4 * 1280, 3584),
    projects_kept_only=False,
    budgets=tuple(
        round(QWEN_TOWER.vision_tokens * budget / LLAVA_TOKENS) for budget in LLAVA_BUDGETS
    ),
    pruner=replace(PrunerConfig(), enc_in_dim=QWEN_TOWER.width),
)

MODELS = (LLAVA_7B, LLAVA_13B, LLAVA_NEXT_7B, QWEN_7B)
