from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import e2e, run
from bench.traffic import Ceilings

pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def model() -> e2e.Model:
    return e2e.Model(e2e.TINY, torch.device("cpu"))


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    measure = e2e.measure
    monkeypatch.setattr(e2e, "measure", lambda variants, /, **_: measure(variants, rounds=(2, 2)))
    monkeypatch.setattr(run, "measure_ceilings", lambda *_: Ceilings(10.0, {"float32": 0.1}))


def end_to_end(folder: Path) -> tuple[int, list[dict[str, Any]]]:
    status = run.main(["e2e", "--device", "cpu", "--short", "--output", str(folder)])
    rows: list[dict[str, Any]] = json.loads((folder / "e2e.json").read_text("utf-8"))["rows"]
    return status, rows


def test_every_stage_of_every_budget(tmp_path: Path) -> None:
    status, rows = end_to_end(tmp_path)
    assert status == 0
    assert [row["budget"] for row in rows] == [64, 8, 16]
    for row in rows:
        assert set(row["stages"]) == {
            "encoder",
            "pruner",
            "projector",
            "prefill",
            "decode_per_token",
        }
        assert (row["stages"]["pruner"] == 0.0) == (row["budget"] == row["num_tokens"])


@torch.no_grad()
def test_a_right_model_is_believed(model: e2e.Model) -> None:
    assert e2e.why_wrong(model) is None
    reference, final = model.encode(model.pixels())
    assert reference.shape == final.shape == (1, 64, 64)


@torch.no_grad()
@pytest.mark.parametrize(
    ("stage", "replacement", "reason"),
    [
        ("encode", lambda *_: (torch.ones(1, 64, 64),) * 2, "same logits"),
        ("encode", lambda *_: (torch.full((1, 64, 64), torch.nan),) * 2, "not finite"),
        ("step", None, "off by"),
    ],
)
def test_a_wrong_model_is_refused(
    model: e2e.Model,
    monkeypatch: pytest.MonkeyPatch,
    stage: str,
    replacement: Any,
    reason: str,
) -> None:
    def forgets(self: e2e.Model, embedding: torch.Tensor, cache: Any) -> Any:
        return self.language(inputs_embeds=embedding)

    monkeypatch.setattr(e2e.Model, stage, replacement or forgets)
    assert reason in (e2e.why_wrong(model) or "")


def test_a_wrong_pruner_gets_no_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = e2e.pruning

    def wrong(model: e2e.Model, budget: int) -> Any:
        case = honest(model, budget)
        call = case.call
        object.__setattr__(case, "call", lambda *inputs: (call(*inputs)[0] + 1, call(*inputs)[1]))
        return case

    monkeypatch.setattr(e2e, "pruning", wrong)
    status, rows = end_to_end(tmp_path)
    assert status == 1
    assert [row["budget"] for row in rows] == [64]
