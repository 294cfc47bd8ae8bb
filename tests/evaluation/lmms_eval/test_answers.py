from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from PIL import Image

import ocvtp_kernels as ocvtp
from bench.retention.model import END, PROMPT, load
from bench.retention.scenes import make_scenes
from ocvtp_kernels.evaluation.lmms_eval.failing import EvaluationFailed
from tests.evaluation.lmms_eval.running import COUNT, PRUNER, SEED, evaluate, make

BUDGET = 3  # so few that some answers are wrong
SIMPLE = pytest.mark.parametrize("simple", [False, True], ids=["chat", "simple"])
QUESTIONS = [question for scene in make_scenes(COUNT, SEED) for question in scene.questions]


@pytest.fixture(scope="module")
def directly(tiny: Path, folder: Path) -> Callable[..., list[str]]:
    """Answers of the model alone, without lmms-eval, with `attach` if there is a budget."""

    @functools.cache
    @torch.no_grad()
    def answer(budget: int, **options: Any) -> list[str]:
        model, processor = load(tiny)
        if budget:
            pruner = ocvtp.OCPruner.from_checkpoint(folder / PRUNER)
            ocvtp.attach(model, processor, pruner, budget, **options)
        answers = []
        for scene in make_scenes(COUNT, SEED):
            for question in scene.questions:
                inputs = processor(
                    images=Image.fromarray(scene.pixels),
                    text=PROMPT.format(question.text),
                    return_tensors="pt",
                )
                ids = model.generate(
                    **inputs, max_new_tokens=4, do_sample=False, eos_token_id=END, pad_token_id=END
                )
                ids = ids[:, inputs["input_ids"].shape[1] :]
                answers += processor.batch_decode(ids, skip_special_tokens=True)
        return answers

    return answer


def llava(tiny: Path, simple: bool = False, **arguments: Any) -> Any:
    return make("llava_hf_ocvtp", simple, pretrained=str(tiny), dtype="float32", **arguments)


@SIMPLE
def test_answers_equal_those_of_attach(
    simple: bool, tiny: Path, directly: Callable[..., list[str]]
) -> None:
    model = llava(tiny, simple, budget=BUDGET, pruner=PRUNER)
    answers, scores = evaluate(model)
    assert answers == directly(BUDGET)
    assert model.handle.last.ids[0].shape[-1] == BUDGET
    right = [answer == each.answer for answer, each in zip(answers, QUESTIONS, strict=True)]
    assert scores["accuracy,none"] == pytest.approx(sum(right) / len(right))
    colours = [each.kind == "colour" for each in QUESTIONS]
    of_colours = [one for one, is_one in zip(right, colours, strict=True) if is_one]
    assert scores["colour,none"] == pytest.approx(sum(of_colours) / len(of_colours))


@SIMPLE
def test_a_budget_of_zero_is_the_plain_model(
    simple: bool, tiny: Path, directly: Callable[..., list[str]]
) -> None:
    model = llava(tiny, simple, budget=0)
    answers, _ = evaluate(model)
    plain, _ = evaluate(make("llava_hf", simple, pretrained=str(tiny), dtype="float32"))
    assert answers == plain == directly(0)
    assert any(answers) and answers != directly(BUDGET)
    assert model.handle is None


def test_the_authors_settings(
    tiny: Path, directly: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OCL_ENABLE", "1")
    monkeypatch.setenv("OCL_CKPT", PRUNER)
    monkeypatch.setenv("OCL_TARGET_NUM", "64")
    monkeypatch.setenv("OCL_LAYER_IDX", "2")
    answers, _ = evaluate(llava(tiny, budget=BUDGET))
    assert answers == directly(BUDGET, positions="consecutive", reference_layer=2)


@pytest.mark.parametrize("method", ["divprune", "vlm-pruner"])
def test_another_method(method: str, tiny: Path) -> None:
    model = llava(tiny, budget=BUDGET, method=method)
    answers, _ = evaluate(model)
    assert len(answers) == len(QUESTIONS)
    assert model.handle.last.ids[0].shape[-1] == BUDGET


@SIMPLE
def test_an_error_in_generate_is_no_answer(
    simple: bool, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_args: Any, **_inputs: Any) -> Any:
        raise RuntimeError("broken on purpose")

    monkeypatch.setattr(transformers.LlavaForConditionalGeneration, "generate", broken)
    answers, _ = evaluate(make("llava_hf", simple, pretrained=str(tiny), dtype="float32"))
    assert set(answers) == {""}, "lmms-eval itself goes on"
    with pytest.raises(EvaluationFailed, match="RuntimeError: broken on purpose"):
        evaluate(llava(tiny, simple, budget=BUDGET, pruner=PRUNER))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "budget: expected a number of tokens"),
        ({"budget": BUDGET, "pruner": "none"}, "ValueError: pruner: found no file 'none'"),
        ({"budget": BUDGET, "pruner": PRUNER, "reference_layer": 40}, "reference_layer"),
        ({"budget": BUDGET, "pruner": PRUNER, "bugdet": 3}, "bugdet"),
    ],
    ids=str,
)
def test_wrong_arguments(arguments: dict[str, Any], message: str, tiny: Path) -> None:
    with pytest.raises(EvaluationFailed, match=message):
        llava(tiny, **arguments)
