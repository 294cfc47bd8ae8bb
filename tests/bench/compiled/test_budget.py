"""Budgets: what is recorded, what got worse, and why it may; and the pages made of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.compiled.budget import Budget, Group, Slack, make_parser, settle, worse

SLACKS = {"step": Slack(0.05, 2), "flying": Slack(falls=True)}
OLD = Budget({"sm_80": Group("Triton 3.9", {"gru": {"step": 97, "flying": 2, "bound": "L2"}})})
WHY = "The rows are normalised here now."


def now(step: int, version: str = "Triton 3.9", key: str = "gru") -> dict[str, Group]:
    return {"sm_80": Group(version, {key: {"step": step, "flying": 2}})}


def test_numbers_that_got_worse_are_said() -> None:
    assert worse({"step": 100, "flying": 2}, {"step": 105, "flying": 3}, SLACKS) == []
    assert worse({"step": 100}, {"step": 106, "flying": 0}, SLACKS) == ["step: 100 before, now 106"]
    assert worse({"flying": 2}, {"flying": 1}, SLACKS) == ["flying: 2 before, now 1"]


def test_violations_name_group_and_key() -> None:
    assert OLD.violations(now(101), SLACKS) == []
    assert OLD.violations(now(200), SLACKS) == ["sm_80 gru: step: 97 before, now 200"]
    (new,) = OLD.violations(now(97, key="linear"), SLACKS)
    assert new == "sm_80 linear: nothing is recorded; --write-budget records it"


def test_numbers_are_compared_within_one_version() -> None:
    newer = now(200, "Triton 3.10")
    assert OLD.violations(newer, SLACKS) == []
    assert OLD.uncompared(now(97)) == []
    for unknown in (newer, {"sm_75": Group("nvcc 13", {})}):
        assert "nothing is compared" in OLD.uncompared(unknown)[0]
    assert OLD.with_groups(newer, SLACKS).groups == newer


def test_what_got_worse_is_recorded_with_a_reason_alone(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"1 got worse.*gru: step: 97 before, now 200.*--because"):
        OLD.with_groups(now(200), SLACKS)
    after = OLD.with_groups(now(200), SLACKS, WHY)
    assert after.groups["sm_80"].reasons == {"gru": WHY}
    assert after.violations(now(200), SLACKS) == []
    after.write(tmp_path / "budget.json")
    assert Budget.read(tmp_path / "budget.json") == after
    # The reason stays with its row, and leaves with it.
    assert after.with_groups(now(200), SLACKS).groups == after.groups
    assert after.with_groups(now(97, key="linear"), SLACKS).groups["sm_80"].reasons == {}


def test_recording_replaces_a_group_and_keeps_the_others() -> None:
    other = Group("nvrtc 12", {"kept": {"registers": 1}})
    budget = Budget({**OLD.groups, "sm_70": other}).with_groups(now(90, key="new"), SLACKS)
    assert budget.groups == {"sm_70": other, **now(90, key="new")}


def test_the_table_has_a_row_a_key() -> None:
    rows = {"gru": {"registers": 1024, "bound": "L2"}, "start": {"registers": 1, "waves": 0.5}}
    assert Group("", rows).table().splitlines()[2:] == [
        "| gru | 1,024 | L2 |  |",
        "| start | 1 |  | 0.5 |",
    ]


def test_the_command_line_records_what_has_a_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, parser = tmp_path / "budget.json", make_parser("it", None, [80, 90])
    OLD.write(path)

    def run(*options: str) -> int:
        def broken(budget: Budget) -> list[str]:
            return budget.violations(now(200), SLACKS)

        return settle(path, now(200), SLACKS, parser.parse_args(options), broken)

    assert run() == 1
    assert "sm_80 gru: step: 97 before" in capsys.readouterr().out
    assert run("--write-budget") == 2 and Budget.read(path) == OLD
    assert "nothing is recorded: sm_80: 1 got worse" in capsys.readouterr().err
    assert run("--write-budget", "--because", WHY) == 0 == run()
    for options in (["--archs", "75"], ["--because", "so"]):
        with pytest.raises(SystemExit):
            parser.parse_args(options)
    assert capsys.readouterr().err.count("expected") == 2
