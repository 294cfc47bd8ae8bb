"""The compile report of the CUDA C++ kernels: its rules, and that the budget is kept.

What is compiled here is sm_75 and sm_90, and sm_70 where NVRTC 12 is installed.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.compiled.budget import Budget
from bench.compiled.csrc import BUDGET, groups_of, main, multiplies_halves, violations
from bench.compiled.csrc_binaries import (
    ARCHS,
    NVRTC_ARCH,
    Row,
    Tools,
    complaint,
    multiplying,
    plain,
    release,
    usage,
)
from tests.compiling import run_python

COMPILERS = {"nvcc": "13.0.88", "nvrtc": "12.9.86"}
ROW = Row(90, "slot_attention_kernel<half, 64, false>", 100, 0, 1024, "HMMA")
ALLOWED = Budget(groups_of([ROW], COMPILERS))
NO_TOOLS = Tools(None, None, None, None)


def test_a_row_within_the_budget_passes() -> None:
    assert violations([ROW, ROW._replace(registers=116)], ALLOWED, COMPILERS) == []


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"stack": 8}, "spills: its stack has 8 bytes"),
        ({"registers": 117}, "registers: 100 before, now 117"),
        ({"shared": 50_000}, "50000 bytes, allowed are 49152"),
        ({"instruction": "none"}, "has no instruction that multiplies matrices"),
        ({"failure": "no such type"}, "does not compile: no such type"),
    ],
)
def test_what_breaks_the_budget_is_said(changes: dict[str, object], sentence: str) -> None:
    (said,) = violations([ROW._replace(**changes)], ALLOWED, COMPILERS)  # type: ignore[arg-type]
    assert said.startswith("sm_90 slot_attention_kernel<half, 64, false>: ") and sentence in said


def test_kernels_that_came_and_went_are_said() -> None:
    gone, new = violations([ROW._replace(kernel="best_kernel<float>")], ALLOWED, COMPILERS)
    assert new.startswith("sm_90 best_kernel<float>: nothing is recorded")
    kernel = "slot_attention_kernel<half, 64, false>"
    assert gone == f"sm_90 {kernel}: is recorded, but there is no such kernel"


def test_registers_are_compared_within_one_version_of_a_compiler() -> None:
    worse = [ROW._replace(registers=255)]
    assert violations(worse, ALLOWED, {**COMPILERS, "nvcc": "13.1.80"}) == []
    assert len(violations(worse, ALLOWED, {**COMPILERS, "nvrtc": "12.9.99"})) == 1


@pytest.mark.parametrize(
    ("arch", "kernel", "needed"),
    [
        (90, "slot_attention_kernel<half, 64, false>", True),
        (90, "slot_attention_kernel<bfloat16, 64, false>", True),
        (80, "slot_attention_kernel<bfloat16, 64, false>", True),
        (75, "slot_attention_kernel<half, 64, false>", True),
        (75, "slot_attention_kernel<bfloat16, 64, false>", False),
        (90, "slot_attention_kernel<float, 64, false>", False),
        (90, "layer_norm_kernel<half, 8>", False),
        (90, "new_kernel<float, half>", True),
        (90, "plain_kernel", False),
    ],
)
def test_the_kernels_that_need_a_matrix_instruction(arch: int, kernel: str, needed: bool) -> None:
    assert multiplies_halves(Row(arch, kernel)) is needed


def test_resources_are_read_per_kernel() -> None:
    said = """
Resource usage:
 Common:
  GLOBAL:48 CONSTANT[4]:24
 Function one:
  REG:40 STACK:0 SHARED:1024 LOCAL:0 CONSTANT[0]:600 TEXTURE:0 SURFACE:0 SAMPLER:0
 Function two:
  REG:128 STACK:16 SHARED:0 LOCAL:24 CONSTANT[2]:24 CONSTANT[0]:512 TEXTURE:0 SURFACE:0 SAMPLER:0
"""
    assert list(usage(said)) == [("one", (40, 0, 1024)), ("two", (128, 24, 0))]


def test_instructions_are_read_per_kernel() -> None:
    text = "HMMA\n Function : one\n FFMA\n Function : two\n HMMA.16816\n Function : three\n"
    assert multiplying(text, r"Function : (\S+)", "HMMA") == {"two"}
    text = ".weak .entry one(\n wmma.mma.sync.x;\n.visible .entry two(\n wmma.load;\n"
    assert multiplying(text, r"\.entry (\w+)", "wmma.mma.sync") == {"one"}


@pytest.mark.parametrize(
    ("demangled", "name"),
    [
        ("void ocvtp::best<__half, 64, false>(__half*, int)", "best<half, 64, false>"),
        ("void ocvtp::gru<__nv_bfloat16, float>(ocvtp::Job<float>)", "gru<bfloat16, float>"),
        ("ocvtp::plain(int*)", "plain"),
    ],
)
def test_names_are_those_of_the_sources(demangled: str, name: str) -> None:
    assert plain(demangled) == name


def test_versions_and_complaints_are_found_among_the_rest() -> None:
    assert release("Cuda compilation tools, release 13.0, V13.0.88\nBuild 3") == "13.0.88"
    assert release("// Cuda compilation tools, release 12.9, V12.9.86\n//") == "12.9.86"
    assert complaint("a.cu(3): warning: old\na.cu(7): error: no Pack\n1 error detected") == (
        "a.cu(7): error: no Pack"
    )
    assert complaint("") == "no reason is given"


def test_a_missing_tool_is_a_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Tools, "here", lambda: NO_TOOLS)
    assert main(["--archs", "70,90"]) == 2
    assert capsys.readouterr().err == (
        "cuobjdump is missing: it comes with the CUDA toolkit and with Triton.\n"
    )
    reading = NO_TOOLS._replace(cuobjdump="cuobjdump", demangler="c++filt")
    assert "nvidia-cuda-nvrtc-cu12" in str(reading.missing_for(NVRTC_ARCH))
    assert str(reading.missing_for(90)).startswith("nvcc is missing")


def test_every_arch_has_every_kernel_but_those_of_a_type_it_lacks() -> None:
    groups = Budget.read(BUDGET).groups
    assert list(groups) == [f"sm_{arch}" for arch in ARCHS]
    kernels = {arch: groups[f"sm_{arch}"].rows.keys() for arch in ARCHS}
    without_bfloat16 = {kernel for kernel in kernels[90] if "bfloat16" not in kernel}
    for arch in ARCHS:
        assert kernels[arch] == (kernels[90] if arch >= 80 else without_bfloat16)


@pytest.mark.slow
@pytest.mark.compile
def test_the_kernels_keep_within_the_budget(tmp_path: Path) -> None:
    tools = Tools.here()
    missing = {arch: tools.missing_for(arch) for arch in (NVRTC_ARCH, 75, 90)}
    if missing[75] or missing[90]:
        pytest.skip(str(missing[75] or missing[90]))
    archs = ",".join(str(arch) for arch, why in missing.items() if not why)
    run_python(tmp_path, "-m", "bench", "csrc", "--archs", archs)
