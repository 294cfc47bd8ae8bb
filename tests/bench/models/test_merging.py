"""The bench of a tower whose tokens merge."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("transformers", exc_type=ImportError)

from bench.models import merging
from bench.results import read_results
from tests.bench.suites import run_suite


def test_tower_and_merging_are_timed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(merging, "SECONDS", 0.0)
    assert run_suite(merging.run, "merging", tmp_path)[0] == 0
    rows = read_results(tmp_path / "merging.json").rows
    assert [row.key for row in rows] == [
        ("CLIP, 8 of 36 tokens", "the tower"),
        ("CLIP, 8 of 36 tokens", "merging"),
    ]
    assert "8 tokens: 33.7% of the FLOPs" in capsys.readouterr().out


def test_a_tower_that_merges_others_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(merging, "is_same", lambda *_: False)
    assert run_suite(merging.run, "merging", tmp_path) == (1, [])


def test_nothing_starts_behind_the_deadline(tmp_path: Path) -> None:
    assert run_suite(merging.run, "merging", tmp_path, seconds=-1.0) == (0, [])
