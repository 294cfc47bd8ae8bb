"""The whole bench on tiny workloads: refusals, exit status, result files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import run
from bench.ceilings import Ceilings
from bench.shapes import Workload, Workloads
from bench.variants import Variant, flashslice_variant
from ocvtp_kernels import backends, ops

TINY = Workload(2, 40, 7, 7, 24, 16)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "workloads", lambda *_: Workloads((TINY,), (TINY,)))
    monkeypatch.setattr(run, "measure_ceilings", lambda *_: Ceilings(10.0, {"float32": 0.1}))
    monkeypatch.setattr(run, "measure", quick_measure(run.measure))


def quick_measure(measure: Any) -> Any:
    return lambda variants, /, **options: measure(variants, **{**options, "seconds": 0.0})


def bench(
    folder: Path, kind: str = "micro", *options: str
) -> tuple[int, dict[tuple[str, str, str], dict[str, Any]]]:
    status = run.main([kind, "--device", "cpu", "--output", str(folder), *options])
    rows = json.loads((folder / f"{kind}.json").read_text(encoding="utf-8"))["rows"]
    return status, {(row["op"], row["variant"], row["direction"]): row for row in rows}


def test_prune_is_beside_its_baselines(tmp_path: Path) -> None:
    status, rows = bench(tmp_path, "prune")
    assert status == 0
    assert set(rows) == {("prune", who, "forward") for who in ("eager", "published", "prune")}
    assert all(row["median_s"] > 0 and row["method"] == "host" for row in rows.values())
    assert all(row["gate"]["note"].endswith("; timed by host") for row in rows.values())


def test_torch_compile_is_beside_ours_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "workloads", lambda *_: Workloads((), (), compiled=(TINY,)))
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    status, rows = bench(tmp_path, "compile")
    assert status == 0
    assert set(rows) == {("prune", who, "forward") for who in ("compile", "prune")}


def test_every_op_of_the_pruner_gets_a_row(tmp_path: Path) -> None:
    status, rows = bench(tmp_path)
    assert status == 0
    assert ("prune", "ocvtp", "backward") in rows and ("prune", "prune", "forward") not in rows
    assert len(rows) == 32
    assert all(row["gate"]["passed"] and row["median_s"] > 0 for row in rows.values())


def test_some_ops_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, rows = bench(tmp_path, "micro", "--ops", "merge,gru_cell")
    assert {op for op, _, _ in rows} == {"merge", "gru_cell"}
    status, rows = bench(tmp_path, "micro", "--op", "match_select")
    assert status == 0 and set(rows) == {
        ("match_select", who, "forward") for who in ("eager", "ocvtp")
    }
    with pytest.raises(SystemExit):
        run.main(["micro", "--ops", "merge,murge"])
    assert "got murge" in capsys.readouterr().err


def test_what_fails_while_it_is_timed_does_not_end_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "workloads", lambda *_: Workloads((TINY, TINY), ()))
    honest, calls = run.measure, []

    def breaks(*given: Any, **options: Any) -> Any:
        calls.append(given)
        if len(calls) == 1:
            raise RuntimeError("an illegal access\nand more")
        return honest(*given, **options)

    monkeypatch.setattr(run, "measure", breaks)
    status = run.main(["prune", "--device", "cpu", "--output", str(tmp_path)])
    rows = json.loads((tmp_path / "prune.json").read_text(encoding="utf-8"))["rows"]
    assert status == 1 and [row["median_s"] is None for row in rows] == [True, *3 * [False]]
    assert rows[0]["gate"]["note"] == "the timing fails: RuntimeError: an illegal access"


def test_a_wrong_kernel_gets_no_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def wrong(*arguments: Any) -> Any:
        updates, mass = ops.slot_attention.reference(*arguments)
        return updates * 1.01, mass

    monkeypatch.setitem(backends._kernels["slot_attention"], "cpu", backends.Kernel(wrong))
    status, rows = bench(tmp_path, "micro", "--ops", "slot_attention,slot_attention_step")
    assert status == 1
    row = rows["slot_attention", "ocvtp", "forward"]
    assert row["median_s"] is None and row["p20_s"] is None and row["tflops"] is None
    assert not row["gate"]["passed"] and "error" in row["gate"]["note"]
    # An op made of it is refused too; the baseline beside it is not.
    assert rows["slot_attention_step", "ocvtp", "forward"]["median_s"] is None
    assert rows["slot_attention", "eager", "forward"]["median_s"] > 0
    lines = capsys.readouterr().out.splitlines()
    (line,) = [line for line in lines if line.split()[:3] == ["slot_attention", "forward", "ocvtp"]]
    assert "refused" in line and " ms" not in line


def test_who_turns_lazy_during_the_timing_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Any] = []

    def lazy(*arguments: Any) -> Any:
        # Honest for as long as the gate looks on.
        if len(calls) < 4:
            calls.append(ops.slot_attention.reference(*arguments))
        return calls[-1]

    honest = run.variants_of

    def variants_of(case: Any, direction: str, compiled: bool) -> Any:
        found, skipped = honest(case, direction, compiled)
        if case.op == "slot_attention" and direction == "forward":
            scale = case.workload.slot_dim**-0.5
            found.append(Variant("lazy", lambda q, k, v: lazy(q, k, v, scale)))
        return found, skipped

    monkeypatch.setattr(run, "variants_of", variants_of)
    status, rows = bench(tmp_path, "micro", "--ops", "slot_attention")
    row = rows["slot_attention", "lazy", "forward"]
    assert status == 1 and row["median_s"] is None
    assert row["gate"]["note"].startswith("after the timing, ")


def test_a_deadline_leaves_cases_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["micro", "--device", "cpu", "--output", str(tmp_path), "--seconds", "0"]
    assert run.main(arguments) == 0
    assert "of 16 cases are left out" in capsys.readouterr().out
    assert json.loads((tmp_path / "micro.json").read_text(encoding="utf-8"))["rows"] == []


def test_ceilings_alone(tmp_path: Path) -> None:
    assert run.main(["ceilings", "--device", "cpu", "--output", str(tmp_path)]) == 0
    read = json.loads((tmp_path / "ceilings.json").read_text(encoding="utf-8"))
    assert read["kind"] == "ceilings" and read["ceilings"]["copy_gb_s"] == 10.0


def test_ceilings_of_an_earlier_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run.main(["ceilings", "--device", "cpu", "--output", str(tmp_path)])
    monkeypatch.setattr(run, "measure_ceilings", None)
    earlier = tmp_path / "ceilings.json"
    arguments = ["prune", "--device", "cpu", "--output", str(tmp_path), "--seconds", "0"]
    arguments += ["--commit", "abc", "--ceilings", str(earlier)]
    assert run.main(arguments) == 0
    read = json.loads((tmp_path / "prune.json").read_text(encoding="utf-8"))
    assert read["ceilings"]["copy_gb_s"] == 10.0 and read["commit"] == "abc"
    earlier.write_text(json.dumps({**read, "device": "another"}), encoding="utf-8")
    with pytest.raises(SystemExit):
        run.main(arguments)
    assert "got those of another" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_without_a_gpu_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as error:
        run.main(["micro", "--device", "cuda"])
    assert error.value.code == 2 and "sees no GPU" in capsys.readouterr().err


def test_flashslice_says_why_it_is_left_out() -> None:
    assert "CUDA" in getattr(flashslice_variant(TINY, torch.device("cpu")), "reason", "")
