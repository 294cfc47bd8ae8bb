from __future__ import annotations

import re
from dataclasses import replace

import pytest

from bench.report import tables
from bench.report.tables import comparisons_of, prune_file
from bench.report.text import duration
from bench.results import OURS, ModelRow, Results, graph_first
from bench.workloads import square
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

AT_ONE = "B 1 · N 576 · K 64 · bfloat16"
MODELS = tables.rows_of([results("e2e", model_rows())], ModelRow)


def cells(text: str, *first: str) -> dict[str, str]:
    """A table's line that begins with some cells, by its header."""
    split = [re.split(r" *(?<!\\)\| *", line)[1:-1] for line in text.splitlines()]
    (line,) = [line for line in split if line[: len(first)] == list(first)]
    return dict(zip(split[0], line, strict=True))


def prune_cells(files: list[Results], workload: str = AT_ONE) -> dict[str, str]:
    return cells(tables.prune_table(files)[1], workload)


def test_losses_come_worst_first_and_say_the_spread() -> None:
    ops, first, decoding, loops = tables.summaries(cpu())
    size = "B 1 · N 576 · K 64 · float32"
    assert ops == (
        "A baseline is faster in 4 of 8 comparisons. 1 of 17 rows have no times.",
        [
            f"2.00× compile's time: prune forward, {size} (2.00 ms against 1.00 ms)",
            f"2.00× eager's time: merge forward, {size} · 1 thread, CPU time "
            "(2.00 ms against 1.00 ms)",
            "2.00× plain PyTorch's: many sizes, memory (6 MB against 3 MB)",
            f"1.05× published's time: prune forward, {size} "
            "(2.00 ms against 1.90 ms; within the spread)",
        ],
    )
    where = "the unpruned model's time: imaginary, batch 8, eager, 64 of 576"
    assert first == (
        "Pruning makes the first token later in 1 of 2 comparisons. 1 of 8 rows have no times.",
        [f"2.00× {where} (1.00 s against 500 ms)"],
    )
    assert decoding[1] == [f"1.33× {where} (30.0 tokens/s against 40.0 tokens/s)"]
    assert loops == (
        "Published loops are faster in 1 of 2 comparisons. 1 of 5 rows have no times.",
        ["2.00× the published loops' time: divprune, B 1 · N 576 · T 64 · C 1024 · float32 "
         "(2.00 ms against 1.00 ms)"],
    )  # fmt: skip


@pytest.mark.parametrize(
    "file, said",
    [
        (results("prune", [op_row("prune", OURS, 1e-3), op_row("prune", "eager", 2e-3)]),
         "A baseline is faster in 0 of 1 comparisons."),
        (results("prune", [op_row("prune", OURS, 1e-3)]), "No baseline has a time beside ours."),
        (results("e2e", model_rows()[:1]), "No baseline has a time beside ours."),
        (results("selectors", selector_rows()[2:3]), "No baseline has a time beside ours."),
    ],
)  # fmt: skip
def test_saying_that_there_is_no_loss(file: Results, said: str) -> None:
    assert tables.summaries([file]) == [(said, [])]


def test_a_refused_row_is_never_compared_and_says_why() -> None:
    single = cpu()[1]
    assert comparisons_of([single]) == []
    text = tables.rows_table(single)
    refused = cells(text, "gru_cell forward", "ocvtp")
    assert (refused["time per call"], refused["of ceiling"]) == (r"refused: wrong \| ids", "")
    eager = cells(text, "gru_cell forward", "eager")
    assert list(eager.values())[3:] == [
        "1.00 ms (900 µs to 1.10 ms)", "host", "", "5.00", "40.0", "100.0%",
    ]  # fmt: skip
    out_of_memory, wrong = tables.refusals([results("e2e", model_rows()), *cpu()[:2], cpu()[-1]])
    assert out_of_memory == "out of memory: imaginary, batch 8, static, all 576"
    assert wrong.startswith("wrong | ids: gru_cell forward, ocvtp, B 1 · N 576 · K 64 · float32; ")
    assert wrong.endswith("; divprune, B 64 · N 576 · T 64 · C 1024 · float32")


def test_like_is_compared_with_like() -> None:
    whole, beside, single = gpu("graph")
    ratios = [(c.row.variant, c.theirs.method, round(c.ratio, 3)) for c in comparisons_of([whole])]
    at_one = [("eager", "graph", 4.0), ("eager", "events", 0.8), ("published", "events", 5.0)]
    assert ratios == [*at_one, ("csrc", "graph", 3.0), *at_one]
    assert comparisons_of([beside]) == []
    assert [c.row.op for c in comparisons_of([single])] == ["gru_cell"]
    assert "bfloat16, launched (" in tables.summaries([whole])[0][1][0]
    # The host suite has no baselines.
    assert comparisons_of(cpu()[3:4]) == []


def test_the_table_of_prune_is_read_from_its_own_file() -> None:
    whole, beside, _ = gpu("events")
    old = results("ops", [op_row("prune", OURS, 7e-3)])
    assert prune_file([beside, old]) is old and prune_file([beside]) is beside
    assert prune_file([beside, old, whole]) is whole and prune_file([]) is None
    assert [row.taken.method for row in tables.our_prune(whole)] == ["graph", "graph"]
    assert {row.taken.method for row in graph_first(beside.op_rows())} == {"events"}


def test_the_table_of_prune_on_a_gpu() -> None:
    assert prune_cells(gpu("graph", "events")) == {
        "workload": AT_ONE,
        "ours": "100 µs (90.0 to 110)",
        "eager / ours": "4.00× (3.27 to 4.89)",
        "eager / ours, launched": "0.80× (0.65 to 0.98)",
        "compile / ours, launched": "2.00× (1.64 to 2.44)",
        "published / ours, launched": "5.00× (4.09 to 6.11)",
        "csrc / ours": "3.00× (2.45 to 3.67)",
        "of the ceilings": "500.0%",
    }
    at_eight = prune_cells(gpu("graph", "events"), "B 8 · N 576 · K 64 · bfloat16")
    assert (at_eight["compile / ours, launched"], at_eight["csrc / ours"]) == ("none", "none")
    said = tables.prune_table(gpu("graph", "events"))[0]
    assert "Ours and unmarked ratios are by graph." in said and said.endswith(tables.APART)
    assert "faster in 2 of 9" in tables.summaries(gpu("graph", "events"))[0][0]


def test_unlike_clocks_are_said_and_not_counted() -> None:
    rows = [row for row in gpu_rows() if not row.is_ours or row.key[-1] != "graph"]
    line = prune_cells([results("prune", rows)])
    assert line["ours"] == "1.00 ms (900 µs to 1.10 ms), launched"
    assert line["eager, by graph / ours, launched"] == "0.40× (0.33 to 0.49)"
    assert line["eager / ours, launched"] == "0.80× (0.65 to 0.98)"
    line = prune_cells(gpu("graph"))
    assert line["compile, launched / ours, by graph"] == "2.00× (1.64 to 2.44)"
    assert "faster in 2 of 8 comparisons" in tables.summaries(gpu("graph"))[0][0]


def test_the_table_of_prune_has_the_fewest_slots_and_no_columns_of_a_gpu() -> None:
    rows = [op_row("prune", v, s) for v, s in (("published", 3e-3), (OURS, 1e-3), ("eager", 2e-3))]
    rows.append(op_row("prune", OURS, 1.0, num_slots=99))
    said, text = tables.prune_table([results("prune", rows)])
    assert "launched" not in said and "torch.compile" not in said
    header, _, *lines = text.splitlines()
    assert header == "| workload | ours | eager / ours | published / ours |" and len(lines) == 1


def test_the_text_for_the_projections() -> None:
    devices, load = {"imaginary": gpu("events")}, square(1, 576, 64, "bfloat16")
    assert tables.measured_text(devices, "H100", load) == "100 µs (90.0 to 110), bfloat16"
    assert tables.measured_text(devices, "A100", load) == "not measured"
    launched = [row for row in gpu_rows() if row.key[-1] == "events"]
    text = tables.measured_text({"one": [results("prune", launched, GPU)]}, "H100", load)
    assert text == "1.00 ms (900 µs to 1.10 ms), bfloat16, timed by events"


def test_models_are_compared_with_the_unpruned_one_of_the_same_mode_and_batch() -> None:
    ratios = [tables.speed_up(row, MODELS) for row in MODELS]
    assert ratios == [1.0, pytest.approx(5), pytest.approx(0.5 / 0.09), None, 1.0, 0.5, None, None]
    text = tables.models_table(MODELS)
    bare = cells(text, "8", "static", "unpruned")
    assert bare["note"] == "out of memory" and bare["TTFT"] == ""
    pruned = cells(text, "1", "eager", "ocvtp")
    assert pruned["speed-up"] == "5.00×" and pruned["KV MiB"] == "1.00"
    assert pruned["pruner adds"] == "−1.00 ms, -5.0% of the encoder"
    assert [row.selector for row in tables.shortlist(MODELS)] == ["unpruned", "ocvtp", "ocvtp"]


def test_a_table_of_selectors_has_a_line_a_method_and_columns_a_batch() -> None:
    (*_, file) = cpu()
    rows = tables.rows_of([file], tables.SelectorRow)
    text = tables.selectors_table([row for row in rows if row.budget == 64])
    assert cells(text, "oc-pruner") == {
        "method": "oc-pruner",
        "B 1": "2.00 ms (1.80 to 2.20)",
        "B 1, graph": "100 µs (90.0 to 110)",
        "B 64": "500 µs (450 to 550)",
        "tokens a layer": "64",
        "coverage": "0.564",
        "duplicates": "0",
        "exactly T": "yes",
        "published / ours": "200×",
        "loop": "",
    }
    assert list(cells(text, "divprune").values())[2:] == [
        "", "refused", "64", "0.500", "3", "no", "0.50×", "40.0×",
    ]  # fmt: skip
    row = selector_row("trim", 1, None, quality=None)
    assert "| refused | 64 | unknown | unknown | unknown |" in tables.selectors_table([row])
    for method, wanted in (("fastv", "96"), ("sparsevlm", "82")):
        its = cells(tables.selectors_table([replace(row, method=method)]), method)
        assert its["tokens a layer"] == wanted
    # There are no published counts for this budget.
    its = cells(tables.selectors_table([replace(row, method="sparsevlm", budget=60)]), "sparsevlm")
    assert its["tokens a layer"] == ""


@pytest.mark.parametrize(
    "seconds, text",
    [(2.0, "2.00 s"), (0.9999, "1.00 s"), (1.234e-3, "1.23 ms"), (45.6e-6, "45.6 µs"),
     (999.6e-6, "1.00 ms"), (7e-9, "7.00 ns")],
)  # fmt: skip
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text
