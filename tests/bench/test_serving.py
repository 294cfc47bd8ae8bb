"""The bench of vLLM, as far as it needs none."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest

from bench import serving
from bench.serving import Point, as_markdown, ask_for, read_arguments, require_pruned


class Server:
    """Says how long prompts are, given the tokens that their image keeps."""

    def __init__(self, tokens: int, forgets: bool = False) -> None:
        self.tokens, self.forgets = tokens, forgets

    def chat(self, photos: Any, text: str, tokens: int, **extra: Any) -> Any:
        asked = extra.get("mm_processor_kwargs", {}).get("ocvtp_budget", self.tokens)
        kept = self.tokens if self.forgets else min(asked, self.tokens)
        return argparse.Namespace(usage=argparse.Namespace(prompt_tokens=7 + kept))


def test_prompts_are_counted_before_anything_is_timed() -> None:
    server: Any = Server(576)
    assert require_pruned(server, 64, (8, 8)) == (583, 71)
    for unpruned in (Server(576, forgets=True), Server(64), Server(10)):
        server = unpruned
        with pytest.raises(RuntimeError, match="expected prompts of 63 tokens more"):
            require_pruned(server, 64, (8, 8))


def test_arguments() -> None:
    given = "--model m --pruner p --budget 64,16 --concurrency 1,8 --image 640x480"
    arguments = read_arguments(given.split())
    assert (arguments.budget, arguments.concurrency) == ([64, 16], [1, 8])
    assert arguments.image == (640, 480)
    assert read_arguments([]).model is None
    with pytest.raises(SystemExit):
        read_arguments(["--model", "m"])
    assert ask_for(None) == {} and ask_for(3) == {"mm_processor_kwargs": {"ocvtp_budget": 3}}


def test_a_table_of_medians(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    points = [
        Point(None, 1, [2.0, 1.0, 4.0], [30.0, 10.0, 20.0], [40.0, 50.0, 60.0]),
        Point(64, 1, [3.0, 3.5, 2.0], [5.0, 6.0, 7.0], [8.0, 9.0, 10.0]),
    ]
    result = {
        "model": "A model",
        "device": "a device",
        "versions": {"vllm": "1"},
        "commit": "abc",
        "date": "2026-01-01",
        "image": (336, 336),
        "text": 32,
        "answer": 16,
        "prompt_tokens": {"64": 71, "all": 583},
        "points": [point._asdict() for point in points],
    }
    page = as_markdown(result)
    assert "| 1 | all | 2.00 (1.00–4.00) | 1.00× | 20 | 50 |" in page
    assert "| 1 | 64 | 3.00 (2.00–3.50) | 1.50× | 6 | 9 |" in page
    monkeypatch.setattr(serving, "run", lambda arguments: result)
    output = tmp_path / "folder" / "serving.json"
    given = ["--model", "m", "--pruner", "p", "--budget", "64", "--output", str(output)]
    assert serving.main(given) == 0
    assert capsys.readouterr().out == page + "\n"
    assert output.read_text().startswith('{\n "model": "A model"')
