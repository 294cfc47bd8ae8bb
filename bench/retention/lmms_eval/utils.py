"""What scenes.yaml names: lmms-eval reads this file by itself."""

from __future__ import annotations

from typing import Any


def read_image(row: dict[str, Any]) -> list[Any]:
    return [row["image"].convert("RGB")]


def read_question(row: dict[str, Any]) -> str:
    return str(row["question"])


def score(row: dict[str, Any], answers: list[str]) -> dict[str, float]:
    """Whether the first word is the answer, as accuracy and as that of the question's kind."""
    words = answers[0].split()
    right = float(bool(words) and words[0] == row["answer"])
    return {"accuracy": right, row["kind"]: right}
