"""Greedy ids of vLLM with the plug-in against those of Hugging Face's model with `attach`."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers

import ocvtp_kernels as ocvtp
from ocvtp_kernels.selectors.oc_pruner import PrunerSelector
from ocvtp_kernels.serving.vllm.settings import BUDGET
from tests.serving.vllm.asking import (
    BLOCK,
    Answer,
    answers_of,
    ask,
    ask_hugging_face,
    ask_without_gaps,
    engine,
    generate,
    prompts_of,
)
from tests.serving.vllm.checkpoints import PRUNER, Checkpoint
from tests.vlm import models_qwen

Make = Callable[[str], Checkpoint]
BUDGETS = {
    "llava": 16,
    "llava_siglip": 16,
    "llava_next": 24,
    "qwen2_vl": 8,
    "qwen2_5_vl": 8,
    "qwen3_vl": 8,
    "qwen3_vl_moe": 8,
    "internvl": 20,
    "llava_onevision": 24,
}
EVERY_FAMILY = pytest.mark.parametrize("name", BUDGETS)
# Prompts are split in the middle of images.
CHUNKED = {"max_num_batched_tokens": 48, "max_num_seqs": 4}
ALL = 4000


@pytest.fixture(scope="session")
def wanted(checkpoint: Make) -> Callable[..., list[Answer]]:
    """Hugging Face's answers, each once."""
    return cache(lambda name, budget: ask_hugging_face(checkpoint(name), budget))


def mixed(checkpoint: Checkpoint, answers: list[list[Answer]]) -> list[Answer]:
    """The answers to `prompts_of` several budgets, from those to each."""
    rows = zip(checkpoint.cases, *answers, strict=True)
    return [answer for (_, photos), *each in rows for answer in (each if photos else each[:1])]


@EVERY_FAMILY
def test_answers_equal_in_chunks_and_from_caches(name: str, checkpoint: Make, wanted: Any) -> None:
    made, budget = checkpoint(name), BUDGETS[name]
    want, whole = wanted(name, budget), wanted(name, None)
    assert all(few[0] <= all_[0] for few, all_ in zip(want, whole, strict=True))
    assert want[0][0] < whole[0][0] and want[0] != want[-1]
    with engine(made, {"budget": budget}, **CHUNKED) as llm:
        assert ask(llm, prompts_of(made)) == want
        again = generate(llm, prompts_of(made))
        assert answers_of(again) == want
        # Of prompts longer than a block, images or parts of them among it.
        assert all(
            (each.num_cached_tokens > 0) == (length > BLOCK)
            for each, (length, _) in zip(again, want, strict=True)
        )
        for prompt, answer in zip(prompts_of(made), want, strict=True):
            assert ask(llm, [prompt]) == [answer]
        with pytest.raises(ValueError, match=f"{BUDGET}: expected 1 to {budget}"):
            ask(llm, prompts_of(made, (budget + 1,)))
        assert ask(llm, prompts_of(made)[:1]) == want[:1]


@EVERY_FAMILY
def test_requests_of_other_budgets_in_a_batch(name: str, checkpoint: Make, wanted: Any) -> None:
    made, budget = checkpoint(name), BUDGETS[name]
    budgets = (None, budget, 1)
    want = mixed(made, [wanted(name, each) for each in budgets])
    with engine(made, {"budget": ALL}) as llm:
        assert ask(llm, prompts_of(made, budgets)) == want
        assert ask(llm, prompts_of(made, budgets)) == want


@pytest.mark.parametrize("name", ["llava", "llava_next", "llava_onevision", "internvl"])
def test_consecutive_positions(name: str, checkpoint: Make, wanted: Any) -> None:
    made, budget = checkpoint(name), BUDGETS[name]
    setting = {"budget": budget, "positions": "consecutive"}
    if name == "internvl":
        want = ask_without_gaps(made, budget)
    else:
        want = ask_hugging_face(made, budget, positions="consecutive")
    with engine(made, setting, **CHUNKED) as llm:
        assert ask(llm, prompts_of(made)) == want
    for (_, photos), one, other in zip(made.cases, want, wanted(name, budget), strict=True):
        assert (one == other) == (not photos)


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "internvl"])
def test_without_a_setting_nothing_changes(name: str, checkpoint: Make, wanted: Any) -> None:
    made = checkpoint(name)
    with engine(made, None) as llm:
        assert ask(llm, prompts_of(made)) == wanted(name, None)
        with pytest.raises(ValueError, match=f"{BUDGET}: expected none"):
            ask(llm, prompts_of(made, (1,)))


@pytest.mark.parametrize("name", ["llava", "llava_next", "qwen3_vl", "internvl"])
def test_another_reference_layer_answers_otherwise(
    name: str, checkpoint: Make, wanted: Any
) -> None:
    made, budget = checkpoint(name), BUDGETS[name]
    with engine(made, {"budget": budget, "reference_layer": 2}) as llm:
        got = ask(llm, prompts_of(made))
    want = wanted(name, budget)
    assert [length for length, _ in got] == [length for length, _ in want]
    for (_, photos), one, other in zip(made.cases, got, want, strict=True):
        assert (one == other) == (not photos)


SELECTORS = [
    ("llava", {"method": "visionzip"}),
    ("llava", {"method": "hiprune"}),
    ("llava", {"method": "divprune"}),
    ("llava", {"method": "random", "options": {"seed": 3}}),
    ("llava", {"method": "tome", "options": {"place": "encoder"}}),
    ("llava", {"method": "id-selection"}),
    ("llava_next", {"method": "idpruner", "options": {"score": "cls_attention"}}),
    ("llava_next", {"method": "holov"}),
    ("qwen2_5_vl", {"method": "apet"}),
    ("llava_next", {"method": "prumerge"}),
    ("qwen2_5_vl", {"method": "cdpruner"}),
    ("internvl", {"method": "visionzip"}),
    ("llava_onevision", {"method": "divprune"}),
]


@pytest.mark.parametrize(("name", "setting"), SELECTORS, ids=lambda value: str(value))
def test_other_selectors(name: str, setting: dict[str, Any], checkpoint: Make) -> None:
    made, budget = checkpoint(name), BUDGETS[name]
    selector = ocvtp.make_selector(setting["method"], **setting.get("options", {}))
    with engine(made, {"budget": budget} | setting) as llm:
        assert ask(llm, prompts_of(made)) == ask_hugging_face(made, budget, selector)


@pytest.mark.parametrize("name", ["llava_next", "llava_onevision"])
def test_all_newlines(name: str, checkpoint: Make) -> None:
    made, budget = checkpoint(name), BUDGETS[name]
    want = [ask_hugging_face(made, each, newlines="all") for each in (budget, 7)]
    with engine(made, {"budget": budget, "newlines": "all"}) as llm:
        assert ask(llm, prompts_of(made, (None, 7))) == mixed(made, want)


def test_without_importance_under_the_long_name(checkpoint: Make) -> None:
    made, budget = checkpoint("llava"), BUDGETS["llava"]
    pruner = ocvtp.OCPruner.from_checkpoint(made.pruner)
    selector = PrunerSelector(pruner, importance=False)
    overrides = {"architectures": ["OcvtpLlavaForConditionalGeneration"]}
    with engine(made, {"budget": budget, "importance": False}, hf_overrides=overrides) as llm:
        assert ask(llm, prompts_of(made)) == ask_hugging_face(made, budget, selector)


def test_the_setting_of_a_checkpoint(checkpoint: Make, wanted: Any, tmp_path: Path) -> None:
    made, budget = checkpoint("llava"), BUDGETS["llava"]
    folder = tmp_path / "published"
    folder.mkdir()
    for path in made.folder.iterdir():
        (folder / path.name).symlink_to(path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").unlink()
    config["ocvtp"] = {"budget": budget, "pruner": PRUNER}
    (folder / "config.json").write_text(json.dumps(config))
    with engine(replace(made, folder=folder), None) as llm:
        assert ask(llm, prompts_of(made)) == wanted("llava", budget)


def test_an_unknown_key_does_not_start(checkpoint: Make) -> None:
    with (
        pytest.raises(ValueError, match=r"ocvtp: unknown keys \['budgte'\]"),
        engine(checkpoint("llava"), {"budgte": 16}),
    ):
        pass


def test_positions_that_a_family_has_not_do_not_start(checkpoint: Make) -> None:
    with (
        pytest.raises(ValueError, match=r"ocvtp.positions: expected 'original' for qwen2_vl"),
        engine(checkpoint("qwen2_vl"), {"budget": 8, "positions": "consecutive"}),
    ):
        pass


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("internvl", {"vision_feature_layer": -2}),
        ("llava_onevision", {"vision_aspect_ratio": "anyres_max_4"}),
    ],
)
def test_what_vllm_would_encode_otherwise_does_not_start(
    name: str, change: dict[str, Any], checkpoint: Make
) -> None:
    (key,) = change
    with (
        pytest.raises(ValueError, match=f"^{key}: expected .*, which vLLM takes, got"),
        engine(checkpoint(name), {"budget": 8}, hf_overrides=change),
    ):
        pass


def text_of_video(name: str) -> str:
    """A prompt of a video between two photos."""
    mark = "<|vision_start|> <|{}_pad|> <|vision_end|>" if name.startswith("qwen") else "<{}>"
    photo, video = (mark.format(kind) for kind in ("image", "video"))
    return f"what is {photo} this {video} cat {photo} dog ?"


def see_video(name: str) -> tuple[Any, dict[str, Any]]:
    """Four frames, and how they were taken."""
    side = models_qwen.side_of(name)
    frames = np.random.default_rng(0).integers(0, 255, (4, 3 * side, 4 * side, 3), dtype=np.uint8)
    taken = {"fps": 2.0, "duration": 2.0, "total_num_frames": 4, "frames_indices": [0, 1, 2, 3]}
    return frames, taken | {"video_backend": "opencv"}


def answer_video(made: Checkpoint, name: str, setting: dict[str, Any] | None) -> list[Answer]:
    """What vLLM answers on a video between two photos, cold and warm."""
    frames, taken = see_video(name)
    media = {
        "image": [made.photos[0], made.photos[1]],
        "video": [(frames, taken | {"do_sample_frames": False})],
    }
    limits = {"image": 2, "video": 1}
    with engine(made, setting, limit_mm_per_prompt=limits, **CHUNKED) as llm:
        prompt = {"prompt": text_of_video(name), "multi_modal_data": media}
        return [ask(llm, [prompt])[0] for _ in range(2)]


# To Hugging Face's InternVL frames are photos, of fewer tokens each than the budget.
@pytest.mark.parametrize("name", ["qwen2_vl", "qwen2_5_vl", "internvl", "llava_onevision"])
def test_videos_stay_whole(name: str, checkpoint: Make) -> None:
    made, budget = checkpoint(name), BUDGETS[name]
    frames, taken = see_video(name)
    text = text_of_video(name)

    def process(processor: Any, **_: Any) -> Any:
        metadata = [transformers.video_utils.VideoMetadata(**taken)]
        return processor(
            text=text,
            images=[made.photos[0], made.photos[1]],
            videos=[frames],
            video_metadata=metadata,
            do_sample_frames=False,
            return_tensors="pt",
        )

    want = ask_hugging_face(replace(made, cases=[(text, [0, 1])]), budget, process=process)
    assert answer_video(made, name, {"budget": budget}) == want * 2


def test_a_video_beside_whole_photos_is_as_without_a_setting(checkpoint: Make) -> None:
    # Here vLLM itself answers otherwise than Hugging Face's model.
    made = checkpoint("qwen3_vl")
    want = answer_video(made, "qwen3_vl", None)
    assert answer_video(made, "qwen3_vl", {"budget": ALL}) == want
