from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("transformers")

from bench.models import attach_overhead as attach
from bench.models.attach_overhead import PAIRS, Pair
from bench.results import Times, Versus, read_results
from tests.bench.suites import run_suite
from tests.vlm.families import entries


@pytest.mark.parametrize(
    "pair",
    [pytest.param(PAIRS[one], id=one[0], marks=entries()[one[0]].marks) for one in PAIRS],
)
def test_host_time_of_attaching_is_measured(
    pair: Callable[[], Pair], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attach, "ROUNDS", (2, 2))
    versus, unit = attach.compare(pair(), attach.llava(attach.TINY).by_hand, 0.0)
    # Whether it is little enough two rounds cannot tell.
    assert versus.ratio > 0 and unit > 0


def test_an_attached_model_that_does_something_else_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pair = attach.llava(attach.TINY)
    wrong = Pair(pair.attached, lambda: pair.by_hand() + 1)
    monkeypatch.setattr(attach, "PAIRS", {("tiny", "call"): lambda: wrong})
    assert run_suite(attach.run, "attach", tmp_path) == (1, [])
    assert "tiny refused: attached and by hand give different" in capsys.readouterr().out


@pytest.mark.parametrize("unit", [1e-3, 3e-3])
@pytest.mark.parametrize("share", [0.2, 0.4, 0.6])
def test_what_adds_too_much_is_refused(
    share: float,
    unit: float,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    ours, by_hand = (Times(median, median, median, 1) for median in (1e-3 + share * unit, 1e-3))
    monkeypatch.setattr(attach, "PAIRS", {pair: lambda: None for pair in PAIRS})
    monkeypatch.setattr(attach, "compare", lambda *_: (Versus(by_hand, ours), unit))
    refused, rows = run_suite(attach.run, "attach", tmp_path)
    assert read_results(tmp_path / "attach.json").rows == rows and len(rows) == len(PAIRS)
    tiles = len(attach.TILES)
    allowed = {0.3: len(PAIRS) - tiles, 0.5: tiles}
    assert refused == sum(count for limit, count in allowed.items() if share > limit)
    said = f"refused: adds {share:.3f} of LLaVA's plain call, more than the "
    assert capsys.readouterr().out.count(said) == refused
