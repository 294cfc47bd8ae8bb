from __future__ import annotations

import re

import pytest

from bench.report import tables
from bench.report.tables import compare, comparisons_of, losses, prune_file, without_ours
from bench.report.text import duration
from bench.results import OURS, ModelRow, SelectorRow, graph_first
from tests.bench.report.samples import (
    GPU,
    cpu,
    gpu,
    gpu_rows,
    model_rows,
    op_row,
    results,
    selector_row,
    selector_rows,
)

MODELS = tables.rows_of([results("e2e", model_rows())], ModelRow)
SELECTORS = tables.rows_of([results("selectors", selector_rows())], SelectorRow)


def cells(text: str, first: str) -> dict[str, str]:
    """A table's line that begins with a cell, by its header."""
    split = [re.split(r" *(?<!\\)\| *", line)[1:-1] for line in text.splitlines()]
    (line,) = [line for line in split if line[0] == first]
    return dict(zip(split[0], line, strict=True))


def test_losses_come_worst_first_and_say_the_spread() -> None:
    said = losses(cpu())
    assert said == [
        "2.00× compile's time: prune forward, B 1 · N 576 · K 64 · float32 "
        "(2.00 ms against 1.00 ms)",
        "2.00× eager's time: merge forward, B 1 · N 576 · K 64 · float32 · 1 thread, CPU time "
        "(2.00 ms against 1.00 ms)",
        "2.00× plain PyTorch's: many sizes, memory (6 MB against 3 MB)",
        "1.05× published's time: prune forward, B 1 · N 576 · K 64 · float32 "
        "(2.00 ms against 1.90 ms; within the spread)",
    ]
    assert tables.summary(cpu()) == (
        "A baseline is faster in 4 of 8 comparisons. "
        "1 of 17 rows were refused by the correctness gate."
    )


def test_saying_that_there_is_no_loss() -> None:
    rows = [op_row("prune", OURS, 1e-3), op_row("prune", "eager", 2e-3)]
    said = tables.summary([results("prune", rows)])
    assert said == "Nowhere; no baseline is faster in any comparison (1)."
    assert tables.summary([results("prune", rows[:1])]) == "No baseline has a time beside ours."


def test_a_refused_row_is_never_compared_and_says_why() -> None:
    single = cpu()[1]
    assert compare(single.op_rows()) == []
    assert [op for op, _, _ in without_ours(single.op_rows())] == ["gru_cell"]
    assert tables.refusals([single]) == [
        "gru_cell forward, ocvtp: wrong | ids (B 1 · N 576 · K 64 · float32)"
    ]
    text = tables.rows_table(single)
    assert (
        r"| gru_cell forward | ocvtp | B 1 · N 576 · K 64 · float32 | refused: wrong \| ids |"
        in text
    )
    assert "| eager | B 1 · N 576 · K 64 · float32 | 1.00 ms (900 µs to 1.10 ms) | host |" in text


def test_like_is_compared_with_like() -> None:
    whole, beside, single = gpu("graph")
    ratios = [(c.baseline, c.method, round(c.ratio, 3)) for c in compare(whole.op_rows())]
    at_one = [("eager", "graph", 4.0), ("eager", "events", 0.8), ("published", "events", 5.0)]
    assert ratios == [*at_one, ("csrc", "graph", 3.0), *at_one]
    assert compare(beside.op_rows()) == [] and len(without_ours(beside.op_rows())) == 1
    assert [c.op for c in compare(single.op_rows())] == ["gru_cell"]
    assert [op for op, _, _ in without_ours(single.op_rows())] == ["slot_attention"]
    assert "bfloat16, launched (" in losses([whole])[0]


def test_the_host_suite_has_no_baselines() -> None:
    host = cpu()[3]
    assert comparisons_of([host]) == [] and "| prepared |" in tables.rows_table(host)


def test_the_table_of_prune_is_read_from_its_own_file() -> None:
    whole, beside, _ = gpu("events")
    old = results("ops", [op_row("prune", OURS, 7e-3)])
    assert prune_file([beside, old]) is old and prune_file([beside]) is beside
    assert prune_file([beside, old, whole]) is whole and prune_file([]) is None
    ours = [row.times.method for row in tables.our_prune(whole) if row.times]
    assert ours == ["graph", "graph"]
    assert {row.times.method for row in graph_first(beside.op_rows()) if row.times} == {"events"}


def test_the_table_of_prune_on_a_gpu() -> None:
    found = tables.prune_table(gpu("graph", "events"))
    assert found is not None
    said, text = found
    assert cells(text, "B 1 · N 576 · K 64 · bfloat16") == {
        "workload": "B 1 · N 576 · K 64 · bfloat16",
        "ours": "100 µs (90.0 to 110)",
        "eager / ours": "4.00× (3.27 to 4.89)",
        "eager / ours, launched": "0.80× (0.65 to 0.98)",
        "compile / ours, launched": "2.00× (1.64 to 2.44)",
        "published / ours, launched": "5.00× (4.09 to 6.11)",
        "csrc / ours": "3.00× (2.45 to 3.67)",
        "of the ceilings": "500.0%",
    }
    at_eight = cells(text, "B 8 · N 576 · K 64 · bfloat16")
    assert (at_eight["compile / ours, launched"], at_eight["csrc / ours"]) == ("none", "none")
    assert said[1:] == ["Ours and unmarked ratios are by graph.", tables.APART]
    assert tables.summary(gpu("graph", "events")).startswith("A baseline is faster in 2 of 9")


def test_unlike_clocks_are_said_and_not_counted() -> None:
    found = tables.prune_table(gpu("graph"))
    assert found is not None
    line = cells(found[1], "B 1 · N 576 · K 64 · bfloat16")
    assert line["compile, launched / ours, by graph"] == "2.00× (1.64 to 2.44)"
    assert "faster in 2 of 8 comparisons" in tables.summary(gpu("graph"))


def test_ours_without_a_graph_is_marked() -> None:
    rows = [row for row in gpu_rows() if row.key[1] != OURS or row.key[-1] != "graph"]
    found = tables.prune_table([results("prune", rows)])
    assert found is not None
    line = cells(found[1], "B 1 · N 576 · K 64 · bfloat16")
    assert line["ours"] == "1.00 ms (900 µs to 1.10 ms), launched"
    assert line["eager, by graph / ours, launched"] == "0.40× (0.33 to 0.49)"
    assert line["eager / ours, launched"] == "0.80× (0.65 to 0.98)"


def test_the_table_of_prune_has_the_fewest_slots_and_no_columns_of_a_gpu() -> None:
    rows = [op_row("prune", v, s) for v, s in (("published", 3e-3), (OURS, 1e-3), ("eager", 2e-3))]
    found = tables.prune_table(
        [results("prune", [*rows, op_row("prune", OURS, 1.0, num_slots=99)])]
    )
    assert found is not None and len(found[0]) == 1
    lines = found[1].splitlines()
    assert lines[0] == "| workload | ours | eager / ours | published / ours |" and len(lines) == 3


def test_the_headline_is_the_smallest_workload_in_the_fastest_dtype() -> None:
    found = tables.headline(gpu("events"))
    assert found is not None and found[0].times is not None
    assert (found[0].workload.batch, found[0].times.method) == (1, "graph")
    assert [c.baseline for c in found[1]] == ["eager", "eager", "published", "csrc", "compile"]


def test_the_text_for_the_projections() -> None:
    devices = {"imaginary": gpu("events")}
    assert tables.measured_text(devices, "H100", 1, 576, 64) == "100 µs (90.0 to 110), bfloat16"
    assert tables.measured_text(devices, "A100", 1, 576, 64) == "not measured"
    launched = [row for row in gpu_rows() if row.key[-1] == "events"]
    devices = {"imaginary": [results("prune", launched, GPU)]}
    text = tables.measured_text(devices, "H100", 1, 576, 64)
    assert text == "1.00 ms (900 µs to 1.10 ms), bfloat16, timed by events"


def test_speed_ups_are_over_the_unpruned_model_of_the_same_mode_and_batch() -> None:
    ratios = [tables.speed_up(row, MODELS) for row in MODELS]
    assert ratios == [1.0, pytest.approx(5), pytest.approx(0.5 / 0.09), None, 1.0, 0.5, None, None]


def test_where_pruning_loses() -> None:
    assert tables.model_losses(MODELS) == [
        "imaginary, batch 8, eager, 64 of 576: the first token takes 2.00× the unpruned model's "
        "time (1.00 s against 500 ms)",
        "imaginary, batch 8, eager, 64 of 576: decodes 30.0 tokens/s against 40.0",
    ]
    assert tables.model_summary(MODELS) == (
        "Pruning makes the first token later in 1 of 2 rows. 1 of 8 rows have no figures."
    )
    assert "No pruned model" in tables.model_summary(MODELS[:1])


def test_the_cells_of_a_model() -> None:
    bare, pruned = (
        dict(zip(tables.MODEL_HEADER, tables.model_cells(MODELS[i], MODELS), strict=True))
        for i in (6, 1)
    )
    assert bare["note"] == "out of memory" and bare["TTFT"] == ""
    assert pruned["speed-up"] == "5.00×" and pruned["KV MiB"] == "1.00"
    assert pruned["pruner adds"] == "−1.00 ms, -5.0% of the encoder"
    assert [row.selector for row in tables.shortlist(MODELS)] == ["unpruned", "ocvtp", "ocvtp"]


def test_a_table_of_selectors_has_a_line_a_method_and_columns_a_batch() -> None:
    least, most = tables.sizes_of(SELECTORS)
    assert (least[1], most[1]) == (64, 192)
    header, lines = tables.selectors_table(SELECTORS, least)
    first, second = (dict(zip(header, line, strict=True)) for line in lines)
    assert first == {
        "method": "oc-pruner",
        "B 1": "2.00 ms (1.80 to 2.20)",
        "B 1, graph": "100 µs (90.0 to 110)",
        "B 64": "500 µs (450 to 550)",
        "coverage": "0.564",
        "duplicates": "0",
        "exactly T": "yes",
        "published / ours": "200×",
        "loop": "",
    }
    assert list(second.values()) == [
        "divprune", "1.00 ms (900 µs to 1.10 ms)", "", "refused", "0.500", "3", "no", "0.50×",
        "40.0×",
    ]  # fmt: skip
    row = selector_row("trim", 1, None, quality=None)
    assert tables.selectors_table([row], row.size)[1][0][2:5] == ["unknown"] * 3


def test_where_the_published_loops_are_faster() -> None:
    assert tables.selector_losses(SELECTORS) == [
        "divprune, N 576 · T 64 · C 1024 · float32: 2.00× the published loops' time "
        "(2.00 ms against 1.00 ms)"
    ]
    assert tables.selector_summary(SELECTORS) == (
        "Published loops are faster in 1 of 2 comparisons. 1 of 5 rows were refused."
    )
    assert tables.selector_summary(SELECTORS[2:3]) == "No published loops were timed."
    assert tables.refusals([results("selectors", selector_rows())]) == [
        "divprune, B 64 · N 576 · T 64 · C 1024 · float32: wrong | ids"
    ]


@pytest.mark.parametrize(
    "seconds, text",
    [(2.0, "2.00 s"), (0.9999, "1.00 s"), (1.234e-3, "1.23 ms"), (45.6e-6, "45.6 µs"),
     (999.6e-6, "1.00 ms"), (7e-9, "7.00 ns")],
)  # fmt: skip
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text
