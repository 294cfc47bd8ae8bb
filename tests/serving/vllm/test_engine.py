"""What the plug-in refuses, and what it does of vLLM's engine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from vllm.config import VllmConfig, set_current_vllm_config
from vllm.model_executor.layers.rotary_embedding import get_rope
from vllm.model_executor.models.utils import StageMissingLayer
from vllm.multimodal.inputs import MultiModalFeatureSpec, PlaceholderRange

import ocvtp_kernels.serving.vllm as plug_in
from ocvtp_kernels.serving.vllm.model import PrunedModel
from ocvtp_kernels.serving.vllm.mrope import make_room
from ocvtp_kernels.serving.vllm.positions import append_places
from ocvtp_kernels.serving.vllm.settings import BUDGET, Settings
from ocvtp_kernels.serving.vllm.towers import PrunedTowerModel
from ocvtp_kernels.serving.vllm.units import PrunedUnitModel
from tests.serving.vllm.asking import ask, ask_hugging_face, engine, prompts_of
from tests.serving.vllm.checkpoints import Checkpoint

Make = Callable[[str], Checkpoint]


SETTING = {"budget": 4, "pruner": "a"}


class WithoutTower:
    """A model as vLLM builds it for text alone."""

    def __init__(self, *, vllm_config: Any, prefix: str) -> None:
        self.tower = StageMissingLayer("vision_tower")


def build(mixin: type[PrunedModel], vllm_config: Any) -> None:
    """Builds a model of a config."""
    model = type("Model", (mixin, WithoutTower), {"tower_name": "tower"})
    assert model(vllm_config=vllm_config).ocvtp is None


def config_with(**changes: Any) -> Any:
    """A config of vLLM, as far as it is asked."""
    multimodal = {
        "mm_encoder_tp_mode": "weights",
        "enable_mm_embeds": False,
        "video_pruning_rate": None,
        "mm_processor_kwargs": None,
    }
    model = {"enable_sleep_mode": False, "hf_config": SimpleNamespace(ocvtp=SETTING)}
    model["uses_mrope"] = True
    others = {"lora_config": None, "speculative_config": None}
    others["parallel_config"] = SimpleNamespace(pipeline_parallel_size=1)
    compilation = {"compile_mm_encoder": False}
    for known in (multimodal, model, others, compilation):
        known |= {name: changes.pop(name) for name in list(changes) if name in known}
    assert not changes
    model["multimodal_config"] = SimpleNamespace(**multimodal)
    return SimpleNamespace(
        model_config=SimpleNamespace(**model),
        compilation_config=SimpleNamespace(**compilation),
        **others,
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"mm_encoder_tp_mode": "data"},
        {"enable_mm_embeds": True},
        {"video_pruning_rate": 0.5},
        {"mm_processor_kwargs": {BUDGET: 3}},
        {"enable_sleep_mode": True},
        {"compile_mm_encoder": True},
        {"lora_config": SimpleNamespace(enable_tower_connector_lora=True)},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_what_pruning_would_get_wrong_is_refused(changes: dict[str, Any]) -> None:
    build(PrunedModel, config_with())
    build(PrunedModel, config_with(lora_config=SimpleNamespace(enable_tower_connector_lora=False)))
    name = {"lora_config": "enable_tower_connector_lora"}.get(*2 * list(changes))
    with pytest.raises(ValueError, match=f"^{name}.*: not supported with an ocvtp setting$"):
        build(PrunedModel, config_with(**changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"speculative_config": object()},
        {"parallel_config": SimpleNamespace(pipeline_parallel_size=2)},
    ],
    ids=["speculation", "pipeline"],
)
def test_what_original_positions_refuse(changes: dict[str, Any]) -> None:
    build(PrunedModel, config_with(**changes))
    build(PrunedTowerModel, config_with(**changes, uses_mrope=False))
    name = {"parallel_config": "pipeline_parallel_size"}.get(*2 * list(changes))
    for mixin, remedy in (
        (PrunedUnitModel, ""),
        (PrunedTowerModel, " without ocvtp.positions='consecutive'"),
    ):
        build(mixin, config_with())
        message = f"^{name}{remedy}: not supported with an ocvtp setting$"
        with pytest.raises(ValueError, match=message):
            build(mixin, config_with(**changes))


def test_a_model_that_gets_no_images(checkpoint: Make) -> None:
    for name in ("llava", "qwen2_vl", "internvl"):
        made = checkpoint(name)
        text = replace(made, cases=[case for case in made.cases if not case[1]])
        with engine(made, {"budget": 8}, limit_mm_per_prompt={"image": 0, "video": 0}) as llm:
            assert ask(llm, prompts_of(text)) == ask_hugging_face(text, None)


def test_positions_beyond_those_of_the_model(checkpoint: Make) -> None:
    made = checkpoint("llava")
    fitting = [case for case in made.cases if len(case[1]) < 3]
    overrides = {"text_config": {"max_position_embeddings": 300}}
    with engine(made, {"budget": 16}, hf_overrides=overrides, max_model_len=256) as llm:
        # Of 292 tokens, with an answer that ends behind 300.
        answerable = replace(made, cases=fitting)
        assert ask(llm, prompts_of(answerable)) == ask_hugging_face(answerable, 16)
        too_long = replace(made, cases=[case for case in made.cases if case not in fitting])
        with pytest.raises(ValueError, match=r"ocvtp.positions: expected a prompt of at most 300"):
            ask(llm, prompts_of(too_long))
        assert ask(llm, prompts_of(answerable)[:1]) == ask_hugging_face(answerable, 16)[:1]


@pytest.mark.parametrize("missing", [0, 1])
def test_text_around_an_image_is_counted_once(missing: int, checkpoint: Make) -> None:
    made = checkpoint("internvl")
    whole = [length for length, _ in ask_hugging_face(made, None)]
    longest = whole.index(max(whole))
    overrides = {"text_config": {"max_position_embeddings": max(whole) - missing}}
    prompt = prompts_of(made)[longest]
    with engine(made, {"budget": 4}, hf_overrides=overrides, max_model_len=128) as llm:
        if missing:
            with pytest.raises(ValueError, match=f"at most {max(whole) - 1} .* got {max(whole)};"):
                ask(llm, [prompt])
        else:
            assert ask(llm, [prompt]) == [ask_hugging_face(made, 4)[longest]]


SCALED = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
DYNAMIC = {"rope_type": "dynamic", "factor": 2.0}


def test_room_for_positions() -> None:
    with set_current_vllm_config(VllmConfig()):
        short, long = (
            torch.nn.ModuleList([get_rope(32, length, dtype=torch.float32)]) for length in (16, 50)
        )
        scaled = torch.nn.ModuleList([get_rope(32, 64, rope_parameters=SCALED)])
        dynamic = torch.nn.ModuleList([get_rope(32, 16, rope_parameters=DYNAMIC)])
    make_room(short, 50)
    make_room(long, 40)
    make_room(dynamic, 50)
    for each in (short, dynamic):
        assert torch.equal(each[0].cos_sin_cache, long[0].cos_sin_cache)
    assert len(long[0].cos_sin_cache) == 50
    make_room(scaled, 64)
    with pytest.raises(ValueError, match=r"ocvtp.positions: expected 'consecutive', as the YaRN"):
        make_room(scaled, 65)


class Images(PrunedModel):
    """Three images of 5, 2 and 9 tokens."""

    def __init__(self, rows: Callable[[int, int], int]) -> None:
        self.ocvtp, self.slice_size, self.rows = Settings(4, "a"), 11, rows
        self.calls: list[tuple[list[int], int]] = []

    def _parse_and_validate_image_input(self, **kwargs: Any) -> Any:
        return kwargs

    def count_tokens(self, image_input: Any) -> list[int]:
        return [5, 2, 9]

    def embed_images(self, image_input: Any, images: list[int], budget: int) -> list[Tensor]:
        self.calls.append((images, budget))
        sizes = self.count_tokens(image_input)
        return [torch.full((self.rows(sizes[image], budget), 3), float(image)) for image in images]


def test_images_are_embedded_by_budget_in_slices() -> None:
    images = Images(min)
    features = images.embed_multimodal(pixel_values=torch.zeros(3))
    assert images.calls == [([0, 1], 4), ([2], 4)]
    assert [(len(each), float(each[0, 0])) for each in features] == [(4, 0.0), (2, 1.0), (4, 2.0)]
    images.calls.clear()
    features = images.embed_multimodal(
        pixel_values=torch.zeros(3), **{BUDGET: torch.tensor([[3], [4], [3]])}
    )
    assert images.calls == [([0], 3), ([2], 3), ([1], 4)]
    assert [(len(each), float(each[0, 0])) for each in features] == [(3, 0.0), (2, 1.0), (3, 2.0)]


def test_wrong_counts_of_rows_do_not_pass() -> None:
    # Of too many vLLM would take the first.
    for rows in (lambda size, budget: size, lambda size, budget: 1):
        with pytest.raises(RuntimeError, match=r"ocvtp: expected \[4, 2, 4\] tokens"):
            Images(rows).embed_multimodal(pixel_values=torch.zeros(3))


@pytest.mark.parametrize(("version", "tried"), [("0.33.1", True), ("0.34.0", False)])
def test_names_of_vllm_are_taken_where_that_was_tried(
    version: str, tried: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    import vllm

    names: list[str] = []
    monkeypatch.setattr(vllm, "__version__", version)
    monkeypatch.setattr(vllm.ModelRegistry, "register_model", lambda name, _: names.append(name))
    warnings: list[str] = []
    monkeypatch.setattr(
        plug_in.logger, "warning", lambda text, *values: warnings.append(text % values)
    )
    plug_in.register()
    assert len(warnings) == (not tried) and all(version in warning for warning in warnings)
    long = {plug_in.PREFIX + name for name in plug_in.ARCHITECTURES}
    assert set(names) == long | (set(plug_in.ARCHITECTURES) if tried else set())


def test_every_class_is_there() -> None:
    from vllm import ModelRegistry

    plug_in.register()
    plug_in.register()
    for name in plug_in.ARCHITECTURES:
        for registered in (name, plug_in.PREFIX + name):
            pruned = ModelRegistry.models[registered].load_model_cls()
            assert issubclass(pruned, PrunedModel)
            assert pruned.__name__ == plug_in.PREFIX + name


IMAGE, TEXT = 5, 7


class WholePositions:
    """Positions of a prompt of text and one whole image of nine rows and three columns."""

    def get_mrope_input_positions(self, tokens: list[int], features: list[Any]) -> Any:
        (feature,) = features
        start = feature.mm_position.offset
        assert tokens == [TEXT] * start + [IMAGE] * 27 + [TEXT] * (len(tokens) - start - 27)
        rows, columns = torch.arange(27) // 3, torch.arange(27) % 3
        image = torch.stack((torch.zeros_like(rows), rows, columns)) + start
        behind = torch.arange(len(tokens) - start - 27) + start + 9
        parts = (torch.arange(start).expand(3, -1), image, behind.expand(3, -1))
        positions = torch.cat(parts, 1)
        return positions, int(positions.max()) + 1 - len(tokens)


class Portrait(PrunedUnitModel, WholePositions):
    def __init__(self) -> None:
        self.ocvtp, self._width = Settings(4, "a"), 8
        vision = SimpleNamespace(spatial_merge_size=2)
        self.config = SimpleNamespace(
            image_token_id=IMAGE, video_token_id=IMAGE + 1, vision_config=vision
        )


@pytest.mark.parametrize("behind", [0, 3])
@pytest.mark.parametrize("split", [2, 3, 5, 6])
def test_positions_of_an_answer(behind: int, split: int) -> None:
    grid = SimpleNamespace(data=torch.tensor([1, 18, 6]))
    feature = MultiModalFeatureSpec(
        data={"image_grid_thw": grid},  # type: ignore[arg-type]
        modality="image",
        identifier="",
        mm_position=PlaceholderRange(offset=2, length=4),
    )
    model, ids = Portrait(), [TEXT, TEXT, *[IMAGE] * 4, *[TEXT] * behind]
    positions, delta = model.get_mrope_input_positions(ids, [feature])
    # Tokens 0, 1, 5 and 7 are kept, far from the last row; whose answer goes on behind that.
    kept = torch.tensor([0, 1, 5, 7])
    features = append_places(torch.randn(4, 8), kept, columns=3)
    for done, step in ((0, features[: split - 2]), (split, features[split - 2 :]), (6, None)):
        images = [] if step is None or not len(step) else [step]
        embeddings, new, again = model.recompute_mrope_positions(ids, images, positions, done)
        assert again == delta and all(each.shape[1] == 8 for each in embeddings)
        positions.copy_(new)  # as vLLM does
    assert len(ids) + delta == 2 + 9 + behind
    assert positions[:, 2:6].tolist() == [[2] * 4, [2, 2, 3, 4], [2, 3, 4, 3]]
    assert positions[:, 6:].tolist() == [list(range(11, 11 + behind))] * 3


class Strip(PrunedTowerModel):
    """Images of nine tokens, each at one position."""

    def __init__(self) -> None:
        self.ocvtp, self._width = Settings(4, "a"), 8
        self.config = SimpleNamespace(image_token_id=IMAGE)

    def count_whole(self, data: Any) -> int:
        return 9


@pytest.mark.parametrize("behind", [0, 1])
@pytest.mark.parametrize("split", [2, 3, 6, 8])
def test_original_positions_of_a_model_that_has_one_a_token(split: int, behind: int) -> None:
    ids = [TEXT, TEXT, *[IMAGE] * 4, TEXT, *[IMAGE] * 2, *[TEXT] * behind]
    features = [
        MultiModalFeatureSpec(
            data=None,
            modality="image",
            identifier="",
            mm_position=PlaceholderRange(offset=offset, length=length),
        )
        for offset, length in ((7, 2), (2, 4))
    ]
    model = Strip()
    positions, delta = model.get_mrope_input_positions(ids, features)
    assert len(ids) + delta == 21 + behind
    # The last token of the second is not kept, and what follows stands behind it.
    kept = {2: torch.tensor([0, 1, 5, 7]), 7: torch.tensor([3, 6])}
    images = {at: append_places(torch.randn(len(each), 8), each, 1) for at, each in kept.items()}
    # Once more after a request was interrupted.
    for start, end in ((0, split), (split, len(ids)), (0, split), (split, len(ids))):
        parts = [
            part
            for at, image in images.items()
            if len(part := image[max(start - at, 0) : max(end - at, 0)])
        ]
        embeddings, new, again = model.recompute_mrope_positions(ids, parts, positions, start)
        assert again == delta and all(each.shape[1] == 8 for each in embeddings)
        positions.copy_(new)
    assert positions[1].tolist() == [0, 1, 2, 3, 7, 9, 11, 15, 18, *[21] * behind]


def watch_tower(model: Any) -> list[int]:
    """Makes the model note how many tokens its tower gets, without pruning; returns the list."""
    seen: list[int] = []
    tower = model.visual if hasattr(model, "visual") else model.vision_tower
    original = tower.forward

    def forward(pixels: Tensor, *args: Any, **kwargs: Any) -> Any:
        seen.append(len(pixels) // 4 if hasattr(model, "visual") else len(pixels) * 144)
        return original(pixels, *args, **kwargs)

    tower.forward = forward
    return seen


@pytest.mark.parametrize(("name", "limit"), [("llava", 300), ("qwen2_5_vl", 64)])
def test_the_tower_never_gets_more_than_without_pruning(
    name: str, limit: int, checkpoint: Make
) -> None:
    made = checkpoint(name)
    with engine(made, {"budget": 8}, max_num_batched_tokens=limit, max_num_seqs=8) as llm:
        (seen,) = llm.apply_model(watch_tower)
        # All at once: by what they keep, all of them fit one step.
        assert ask(llm, prompts_of(made)) == ask_hugging_face(made, 8)
    largest = max(size for size in (144, 44) if size <= limit)
    assert len(seen) > 1 and max(seen) <= limit
    # Several images where they fit.
    assert max(seen) > limit - largest
