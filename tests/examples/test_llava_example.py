from __future__ import annotations

import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "llava.py"
TINY = ROOT / "bench" / "retention" / "tiny-llava"


def run(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    runpy.run_path(str(EXAMPLE))["main"](arguments)
    return capsys.readouterr().out


def test_answers_rightly_with_few_tokens_offline(capsys: pytest.CaptureFixture[str]) -> None:
    printed = run([], capsys)
    _, whole, pruned, stages, kept, *_ = printed.splitlines()
    assert whole.startswith("all tokens: ") and "(100 image tokens" in whole
    assert pruned.startswith("pruned: ") and "(11 image tokens" in pruned
    assert whole.split()[2] == pruned.split()[1]
    assert all(f"{stage} " in stages for stage in ("encoder", "pruner", "projector"))
    assert len(set(kept.split("[")[1].strip("]").split(","))) == 11


def test_another_picture_question_and_budget(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from PIL import Image

    from bench.retention.scenes import make_scenes

    scene = make_scenes(1, 5)[0]
    photo = tmp_path / "photo.png"
    Image.fromarray(scene.pixels).save(photo)
    question = scene.questions[0]
    printed = run([str(photo), question.text, "--budget", "40"], capsys)
    assert f"{photo}: {question.text}" in printed
    assert f"all tokens: {question.answer}  (100 image tokens" in printed
    assert f"pruned: {question.answer}  (40 image tokens" in printed


def test_a_model_without_a_pruner_gets_a_random_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from bench.retention.model import make_model, make_processor

    make_model().save_pretrained(tmp_path)
    make_processor().save_pretrained(tmp_path)
    printed = run(["--model", str(tmp_path)], capsys)
    assert printed.startswith("The pruner has random weights")
    assert "(11 image tokens" in printed
