from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ocvtp_kernels.report import selectors
from ocvtp_kernels.report.fields import ResultError
from ocvtp_kernels.report.results import read_result, read_results
from ocvtp_kernels.report.tables import readme_tables
from tests.report.samples import content, micro_row, selector_row, selector_rows, write


def read(folder: Path, rows: list[dict[str, Any]]) -> tuple[selectors.SelectorRow, ...]:
    return read_result(write(folder, content("selectors", rows))).selectors


def cells(rows: selectors.Rows, size: selectors.Size) -> dict[str, dict[str, str]]:
    header, lines = selectors.table(rows, size)
    return {line[0]: dict(zip(header, line, strict=True)) for line in lines}


def test_a_table_has_a_line_a_method_and_columns_a_batch(tmp_path: Path) -> None:
    rows = read(tmp_path, selector_rows())
    least, most = selectors.sizes_of(rows)
    assert (least.budget, most.budget) == (64, 192)
    assert list(cells(rows, most)) == ["vlm-pruner"]
    found = cells(rows, least)
    assert found["vlm-pruner"] == {
        "method": "vlm-pruner",
        "B 1": "2.00 ms (1.80 to 2.20)",
        "B 1, graph": "100 µs (90.0 to 200)",
        "B 64": "500 µs (450 to 550)",
        "coverage": "0.564",
        "duplicates": "0",
        "exactly T": "yes",
        "published / ours": "200×",
        "loop": "",
    }
    two = found["divprune"]
    assert (two["B 1, graph"], two["B 64"], two["published / ours"]) == ("", "refused", "0.50×")
    assert two["loop"] == "40.0×"
    assert (two["duplicates"], two["exactly T"]) == ("3", "no")


def test_where_the_published_loops_are_faster(tmp_path: Path) -> None:
    rows = read(tmp_path, selector_rows())
    assert selectors.losses(rows) == [
        "divprune, N 576 · T 64 · C 1024 · float32: 2.00× the published loops' time "
        "(2.00 ms against 1.00 ms)"
    ]
    assert selectors.refusals(rows) == [
        "divprune, B 64 · N 576 · T 64 · C 1024 · float32: wrong | ids"
    ]
    assert selectors.summary(rows) == (
        "Published loops are faster in 1 of 2 comparisons. 1 of 5 rows were refused."
    )
    assert selectors.summary(rows[2:3]) == "No published loops were timed."


def test_what_cannot_be_told_is_said(tmp_path: Path) -> None:
    row = selector_row("trim", 1, None, coverage=None, duplicates=None, exact=None)
    found = cells(rows := read(tmp_path, [row]), rows[0].size)["trim"]
    assert {found[name] for name in ("coverage", "duplicates", "exactly T")} == {"unknown"}


def test_a_time_beside_a_closed_gate_stays_refused(tmp_path: Path) -> None:
    (row,) = read(tmp_path, [selector_row("trim", 1, 1.0, gate={"passed": False, "note": "no"})])
    assert row.times is None and row.gate.note == "no"


def test_the_readme_has_the_least_budget_and_what_was_lost(tmp_path: Path) -> None:
    write(tmp_path, content("micro", [micro_row("prune", "prune", 1e-3)]))
    write(tmp_path, content("selectors", selector_rows()))
    text = readme_tables(read_results(tmp_path))
    assert "| vlm-pruner | 2.00 ms (1.80 to 2.20) | 100 µs (90.0 to 200) | 500 µs" in text
    assert "3.00 ms" not in text and "In the report: N 576 · T 192" in text
    assert "* divprune, N 576" in text and "* divprune, B 64" in text
    assert "<sub>selectors: no driver" in text and "End to end has not been measured" in text
    assert text.index("<sub>micro") < text.index("Selectors. ")
    assert "The selectors have not" not in text


def test_a_readme_without_selectors_says_so(tmp_path: Path) -> None:
    write(tmp_path, content("micro", [micro_row("prune", "prune", 1e-3)]))
    text = readme_tables(read_results(tmp_path))
    assert text.endswith("The selectors have not been measured on this device.")
    assert selectors.readme(()) == ["Selectors: the file holds no row."]


def test_the_page_has_every_table(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from ocvtp_kernels.report.page import page

    write(tmp_path, content("selectors", selector_rows()))
    html = page(read_results(tmp_path))
    assert html.count("<table>") == 2 and "T 192" in html and "200×" in html
    assert "no micro.json" in html and "no selectors.json" not in html
    assert "Published loops are faster in 1 of 2" in html and "wrong | ids" in html
    write(tmp_path, content("selectors", []))
    assert "The file holds no row." in page(read_results(tmp_path))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"method": ""}, r"rows\[0\].method: expected a text"),
        ({"median_s": None}, r"rows\[0\].median_s: expected a number"),
        ({"graph_median_s": 1.0}, r"rows\[0\].graph_p20_s: expected a number"),
        ({"published": {}}, r"rows\[0\].published.median_s: missing"),
        ({"loop": {}}, r"rows\[0\].loop.median_s: missing"),
        ({"exact": 1}, r"rows\[0\].exact: expected true or false"),
        ({"duplicates": -1}, r"rows\[0\].duplicates: expected a whole number"),
        ({"coverage": float("nan")}, r"rows\[0\].coverage: expected a finite number"),
    ],
)
def test_a_malformed_row_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ResultError, match=message):
        read(tmp_path, [selector_row("trim", 1, 1.0) | changes])


def test_a_repeated_row_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ResultError, match=r"rows\[1\]: the same measurement as rows\[0\]"):
        read(tmp_path, [selector_row("trim", 1, 1.0)] * 2)
