"""The site: what is broken fails its build."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from ocvtp_kernels import training
from tests.build_cases import ROOT

mkdocs = pytest.importorskip("mkdocs")
pytest.importorskip("material")
pytest.importorskip("mkdocstrings")

from mkdocs.commands.build import build  # noqa: E402
from mkdocs.config import load_config  # noqa: E402
from mkdocs.exceptions import Abort, PluginError  # noqa: E402
from mkdocstrings import Inventory  # noqa: E402

from scripts import docs_hook  # noqa: E402

# The settings of the real site, for pages without an API.
SETTINGS = f"""
INHERIT: {ROOT / "mkdocs.yml"}
nav: [index.md, other.md, contributing.md]
plugins: []
hooks: [hook.py]
extra_css: []
"""
HOOK = "from scripts.docs_hook import on_config, on_files, on_page_markdown, on_post_page\n"
INDEX = """# Home

[Other](other.md#a-part), [contributing](../CONTRIBUTING.md#the-style), [source](../csrc/add.cpp),
[folder](../csrc), [a part](../README.md#a-part--of-it), `[code](nowhere.md)`.

![A picture](../bench/results/device/plot.png)
[Results](../bench/results/device/README.md)
"""


def make_repository(root: Path, index: str = INDEX) -> Path:
    """A small repository with a site, of which every link is right."""
    files = {
        "mkdocs.yml": SETTINGS,
        "hook.py": HOOK,
        "docs/index.md": index,
        "docs/other.md": "# Other\n\n## A part\n\n[Home](index.md)\n",
        "CONTRIBUTING.md": "# Contributing\n\n[Other](docs/other.md#a-part)\n\n## The style\n",
        "README.md": "# Read me\n\n## A part – of it\n",
        "csrc/add.cpp": "",
        "bench/results/device/README.md": "# Device\n\n<details><summary>All</summary>\n\n**1**\n"
        "\n</details>\n\n![A plot](plot.png) [Other](../../../docs/other.md)\n",
        "bench/results/device/plot.png": "",
    }
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")
    return root


def build_site(root: Path, **settings: Any) -> Path:
    """Builds it as `make docs` does; returns its folder."""
    config = load_config(str(root / "mkdocs.yml"), strict=True, **settings)
    config.plugins.on_startup(command="build", dirty=False)
    build(config)
    return root / "site"


def test_links_lead_to_where_they_led_in_the_repository(tmp_path: Path) -> None:
    site = build_site(make_repository(tmp_path), repo_url="https://example.org/owner/name")
    home = (site / "index.html").read_text(encoding="utf-8")
    host = "https://example.org/owner/name"
    for link in (
        "other/#a-part",
        "contributing/#the-style",
        f"{host}/blob/HEAD/csrc/add.cpp",
        f"{host}/tree/HEAD/csrc",
        f"{host}/blob/HEAD/README.md#a-part--of-it",
        "results/device/",
    ):
        assert f'href="{link}"' in home
    assert 'src="results/device/plot.png"' in home and "[code](nowhere.md)" in home
    assert "other/#a-part" in (site / "contributing" / "index.html").read_text(encoding="utf-8")
    results = (site / "results" / "device" / "index.html").read_text(encoding="utf-8")
    assert "<strong>1</strong>" in results and 'href="../../other/"' in results
    assert (site / "results" / "device" / "plot.png").exists()


def test_without_a_code_host_links_into_the_repository_are_text(tmp_path: Path) -> None:
    site = build_site(make_repository(tmp_path), repo_url="")
    home = (site / "index.html").read_text(encoding="utf-8")
    assert "<span>source</span>" in home and "add.cpp" not in home


def test_nothing_is_loaded_from_elsewhere(tmp_path: Path) -> None:
    site = build_site(make_repository(tmp_path), repo_url="https://example.org/owner/name")
    home = (site / "index.html").read_text(encoding="utf-8")
    loaded = re.findall(r'<(?:script|link|img|iframe)\b[^>]*?(?:src|href)="([^"]+)"', home)
    assert len(loaded) > 3
    assert not [one for one in loaded if re.match(r"(https?:)?//", one)]
    # With it the theme asks the code host how many stars there are.
    assert 'data-md-component="source"' not in home


@pytest.mark.parametrize(
    ("mistake", "complaint"),
    [
        ("[x](missing.md)", "missing.md"),
        ("[x](other.md#missing)", "#missing"),
        ("[x](../CONTRIBUTING.md#missing)", "#missing"),
        ("![x](images/missing.png)", "images/missing.png"),
        ("[x](../csrc/missing.cpp)", "csrc/missing.cpp"),
        ("[x](../README.md#missing)", "README.md#missing"),
        ("[x](../../elsewhere.md)", "elsewhere.md"),
        ("[x](../bench/results/device/missing.png)", "missing.png"),
    ],
    ids=["page", "anchor", "moved_anchor", "picture", "source", "readme", "outside", "result"],
)
def test_a_broken_link_fails_the_build(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, mistake: str, complaint: str
) -> None:
    make_repository(tmp_path, f"{INDEX}\n{mistake}\n")
    with pytest.raises(Abort, match="1 warning"):
        build_site(tmp_path)
    assert complaint in caplog.text


def test_a_page_that_no_menu_has_fails_the_build(tmp_path: Path) -> None:
    make_repository(tmp_path)
    (tmp_path / "docs" / "forgotten.md").write_text("# Forgotten\n", encoding="utf-8")
    with pytest.raises(Abort, match="1 warning"):
        build_site(tmp_path)


class Everything:
    """An inventory that lacks nothing but some names."""

    def __init__(self, *missing: str) -> None:
        self.missing = missing

    def __contains__(self, name: object) -> bool:
        return name not in self.missing


def test_a_public_name_needs_a_docstring_and_a_place() -> None:
    assert not list(docs_hook.undocumented(Everything()))
    for name in (
        "ocvtp_kernels.vlm.attach.attach",
        "ocvtp_kernels.ops.merge.merge",
        "ocvtp_kernels.selectors.prumerge.PruMerge",
        "ocvtp_kernels.training.loss.AreaWeightedMSE",
    ):
        found = set(docs_hook.undocumented(Everything(name)))
        assert found == {f"{name} is on no page of docs/api"}


def test_an_undocumented_name_fails_the_build(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nothing() -> None: ...

    monkeypatch.setattr(training, "nothing", nothing, raising=False)
    monkeypatch.setattr(training, "__all__", [*training.__all__, "nothing"])
    config = load_config(str(make_repository(tmp_path) / "mkdocs.yml"))
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "objects.inv").write_bytes(Inventory().format_sphinx())
    with pytest.raises(PluginError, match=r"nothing has no docstring") as error:
        docs_hook.on_post_build(config)
    assert "ocvtp_kernels.vlm.handle.Handle is on no page" in str(error.value)


@pytest.mark.slow
def test_the_site_builds(tmp_path: Path) -> None:
    config = load_config(str(ROOT / "mkdocs.yml"), strict=True, site_dir=str(tmp_path))
    config.plugins.on_startup(command="build", dirty=False)
    build(config)
    text = (tmp_path / "api" / "selectors" / "index.html").read_text(encoding="utf-8")
    # The comments behind fields, and in lines above them, are their docstrings.
    assert "attention received from the CLS query" in text
