"""The workflows name what there is, of the versions that are tried; a release has its notes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.build_cases import ROOT, load_script, said_by, tools_or_skip

WORKFLOWS = {path.stem: path for path in sorted((ROOT / ".github/workflows").glob("*.yml"))}
EVERY = pytest.mark.parametrize("name", WORKFLOWS)
NOTES = load_script("release_notes")
MATRIX = load_script("matrix")


def read(name: str) -> dict[str, Any]:
    workflow = yaml.safe_load(WORKFLOWS[name].read_text(encoding="utf-8"))
    assert isinstance(workflow, dict)
    return workflow


def steps(name: str) -> list[dict[str, Any]]:
    return [step for job in read(name)["jobs"].values() for step in job.get("steps", ())]


def commands(name: str) -> str:
    return "\n".join(step.get("run", "") for step in steps(name))


def pyproject(table: str) -> str:
    """The text of a table; Python 3.10 has no reader of TOML."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    found = re.search(rf"^\[{re.escape(table)}\]\n(.*?)(?=^\[|\Z)", text, re.M | re.S)
    assert found is not None, table
    return found[1]


def test_all_are_there() -> None:
    assert set(WORKFLOWS) == {"docs", "release", "tests", "wheels"}


def test_they_are_github_workflows(tmp_path: Path) -> None:
    (check,) = tools_or_skip("check-jsonschema")
    schema = [check, "--builtin-schema", "vendor.github-workflows"]
    said_by([*schema, *WORKFLOWS.values()], ROOT)
    spoilt = tmp_path / "spoilt.yml"
    spoilt.write_text(WORKFLOWS["tests"].read_text().replace("runs-on:", "runs_on:"))
    with pytest.raises(AssertionError, match="runs_on"):
        said_by([*schema, spoilt], ROOT)


@EVERY
def test_what_they_run_is_there(name: str) -> None:
    made = set(re.findall(r"^([a-z][\w-]*):", (ROOT / "Makefile").read_text(), re.M))
    said = commands(name)
    verbs = set(re.findall(r"\bmake ([\w-]+)", said))
    assert verbs <= made, verbs - made
    for script in re.findall(r"(?:\bscripts|\.ci|\bbench)/[\w./]*\w", said):
        assert (ROOT / script).is_file(), script
    for job in read(name)["jobs"].values():
        if (used := job.get("uses", "")).startswith("./"):
            assert (ROOT / used).is_file(), used


def test_they_run_something() -> None:
    """The patterns above find what they look for."""
    assert {"native", "test", "matrix"} <= set(re.findall(r"\bmake ([\w-]+)", commands("tests")))
    assert ".ci/run" in commands("tests") and "make docs" in commands("docs")
    assert "scripts/try_wheel.py" in commands("wheels")
    assert "scripts/release_notes.py" in commands("release")


@EVERY
def test_they_may_read_alone_and_end(name: str) -> None:
    workflow = read(name)
    assert workflow["permissions"] == {"contents": "read"} and workflow["concurrency"]
    for job in workflow["jobs"].values():
        assert "uses" in job or job["timeout-minutes"] <= 180
        written = {key for key, value in job.get("permissions", {}).items() if value == "write"}
        assert not written or name in ("docs", "release"), written


@EVERY
def test_actions_are_of_a_major_version(name: str) -> None:
    for used in (step["uses"] for step in steps(name) if "uses" in step):
        assert re.fullmatch(r"actions/[\w-]+@v\d+|pypa/[\w-]+@release/v\d+", used), used


@EVERY
def test_a_version_is_read_where_the_tags_are(name: str) -> None:
    """A checkout without history has no tag, and what is installed then no version."""
    for job in read(name)["jobs"].values():
        said = "\n".join(step.get("run", "") for step in job.get("steps", ()))
        if re.search(r"\bmake (native|test|docs)\b|\.ci/run|build --sdist", said):
            (checkout,) = (
                step for step in job["steps"] if step.get("uses", "").startswith("actions/checkout")
            )
            assert checkout["with"]["fetch-depth"] == 0


def test_every_row_of_the_matrix_is_tried_on_its_python() -> None:
    tried = {
        row: case["python"]
        for case in read("tests")["jobs"]["versions"]["strategy"]["matrix"]["include"]
        for row in case["rows"].split(",")
    }
    assert tried == {row.name: row.python for row in MATRIX.ROWS}


def test_wheels_are_built_with_the_oldest_python_and_tried_on_the_newest() -> None:
    pythons = r'^build = \["cp3(\d+)-\*", "cp3(\d+)-\*"\]'
    built = re.search(pythons, pyproject("tool.cibuildwheel"), re.M)
    oldest = re.search(r'^requires-python = ">=3\.(\d+)"', pyproject("project"), re.M)
    assert built is not None and oldest is not None
    minors = sorted(int(row.python.split(".")[1]) for row in MATRIX.ROWS)
    assert [int(built[1]), int(built[2])] == [minors[0], minors[-1]]
    assert int(oldest[1]) == minors[0]
    assert (
        tuple(map(int, MATRIX.ROWS[0].torch.split(".")[:2]))
        == load_script("native_tools").OLDEST_TORCH
    )


def test_wheels_are_compiled_beside_the_headers_that_are_fetched(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(ROOT / "scripts")
    folder = "build/oldest_torch/torch"
    assert ROOT / folder == load_script("torch_headers").FOLDER / "torch"
    assert f'OCVTP_TORCH = "{folder}"' in pyproject("tool.cibuildwheel")
    assert f"OCVTP_TORCH={folder}" in commands("wheels")


def test_cuda_wheels_are_named_by_what_is_installed_into_their_environment() -> None:
    (job,) = (job for name, job in read("wheels")["jobs"].items() if name == "cuda")
    assert {cuda.split("-")[0] for cuda in job["strategy"]["matrix"]["cuda"]} == {"12", "13"}
    assert "+cu${CUDA%-*}" in commands("wheels")


def test_the_changelog_has_the_form_that_releases_read() -> None:
    text = NOTES.CHANGELOG.read_text(encoding="utf-8")
    headings = re.findall(r"^## (.*)$", text, re.M)
    assert headings[0] == "[Unreleased]"
    for heading in headings[1:]:
        assert re.fullmatch(r"\[\d+\.\d+\.\d+\] - \d{4}-\d\d-\d\d", heading), heading
    kinds = set(re.findall(r"^### (.*)$", text, re.M))
    assert kinds <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
    for part in re.split(r"^#.*\n|^[A-Z].*\n\n", text, flags=re.M):
        days = re.findall(r"^\* (\d{4}-\d\d-\d\d): ", part, re.M)
        assert days == sorted(days, reverse=True), days


def test_notes_are_the_section_of_the_version() -> None:
    dated = "## [0.1.0] - 2026-12-01\n\n### Added\n\n* a\n\n## [0.0.1] - 2026-11-01\n"
    text = f"## [Unreleased]\n\n* b\n\n{dated}"
    assert NOTES.notes_of("0.1.0", text) == "### Added\n\n* a\n"
    for version in ("0.2.0", "0.0.1", "0.1", "Unreleased"):
        with pytest.raises(ValueError, match=re.escape(f"got {version!r}")):
            NOTES.notes_of(version, text)
