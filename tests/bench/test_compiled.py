"""The compile report: its budget, its page, and that the kernels keep within the budget.

The report that is compiled here is the short one (see `bench.compiled_launches.plan`): everything
in bfloat16 for sm_90, Slot Attention and the pipeline for sm_80 and sm_100, the pipeline alone for
the other GPUs and, on sm_80, in float32; of binaries that differ only in what Triton tells of
numbers, one. For sm_86 only what sm_89 does not have too: their binaries have the same figures, as
the whole report recorded them.
"""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

if find_spec("triton") is None:
    pytest.skip("triton is not installed", allow_module_level=True)

from bench import compiled
from bench.compiled import BUDGET, page
from bench.compiled_binaries import Row, waits_first, worst
from bench.compiled_budget import Budget, Rules, expected_instruction, violations
from bench.compiled_launches import PIPELINE, TWINS, Part, launches, plan
from bench.results import ROOT
from bench.sass_counts import Counts
from ocvtp_kernels.triton_common.archs import ARCHS

PAGE = ROOT / "docs" / "compiled.md"
COUNTS = Counts(97, 4, 48.5, 6, 4, 400)
ROW = Row(
    *(90, "linear", "NORM BLOCK_M 64 BLOCK_N 16", "bfloat16", 4, 3, 100, 0, 50_000, "wgmma"),
    counts=COUNTS,
)
RULES = Rules(0, 16, ["best"], {"80": "mma.sync", "90": "wgmma"}, 64, 0.05)
ALLOWED = Budget("3.9", RULES, {"90": {ROW.key: ROW.numbers()}})


def test_a_row_within_the_budget_passes() -> None:
    assert violations([ROW, ROW._replace(registers=116)], ALLOWED, "3.9") == []


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"stack": 8}, "stack was 0 bytes, now 8"),
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
        ({"stack": 8}, ["it spills"]),
        ({"shared": 240_000}, ["shared memory is 240000 bytes"]),
        ({"failure": "no such type"}, ["does not compile"]),
    ],
)
def test_a_kernel_without_a_budget_is_held_to_the_absolute_rules(
    changes: dict[str, object], sentences: list[str]
) -> None:
    rows = [ROW, ROW._replace(kernel="new", **changes)]  # type: ignore[arg-type]
    assert ALLOWED.without(rows) == ["new"]
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


def test_more_shared_memory_than_the_arch_has_is_said() -> None:
    said = violations([ROW._replace(shared=240_000)], ALLOWED, "3.9")
    assert any(f"240000 bytes, the GPU has {ARCHS[90].shared_bytes}" in each for each in said)


def test_a_dependent_launch_waits_before_it_touches_memory() -> None:
    wait, load = "griddepcontrol.wait;", "ld.global.v4.b32 {%r1}, [%rd1];"
    assert waits_first(f"ld.param.b64 %rd1, [p];\n{wait}\n{load}")
    assert not waits_first(f"{load}\n{wait}") and not waits_first(load)


def test_registers_are_compared_within_one_version_of_triton() -> None:
    assert violations([ROW._replace(registers=255)], ALLOWED, "3.10") == []
    (said,) = violations([ROW._replace(registers=255, stack=8)], ALLOWED, "3.10")
    assert "stack" in said


@pytest.mark.parametrize(
    ("changes", "instruction"),
    [
        ({}, "wgmma"),
        ({"arch": 80}, "mma.sync"),
        ({"dtype": "float32"}, "none"),
        ({"kernel": "best"}, "none"),
        ({"tile": "QUERIES 16 KEYS 128"}, "mma.sync"),
        ({"tile": "BLOCK_M 128 BLOCK_N 64 SLOT_BLOCK_M 16"}, "mma.sync"),
    ],
)
def test_the_instruction_that_a_tile_needs(changes: dict[str, object], instruction: str) -> None:
    row = ROW._replace(**changes)  # type: ignore[arg-type]
    assert expected_instruction(row, RULES) == instruction


def test_a_newer_instruction_is_no_violation() -> None:
    assert violations([ROW._replace(instruction="tcgen05")], ALLOWED, "3.9") == []


def test_the_worst_of_two_binaries_counts() -> None:
    other = ROW._replace(registers=90, stack=8, instruction="mma.sync")
    assert worst(ROW, other) == worst(other, ROW) == ROW._replace(stack=8, instruction="mma.sync")


def test_recording_replaces_an_arch_and_keeps_the_others(tmp_path: Path) -> None:
    kept, gone = {"kept": {"registers": 1.0}}, {"gone": {"registers": 2.0}}
    old = Budget("3.9", RULES, {"80": kept, "90": gone}, {"90": {"gone": "It is slow."}})
    old.with_rows([ROW, ROW._replace(kernel="broken", failure="no")], "3.9").write(
        tmp_path / "budget.json"
    )
    read = Budget.read(tmp_path / "budget.json")
    assert read == Budget("3.9", RULES, {"80": kept, "90": {ROW.key: ROW.numbers()}})


def test_what_got_worse_is_recorded_with_a_reason_alone(tmp_path: Path) -> None:
    other = ROW._replace(kernel="gru")
    before = Budget("3.9", RULES, {"90": {row.key: row.numbers() for row in (ROW, other)}})
    longer = [ROW._replace(counts=COUNTS._replace(step=200)), other]
    with pytest.raises(ValueError, match=r"1 rows got worse.*step: 97 before, now 200.*--because"):
        before.with_rows(longer, "3.9")
    why = "The rows are normalised here now."
    after = before.with_rows(longer, "3.9", why)
    assert after.reasons == {"90": {ROW.key: why}}
    assert violations(longer, after, "3.9") == []
    after.write(tmp_path / "budget.json")
    assert Budget.read(tmp_path / "budget.json") == after
    # The reason stays with its row, and leaves with it.
    assert after.with_rows(longer, "3.9").reasons == after.reasons
    assert after.with_rows([other], "3.9").reasons == {}


def test_another_version_of_triton_needs_no_reason() -> None:
    longer = [ROW._replace(counts=COUNTS._replace(step=200))]
    assert ALLOWED.with_rows(longer, "3.10").rows["90"][ROW.key]["step"] == 200


def test_the_budget_knows_every_arch() -> None:
    budget = Budget.read(BUDGET)
    assert set(budget.rows) == set(budget.rules.instructions) == set(map(str, ARCHS))
    known = {arch: its.keys() for arch, its in budget.rows.items()}
    assert all(reasons.keys() <= known[arch] for arch, reasons in budget.reasons.items())


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
    tables = tables_of(PAGE.read_text(encoding="utf-8"))
    ours, theirs = ({tuple(row[:5]): row for row in tables[f"sm_{c}"]} for c in (arch, twin))
    shared = ours.keys() & theirs.keys()
    assert len(shared) > 100
    # Of instructions there may be some more or less.
    assert all(ours[key][:9] == theirs[key][:9] for key in shared)


def test_launches_are_found_without_a_gpu() -> None:
    jobs = launches(Part(90, "bfloat16", PIPELINE))
    assert {"first", "linear", "slot_attention_fwd", "gru", "argmax", "resolve"} <= {
        j.kernel for j in jobs
    }
    assert len({job.decides for job in jobs}) == len(jobs)


def test_a_page_has_a_row_for_each_row() -> None:
    rows = [
        ROW,
        ROW._replace(kernel="gru", stages=None, counts=Counts(outside=70)),
        ROW._replace(arch=80, failure="no"),
    ]
    tables = tables_of(page(rows, "3.9"))
    assert tables["sm_90"] == [
        [*("gru", ROW.tile, "bfloat16", "4", "", "100", "0", "50000", "wgmma"), *[""] * 5, "70"],
        [
            *("linear", ROW.tile, "bfloat16", "4", "3", "100", "0", "50000", "wgmma"),
            *("97", "4", "48.5", "6", "4", "400"),
        ],
    ]
    assert tables["sm_80"][0][-1] == "does not compile"


def tables_of(text: str) -> dict[str, list[list[str]]]:
    """Cells of the tables by heading, their own headings left out."""
    found: dict[str, list[list[str]]] = {}
    for section in text.split("\n## ")[1:]:
        title, *lines = section.splitlines()
        cells = [line[2:-2].split(" | ") for line in lines if line.startswith("|")]
        assert cells[0] == list(compiled.COLUMNS)
        assert all(len(row) == len(compiled.COLUMNS) for row in cells)
        found[title] = cells[2:]
    return found


@pytest.mark.parametrize("arch", ARCHS)
def test_the_committed_page_has_every_kernel_of_the_pipeline(arch: int) -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert f"Triton {Budget.read(BUDGET).triton}" in text
    on_page = {row[0] for row in tables_of(text)[f"sm_{arch}"]}
    assert {job.kernel for job in launches(Part(arch, "bfloat16", PIPELINE))} <= on_page


def report(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return run_python(folder, "-m", "bench.compiled", *arguments, **environment)


def run_python(
    folder: Path, *arguments: str, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Where kernels are compiled, as they are not in Triton's interpreter."""
    kept = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={**kept, "TRITON_CACHE_DIR": str(folder), **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_interpreter_compiles_nothing(tmp_path: Path) -> None:
    done = report(tmp_path, TRITON_INTERPRET="1")
    assert done.returncode == 2 and "unset TRITON_INTERPRET" in done.stderr


ONE_OF_EACH = """
from importlib.metadata import version
from bench.compiled import BUDGET
from bench.compiled_binaries import compile_launch
from bench.compiled_budget import Budget, violations
from bench.compiled_launches import PIPELINE, Part, launches
part = Part(90, "bfloat16", PIPELINE)
places = {job.kernel: place for place, job in enumerate(launches(part))}
kernels = ("linear", "slot_attention_fwd", "argmax", "gru")
rows = [compile_launch(part, places[kernel]) for kernel in kernels]
for sentence in violations(rows, Budget.read(BUDGET), version("triton")):
    raise SystemExit(sentence)
"""


@pytest.mark.compile
@pytest.mark.skipif(sys.platform != "linux", reason="Triton's compiler comes for Linux")
def test_some_kernels_keep_within_the_budget(tmp_path: Path) -> None:
    done = run_python(tmp_path, "-c", ONE_OF_EACH)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.compile
@pytest.mark.skipif(sys.platform != "linux", reason="Triton's compiler comes for Linux")
def test_the_kernels_keep_within_the_budget(tmp_path: Path) -> None:
    done = report(tmp_path, "--short")
    assert done.returncode == 0, done.stdout + done.stderr
