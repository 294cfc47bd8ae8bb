from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import accumulate

import pytest
import torch
from transformers import CLIPVisionModel, DynamicCache, LlavaConfig, Qwen2_5_VLConfig

from ocvtp_kernels import OCPruner, PrunerConfig, ops
from ocvtp_kernels.cost import flops
from ocvtp_kernels.cost.layers import merges_by_name
from ocvtp_kernels.cost.models import (
    LLAVA_7B,
    LLAVA_13B,
    LLAVA_NEXT_7B,
    MODELS,
    QWEN_7B,
    VisionLanguageModel,
)
from ocvtp_kernels.ops.prune.reference import attention_logits
from ocvtp_kernels.vlm.layer_call import cache_name
from ocvtp_kernels.vlm.towers import Tower
from tests.cost.cases import (
    SMALL,
    SMALL_LLAVA,
    SMALL_PRUNER,
    SMALL_QWEN,
    SMALL_TOWER,
    SMALL_WINDOWS,
    clip_config,
    counted,
    decoder,
    prompt,
    run_decoder,
    small_llava,
    small_pixels,
    small_qwen,
)


@pytest.mark.parametrize(("vision_tokens", "printed"), [(2880, "33.76"), (160, "1.95")])
def test_the_papers_formula_gives_the_papers_figures(vision_tokens: int, printed: str) -> None:
    language = LLAVA_NEXT_7B.language
    assert (language.layers, language.width, language.ffn_width) == (32, 4096, 11008)
    of_text = {
        text: f"{flops.paper_prefill(language, vision_tokens + text) / 1e12:.2f}"
        for text in range(256)
    }
    assert [text for text, digits in of_text.items() if digits == printed] == [flops.TEXT_TOKENS]
    budget = None if vision_tokens == LLAVA_NEXT_7B.tower.vision_tokens else vision_tokens
    assert f"{flops.cost(LLAVA_NEXT_7B, budget).paper / 1e12:.2f}" == printed


def test_nearly_85_percent_are_saved_on_llava_at_64_tokens() -> None:
    saved = 1 - flops.cost(LLAVA_7B, 64).paper / flops.cost(LLAVA_7B, None).paper
    assert 0.84 < saved < 0.85


def test_the_published_pruner_takes_about_a_thousandth_of_the_model() -> None:
    for model in MODELS:
        full = flops.cost(model, None).total
        for budget in model.budgets:
            now = flops.cost(model, budget)
            assert 0 < now.pruner_folded < now.pruner_plain
            assert 0.3e-3 < now.pruner_plain / full < 1.2e-3
            assert now.pruner_folded / now.total < 6e-3


@pytest.mark.parametrize("kv_heads", [1, 2, 6])
@pytest.mark.parametrize("tokens", [1, 19])
def test_decoder_against_torchs_count(kv_heads: int, tokens: int) -> None:
    language = replace(SMALL, kv_heads=kv_heads)
    model = decoder(language)
    measured = counted(lambda: run_decoder(model, language, tokens, "cpu"))
    assert measured == flops.prefill(language, tokens) + flops.lm_head(language)


@pytest.mark.parametrize(
    ("model", "family"),
    [(LLAVA_7B, "Llama"), (LLAVA_13B, "Llama"), (LLAVA_NEXT_7B, "Llama"), (QWEN_7B, "Qwen2")],
)
def test_published_decoders_against_torchs_count(model: VisionLanguageModel, family: str) -> None:
    language = model.language
    layers = decoder(language, "meta", family)
    for budget in (None, *model.budgets):
        now = flops.cost(model, budget)
        measured = counted(lambda n=now.sequence: run_decoder(layers, language, n, "meta"))
        assert measured == now.language + now.lm_head


def test_causal_pairs_against_attention_row_by_row() -> None:
    tokens, heads, width = 9, SMALL.heads, SMALL.head_width
    q, k, v = torch.randn(3, heads, tokens, width)

    def attend_row_by_row() -> None:
        for row in range(tokens):
            scores = torch.bmm(q[:, row : row + 1], k[:, : row + 1].transpose(1, 2))
            torch.bmm(scores.softmax(-1), v[:, : row + 1])

    left_out = flops.prefill(SMALL, tokens) - flops.prefill(SMALL, tokens, causal=True)
    whole = counted(lambda: torch.bmm(torch.bmm(q, k.transpose(1, 2)), v))
    assert left_out == SMALL.layers * (whole - counted(attend_row_by_row))


@pytest.mark.parametrize("value_bytes", [2, 4])
def test_kv_cache_against_the_cache_of_transformers(value_bytes: int) -> None:
    model = decoder(SMALL).to(torch.float16 if value_bytes == 2 else torch.float32)
    cache = DynamicCache()
    with torch.no_grad():
        model(prompt(0, 13), **{cache_name(model.forward): cache}, use_cache=True)
    held = [tensor for layer in cache.layers for tensor in (layer.keys, layer.values)]
    measured = sum(tensor.numel() * tensor.element_size() for tensor in held)
    assert measured == flops.kv_cache_bytes(SMALL, 13, value_bytes)


@pytest.mark.parametrize("crops", [1, 5])
def test_clip_tower_against_torchs_count(crops: int) -> None:
    tower = replace(SMALL_TOWER, crops=crops)
    model = CLIPVisionModel(clip_config(tower, 4)).eval()
    assert counted(lambda: model(small_pixels(tower))) == flops.vision_tower(tower)


@pytest.mark.parametrize("model", [LLAVA_7B, LLAVA_NEXT_7B], ids=lambda model: model.name)
def test_published_clip_tower_against_torchs_count(model: VisionLanguageModel) -> None:
    tower = model.tower
    with torch.device("meta"):
        layers = CLIPVisionModel(clip_config(tower, 14)).eval()
        pixels = torch.empty(tower.crops, 3, 336, 336)
    assert counted(lambda: layers(pixels)) == flops.vision_tower(tower)


@pytest.mark.parametrize("budget", [64, 192])
def test_merging_tower_against_torchs_count(budget: int) -> None:
    tower = LLAVA_7B.tower
    merges = merges_by_name("tome", budget, tower)
    assert sum(merges) == 576 - budget and len(merges) == 23
    with torch.device("meta"):
        layers = CLIPVisionModel(clip_config(tower, 14)).eval()
        pixels = torch.empty(1, 3, 336, 336)
    # All layers, as the count has them.
    run = partial(Tower.of(layers).encode_merged, skip_unused_layers=False)
    measured = counted(lambda: run(pixels, -2, merges))
    # The op's own, which torch's counter does not know.
    done = accumulate(merges[:-1], initial=0)
    measured += sum(flops.matching(tower, 577 - before) for before in done)
    assert measured == flops.vision_tower(tower, merges)


@pytest.mark.parametrize("grid", [(4, 4), (8, 12), (10, 14), (2, 6)])
def test_windowed_tower_and_merger_against_torchs_count(grid: tuple[int, int]) -> None:
    tower = replace(SMALL_WINDOWS, grid=grid)
    model = small_qwen().model.visual
    pixels = torch.randn(tower.patches, tower.patch_values)
    measured = counted(lambda: model(pixels, grid_thw=torch.tensor([[1, *grid]])))
    merger = flops.mlp(SMALL_QWEN.projector, tower.vision_tokens)
    assert measured == flops.vision_tower(tower) + merger


def test_whole_llava_against_torchs_count() -> None:
    model, text = small_llava(), 6
    inputs = prompt(SMALL_TOWER.vision_tokens, text)
    pixels = small_pixels(SMALL_TOWER)
    measured = counted(lambda: model(input_ids=inputs, pixel_values=pixels, logits_to_keep=1))
    assert measured == flops.cost(SMALL_LLAVA, None, text).total


def test_whole_qwen_against_torchs_count() -> None:
    model, text, tower = small_qwen(), 6, SMALL_WINDOWS
    inputs = prompt(tower.vision_tokens, text)
    arguments = {
        "input_ids": inputs,
        "mm_token_type_ids": (inputs == 100).int(),
        "pixel_values": torch.randn(tower.patches, tower.patch_values),
        "image_grid_thw": torch.tensor([[1, *tower.grid]]),
    }
    measured = counted(lambda: model(**arguments, logits_to_keep=1))
    assert measured == flops.cost(SMALL_QWEN, None, text).total


def test_pruned_llava_is_the_sum_of_its_parts_by_torchs_count() -> None:
    model, text, kept, tower = small_llava(), 6, 7, SMALL_TOWER
    pruner = OCPruner(SMALL_PRUNER).eval().freeze()
    reference = torch.randn(1, tower.vision_tokens, tower.width)
    slots = pruner.sample_slots(1, kept)
    parts: list[Callable[[], object]] = [
        lambda: model.model.vision_tower(small_pixels(tower)),
        lambda: model.model.multi_modal_projector(reference[:, :kept]),
        lambda: attention_logits(reference, pruner.packed(), slots),
        lambda: model(inputs_embeds=torch.randn(1, kept + text, SMALL.width), logits_to_keep=1),
    ]
    assert sum(map(counted, parts)) == flops.cost(SMALL_LLAVA, kept, text).total


@pytest.mark.parametrize("slots", [1, 7, 64])
@pytest.mark.parametrize("tokens", [1, 25])
@pytest.mark.parametrize("iterations", [1, 3])
@pytest.mark.parametrize("config", [SMALL_PRUNER, replace(SMALL_PRUNER, enc_dims=(24,))])
def test_pruner_against_torchs_count(
    config: PrunerConfig, iterations: int, tokens: int, slots: int
) -> None:
    config = replace(config, agg_num_iter=iterations)
    pruner = OCPruner(config).eval().freeze()
    reference = torch.randn(1, tokens, config.enc_in_dim)
    start = pruner.sample_slots(1, slots)
    plain = counted(lambda: pruner.attend(reference, start))
    folded = counted(lambda: attention_logits(reference, pruner.packed(), start))
    assert plain == flops.pruner_plain(config, tokens, slots)
    assert folded == flops.pruner_folded(config, tokens, slots)


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_published_pruner_against_torchs_count(model: VisionLanguageModel) -> None:
    pruner = OCPruner(model.pruner).eval().freeze()
    reference = torch.randn(1, model.tower.vision_tokens, model.pruner.enc_in_dim)
    now = flops.cost(model, model.budgets[0])
    start = pruner.sample_slots(1, now.kept)
    folded = counted(lambda: attention_logits(reference, pruner.packed(), start))
    assert counted(lambda: pruner.attend(reference, start)) == now.pruner_plain
    assert folded == now.pruner_folded


@pytest.mark.parametrize("crops", [1, 5])
def test_importance_against_torchs_count(crops: int) -> None:
    tower = replace(SMALL_TOWER, crops=crops)
    tokens = tower.patches // crops + tower.class_tokens
    q, k = torch.randn(2, crops, 4, tokens, tower.width // 4)
    assert counted(lambda: ops.attention_received.reference(q, k, "meanq")) == flops.importance(
        tower
    )
    assert flops.importance(SMALL_WINDOWS) is None


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_dimensions_fit_together(model: VisionLanguageModel) -> None:
    assert model.projector[0] == model.tower.width * model.tower.merge**2
    assert model.projector[-1] == model.language.width
    assert model.pruner.enc_in_dim == model.tower.width
    assert all(1 <= budget < model.tower.vision_tokens for budget in model.budgets)
    assert flops.cost(model, None).kept == model.tower.vision_tokens


def test_llava_has_the_dimensions_that_transformers_takes_for_llavas() -> None:
    vision, text = LlavaConfig().vision_config, LlavaConfig().text_config
    tower, language = LLAVA_7B.tower, LLAVA_7B.language
    assert vision.num_hidden_layers == tower.layers and vision.hidden_size == tower.width
    assert vision.intermediate_size == tower.ffn_width
    assert vision.image_size // vision.patch_size == tower.grid[0] == tower.grid[1]
    assert text.num_hidden_layers == language.layers and text.hidden_size == language.width
    assert text.intermediate_size == language.ffn_width
    assert text.num_attention_heads == language.heads
    assert text.num_key_value_heads == language.kv_heads


def test_qwens_tower_has_the_dimensions_that_transformers_takes_for_it() -> None:
    vision, tower = Qwen2_5_VLConfig().vision_config, QWEN_7B.tower
    assert vision.depth == tower.layers and vision.intermediate_size == tower.ffn_width
    assert vision.patch_size**2 * vision.temporal_patch_size * 3 == tower.patch_values
    assert vision.spatial_merge_size == tower.merge
    assert vision.window_size == tower.window * vision.patch_size
    assert tuple(vision.fullatt_block_indexes) == tower.full_layers
    assert vision.out_hidden_size == QWEN_7B.language.width


@pytest.mark.parametrize("budget", [0, -1, 577])
def test_impossible_budget_is_named(budget: int) -> None:
    with pytest.raises(ValueError, match=f"budget: expected 1 to 576, got {budget}"):
        flops.cost(LLAVA_7B, budget)
