"""A check's results on one screen, from the summary and the result files."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.report.tables import (
    grouped,
    models_table,
    prune_table,
    refusals,
    rows_of,
    shortlist,
    summaries,
)
from bench.results import SUITES, ModelRow, ResultError, Results, read_results

LINES, CHARACTERS = 60, 12_000
WIDTH, TABLE_WIDTH = 140, 240  # of a line
CORRECTNESS, PRUNE, MODELS, LOSSES = 9, 16, 14, 2  # lines


def screen(summary: dict[str, Any], folder: Path) -> list[str]:
    """At most `LINES` lines and `CHARACTERS` characters; the list of failures is cut to fit."""
    files, unreadable = _read(folder)
    lines = [line[:WIDTH] for part in (_machine, _stages, _correctness) for line in part(summary)]
    lines += [line[:TABLE_WIDTH] for line in _tables(files)]
    lines += [line[:WIDTH] for line in _profile(summary)]
    available = LINES - len(lines)
    failures = [line[:WIDTH] for line in (*unreadable, *_failures(summary, files))]
    if len(failures) > available:
        more = len(failures) - available + 1
        failures = [*failures[: available - 1], f"... and {more} more, in logs.tgz"]
    return [*lines, *failures]


def _read(folder: Path) -> tuple[list[Results], list[str]]:
    """The result files, and what is wrong with those that cannot be read."""
    files, unreadable = [], []
    for path in (folder / f"{suite}.json" for suite in SUITES):
        try:
            files += [read_results(path)] if path.exists() else []
        except ResultError as error:
            unreadable.append(f"failed: {error}")
    return files, unreadable


def _machine(summary: dict[str, Any]) -> Iterator[str]:
    facts = summary["facts"].get("smoke", {})
    versions = facts.get("versions", {})
    said = ", ".join(f"{name} {version}" for name, version in versions.items())
    arch = f", {facts['chip']}, driver {facts.get('driver')}" if "chip" in facts else ""
    commit, dash, dirty = summary["commit"].partition("-")
    device = facts.get("device", summary["device"])
    yield f"{device}{arch}; {said}; commit {commit[:12]}{dash}{dirty}"
    first = [one for one in facts.get("answers", []) if one.get("seconds")]
    if first:
        yield "smoke: " + ", ".join(
            f"{one['backend']} {one['workload'].split(' T=')[0]} {one['workload'].split()[-1]} "
            f"{one['seconds'] * 1e6:.0f} us"
            for one in first[:4]
        )


def _stages(summary: dict[str, Any]) -> Iterator[str]:
    yield f"{'stage':10} {'status':>6} {'s':>5} {'compiled':>8}"
    for one in summary["stages"]:
        compiled = one["compiled"] if one["compiled"] is not None else ""
        yield (
            f"{one['stage']:10} {one['status'] or 'ok':>6} {one['seconds']:5.0f} {compiled:>8}  "
            f"{one['note']}"
        )


def _correctness(summary: dict[str, Any]) -> Iterator[str]:
    right, wrong = Counter[str](), Counter[str]()
    for facts in _tests(summary):
        for subject, counts in facts["by subject"].items():
            right[subject] += counts[0]
            wrong[subject] += counts[1]
    said = [
        f"{name.upper()} {wrong[name]} OF {right[name] + wrong[name]} WRONG"
        if wrong[name]
        else f"{name} {right[name]}"
        for name in sorted(right, key=lambda name: -wrong[name])
    ]
    if said:
        yield from textwrap.wrap("tests passed: " + ", ".join(said), WIDTH)[:CORRECTNESS]


def _tests(summary: dict[str, Any]) -> list[dict[str, Any]]:
    return [facts for name, facts in summary["facts"].items() if name.endswith(" tests")]


def _tables(files: list[Results]) -> Iterator[str]:
    """`prune` and the first token as Markdown, then how often we lose."""
    if prune := prune_table(files):
        said, table = prune
        yield from [*textwrap.wrap(said, TABLE_WIDTH), *table.splitlines()][:PRUNE]
    models = [
        line
        for model, rows in grouped(
            shortlist(rows_of(files, ModelRow)), lambda row: row.model
        ).items()
        for line in (model, *models_table(rows).splitlines())
    ]
    yield from models[:MODELS]
    if any(file.rows for file in files):
        said = " ".join(sentence for sentence, _ in summaries(files))
        yield from textwrap.wrap(said, TABLE_WIDTH)[:LOSSES]


def _profile(summary: dict[str, Any]) -> Iterator[str]:
    for one in summary["facts"].get("profile", []):
        kernels = sorted(one["kernels"], key=lambda kernel: -kernel["ns"])
        total = sum(kernel["ns"] for kernel in kernels)
        longest = ", ".join(
            f"{kernel['kernel'].removesuffix('_kernel')} {kernel['ns'] / 1e3:.1f}"
            for kernel in kernels[:6]
        )
        yield f"ncu {one['workload']}: {len(kernels)} kernels, {total / 1e3:.1f} us: {longest}"


def _failures(summary: dict[str, Any], files: list[Results]) -> Iterator[str]:
    for one in summary["facts"].get("smoke", {}).get("answers", []):
        if not one["right"]:
            yield f"wrong: {one['backend']} {one['workload']}: {one['note']}"
    yield from (f"refused: {sentence}" for sentence in refusals(files))
    yield from (f"failed: {test}" for facts in _tests(summary) for test in facts["failed"])
