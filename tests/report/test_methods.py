"""Files of three kinds with rows of ops, and of a GPU with times by graph and by events."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from ocvtp_kernels.report.fields import ResultError
from ocvtp_kernels.report.results import (
    Ceilings,
    graph_first,
    pipeline_file,
    read_result,
    read_results,
)
from ocvtp_kernels.report.tables import compare, loss_text, losses, readme_tables, without_ours
from tests.report.samples import compile_rows, content, gpu_rows, micro_row, write

GPU = "Imaginary H100"


def gpu(folder: Path, *methods: str) -> Path:
    """All three files of a GPU; beside torch.compile ours was timed by ``methods``."""
    micro = [
        micro_row("gru_cell", "ocvtp", 1e-4, method="graph"),
        micro_row("gru_cell", "eager", 2e-4, method="graph"),
        micro_row("slot_attention", "ocvtp", 1e-4, method="graph"),
        micro_row("slot_attention", "flashslice", 5e-5, method="events"),
    ]
    for kind, rows in (
        ("prune", gpu_rows()),
        ("compile", compile_rows(*methods)),
        ("micro", micro),
    ):
        write(folder, content(kind, rows, device=GPU))
    return folder


def cells(text: str, workload: str) -> dict[str, str]:
    """The first table's line of a workload, by its header."""
    split = [re.split(r" *\| *", line)[1:-1] for line in text.splitlines() if line[:1] == "|"]
    (line,) = [line for line in split if line[0] == workload]
    return dict(zip(split[0], line, strict=True))


@pytest.mark.parametrize("kind", ["prune", "compile", "micro"])
def test_three_kinds_hold_rows_of_ops_and_ceilings(tmp_path: Path, kind: str) -> None:
    file = read_result(write(tmp_path, content(kind, gpu_rows())))
    assert file.ceilings == Ceilings(100.0, {"float32": 5.0})
    assert len(file.measured()) == 11 and [row.method for row in file.refused()] == [None]
    assert {row.method for row in file.measured()} == {"graph", "events"}


@pytest.mark.parametrize("kind", ["prune", "compile", "micro"])
@pytest.mark.parametrize("changes", [{}, {"method": "graph"}])
def test_the_same_measurement_twice_is_refused(
    tmp_path: Path, kind: str, changes: dict[str, Any]
) -> None:
    row = micro_row("prune", "prune", 1e-3, **changes)
    other = micro_row("prune", "prune", 1e-3, method="events")
    with pytest.raises(ResultError, match=r"rows\[2\]: the same measurement as rows\[0\]"):
        read_result(write(tmp_path, content(kind, [row, other, row])))


@pytest.mark.parametrize(
    "median, method, message",
    [
        (1e-3, "clock", "expected one of graph, events, host, got 'clock'"),
        (None, "clock", "expected one of graph, events, host, got 'clock'"),
        (1e-3, None, "expected a text, got None"),
    ],
)
def test_an_unknown_method_is_refused(
    tmp_path: Path, median: float | None, method: str | None, message: str
) -> None:
    path = write(tmp_path, content("prune", [micro_row("prune", "prune", median, method=method)]))
    with pytest.raises(ResultError, match=rf"^{re.escape(str(path))}: rows\[0\].method: {message}"):
        read_result(path)


def test_other_files_of_a_folder_are_no_results(tmp_path: Path) -> None:
    gpu(tmp_path, "events")
    (tmp_path / "imaginary" / "summary.json").write_text("not JSON", encoding="utf-8")
    (files,) = read_results(tmp_path).values()
    assert [file.kind for file in files] == ["compile", "micro", "prune"]


def test_like_is_compared_with_like(tmp_path: Path) -> None:
    (files,) = read_results(gpu(tmp_path, "graph")).values()
    beside, single, whole = files
    ratios = [(c.baseline, c.method, round(c.ratio, 3)) for c in compare(whole.micro)]
    at_one = [("eager", "graph", 4.0), ("eager", "events", 0.8), ("published", "events", 5.0)]
    assert ratios == [*at_one, ("csrc", "graph", 3.0), *at_one]
    assert compare(beside.micro) == [] and len(without_ours(beside.micro)) == 1
    assert [c.op for c in compare(single.micro)] == ["gru_cell"]
    assert [op for op, _, _ in without_ours(single.micro)] == ["slot_attention"]
    assert "bfloat16, launched (" in loss_text(losses(compare(whole.micro))[0])


def test_the_pipeline_is_read_from_its_own_file(tmp_path: Path) -> None:
    old = write(tmp_path, content("micro", [micro_row("prune", "prune", 7e-3)]))
    beside = write(tmp_path, content("compile", compile_rows("events")))
    files = [read_result(beside), read_result(old)]
    assert pipeline_file(files) is files[1] and pipeline_file(files[:1]) is files[0]
    files.append(read_result(write(tmp_path, content("prune", gpu_rows()))))
    assert pipeline_file(files) is files[2] and pipeline_file([]) is None
    ours = [row for row in graph_first(files[2].measured()) if row.is_ours]
    assert [row.method for row in ours] == ["graph", "graph"]
    assert {row.method for row in graph_first(files[0].measured())} == {"events"}


def test_the_readme_table_of_a_gpu(tmp_path: Path) -> None:
    text = readme_tables(read_results(gpu(tmp_path, "graph", "events")))
    assert cells(text, "B 1 · N 576 · K 64 · bfloat16") == {
        "workload": "B 1 · N 576 · K 64 · bfloat16",
        "ours": "100 µs (90.0 to 110)",
        "eager / ours": "4.00× (3.27 to 4.89)",
        "eager / ours, launched": "0.80× (0.65 to 0.98)",
        "compile / ours, launched": "2.00× (1.64 to 2.44)",
        "published / ours, launched": "5.00× (4.09 to 6.11)",
        "csrc / ours": "3.00× (2.45 to 3.67)",
        "of the ceilings": "50.0%",
    }
    at_eight = cells(text, "B 8 · N 576 · K 64 · bfloat16")
    assert (at_eight["compile / ours, launched"], at_eight["csrc / ours"]) == ("none", "none")
    assert "launched: calls from Python" in text and "torch.compile has a run of its own" in text
    assert "A baseline is faster in 2 of 9 comparisons. 1 of 19 rows were refused" in text
    assert [text.count(f"<sub>{kind}: no driver") for kind in ("prune", "compile", "micro")] == [
        1
    ] * 3


def test_unlike_clocks_are_said_and_not_counted(tmp_path: Path) -> None:
    text = readme_tables(read_results(gpu(tmp_path, "graph")))
    found = cells(text, "B 1 · N 576 · K 64 · bfloat16")
    assert found["compile, launched / ours, by graph"] == "2.00× (1.64 to 2.44)"
    assert "faster in 2 of 8 comparisons" in text


def test_ours_without_a_graph_is_marked(tmp_path: Path) -> None:
    rows = [row for row in gpu_rows() if (row["variant"], row["method"]) != ("prune", "graph")]
    write(tmp_path, content("prune", rows))
    found = cells(readme_tables(read_results(tmp_path)), "B 1 · N 576 · K 64 · bfloat16")
    assert found["ours"] == "1.00 ms (900 µs to 1.10 ms), launched"
    assert found["eager, by graph / ours, launched"] == "0.40× (0.33 to 0.49)"
    assert found["eager / ours, launched"] == "0.80× (0.65 to 0.98)"


@pytest.mark.parametrize("changes", [{}, {"method": "host"}])
@pytest.mark.parametrize("kind", ["prune", "micro"])
def test_a_table_of_the_host_clock_has_no_columns_of_a_gpu(
    tmp_path: Path, kind: str, changes: dict[str, Any]
) -> None:
    rows = [
        micro_row("prune", name, seconds, **changes)
        for name, seconds in (("published", 3e-3), ("prune", 1e-3), ("eager", 2e-3))
    ]
    write(tmp_path, content(kind, rows))
    text = readme_tables(read_results(tmp_path))
    table = [line for line in text.splitlines() if line[:1] == "|"]
    assert table[0] == "| workload | ours | eager / ours | published / ours |"
    assert "launched" not in text and "torch.compile" not in text


def test_the_page_has_a_section_a_file(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from ocvtp_kernels.report.page import page

    html = page(read_results(gpu(tmp_path, "events")))
    for name in ("The pipeline", "The pipeline beside torch.compile", "Micro-benchmarks"):
        assert html.count(f"<h3>{name}</h3>") == 1
    for kind in ("prune", "compile", "micro"):
        assert f"imaginary/{kind}.json" in html and f"no {kind}.json" not in html
    assert html.count("<h3>Where we lose</h3>") == 1 and "in 2 of 9 comparisons" in html
    assert "eager over ours, there, launched" in html and "<td>events</td>" in html
    assert "A baseline has a time here and ours none by its method" in html
    assert "prune forward, bfloat16, N 576, K 64, by graph." in html
    assert "prune forward, bfloat16, launched: a baseline" in html
    ids = re.findall(r' id="([^"]*)"', html)
    assert len(ids) == len(set(ids))


def test_an_older_file_holds_the_pipeline_of_the_page(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from ocvtp_kernels.report.page import page

    write(tmp_path, content("micro", [micro_row("prune", "prune", 1e-3)]))
    html = page(read_results(tmp_path))
    assert "no prune.json" not in html and "no compile.json" in html
