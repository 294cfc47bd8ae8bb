"""The settings' workloads are right, and their rows are a result file that the report reads."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bench import settings, settings_processes
from bench.ceilings import Ceilings
from bench.gate import CheckResult
from bench.results import Result, setting_row
from bench.settings import Setting, describe, timed
from bench.settings_ops import floats
from bench.settings_processes import imports, memories
from bench.settings_prune import Pair
from bench.timing import summary
from ocvtp_kernels.report.results import read_result

QUICK = [one for one in settings.settings() if "tiny" in one.name or "K 16" in one.what]
SLOW = [one for one in settings.settings() if one not in QUICK]


def ids(some: list[Setting]) -> list[str]:
    return [f"{one.name}-{one.what}".replace(" ", "_") for one in some]


def test_no_two_settings_are_alike() -> None:
    named = [(one.name, one.what) for one in settings.settings()]
    assert len(set(named)) == len(named)


@pytest.mark.parametrize("setting", QUICK, ids=ids(QUICK))
def test_a_setting_passes_its_gate(setting: Setting) -> None:
    check = setting.make().check()
    assert check.passed, check.note


@pytest.mark.slow
@pytest.mark.parametrize("setting", SLOW, ids=ids(SLOW))
def test_every_other_setting_does(setting: Setting) -> None:
    check = setting.make().check()
    assert check.passed, check.note


def test_wrong_numbers_get_no_time() -> None:
    x = torch.randn(9)
    pair = floats(lambda: (x + 1,), lambda: (x,), lambda: (x.double(),))
    row = timed(Setting("wrong", "x + 1", lambda: pair), 1, 0.01)
    assert not row.gate.passed
    assert row.median is None
    assert "refused" in describe(row)


def test_too_few_tokens_get_no_time() -> None:
    right = settings.pruning(settings.frozen, torch.float32, sizes=(2, 16, 4), config=settings.TINY)
    assert right.check().passed
    short = settings.pruning(
        lambda pruner: lambda *args, **more: tuple(out[:, 1:] for out in pruner(*args, **more)),
        torch.float32,
        sizes=(2, 16, 4),
        config=settings.TINY,
    )
    assert not short.check().passed


def test_the_report_reads_what_is_written(tmp_path: Path) -> None:
    call = lambda: (torch.ones(1),)  # noqa: E731
    pair = Pair(call, call, lambda: CheckResult(True, "right"))
    rows = [timed(Setting("some", "ones", lambda: pair), threads, 0.01) for threads in (1, 2)]
    grown = summary([3e6], "host")
    rows.append(
        setting_row("some", "memory", 2, "bytes", grown, grown, CheckResult(True, "measured"))
    )
    result = Result("settings", "a CPU", None, Ceilings(1.0, {"float32": 1.0}), rows=rows)
    read = read_result(result.save(tmp_path)).settings
    assert [row.key for row in read] == [
        ("some", "ones", 1),
        ("some", "ones", 2),
        ("some", "memory", 2),
    ]
    assert all(row.ours is not None and row.plain is not None for row in read)


@pytest.mark.slow
def test_processes_of_their_own_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings_processes, "SIZES", 4)
    monkeypatch.setattr(settings_processes, "PROCESSES", 1)
    rows = [make() for make in (*memories(), *imports())]
    assert [row.unit for row in rows] == ["bytes", "bytes", "s", "s"]
    assert all(row.median and row.plain_median for row in rows)
