from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ocvtp_kernels.report import end_to_end
from ocvtp_kernels.report.fields import ResultError
from ocvtp_kernels.report.results import read_result, read_results
from tests.report.samples import content, end_to_end_row, end_to_end_rows, write


def test_speed_ups_are_over_the_unpruned_model_of_the_same_mode_and_batch(tmp_path: Path) -> None:
    rows = read_result(write(tmp_path, content("e2e", end_to_end_rows()))).e2e
    ratios = [end_to_end.speed_up(row, rows) for row in rows]
    assert ratios == [
        1.0,
        pytest.approx(5.0),
        pytest.approx(0.5 / 0.09),
        None,
        1.0,
        0.5,
        None,
        None,
    ]


def test_where_pruning_loses(tmp_path: Path) -> None:
    rows = read_result(write(tmp_path, content("e2e", end_to_end_rows()))).e2e
    assert end_to_end.losses(rows) == [
        "imaginary/model, batch 8, eager, 64 of 576: the first token takes 2.00× the unpruned "
        "model's time (1.00 s against 500 ms)",
        "imaginary/model, batch 8, eager, 64 of 576: decodes 30.0 tokens/s against 40.0",
    ]
    assert end_to_end.summary(rows) == (
        "Pruning makes the first token later in 1 of 2 rows. 1 of 8 rows have no figures."
    )
    assert "no pruned model" in end_to_end.summary(rows[:1]).lower()


def test_a_row_without_figures_says_why(tmp_path: Path) -> None:
    rows = read_result(write(tmp_path, content("e2e", end_to_end_rows()))).e2e
    for row in rows:
        assert len(end_to_end.cells(row, rows)) == len(end_to_end.HEADER)
    assert end_to_end.cells(rows[6], rows)[4:6] == ["out of memory", ""]
    cells = dict(zip(end_to_end.HEADER, end_to_end.cells(rows[1], rows), strict=True))
    assert cells["speed-up"] == "5.00×" and cells["KV MiB"] == "1.00"
    assert cells["pruner adds"] == "−1.00 ms, -5.0% of the encoder"


def test_the_readme_has_the_smallest_batch_and_every_loss(tmp_path: Path) -> None:
    rows = read_result(write(tmp_path, content("e2e", end_to_end_rows()))).e2e
    text = "\n".join(end_to_end.readme(rows))
    assert "| 1 | eager | ocvtp | 64 of 576 |" in text and "random |" not in text
    assert "Note on static, 64 of 576: no <graph>." in text
    assert "| 8 |" not in text and "* imaginary/model, batch 8" in text


def test_the_readme_lists_the_worst_losses_and_counts_the_others(tmp_path: Path) -> None:
    rows = [end_to_end_row("unpruned", 576, 0.5)]
    rows += [end_to_end_row("ocvtp", budget, 0.5 + budget / 10) for budget in range(1, 9)]
    text = end_to_end.readme(read_result(write(tmp_path, content("e2e", rows))).e2e)[-1]
    assert text.splitlines()[0].startswith("* imaginary/model, batch 1, eager, 8 of 576")
    assert len(text.splitlines()) == 6 and text.endswith("* and 3 more, all of them in the report")


def test_the_page_draws_stages_and_says_losses_and_missing_kinds(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from ocvtp_kernels.report.page import page

    write(tmp_path, content("e2e", end_to_end_rows()))
    html = page(read_results(tmp_path))
    assert html.count("<svg") == 1 and "no micro.json" in html
    assert "At best 5.00×: eager, 64 of 576." in html
    assert "2.00× the unpruned model" in html and "no &lt;graph&gt;" in html


def test_a_page_of_rows_without_figures(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from ocvtp_kernels.report.page import page

    write(tmp_path, content("e2e", [end_to_end_row("unpruned", 576, None)]))
    html = page(read_results(tmp_path))
    assert "<svg" not in html and "out of memory" in html


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"mode": "fast"}, r"rows\[0\].mode: expected one of eager, static"),
        ({"selector": "none"}, r"rows\[0\].selector: expected one of unpruned"),
        ({"ttft_p20_s": 2.0}, r"rows\[0\].ttft_s: expected a median between"),
        ({"stages": {}}, r"rows\[0\].stages.encoder: missing"),
        ({"ttft_s": None}, r"rows\[0\].note: expected a text"),
        ({"pruner_added_s": float("nan")}, r"rows\[0\].pruner_added_s: expected a finite number"),
    ],
)
def test_a_malformed_row_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = write(tmp_path, content("e2e", [end_to_end_row("ocvtp", 64, 1.0) | changes]))
    with pytest.raises(ResultError, match=message):
        read_result(path)


def test_a_repeated_row_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, content("e2e", [end_to_end_row("ocvtp", 64, 1.0)] * 2))
    with pytest.raises(ResultError, match=r"rows\[1\]: the same measurement as rows\[0\]"):
        read_result(path)
