from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest

from bench.machine import RESULTS, ROOT
from bench.report import main
from bench.report.pages import (
    END,
    START,
    figures_block,
    page,
    readme_block,
    rewrite_between_markers,
)
from bench.report.text import workload_text
from bench.results import OURS, OpRow, Results, read_all
from tests.bench.report.samples import cpu, gpu, op_row, results

README = f"# Title\n{START}\nold\n{END}\nrest\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The result files of a device."""
    for file in cpu():
        file.save(tmp_path / "results" / "imaginary")
    return tmp_path / "results"


def section(text: str, name: str) -> str:
    return text.split(f"\n## {name}\n")[1].split("\n## ")[0]


@pytest.mark.parametrize("files", [cpu(), gpu("graph", "events")], ids=["cpu", "gpu"])
def test_every_row_stands_in_a_table(files: list[Results]) -> None:
    text = page(files)
    for row in (row for file in files for row in file.rows):
        if isinstance(row, OpRow):
            head = f"| {row.op} {row.direction} | {row.variant} | {workload_text(row.workload)} "
            how = f"| {row.times.method} |" if row.times else "| refused: "
            assert re.search(f"^{re.escape(head)}.*{re.escape(how)}", text, re.MULTILINE), head
        else:
            names = ("selector", "method", "what")
            first = next(getattr(row, name) for name in names if hasattr(row, name))
            assert f"| {first} |" in text


def test_the_page_of_a_device() -> None:
    text = page(cpu(), ["overview", "roofline", "stages"])
    assert text.startswith("# Imaginary accelerator\n\nA baseline is faster in 4 of 8 ")
    assert text.count("A baseline is faster in 4 of 8 comparisons. 1 of 17 rows have") == 2
    lost = section(text, "Where we lose")
    assert "* 2.00× compile's time" in lost and "imaginary, batch 8, eager" in lost
    assert "later in 1 of 2 comparisons" in lost and "loops' time: divprune" in lost
    assert "](overview.png)" in text and "](stages.png)" in section(text, "End to end")
    assert "selectors.png" not in text and "](roofline.png)" in section(text, "Ceilings")
    assert "| prune | 100 GB/s | 5.00 TFLOP/s | 10.0 TFLOP/s |" in section(text, "Ceilings")
    assert "| import | 1.00 s (900 ms to 1.10 s) | 2.00 s" in section(text, "New processes")
    assert "| memory | 6 MB | 3 MB | 0.50×" in section(text, "New processes")
    assert "autocast | 2.00 ms" in section(text, "Ways of use")
    assert "wrong | ids" in section(text, "Without times") and "no compile.json" in text
    assert text.count("commit 0123456789ab-dirty; 2001-02-03") == 7
    assert "<summary>N 576 · T 192 · C 1024 · float32</summary>" in text


def test_a_page_of_refused_rows_and_of_none() -> None:
    text = page([results("prune", [op_row("prune", OURS, None)]), results("selectors", [])])
    assert "\n1 of 1 rows have no times." in text
    assert "wrong | ids" in section(text, "Without times") and "png" not in text
    assert "The file holds no row." in section(text, "Selectors")
    text = page([results("ops", [op_row("prune", OURS, 1e-3), op_row("prune", "eager", 2e-3)])])
    assert "| 2.00× (1.64 to 2.44) |" in section(text, "Single ops") and "no prune.json" in text


def test_the_page_of_figures_has_a_short_block_a_device() -> None:
    text = figures_block({"one": cpu(), "two": gpu("events")}, "bench/results")
    assert text.count("overview.png)") == 2 and "](bench/results/one/README.md)" in text
    assert "2.00 ms (1.80 to 2.20)" in text and "3.00× (2.45 to 3.67)" in text
    assert "0.50× (0.41 to 0.61)" in text and "* 2.00× compile's time" in text
    assert "A baseline is faster in 4 of 8 comparisons. 1 of 17 rows have no times.\n\n*" in text
    assert "2 selectors are compared" in text and "Published loops are faster in 1 of 2" in text
    assert "later in 1 of 2 comparisons" in text and "Not measured here: Ways of use" in text
    assert "<details>" not in text and "| divprune" not in text
    # Files measured on one day share their provenance.
    assert text.count("commit 0123456789ab-dirty; 2001-02-03<") == 2
    assert "prune, compile, ops: no driver" in text
    rows = [op_row("merge", name, s / 10, batch=b) for b in range(1, 9)
            for name, s in ((OURS, b + 1), ("eager", 1))]  # fmt: skip
    text = figures_block({"one": [results("ops", rows)]}, "bench/results")
    assert "A baseline is faster in 8 of 8 comparisons. The worst 5:\n\n* 9.00× eager's" in text
    assert text.count("\n* ") == 5


def test_the_readme_has_a_sentence_a_device_that_timed_prune() -> None:
    one, two = readme_block({"one": cpu(), "two": gpu("events"), "none": []}).splitlines()
    assert one.startswith(
        "* **Imaginary accelerator**: `prune`, B 1 · N 576 · K 64: float32 2.00 ms"
    )
    assert "eager PyTorch 3.00× (2.45 to 3.67) that" in one
    assert "2001-02-03" in one and "commit 0123456789ab-dirty" in one
    assert two.startswith("* **Imaginary H100**")
    rows = [
        op_row("prune", name, seconds, dtype=dtype)
        for dtype in ("float32", "bfloat16")
        for name, seconds in ((OURS, 1e-3), ("eager", 2e-3))
    ]
    (line,) = readme_block({"one": [results("prune", rows)]}).splitlines()
    assert line.count("; bfloat16 1.00 ms") == 1 and line.count("eager PyTorch 2.00×") == 2
    assert readme_block({"one": [results("prune", rows[:1])]}) == ""


def test_the_pages_are_what_the_result_files_give() -> None:
    blocks = {
        "README.md": readme_block(read_all(RESULTS)),
        "docs/figures.md": figures_block(read_all(RESULTS), "../bench/results"),
    }
    for name, block in blocks.items():
        text = (ROOT / name).read_text("utf-8")
        assert rewrite_between_markers(text, block) == text
    for slug, files in read_all(RESULTS).items():
        drawn = [path.stem for path in (RESULTS / slug).glob("*.png")]
        assert (RESULTS / slug / "README.md").read_text("utf-8") == page(files, drawn)


def test_only_what_stands_between_the_markers_is_rewritten() -> None:
    text = f"before\n{START}\nold\n{END}\nafter\n"
    assert rewrite_between_markers(text, "new") == f"before\n{START}\nnew\n{END}\nafter\n"
    for broken in ("", text + text, f"{END}{START}"):
        with pytest.raises(ValueError, match="once each"):
            rewrite_between_markers(broken, "new")


def test_the_command_writes_pages_pictures_and_both_blocks(tmp_path: Path, folder: Path) -> None:
    readme, figures = tmp_path / "README.md", tmp_path / "docs" / "figures.md"
    device = folder / "imaginary"
    figures.parent.mkdir()
    for path in (readme, figures):
        path.write_text(README, encoding="utf-8")
    options = ["--readme", str(readme), "--figures", str(figures)]
    assert main(["--results", str(folder), *options]) == 0
    for path in (readme, figures):
        text = path.read_text("utf-8")
        assert text.startswith("# Title\n") and text.endswith("\nrest\n") and "3.00×" in text
    assert "](../results/imaginary/overview.png)" in text
    written = (device / "README.md").read_text("utf-8")
    linked = re.findall(r"\]\((\w+\.png)\)", written)
    assert sorted(linked) == sorted(path.name for path in device.glob("*.png"))
    assert all((device / name).read_bytes().startswith(b"\x89PNG") for name in linked)
    for path in {*device.glob("*.json")} - {device / "processes.json"}:
        path.unlink()
    assert main(["--results", str(folder)]) == 0
    assert [path.name for path in device.glob("*.png")] == ["overview.png"]


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda folder: (folder.parent / "README.md").write_text("none"), "expected <!--"),
        (lambda folder: (folder / "imaginary" / "ops.json").write_text("{"), "ops.json: cannot be"),
        (lambda folder: folder.rename(folder.parent / "away"), "results: expected any of */prune"),
    ],
)
def test_what_is_wrong_is_named_and_nothing_is_written(
    tmp_path: Path, folder: Path, change: Any, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "README.md").write_text(README, encoding="utf-8")
    change(folder)
    with pytest.raises(SystemExit, match="2"):
        main(["--results", str(folder), "--readme", str(tmp_path / "README.md")])
    assert message in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.png")) and len(list(tmp_path.rglob("README.md"))) == 1


def test_without_matplotlib_a_sentence_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(SystemExit, match="2"):
        main(["--results", str(folder)])
    assert "'.[train]'` in " in capsys.readouterr().err
