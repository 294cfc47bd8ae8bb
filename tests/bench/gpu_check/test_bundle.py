"""What is made ahead of a GPU: launches are found, compiled, packed and found again elsewhere."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")

import triton

from bench.gpu_check import bundle, launches, warm
from bench.gpu_check.binaries import Binary, merged, read, written

CODE = """
import sys, torch
from pathlib import Path
from bench.gpu_check import launches
from bench.gpu_check.binaries import write
from tests.ops.cases import ARGUMENTS, op

with launches.recording(90) as recorder, launches.zeros():
    for recorder.stage, batch in (("first", 1), ("second", 3)):
        for dtype in (torch.float32, torch.bfloat16):
            for name in ("resolve_picks", "argmax_gather", "slot_attention_step"):
                op(name)(*ARGUMENTS[name](batch=batch, dtype=dtype))
write(Path(sys.argv[1]), 90, recorder.found.values())
"""


def python(*arguments: str, **environment: str) -> str:
    given = {**os.environ, "TRITON_INTERPRET": "0", **environment}
    done = subprocess.run(
        [sys.executable, *arguments], env=given, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A list of what some ops launch."""
    path = tmp_path_factory.mktemp("lists") / "launches.json"
    python("-c", CODE, str(path))
    return path


def test_every_op_is_recorded_as_a_gpu_would_launch_it(found: Path) -> None:
    arch, binaries = read(found)
    assert arch == 90
    kernels = {binary.kernel.partition(":")[2] for binary in binaries}
    assert {"resolve_kernel", "gru_kernel", "slot_attention_fwd_kernel"} <= kernels
    tensors = [v for one in binaries for v in one.arguments.values() if isinstance(v, list)]
    assert {"float32", "bfloat16", "int64"} <= {dtype for dtype, _ in tensors}
    # The ops' awkward arguments begin between two multiples of 16 bytes.
    assert {aligned for _, aligned in tensors} == {True, False}
    assert {stage for one in binaries for stage in one.stages} == {"first", "second"}
    assert all(one.options["num_warps"] in (1, 2, 4, 8) for one in binaries)


def test_what_cannot_be_read_or_written_is_named(tmp_path: Path) -> None:
    path = tmp_path / "other.json"
    path.write_text(json.dumps({"chip": 90, "triton": "0.1", "binaries": []}))
    with pytest.raises(ValueError, match=rf"for Triton 0\.1, this is {triton.__version__}"):
        read(path)
    with pytest.raises(TypeError, match="expected a tensor, number or string, got"):
        written(object())


def test_two_lists_are_one() -> None:
    first = Binary("a:b", {"x": ["float32", True]}, {"num_warps": 4}, ["tests"])
    second = first._replace(stages=["prune", "tests"])
    other = first._replace(arguments={"x": ["float32", False]})
    together = merged([[first], [second, other]])
    assert [one.stages for one in together] == [["tests", "prune"], ["tests"]]


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.int64, torch.uint8])
@pytest.mark.parametrize("aligned", [True, False])
def test_a_tensor_is_as_it_was_written(dtype: torch.dtype, aligned: bool) -> None:
    written = [str(dtype).removeprefix("torch."), aligned]
    tensor = Binary("a:b", {"x": written}, {}, []).tensors_and_values()["x"]
    assert tensor.dtype == dtype and (tensor.data_ptr() % 16 == 0) == aligned


def test_numbers_are_told_apart_as_triton_does() -> None:
    type_of = launches._type_of
    types = [type_of("n", value) for value in (1, 16, 32, 7, 9, 2**31, 2**31 + 16)]
    assert types[1] == types[2] and types[3] == types[4]
    assert types[5] == types[6] and len(set(types)) == 4
    assert type_of("eps", 0.5) == type_of("eps", 0.25)
    for name, one, other in (("EPS", 0.5, 0.25), ("ROWS", 16, 32), ("MASKED", True, 1)):
        assert type_of(name, one) != type_of(name, other)


def test_what_cannot_be_compiled_is_told() -> None:
    prepared = [
        warm.Prepared(Binary("a:b", {}, {}, ["tests", "prune"]), True, 0),
        warm.Prepared(Binary("a:c", {}, {}, ["tests"]), False, 1, "it does not compile"),
    ]
    said, missed = warm.report(prepared)
    assert missed == 2
    assert said.splitlines() == [
        "prune          1 hits     0 misses",
        "tests          1 hits     1 misses",
        "2 binaries: 1 hits, 1 misses, 1 stubs built",
        "a:c: it does not compile",
    ]


def test_a_cache_holds_its_new_paths(tmp_path: Path) -> None:
    cache = tmp_path / "made" / "cache"
    entry = cache / "ABC"
    entry.mkdir(parents=True)
    paths = {}
    for name in ("a.json", "a.cubin", "a.ptx", "a.source"):
        (entry / name).write_text(name)
        paths[name] = str(entry / name)
    (entry / "__grp__a.json").write_text(json.dumps({"child_paths": paths}))
    bundle.pack(cache, tmp_path / "cache.tar.xz")
    there = tmp_path / "elsewhere"
    bundle.unpack(tmp_path / "cache.tar.xz", there)
    kept = ("a.json", "a.cubin")
    assert {path.name for path in (there / "ABC").iterdir()} == {"__grp__a.json", *kept}
    group = json.loads((there / "ABC" / "__grp__a.json").read_text())["child_paths"]
    # Some versions of Triton take a group whole or not at all.
    assert group == {name: str(there / "ABC" / name) for name in kept}


def test_a_bundle_is_put_in_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle, "ROOT", tmp_path / "checkout")
    (tmp_path / "checkout" / "ocvtp_kernels").mkdir(parents=True)
    prepared, folder, cache = (tmp_path / name for name in ("prepared", "folder", "made"))
    for each in (prepared, folder):
        each.mkdir()

    def add(entry: str, commit: str) -> None:
        (cache / entry).mkdir(parents=True)
        (cache / entry / "a.cubin").write_bytes(b"binary")
        bundle.pack(cache, prepared / bundle.CACHE)
        (prepared / bundle.MANIFEST).write_text(json.dumps({"chip": "sm_90", "commit": commit}))

    add("ABC", "abc")
    (prepared / "_C.abi3.so").write_bytes(b"object")
    with zipfile.ZipFile(prepared / "theirs-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("theirs/__init__.py", "")
    said = bundle.install(prepared, folder)
    assert said == "prepared: chip sm_90, commit abc; 1 entries in Triton's cache"
    assert (tmp_path / "checkout" / "ocvtp_kernels" / "_C.abi3.so").read_bytes() == b"object"
    assert (folder / bundle.INSTALLED_CACHE / "ABC" / "a.cubin").read_bytes() == b"binary"
    assert (folder / bundle.SITE / "theirs" / "__init__.py").exists()
    # A second command finds what was compiled in the first, and another bundle is added to it.
    (folder / bundle.INSTALLED_CACHE / "NEW").mkdir()
    bundle.install(prepared, folder)
    assert bundle.count(folder) == 2
    add("DEF", "def")
    bundle.install(prepared, folder)
    assert {path.name for path in (folder / "triton-cache").iterdir()} == {"ABC", "DEF", "NEW"}


@pytest.mark.slow
def test_a_cache_that_was_carried_has_every_binary(tmp_path: Path, found: Path) -> None:
    top = json.loads(found.read_text())
    few = tmp_path / "few.json"
    few.write_text(json.dumps({**top, "binaries": top["binaries"][:6]}))
    made, carried = tmp_path / "made", tmp_path / "carried"
    command = ("-m", "bench.gpu_check.warm", str(few))
    said = python(*command, TRITON_CACHE_DIR=str(made))
    assert "6 binaries: 0 hits, 6 misses" in said
    bundle.pack(made, tmp_path / "cache.tar.xz")
    made.rename(tmp_path / "gone")
    bundle.unpack(tmp_path / "cache.tar.xz", carried)
    said = python(*command, "--strict", TRITON_CACHE_DIR=str(carried))
    assert "6 binaries: 6 hits, 0 misses, 0 stubs built" in said


@pytest.mark.slow
def test_what_the_bench_launches_is_found_at_its_real_sizes(tmp_path: Path) -> None:
    path = tmp_path / "launches.json"
    python("-m", "bench.gpu_check.launches", "90", str(path))
    _, binaries = read(path)
    stages = [stage for binary in binaries for stage in binary.stages]
    assert set(stages) == {"prune", "compile", "e2e", "selectors", "sanitizer"}
    kernels = {one.kernel.partition(":")[2] for one in binaries if "e2e" in one.stages}
    assert {"linear_kernel", "resolve_kernel"} <= kernels
    assert any("received" in kernel for kernel in kernels)
