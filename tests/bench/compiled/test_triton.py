"""The compile report: its rules, and that the kernels keep within the budget.

The report that is compiled here is the short one (see `bench.compiled.launches.plan`): everything
in bfloat16 for sm_90, Slot Attention and the pipeline for sm_80 and sm_100, the pipeline alone for
the other GPUs and, on sm_80, in float32; of binaries that differ only in what Triton tells of
numbers, one. For sm_86 only what sm_89 does not have too: their binaries have the same figures, as
the whole report recorded them.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest

if find_spec("triton") is None:
    pytest.skip("triton is not installed", allow_module_level=True)


from bench.compiled.binaries import Row, waits_first, worst
from bench.compiled.budget import Budget
from bench.compiled.launches import PIPELINE, TWINS, Part, launches, plan
from bench.compiled.sass_counts import Counts
from bench.compiled.triton import BUDGET, expected_instruction, groups_of, violations, without
from ocvtp_kernels.triton_common.archs import ARCHS
from tests.compiling import on_linux, run_python

COUNTS = Counts(97, 4, 48.5, 6, 4, 400)
ROW = Row(
    *(90, "linear", "NORM BLOCK_M 64 BLOCK_N 16", "bfloat16", 4, 3, 100, 0, 50_000, "wgmma"),
    counts=COUNTS,
)
ALLOWED = Budget(groups_of([ROW], "3.9"))


def test_a_row_within_the_budget_passes() -> None:
    newer = ROW._replace(instruction="tcgen05")
    assert violations([ROW, ROW._replace(registers=116), newer], ALLOWED, "3.9") == []


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"stack": 8}, "spills: its stack has 8 bytes"),
        ({"registers": 117}, "registers: 100 before, now 117"),
        ({"shared": 50_001}, "shared: 50000 before, now 50001"),
        ({"counts": COUNTS._replace(step=106)}, "step: 97 before, now 106"),
        ({"counts": COUNTS._replace(outside=421)}, "outside: 400 before, now 421"),
        ({"counts": COUNTS._replace(flying=2)}, "flying: 4 before, now 2"),
        ({"instruction": "mma.sync"}, "was wgmma, now mma.sync"),
        ({"instruction": "none"}, "was wgmma, now none"),
        ({"failure": "no such type"}, "does not compile: no such type"),
        ({"tile": "BLOCK_M 64 BLOCK_N 32"}, "nothing is recorded"),
    ],
)
def test_what_breaks_the_budget_is_said(changes: dict[str, object], sentence: str) -> None:
    (said,) = violations([ROW._replace(**changes)], ALLOWED, "3.9")  # type: ignore[arg-type]
    assert said.startswith("sm_90 linear ") and sentence in said


@pytest.mark.parametrize(
    ("changes", "sentences"),
    [
        ({"instruction": "none", "registers": 255}, []),
        ({"stack": 8}, ["spills"]),
        ({"shared": 240_000}, ["shared memory is 240000 bytes"]),
        ({"failure": "no such type"}, ["does not compile"]),
    ],
)
def test_a_kernel_without_a_budget_is_held_to_the_absolute_rules(
    changes: dict[str, object], sentences: list[str]
) -> None:
    rows = [ROW, ROW._replace(kernel="new", **changes)]  # type: ignore[arg-type]
    assert without(rows, ALLOWED) == ["new"]
    found = violations(rows, ALLOWED, "3.9")
    assert all(part in said for part, said in zip(sentences, found, strict=True))


def test_a_kernel_without_a_budget_sums_in_one_order() -> None:
    tiles = ("BLOCK_M 32", "BLOCK_M 64")
    orders = [frozenset([(f"sum of 64: {tile}",)]) for tile in tiles]
    rows = [
        ROW._replace(kernel="new", tile=tile, orders=order)
        for tile, order in zip(tiles, orders, strict=True)
    ]
    (said,) = violations(rows, ALLOWED, "3.9")
    assert "2 orders" in said


def test_a_dependent_launch_waits_before_it_touches_memory() -> None:
    wait, load = "griddepcontrol.wait;", "ld.global.v4.b32 {%r1}, [%rd1];"
    assert waits_first(f"ld.param.b64 %rd1, [p];\n{wait}\n{load}")
    assert not waits_first(f"{load}\n{wait}") and not waits_first(load)


def test_registers_are_compared_within_one_version_of_triton() -> None:
    (said,) = violations([ROW._replace(registers=255, stack=8)], ALLOWED, "3.10")
    assert "stack" in said


@pytest.mark.parametrize(
    ("changes", "instruction"),
    [
        ({}, "wgmma"),
        ({"arch": 80}, "mma.sync"),
        ({"dtype": "float32"}, "none"),
        ({"kernel": "start"}, "none"),
        ({"tile": "QUERIES 16 KEYS 128"}, "mma.sync"),
        ({"tile": "BLOCK_M 128 BLOCK_N 64 SLOT_BLOCK_M 16"}, "mma.sync"),
    ],
)
def test_the_instruction_that_a_tile_needs(changes: dict[str, object], instruction: str) -> None:
    row = ROW._replace(**changes)  # type: ignore[arg-type]
    assert expected_instruction(row) == instruction


def test_the_worst_of_two_binaries_counts() -> None:
    other = ROW._replace(registers=90, stack=8, instruction="mma.sync")
    assert worst(ROW, other) == worst(other, ROW) == ROW._replace(stack=8, instruction="mma.sync")


def test_the_budget_knows_every_arch_and_every_kernel_of_the_pipeline() -> None:
    groups = Budget.read(BUDGET).groups
    assert list(groups) == [f"sm_{arch}" for arch in ARCHS]
    for arch, group in zip(ARCHS, groups.values(), strict=True):
        assert group.reasons.keys() <= group.rows.keys()
        recorded = {key.split()[0] for key in group.rows}
        assert {job.kernel for job in launches(Part(arch, "bfloat16", PIPELINE))} <= recorded


def test_the_short_plan_covers_every_arch_and_part_of_the_whole() -> None:
    short, whole = plan(list(ARCHS), True), plan(list(ARCHS), False)
    assert {part.arch for part in short} == set(ARCHS)
    for part in short:
        assert any(part[:2] == other[:2] for other in whole)
        assert set(PIPELINE) <= set(part.launchers)


@pytest.mark.parametrize(("arch", "twin"), TWINS.items())
def test_what_is_left_out_for_an_arch_is_compiled_for_its_twin(arch: int, twin: int) -> None:
    parts = [part for part in plan(list(ARCHS), True) if part.arch in (arch, twin)]
    compiled = {job.decides for part in parts for job in launches(part)}
    (alone,) = plan([arch], True)
    pipeline = launches(Part(arch, "bfloat16", PIPELINE, (), alone.batches))
    assert {job.decides for job in pipeline} <= compiled
    # Without its twin it is whole.
    assert launches(alone) == pipeline
    assert ARCHS[arch].shared_bytes == ARCHS[twin].shared_bytes


@pytest.mark.parametrize(("arch", "twin"), TWINS.items())
def test_the_whole_report_found_the_same_binaries_for_twins(arch: int, twin: int) -> None:
    groups = Budget.read(BUDGET).groups
    ours, theirs = (groups[f"sm_{each}"].rows for each in (arch, twin))
    shared = ours.keys() & theirs.keys()
    assert len(shared) > 100
    # Of instructions there may be some more or less.
    names = ("registers", "stack", "shared", "instruction")
    assert all(ours[key][name] == theirs[key][name] for key in shared for name in names)


def test_launches_are_found_without_a_gpu() -> None:
    jobs = launches(Part(90, "bfloat16", PIPELINE))
    assert {"first", "linear", "slot_attention_fwd", "gru", "argmax", "resolve"} <= {
        j.kernel for j in jobs
    }
    assert len({job.decides for job in jobs}) == len(jobs)


def test_the_interpreter_compiles_nothing(tmp_path: Path) -> None:
    command = ("-m", "bench", "compiled")
    said = run_python(tmp_path, *command, status=2, TRITON_INTERPRET="1")
    assert "unset TRITON_INTERPRET" in said


ONE_OF_EACH = """
from importlib.metadata import version
from bench.compiled.binaries import compile_launch
from bench.compiled.budget import Budget
from bench.compiled.launches import PIPELINE, Part, launches
from bench.compiled.triton import BUDGET, violations
part = Part(90, "bfloat16", PIPELINE)
places = {job.kernel: place for place, job in enumerate(launches(part))}
kernels = ("linear", "slot_attention_fwd", "argmax", "gru")
rows = [compile_launch(part, places[kernel]) for kernel in kernels]
for sentence in violations(rows, Budget.read(BUDGET), version("triton")):
    raise SystemExit(sentence)
"""


@pytest.mark.compile
@on_linux
@pytest.mark.parametrize(
    "command",
    [
        pytest.param(("-c", ONE_OF_EACH), id="some"),
        pytest.param(("-m", "bench", "compiled", "--short"), id="many", marks=pytest.mark.slow),
    ],
)
def test_the_kernels_keep_within_the_budget(command: tuple[str, ...], tmp_path: Path) -> None:
    run_python(tmp_path, *command)
