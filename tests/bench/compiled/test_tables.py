from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path

import pytest

if find_spec("triton") is None:
    pytest.skip("triton is not installed", allow_module_level=True)

from bench.compiled import csrc, tables, triton
from bench.compiled.budget import Budget


def test_the_pages_have_all_that_the_budgets_record(tmp_path: Path) -> None:
    assert tables.main(["--output", str(tmp_path)]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {
        "compiled.md",
        "compiled_csrc.md",
        "projections.md",
    }
    for name, path in (("compiled", triton.BUDGET), ("compiled_csrc", csrc.BUDGET)):
        text = (tmp_path / f"{name}.md").read_text(encoding="utf-8")
        groups = Budget.read(path).groups
        assert re.findall("^## (.*)$", text, re.MULTILINE) == list(groups)
        rows = sum(len(group.rows) for group in groups.values())
        # Of each table two lines are its head.
        assert len(re.findall(r"^\| ", text, re.MULTILINE)) == rows + 2 * len(groups)
        assert all(reason in text for group in groups.values() for reason in group.reasons.values())
