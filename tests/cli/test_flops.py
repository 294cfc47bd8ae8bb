from __future__ import annotations

import json
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from ocvtp_kernels.cli import app
from ocvtp_kernels.cost import flops
from ocvtp_kernels.cost.layers import NAMES
from ocvtp_kernels.cost.models import LLAVA_7B, LLAVA_NEXT_7B, MODELS


def run_flops(*options: str) -> str:
    result = CliRunner().invoke(app, ["flops", *options])
    assert result.exit_code == 0
    return result.stdout


@pytest.fixture(scope="module")
def facts() -> dict[str, Any]:
    return json.loads(run_flops("--json"))


def test_json_has_every_model_at_every_budget(facts: dict[str, Any]) -> None:
    assert [model["name"] for model in facts["models"]] == [model.name for model in MODELS]
    for model, row in zip(MODELS, facts["models"], strict=True):
        assert [cost["kept"] for cost in row["costs"]] == [row["vision_tokens"], *model.budgets]
        for budget, cost in zip((None, *model.budgets), row["costs"], strict=True):
            now = flops.cost(model, budget)
            for field in fields(now):
                assert cost[field.name] == getattr(now, field.name)
            assert (cost["total"], cost["total_causal"]) == (now.total, now.total_causal)


def test_shares_and_savings_follow_from_the_counts(facts: dict[str, Any]) -> None:
    for model in facts["models"]:
        full, *pruned = model["costs"]
        assert set(full["pruner_share"].values()) == {0} == set(full["saved"].values())
        for cost in pruned:
            share, plain, folded = cost["pruner_share"], cost["pruner_plain"], cost["pruner_folded"]
            assert share["plain_of_full"] == pytest.approx(plain / full["total"])
            assert share["folded_of_full"] == pytest.approx(folded / full["total"])
            assert share["folded_of_pruned"] == pytest.approx(folded / cost["total"])
            rest = sum(cost[part] for part in ("vision", "projector", "language", "lm_head"))
            assert share["plain_of_pruned"] == pytest.approx(plain / (rest + plain))
            for name, saved in cost["saved"].items():
                assert saved == pytest.approx(1 - cost[name] / full[name])


def test_every_number_of_a_cost_says_what_it_counts(facts: dict[str, Any]) -> None:
    for cost in facts["models"][0]["costs"]:
        names = {*cost, *cost["pruner_share"], "importance"} - {"pruner_share"}
        assert names <= set(facts["counted"])


def test_text_has_the_papers_figures_in_100_columns() -> None:
    text = run_flops()
    assert max(map(len, text.splitlines())) <= 100
    for model in MODELS:
        assert f"{model.name}: {model.tower.vision_tokens} vision + 32 text tokens" in text
    section = text.split(f"{LLAVA_NEXT_7B.name}: ")[1].split("\n\n")[0]
    rows = [line.split() for line in section.splitlines()]
    printed = {row[0]: row for row in rows if row[0].isdigit()}
    assert printed["2880"][1] == "33.76" and printed["160"][1] == "1.95"


def test_text_shows_the_pruners_share_in_thousandths() -> None:
    rows = [line.split() for line in run_flops().splitlines()]
    budgets = {str(budget) for model in MODELS for budget in model.budgets}
    shares = [row[-2:] for row in rows if row and row[0] in budgets]
    assert len(shares) == sum(len(model.budgets) for model in MODELS)
    costs = [
        (flops.cost(model, budget), flops.cost(model, None))
        for model in MODELS
        for budget in model.budgets
    ]
    for (of_full, of_pruned), (now, full) in zip(shares, costs, strict=True):
        assert of_full == f"{1000 * now.pruner_folded / full.total:.2f}"
        assert of_pruned == f"{1000 * now.pruner_folded / now.total:.2f}"


def given(*methods: str) -> list[str]:
    return [option for method in methods for option in ("--method", method)]


def test_methods_have_a_cost_at_every_budget() -> None:
    facts = json.loads(run_flops("--json", *given(*NAMES)))
    for model, told in zip(MODELS, facts["models"], strict=True):
        rows = told["costs"]
        assert [(row["method"], row["budget"]) for row in rows] == [
            (name, budget) for name in NAMES for budget in model.budgets
        ]
        for row in rows:
            if "error" in row:
                reasons = {"sparsevlm": "published counts", "tome": "a CLIP or SigLIP of images"}
                assert reasons[row["method"]] in row["error"]
                continue
            assert {*row} - {"method"} <= {*facts["counted"], "budget"}
            assert len(row["tokens_by_layer"]) == model.language.layers
            now = flops.cost(model, row["equal_budget"])
            assert now.language <= row["language"]
            assert now.kept >= row["budget"] or row["method"] == "sparsevlm"
            before = flops.cost(model, None)
            assert row["saved"] == {
                name: pytest.approx(1 - row[name] / getattr(before, name))
                for name in ("paper", "language", "kv_bytes", "vision")
            }
            assert bool(row["saved"]["vision"]) == (row["method"] == "tome")
            if now.kept == row["mean_tokens"] == row["budget"]:
                assert (now.language, now.paper, now.kv_bytes) == (
                    row["language"],
                    row["paper"],
                    row["kv_bytes"],
                )


def test_text_of_a_method_that_merges() -> None:
    text = run_flops(*given("tome"))
    assert "tome             64" in text and "the tower, which merges: " in text
    assert max(map(len, text.splitlines())) <= 100


def test_text_of_methods() -> None:
    text = run_flops(*given("oc-pruner", "fastv", "pyramiddrop", "sparsevlm"))
    assert max(map(len, text.splitlines())) <= 100
    (section, *_), (after, *_) = (
        text.split(f"{model.name}: ")[1].split("\n\n") for model in (LLAVA_7B, LLAVA_NEXT_7B)
    )
    rows = {tuple(row[:2]): row[2:] for row in map(str.split, section.splitlines())}
    assert rows["fastv", "64"][2] == "96" and rows["fastv", "64"][-3:] == ["96.0", "576×2", "64×30"]
    assert rows["oc-pruner", "64"][2] == "64" and rows["oc-pruner", "64"][-1] == "64×32"
    assert rows["pyramiddrop", "192"][-3:] == ["576×16", "384×8", "192×8"]
    assert "sparsevlm       160  budget: expected one of 64, 96, 128, 192" in after
    for column in ("by layer", "mean", "equal", "KV"):
        assert f"\n  {column:10}  " in text


def test_the_page_about_selectors_has_what_the_command_prints() -> None:
    page = (Path(__file__).parents[2] / "docs" / "selectors.md").read_text("utf-8")
    options, printed = re.findall(
        r"^```sh\nocvtp flops (--method .*)\n```\n\n```text\n([^`]*)\n```$", page, re.M
    )[0]
    assert run_flops(*options.split()).startswith(printed + "\n\n")


def test_a_method_that_there_is_not_is_refused() -> None:
    result = CliRunner().invoke(app, ["flops", "--method", "dicprune"])
    assert result.exit_code == 2
    assert "ocvtp flops: method: expected one of" in result.output and "fastv" in result.output


def test_help_is_there() -> None:
    result = CliRunner().invoke(app, ["flops", "--help"])
    assert result.exit_code == 0 and "Usage" in result.output
