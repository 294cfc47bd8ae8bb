"""Recorded numbers that a change may make worse only with a stated reason."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import NamedTuple

Numbers = Mapping[str, float]


class Slack(NamedTuple):
    """How far a number may go the wrong way.

    Attributes:
        share: relative slack.
        minimum: absolute slack; the larger of the two holds.
        falls: whether a smaller number is worse.
    """

    share: float = 0.0
    minimum: float = 0.0
    falls: bool = False


def worse(recorded: Numbers, now: Numbers, slacks: Mapping[str, Slack]) -> list[str]:
    """``step: 97 before, now 559`` of each number in both that got worse."""
    found = []
    for name, slack in slacks.items():
        if name in recorded and name in now:
            allowed = max(slack.minimum, slack.share * recorded[name])
            further = (recorded[name] - now[name]) if slack.falls else (now[name] - recorded[name])
            if further > allowed:
                found.append(f"{name}: {recorded[name]:g} before, now {now[name]:g}")
    return found


def renewed(
    old: Mapping[str, str], gone: Mapping[str, object], worsened: Mapping[str, object], why: str
) -> dict[str, str]:
    """Reasons after a change: ``why`` for what got worse, and old ones of what is not gone."""
    kept = {name: reason for name, reason in old.items() if name not in gone}
    return {**kept, **dict.fromkeys(worsened, why)}


def add_options(parser: argparse.ArgumentParser) -> None:
    """``--write-budget`` and ``--because``."""
    parser.add_argument("--write-budget", action="store_true", help="record these numbers")
    parser.add_argument(
        "--because",
        type=_sentence,
        metavar="SENTENCE",
        help="with --write-budget: why what got worse may be, kept beside it",
    )


def _sentence(text: str) -> str:
    text = text.strip()
    if len(text.split()) < 3:
        raise argparse.ArgumentTypeError(f"expected a sentence, got {text!r}")
    return text
