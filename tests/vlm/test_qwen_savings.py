"""Qwen2.5-VL: skipping unused work changes no result."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("transformers", minversion="5.19")

from ocvtp_kernels.selectors.at_random import RandomSelector
from ocvtp_kernels.vlm.columns import drop_placeholders
from ocvtp_kernels.vlm.columns.encoder import UnitEncoder
from ocvtp_kernels.vlm.columns.prompt import Prompt, count_kept
from ocvtp_kernels.vlm.handle import Handle, Options
from ocvtp_kernels.vlm.intercept import remove_intercepts
from ocvtp_kernels.vlm.qwen2_5_vl import FAMILY, WindowTower
from tests.cases import assert_within_budget
from tests.vlm.models_qwen import (
    DEPTH,
    PHOTO,
    ByNorm,
    make_batch,
    make_model,
    make_photo,
)

BUDGET = 7
# 60, 16, 60, 6 and 15 merged tokens: the fourth has fewer than the budget.
PHOTOS = [(10, 6), (4, 4), (10, 6), (3, 2), (5, 3)]
LAYERS = range(DEPTH)


class ByEarlyNorm(ByNorm):
    needs = frozenset({"reference_tokens"})


@pytest.fixture
def model(one_thread: None) -> Any:
    return make_model()


def make_images(sizes: list[tuple[int, int]] = PHOTOS) -> tuple[Tensor, list[list[int]]]:
    photos = [make_photo(*size, seed=seed) for seed, size in enumerate(sizes)]
    batch = make_batch([(PHOTO * len(photos), photos)])
    return batch["pixel_values"], batch["image_grid_thw"].tolist()


@torch.no_grad()
def encode(
    model: Any, images: tuple[Tensor, list[list[int]]], selector: Any = None, **options: Any
) -> tuple[list[Tensor], Tensor]:
    """Ids, and the tokens of all images in a row."""
    layer = options.pop("layer", DEPTH // 3)
    selector = selector or ByEarlyNorm()
    encoder = UnitEncoder(WindowTower, selector, BUDGET, layer, Options(**options))
    ids, output = encoder.encode(model.model.visual, *images, Handle().begin())
    assert [len(tokens) for tokens in output.pooler_output] == [len(image) for image in ids]
    return ids, torch.cat(output.pooler_output)


def check_lossless(model: Any, images: Any, **options: Any) -> None:
    ids, saved = encode(model, images, **options)
    same, plain = encode(model, images, skip_unused_layers=False, **options)
    dtype = model.dtype
    exact, oracle = encode(model.double(), images, skip_unused_layers=False, **options)
    model.to(dtype)
    for some, others, exactly in zip(ids, same, exact, strict=True):
        assert torch.equal(some, others) and torch.equal(some, exactly)
    assert_within_budget(saved, plain, oracle)


class Work:
    """Rows that the encoder's parts computed, while open."""

    def __init__(self, visual: Any) -> None:
        self.parts = {"first": visual.blocks[0].mlp, "last": visual.blocks[-1].mlp}
        self.parts |= {"projection": visual.blocks[-1].attn.proj, "merger": visual.merger.mlp}
        self.rows: dict[str, int] = {}

    def __enter__(self) -> dict[str, int]:
        def note(name: str) -> Any:
            return lambda _part, args: self.rows.update({name: len(args[0])})

        self.hooks = [
            part.register_forward_pre_hook(note(name)) for name, part in self.parts.items()
        ]
        return self.rows

    def __exit__(self, *_error: object) -> None:
        for hook in self.hooks:
            hook.remove()


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("sizes", [PHOTOS, PHOTOS[:1], [PHOTOS[1], PHOTOS[1]]], ids=len)
def test_tokens_are_those_of_the_whole_encoder(model: Any, sizes: Any, layer: int) -> None:
    check_lossless(model, make_images(sizes), layer=layer)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(model: Any, dtype: torch.dtype) -> None:
    check_lossless(model.to(dtype), make_images(), selector=RandomSelector(3))


def test_eager_attention_and_no_bias(model: Any) -> None:
    model.model.visual.set_attn_implementation("eager")
    attention = model.model.visual.blocks[-1].attn
    attention.qkv.register_parameter("bias", None)
    check_lossless(model, make_images())


@pytest.mark.parametrize("layer", LAYERS)
def test_only_the_kept_are_finished(model: Any, layer: int) -> None:
    images, kept, all_units = make_images(), 4 * BUDGET + 6, 157
    whole = {"first": 4 * all_units, "last": 4 * all_units, "projection": 4 * all_units}
    with Work(model.model.visual) as rows:
        encode(model, images, layer=layer)
        saved = {"last": 4 * kept, "projection": 4 * kept} if layer < DEPTH - 1 else {}
        assert rows == whole | saved | {"merger": kept}
        for options in ({"skip_unused_layers": False}, {"selector": ByNorm()}):
            encode(model, images, layer=layer, **options)
            assert rows == whole | {"merger": all_units}
        # Where all are kept, nothing is to be left out.
        encode(model, make_images(PHOTOS[3:4]), layer=layer)
        assert rows == {"first": 24, "last": 24, "projection": 24, "merger": 6}


def test_a_windowed_last_block_is_run_whole() -> None:
    model = make_model()
    model.model.visual.fullatt_block_indexes = [1]
    images = make_images()
    with Work(model.model.visual) as rows:
        encode(model, images)
        assert (rows["last"], rows["merger"]) == (628, 34)
    check_lossless(model, images)


def test_frames_of_one_image_are_run_whole(model: Any) -> None:
    pixels, grids = make_images([PHOTOS[1], PHOTOS[1], PHOTOS[0]])
    images = (pixels, [[2, *grids[0][1:]], grids[2]])
    with Work(model.model.visual) as rows:
        ids, _ = encode(model, images)
        assert (rows["last"], rows["merger"]) == (368, 14)
    assert ids[0].max() > 15
    check_lossless(model, images)


def test_a_forward_that_is_set_on_the_block_is_run(model: Any) -> None:
    block, images = model.model.visual.blocks[-1], make_images()
    expected, stock, calls = encode(model, images)[1], block.forward, []

    def moved(*args: Any, **kwargs: Any) -> Tensor:
        calls.append(1)
        return stock(*args, **kwargs)

    block.forward = moved
    _, tokens = encode(model, images)
    assert calls == [1] and vars(block)["forward"] is moved
    torch.testing.assert_close(tokens, expected)


def test_an_adapter_of_the_projections_counts(model: Any) -> None:
    class Adapted(nn.Linear):
        def forward(self, tokens: Tensor) -> Tensor:
            return super().forward(tokens) + tokens.repeat(1, 3).roll(1, 1)

    attention, images = model.model.visual.blocks[-1].attn, make_images()
    _, without = encode(model, images)
    attention.qkv.__class__ = Adapted
    assert (encode(model, images)[1] - without).abs().max() > 0.01
    check_lossless(model, images)
    attention.qkv.__class__ = nn.Linear
    hook = attention.qkv.register_forward_hook(lambda _part, _args, output: output * 2)
    check_lossless(model, images)
    hook.remove()


@pytest.mark.parametrize("where", ["selector", "last", "merger"])
def test_all_is_as_before_after_an_error(model: Any, where: str) -> None:
    visual, images = model.model.visual, make_images()
    _, expected = encode(model, images)

    class Failing(ByEarlyNorm):
        def __call__(self, *_args: Any) -> Tensor:
            raise ArithmeticError

    def fail(*_args: Any) -> None:
        raise ArithmeticError

    part = {"selector": None, "last": visual.blocks[-1].mlp, "merger": visual.merger.mlp}[where]
    hook = part and part.register_forward_pre_hook(fail)
    with pytest.raises(ArithmeticError):
        encode(model, images, Failing() if part is None else None)
    if hook is not None:
        hook.remove()
    remove_intercepts(visual)
    for module in visual.modules():
        assert "forward" not in vars(module) and not module._forward_hooks
    assert torch.equal(encode(model, images)[1], expected)


def test_training_runs_everything(model: Any) -> None:
    batch = make_batch([(f"{PHOTO} what is this ?", [make_photo(10, 6)])])
    model.train().gradient_checkpointing_enable()
    with FAMILY.attach(model, None, ByEarlyNorm(), BUDGET, Options()):
        with Work(model.model.visual) as rows:
            output = model(**batch, labels=batch["input_ids"], use_cache=False)
            assert (rows["last"], rows["merger"]) == (240, 60)
        output.loss.backward()
    assert all(p.grad is not None for p in model.model.visual.blocks[0].parameters())


@pytest.mark.parametrize("savings", [True, False])
def test_nothing_waits_for_the_device(savings: bool) -> None:
    """On the meta device reading a value fails."""
    model, selector = make_model().to("meta"), RandomSelector(1)
    pixels, grids = make_images()
    ids, tokens = encode(model, (pixels.to("meta"), grids), selector, skip_unused_layers=savings)
    assert tokens.is_meta and len(tokens) == 34
    sizes = [t * h * w // 4 for t, h, w in grids]
    is_image = torch.ones(1, sum(sizes), dtype=torch.bool, device="meta")
    kept = drop_placeholders(torch.ones_like(is_image), is_image, ids, sizes)
    counts = count_kept([sum(sizes)], [sum(sizes)], ids, sizes)
    prompt = Prompt(is_image.long(), is_image, is_image.long().expand(3, 1, -1))
    assert prompt.keep(kept, counts, 0).input_ids.shape == (1, 34)


def test_kept_columns_of_every_row() -> None:
    ids = [torch.arange(count) for count in (3, 2, 4)]
    assert count_kept([12, 9, 3], [10, 5, 0], ids, [6, 4, 5]) == [7, 8, 3]
    assert count_kept([12, 9, 30], [10, 5, 0], ids, [6, 4, 5]) == [7, 8, 30]
