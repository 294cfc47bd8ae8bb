from __future__ import annotations

import builtins
import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from ocvtp_kernels.cli import app

README = "# Title\n<!-- bench:start -->\n<!-- bench:end -->\nrest\n"


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["bench", *map(str, arguments)])


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """One result file of a device that does not exist: ours 1 ms, plain PyTorch 4 ms."""
    size = {"batch": 1, "num_tokens": 9, "num_slots": 3, "budget": 3, "in_dim": 8, "slot_dim": 8}
    rows = [
        {
            "op": "prune",
            "variant": variant,
            "direction": "forward",
            "workload": size | {"dtype": "float32"},
            **dict.fromkeys(("median_s", "p20_s", "p80_s"), seconds),
            "rounds": 3,
            "flops": 1000,
            "bytes": 100,
            "tflops": 0.1,
            "gb_s": 0.1,
            "share_of_ceiling": 0.1,
            "gate": {"passed": True, "note": ""},
        }
        for variant, seconds in (("prune", 1e-3), ("eager", 4e-3))
    ]
    content = {
        "schema": 1,
        "kind": "micro",
        "device": "Imaginary",
        "driver": None,
        "versions": {"torch": "0.0"},
        "commit": "0123456",
        "date": "2001-02-03T04:05:06+00:00",
        "ceilings": {"copy_gb_s": 10.0, "matmul_tflops": {"float32": 1.0}},
        "rows": rows,
    }
    path = tmp_path / "results" / "imaginary" / "micro.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(content), encoding="utf-8")
    return tmp_path / "results"


def test_report_writes_the_page_and_the_readme(tmp_path: Path, results: Path) -> None:
    pytest.importorskip("matplotlib")
    page, readme = tmp_path / "out" / "report.html", tmp_path / "README.md"
    readme.write_text(README, encoding="utf-8")
    done = run("--report", "--results", results, "--output", page, "--readme", readme)
    assert done.exit_code == 0, done.output
    assert done.stdout.split() == [str(page), str(readme)]
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")
    text = readme.read_text(encoding="utf-8")
    assert text.startswith("# Title\n") and text.endswith("\nrest\n") and "4.00×" in text
    assert sorted(p.name for p in tmp_path.iterdir()) == ["README.md", "out", "results"]


def test_a_readme_without_markers_leaves_everything_unwritten(
    tmp_path: Path, results: Path
) -> None:
    pytest.importorskip("matplotlib")
    page, readme = tmp_path / "report.html", tmp_path / "README.md"
    readme.write_text("nothing", encoding="utf-8")
    done = run("--report", "--results", results, "--output", page, "--readme", readme)
    assert done.exit_code == 2 and f"{readme}: expected <!-- bench:start -->" in done.stderr
    assert not page.exists() and readme.read_text(encoding="utf-8") == "nothing"


def test_a_malformed_file_is_named(tmp_path: Path, results: Path) -> None:
    path = results / "imaginary" / "micro.json"
    path.write_text(path.read_text().replace('"batch": 1', '"batch": -1', 1), encoding="utf-8")
    page = tmp_path / "report.html"
    done = run("--report", "--results", results, "--output", page)
    assert done.exit_code == 2 and not page.exists()
    assert f"{path}: rows[0].workload.batch: expected a whole number" in done.stderr


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "expected --report"),
        (["--report", "--output", "a", "--readme", "a"], "readme: expected another file"),
        (
            ["--report", "--results", "nowhere"],
            "results: expected any of */prune.json, */compile.json, */micro.json, "
            "*/settings.json, */e2e.json, */selectors.json in nowhere, found none",
        ),
    ],
)
def test_a_wrong_option_is_named(arguments: list[str], message: str) -> None:
    done = run(*arguments)
    assert done.exit_code == 2 and message in done.stderr


def test_without_matplotlib_a_sentence_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, results: Path
) -> None:
    import_module = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name.startswith("matplotlib"):
            raise ModuleNotFoundError(name)
        return import_module(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    done = run("--report", "--results", results, "--output", tmp_path / "report.html")
    assert done.exit_code == 2 and "'.[train]'` in " in done.stderr
