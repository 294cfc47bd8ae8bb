"""The notebook's code cells, one after another in one namespace, as a kernel runs them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import ImageOps

FOLDER = Path(__file__).parents[2] / "examples"
NOTEBOOK = json.loads((FOLDER / "llava.ipynb").read_text(encoding="utf-8"))
CODE = [cell for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The names that the cells leave."""
    monkeypatch.chdir(FOLDER)
    names: dict[str, Any] = {}
    for number, cell in enumerate(CODE):
        exec(compile("".join(cell["source"]), f"cell {number}", "exec"), names)
    return names


def test_answers_rightly_with_few_tokens_and_is_as_before_without(ran: dict[str, Any]) -> None:
    assert [text.split()[0] for text in ran["before"]] == ["purple", "square", "northwest"]
    assert [text.split()[0] for text in ran["pruned"]] == ["purple", "square", "northwest"]
    lengths = [int(text.split()[-2]) for text in ran["before"]]
    for budget, answers in {11: ran["pruned"], **ran["sweep"]}.items():
        dropped = [int(text.split()[-2]) for text in answers]
        assert dropped == [length - 100 + budget for length in lengths]
    assert ran["after"] == ran["before"]


def test_draws_the_kept_tokens(ran: dict[str, Any]) -> None:
    plain = np.asarray(ImageOps.fit(ran["photo"], ran["picture"].size)).astype(int)
    drawn = np.asarray(ran["picture"]).astype(int)
    rows = ran["rows"]
    same = (plain == drawn).all(-1).reshape(rows, 32, rows, 32).all((1, 3))
    assert np.flatnonzero(same).tolist() == ran["ids"].tolist()
    assert len(ran["ids"]) == 11


def test_is_a_notebook_without_outputs() -> None:
    assert (NOTEBOOK["nbformat"], NOTEBOOK["nbformat_minor"]) == (4, 5)
    ids = [cell["id"] for cell in NOTEBOOK["cells"]]
    assert len(set(ids)) == len(ids)
    for cell in CODE:
        assert cell["outputs"] == [] and cell["execution_count"] is None
