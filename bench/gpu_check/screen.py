"""A check's results on one screen, from the summary and the result files."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bench.results import (
    OURS,
    STAGES,
    SUITES,
    ModelRow,
    OpRow,
    ResultError,
    Results,
    SelectorRow,
    read_results,
)

LINES, WIDTH = 60, 140


def screen(summary: dict[str, Any], folder: Path) -> list[str]:
    """At most `LINES` lines; the list of failures is cut to fit."""
    files, unreadable = _read(folder)
    parts = (_machine(summary), _stages(summary), _correctness(summary), _prune(files))
    lines = [line[:WIDTH] for part in (*parts, _models(files), _profile(summary)) for line in part]
    available = LINES - len(lines)
    failures = [line[:WIDTH] for line in (*unreadable, *_failures(summary, files))]
    if len(failures) > available:
        more = len(failures) - available + 1
        failures = [*failures[: available - 1], f"... and {more} more, in logs.tgz"]
    return [*lines, *failures][:LINES]


def _read(folder: Path) -> tuple[dict[str, Results], list[str]]:
    """The result files by suite, and what is wrong with those that cannot be read."""
    files: dict[str, Results] = {}
    unreadable = []
    for suite in SUITES:
        path = folder / f"{suite}.json"
        try:
            if path.exists():
                files[suite] = read_results(path)
        except ResultError as error:
            unreadable.append(f"failed: {error}")
    return files, unreadable


def _machine(summary: dict[str, Any]) -> Iterator[str]:
    facts = summary["facts"].get("smoke", {})
    versions = facts.get("versions", {})
    said = ", ".join(f"{name} {version}" for name, version in versions.items())
    arch = f", {facts['chip']}, driver {facts.get('driver')}" if "chip" in facts else ""
    yield f"{facts.get('device', summary['device'])}{arch}; {said}; commit {summary['commit']}"
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
    cells: dict[str, list[int]] = {}
    for name, facts in summary["facts"].items():
        for subject, counts in facts["by subject"].items() if name.endswith(" tests") else ():
            cell = cells.setdefault(subject, [0, 0])
            for i, count in enumerate(counts):
                cell[i] += count
    if not cells:
        return
    said = [
        f"{subject} {right}" if not wrong else f"{subject.upper()} {wrong} OF {right + wrong} WRONG"
        for subject, (right, wrong) in sorted(cells.items(), key=lambda cell: -cell[1][1])
    ]
    lines = textwrap.wrap("tests passed: " + ", ".join(said), WIDTH)
    yield from lines[:9]


def _prune(files: dict[str, Results]) -> Iterator[str]:
    rows, compiled = (_op_rows(files, suite) for suite in ("prune", "compile"))
    loads = list(dict.fromkeys(map(_load, rows)))
    if not loads:
        return
    columns = ("ours", "eager", "csrc", "ours", "eager", "publ.", "compile")
    graphs = any(row.times is not None and row.times.method == "graph" for row in rows)
    groups = ("-- in a graph --", "-- launched --") if graphs else ("", "")
    yield f"{'prune, us':26}{groups[0]:>27}   {groups[1]:>27}{'':9}of the ceiling"
    yield f"{'':26}" + "".join(f"{name:>9}" for name in columns)
    for load in loads[:12]:
        mine = [row for row in rows if _load(row) == load]
        theirs = [row for row in compiled if _load(row) == load]
        times = [
            *(_time(mine, variant, {"graph", "host"}) for variant in (OURS, "eager", "csrc")),
            *(_time(mine, variant, {"events"}) for variant in (OURS, "eager")),
            _time(mine, "published", {"events", "host"}),
            _time(theirs, "compile", {"events", "host"}),
        ]
        shares = [files["prune"].share_of_ceiling(row) or 0.0 for row in mine if row.is_ours]
        share = f"{max(shares):>10.1%}" if any(shares) else f"{'':>10}"
        yield f"{load:26}" + "".join(f"{time:>9}" for time in times) + share


def _op_rows(files: dict[str, Results], suite: str) -> list[OpRow]:
    return files[suite].op_rows() if suite in files else []


def _load(row: OpRow) -> str:
    size = row.workload
    dtype = size.dtype.replace("bfloat", "bf").replace("float", "fp")
    return f"B {size.batch}, N {size.num_tokens}, K {size.num_slots}, {dtype}"


def _time(rows: Sequence[OpRow], variant: str, methods: set[str]) -> str:
    mine = [row.times for row in rows if row.variant == variant]
    for times in mine:
        if times is not None and times.method in methods:
            return f"{times.median * 1e6:.0f}" if times.median < 1 else "> 1 s"
    return "refused" if None in mine else ""


def _models(files: dict[str, Results]) -> Iterator[str]:
    models = files["e2e"].rows if "e2e" in files else []
    rows = [row for row in models if isinstance(row, ModelRow) and row.selector != "random"]
    if not rows:
        return
    columns = ("TTFT", *STAGES)
    yield f"{'first token, ms':44}" + "".join(f"{name:>10}" for name in columns)
    for row in rows[:8]:
        name = f"{row.model} {row.mode} {row.selector} {row.budget}"
        if row.times is None:
            yield f"{name:44} {row.note}"
            continue
        seconds = (row.times.ttft.median, *(row.times.stages[stage] for stage in STAGES))
        yield f"{name:44}" + "".join(f"{each * 1e3:>10.2f}" for each in seconds)


def _profile(summary: dict[str, Any]) -> Iterator[str]:
    for one in summary["facts"].get("profile", []):
        kernels = sorted(one["kernels"], key=lambda kernel: -kernel["ns"])
        total = sum(kernel["ns"] for kernel in kernels)
        longest = ", ".join(
            f"{kernel['kernel'].removesuffix('_kernel')} {kernel['ns'] / 1e3:.1f}"
            for kernel in kernels[:6]
        )
        yield f"ncu {one['workload']}: {len(kernels)} kernels, {total / 1e3:.1f} us: {longest}"


def _failures(summary: dict[str, Any], files: dict[str, Results]) -> Iterator[str]:
    for one in summary["facts"].get("smoke", {}).get("answers", []):
        if not one["right"]:
            yield f"wrong: {one['backend']} {one['workload']}: {one['note']}"
    for row in (row for file in files.values() for row in file.rows):
        if isinstance(row, ModelRow) and row.times is None:
            yield f"refused: {row.model} {row.mode} {row.selector}: {row.note}"
        elif isinstance(row, OpRow) and row.times is None:
            what = f"{row.op} {row.variant} {row.direction} {_load(row)}"
            yield f"refused: {what}: {row.gate.note}"
        elif isinstance(row, SelectorRow) and row.times is None:
            yield f"refused: {row.method} B {row.batch}: {row.gate.note}"
    for name, facts in summary["facts"].items():
        for test in facts["failed"] if name.endswith(" tests") else ():
            yield f"failed: {test}"
