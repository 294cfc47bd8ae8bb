"""The kernel repository of `scripts/hub_kernels.py`: what is in it, and its results."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from tests.build_cases import ROOT, said_by

pytestmark = pytest.mark.checkout
ALLOWED = {"torch", "triton"} | sys.stdlib_module_names


@pytest.fixture(scope="module")
def hub_kernels() -> Iterator[ModuleType]:
    sys.path.insert(0, str(ROOT / "scripts"))
    import hub_kernels

    yield hub_kernels
    sys.path.remove(str(ROOT / "scripts"))


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As the command writes it."""
    path = tmp_path_factory.mktemp("hub") / "repository"
    said_by([sys.executable, ROOT / "scripts" / "hub_kernels.py", path], ROOT)
    return path


def contents(folder: Path) -> dict[str, str]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_text("utf-8") for path in paths}


def imported(text: str, path: Path) -> Iterator[tuple[str, list[Path]]]:
    """What a module imports: a package, or "" and where a module of its own may be."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from ((alias.name.partition(".")[0], []) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield (node.module or "").partition(".")[0], []
        elif isinstance(node, ast.ImportFrom):
            module = path.parents[node.level - 1].joinpath(*(node.module or "").split("."))
            for alias in node.names:
                yield "", [module.with_suffix(".py"), module / "__init__.py", module / alias.name]


def test_nothing_but_torch_and_triton_is_imported(repository: Path) -> None:
    count = 0
    for variant in ("cpu", "cuda"):
        folder = repository / "build" / f"torch-{variant}"
        for path in folder.rglob("*.py"):
            for elsewhere, places in imported(path.read_text("utf-8"), path):
                count += 1
                assert elsewhere == "" or elsewhere in ALLOWED, (path, elsewhere)
                assert elsewhere or any(place.exists() for place in places), (path, places)
    assert count > 500
    for path, text in contents(repository).items():
        assert not re.search(r"torch\.ops\.ocvtp\b|[\"']ocvtp[\"']", text), path
        assert not re.search(r"^\s*(from|import) ocvtp_kernels", text, re.M), path


def test_every_op_and_its_triton_kernel_is_there(repository: Path) -> None:
    package, exported = ROOT / "ocvtp_kernels" / "ops", repository / "build" / "torch-cuda" / "ops"
    own = {path.relative_to(package) for path in package.rglob("*.py")}
    assert own == {path.relative_to(exported) for path in exported.rglob("*.py")}
    # And no more than ops need.
    assert {path.name for path in exported.parent.iterdir() if path.is_dir()} == {
        "ops",
        "triton_common",
    }


def test_build_toml_and_metadata_are_of_the_sources(
    repository: Path, hub_kernels: ModuleType
) -> None:
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 has no tomllib")
    build = tomllib.loads((repository / "build.toml").read_text("utf-8"))
    assert set(build) == {"general", "torch-noarch"}  # nothing is compiled
    general = build["general"]
    assert general["edition"] == 5 and general["backends"] == ["cpu", "cuda"]
    assert re.fullmatch(r"[a-z][-a-z0-9]*[a-z0-9]", general["name"])
    sources = contents(repository / "torch-ext" / general["name"].replace("-", "_"))
    for backend in general["backends"]:
        folder = repository / "build" / f"torch-{backend}"
        metadata = json.loads((folder / "metadata.json").read_text("utf-8"))
        assert {key: metadata[key] for key in ("name", "version", "license")} == {
            key: general[key] for key in ("name", "version", "license")
        }
        assert metadata["id"].isidentifier() and metadata["backend"] == {"type": backend}
        built = contents(folder)
        assert f"torch.ops.{metadata['id']}\n" in built.pop("_ops.py")
        del built["metadata.json"]
        assert built == sources
    assert general["version"] == int(hub_kernels.VERSION.partition(".")[0])


def test_a_repository_of_the_hub_is_named(hub_kernels: ModuleType) -> None:
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 has no tomllib")
    build = tomllib.loads(hub_kernels.build_toml("someone/ocvtp"))
    assert build["general"]["hub"] == {"repo-id": "someone/ocvtp"}
    assert 'get_kernel("someone/ocvtp", version=' in hub_kernels.card("someone/ocvtp")


def test_two_runs_write_the_same(repository: Path, hub_kernels: ModuleType, tmp_path: Path) -> None:
    hub_kernels.write(tmp_path / "again")
    assert contents(tmp_path / "again") == contents(repository)
    assert [path.name for path in tmp_path.iterdir()] == ["again"]


def test_other_sources_have_another_namespace(
    hub_kernels: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = set()
    for text in ("one = 1\n", "one = 2\n"):
        monkeypatch.setattr(hub_kernels, "sources", lambda text=text: {"__init__.py": text})
        ids.add(json.loads(hub_kernels.files(None)["build/torch-cpu/metadata.json"])["id"])
    assert len(ids) == 2


def test_what_cannot_be_written_is_refused(hub_kernels: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("kept")
    with pytest.raises(ValueError, match="output: expected an empty folder or a new one"):
        hub_kernels.write(tmp_path)
    with pytest.raises(ValueError, match="repo_id: expected owner/name, got 'ocvtp'"):
        hub_kernels.write(tmp_path / "new", "ocvtp")
    command = [sys.executable, ROOT / "scripts" / "hub_kernels.py", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "output: expected an empty folder" in done.stderr
    assert contents(tmp_path) == {"mine.txt": "kept"}


def test_it_gives_the_packages_results_beside_the_package(repository: Path) -> None:
    said_by([sys.executable, "-m", "tests.hub_beside", "compare", repository], ROOT)


@pytest.mark.slow
def test_its_ops_compile_in_one_graph(repository: Path) -> None:
    said_by([sys.executable, "-m", "tests.hub_beside", "compile", repository], ROOT)
