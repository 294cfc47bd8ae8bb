from __future__ import annotations

import copy
import json
import re
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest

from ocvtp_kernels.report.fields import ResultError
from ocvtp_kernels.report.results import read_result, read_results
from ocvtp_kernels.report.tables import (
    END,
    START,
    compare,
    loss_text,
    losses,
    readme_tables,
    rewrite_between_markers,
    without_ours,
)
from ocvtp_kernels.report.text import duration
from tests.report.samples import DEVICE, content, end_to_end_rows, micro_row, selector_rows, write


def sample(folder: Path) -> Path:
    """Ours wins by 3 over eager, loses by 2 to compile and by a hair to published."""
    rows = []
    for batch in (1, 8):
        load = {"batch": batch}
        rows += [
            micro_row("prune", "prune", 2e-3 * batch, workload=load),
            micro_row("prune", "eager", 6e-3 * batch, workload=load),
        ]
    rows += [
        micro_row("prune", "compile", 1e-3),
        micro_row("prune", "published", 1.9e-3),
        micro_row("gru_cell", "ocvtp", None),
        micro_row("gru_cell", "eager", 1e-3),
        micro_row("prune", "prune", 3e-3, workload={"num_tokens": 2880, "num_slots": 160}),
    ]
    return write(folder, content("micro", rows))


def test_losses_come_worst_first_and_say_the_spread(tmp_path: Path) -> None:
    rows = read_result(sample(tmp_path)).micro
    lost = losses(compare(rows))
    assert [c.baseline for c in lost] == ["compile", "published"]
    assert [c.is_within_spread for c in lost] == [False, True]
    assert lost[0].ratio == pytest.approx(0.5)
    assert lost[0].low == pytest.approx(0.9e-3 / 2.2e-3)
    assert lost[0].high == pytest.approx(1.1e-3 / 1.8e-3)
    assert loss_text(lost[0]).startswith("2.00× compile's time: prune forward, B 1")
    assert "within the spread" in loss_text(lost[1])


def test_a_refused_row_is_never_compared(tmp_path: Path) -> None:
    file = read_result(sample(tmp_path))
    assert [row.op for row in file.refused()] == ["gru_cell"]
    assert all(c.op == "prune" for c in compare(file.micro))
    assert [op for op, _, _ in without_ours(file.micro)] == ["gru_cell"]


def test_a_time_beside_a_closed_gate_stays_refused(tmp_path: Path) -> None:
    row = micro_row("prune", "prune", 1e-3, gate={"passed": False, "note": "wrong"})
    assert read_result(write(tmp_path, content("micro", [row]))).measured() == []


@pytest.mark.parametrize(
    "place, value, message",
    [
        (("schema",), 2, "schema: expected schema 1, got 2"),
        (("kind",), "e2e", "kind: expected 'micro', after which the file is named"),
        (("date",), "yesterday", "date: expected an ISO date"),
        (("rows",), {}, "rows: expected a list"),
        (("rows", 0, "median_s"), None, r"rows\[0\].median_s: expected a number, got None"),
        (("rows", 0, "p20_s"), 1.0, r"rows\[0\].median_s: expected a median between"),
        (("rows", 0, "p80_s"), float("nan"), r"rows\[0\].p80_s: expected a finite number"),
        (("rows", 0, "workload", "batch"), True, r"rows\[0\].workload.batch: expected a whole"),
        (("rows", 0, "direction"), "up", r"rows\[0\].direction: expected one of forward"),
        (("ceilings", "matmul_tflops", "float32"), "5", "ceilings.matmul_tflops.float32: expected"),
    ],
)
def test_a_malformed_file_is_refused_by_name_and_field(
    tmp_path: Path, place: tuple[Any, ...], value: Any, message: str
) -> None:
    what = content("micro", [micro_row("prune", "prune", 1e-3)])
    inner: Any = what
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    path = tmp_path / "imaginary" / "micro.json"
    path.parent.mkdir()
    path.write_text(json.dumps(what), encoding="utf-8")
    with pytest.raises(ResultError, match=f"^{re.escape(str(path))}: {message}"):
        read_result(path)


def test_a_missing_field_a_repeated_row_and_broken_json_are_refused(tmp_path: Path) -> None:
    row = micro_row("prune", "prune", 1e-3)
    short = copy.deepcopy(row)
    del short["gate"]["note"]
    with pytest.raises(ResultError, match=r"rows\[0\].gate.note: missing"):
        read_result(write(tmp_path, content("micro", [short])))
    with pytest.raises(ResultError, match=r"rows\[1\]: the same measurement as rows\[0\]"):
        read_result(write(tmp_path, content("micro", [row, row])))
    path = write(tmp_path, content("micro", [row]))
    path.write_text("{", encoding="utf-8")
    with pytest.raises(ResultError, match="not JSON"):
        read_results(tmp_path)


def test_the_page_needs_nothing_but_itself(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from ocvtp_kernels.report.page import page

    sample(tmp_path)
    html = page(read_results(tmp_path))
    assert not re.findall(r"(?:src|href)=\"(?!#)", html.replace("xlink:href", "href"))
    assert "@import" not in html and "<script" not in html and "url(h" not in html
    assert "prefers-color-scheme: dark" in html and "width=device-width" in html
    assert "&lt;not real&gt;" in html and DEVICE not in html
    assert "wrong | ids" in html and "no e2e.json" in html
    assert "2.00× compile&#x27;s time" in html and "0123456789ab-dirty" in html
    svgs = re.findall(r"<svg.*?</svg>", html, re.DOTALL)
    assert len(svgs) >= 4 and all("var(--s" in svg for svg in svgs)
    ids = [found for svg in svgs for found in re.findall(r' id="([^"]*)"', svg)]
    assert len(ids) == len(set(ids))
    for svg in svgs:
        ET.fromstring(svg.replace("xlink:href", "href"))
        assert not re.findall(r"#0[ab]00", svg)


def test_a_refused_row_is_not_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from ocvtp_kernels.report.page import page

    refused = {"passed": False, "note": "off by one"}
    rows = [
        micro_row("prune", "prune", None, workload={"batch": batch}, gate=refused)
        for batch in (1, 8)
    ]
    write(tmp_path, content("micro", rows))
    html = page(read_results(tmp_path))
    assert "<svg" not in html and "off by one" in html
    assert "No baseline has a time beside ours." in html


def test_readme_tables_hold_ratios_losses_and_provenance(tmp_path: Path) -> None:
    sample(tmp_path)
    write(tmp_path, content("e2e", end_to_end_rows()))
    write(tmp_path, content("selectors", selector_rows()))
    text = readme_tables(read_results(tmp_path))
    assert "2.00 ms (1.80 to 2.20)" in text and "3.00× (2.45 to 3.67)" in text
    assert "0.50× (0.41 to 0.61)" in text and "* 2.00× compile's time" in text
    assert "A baseline is faster in 2 of 4 comparisons. 1 of 9 rows were refused" in text
    assert "commit 0123456789ab-dirty" in text and "64 of 576" in text and "5.00×" in text
    assert "not been measured" not in text


def test_saying_that_there_is_no_loss(tmp_path: Path) -> None:
    rows = [micro_row("prune", "prune", 1e-3), micro_row("prune", "eager", 2e-3)]
    write(tmp_path, content("micro", rows))
    text = readme_tables(read_results(tmp_path))
    assert "Nowhere; no baseline is faster in any comparison (1)." in text
    assert "End to end has not been measured" in text


def test_only_what_stands_between_the_markers_is_rewritten() -> None:
    text = f"before\n{START}\nold\n{END}\nafter\n"
    assert rewrite_between_markers(text, "new") == f"before\n{START}\nnew\n{END}\nafter\n"
    for broken in ("", text + text, f"{END}{START}"):
        with pytest.raises(ValueError, match="once each"):
            rewrite_between_markers(broken, "new")


@pytest.mark.parametrize(
    "seconds, text",
    [(2.0, "2.00 s"), (0.9999, "1.00 s"), (1.234e-3, "1.23 ms"), (45.6e-6, "45.6 µs"),
     (999.6e-6, "1.00 ms"), (7e-9, "7.00 ns")],
)  # fmt: skip
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text
