"""Runs in processes of their own: what they leave and how they end."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.evaluation.lmms_eval.running import PRUNER, read_samples, run

BROKEN = """
import transformers
def broken(*args, **kwargs):
    raise RuntimeError("broken on purpose")
transformers.LlavaForConditionalGeneration.generate = broken
"""


@pytest.fixture(autouse=True)
def no_results(folder: Path) -> Iterator[None]:
    yield
    shutil.rmtree(folder / "out", ignore_errors=True)


def test_a_run_leaves_answers_and_says_what_it_kept(tiny: Path) -> None:
    arguments = f"pretrained={tiny},dtype=float32,pruner={PRUNER}"
    done = run(arguments, OCL_ENABLE="1", OCL_TARGET_NUM="8", OCL_LAYER_IDX="1")
    assert done.returncode == 0, done.stderr
    samples = read_samples()
    assert len(samples) == 4 and any(sample["filtered_resps"] for sample in samples)
    (line,) = [line for line in done.stdout.splitlines() if "ocvtp: " in line]
    assert "OCL_ENABLE=1 OCL_TARGET_NUM=8 OCL_LAYER_IDX=1 and arguments became" in line
    assert f"Settings(budget=8, pruner='{PRUNER}'" in line


@pytest.mark.parametrize(
    ("more", "before", "message"),
    [
        ("budget=8,pruner=none.safetensors", "", "pruner: found no file 'none.safetensors'"),
        ("budget=0", BROKEN, "RuntimeError: broken on purpose"),
    ],
    ids=["no-pruner", "generate"],
)
def test_a_run_that_fails_ends_with_an_error(
    more: str, before: str, message: str, tiny: Path
) -> None:
    done = run(f"pretrained={tiny},dtype=float32,{more}", before=before)
    assert done.returncode == 1
    assert f"EvaluationFailed: {message}" in done.stderr or message in done.stderr
    assert not Path("out").exists()
