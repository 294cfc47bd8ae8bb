from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ocvtp_kernels.report import settings
from ocvtp_kernels.report.fields import Gate, ResultError, Times
from ocvtp_kernels.report.page import page
from ocvtp_kernels.report.results import ResultFile, read_results
from ocvtp_kernels.report.tables import readme_tables
from tests.report.samples import content, micro_row, write


def row(setting: str = "autocast", **changes: Any) -> dict[str, Any]:
    times = {"median": 2e-3, "p20": 1.9e-3, "p80": 2.1e-3}
    plain = {"plain_median": 3e-3, "plain_p20": 2.9e-3, "plain_p80": 3.1e-3}
    head = {"setting": setting, "what": "prune", "threads": 1, "unit": "s", "rounds": 9}
    return {**head, **times, **plain, "gate": {"passed": True, "note": "right"}, **changes}


SLOWER = row("slower", plain_median=1e-3, plain_p20=0.9e-3, plain_p80=1.1e-3)
MEMORY = row("memory", unit="bytes", **{n: 3e6 for n in ("median", "p20", "p80")},
             **{f"plain_{n}": 6e6 for n in ("median", "p20", "p80")})  # fmt: skip
REFUSED = row(
    "refused",
    gate={"passed": False, "note": "wrong ids"},
    **{f"{p}{n}": None for p in ("", "plain_") for n in ("median", "p20", "p80")},
)


def read(folder: Path, *rows: dict[str, Any]) -> dict[str, list[ResultFile]]:
    others = [micro_row("merge", "ocvtp", 1e-3), micro_row("merge", "eager", 2e-3)]
    write(folder, content("settings", list(rows)))
    write(folder, content("micro", others))
    return read_results(folder)


def test_where_we_lose_is_made_of_settings_too(tmp_path: Path) -> None:
    results = read(tmp_path, row(), SLOWER, MEMORY, REFUSED)
    for text in (readme_tables(results), page(results)):
        assert "A baseline is faster in 1 of 4 comparisons." in text
        assert "2.00× plain PyTorch&#x27;s" in text or "2.00× plain PyTorch's" in text
        assert "slower, 1 thread (2.00 ms against 1.00 ms)" in text
        assert "1.50×" in text
        assert "3 MB" in text


def test_what_was_refused_is_said(tmp_path: Path) -> None:
    results = read(tmp_path, row(), REFUSED)
    assert "1 of 4 rows were refused" in readme_tables(results)
    assert "refused, wrong ids" in page(results)


def test_a_malformed_row_is_named(tmp_path: Path) -> None:
    with pytest.raises(ResultError, match=r"rows\[0\].unit"):
        read(tmp_path, row(unit="pounds"))
    with pytest.raises(ResultError, match=r"rows\[1\]: the same measurement"):
        read(tmp_path, row(), row())


def test_a_loss_within_the_spread_says_so() -> None:
    ours, plain = Times(2.0, 1.0, 3.0, 9), Times(1.9, 1.8, 2.0, 9)
    near = settings.SettingRow("near", "prune", 2, "s", ours, plain, Gate(True, "right"))
    ((ratio, sentence),) = settings.losses([near])
    assert ratio == pytest.approx(0.95)
    assert "within the spread" in sentence
