"""What mkdocs does beside docs/: the repository's pages and links, and a check of API pages."""

from __future__ import annotations

import inspect
import logging
import posixpath
import re
from collections.abc import Collection, Iterator
from itertools import takewhile
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from xml.etree.ElementTree import Element

import griffe
import typer
from markdown import Extension, Markdown
from markdown.treeprocessors import Treeprocessor
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocstrings import Inventory
from pymdownx.slugs import slugify
from typer.cli import get_docs_for_click

import ocvtp_kernels
from ocvtp_kernels import ops, training
from ocvtp_kernels.cli import app
from ocvtp_kernels.selectors.registry import METHODS

log = logging.getLogger("mkdocs.hooks.docs_hook")

DOCS = "docs/"
# Pages that lie elsewhere in the repository, by their place in the site.
PAGES = {"CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md"}
RESULTS = "bench/results/"
COMMANDS = "<!-- commands -->"  # a line of docs/api/cli.md


class FieldComments(griffe.Extension):
    """Takes the comment of a class's field for its docstring."""

    def on_attribute_instance(self, *, attr: griffe.Attribute, **_: Any) -> None:
        """The comment is behind a field, ``ids: Tensor  # int64 [B, T]``, or in lines above."""
        parent = attr.parent
        if attr.docstring or parent is None or not parent.is_class or not attr.lineno:
            return
        *above, line = parent.lines[: attr.lineno - (parent.lineno or 0) + 1]
        comment = line.partition("  # ")[2]
        if not comment:
            lines = list(takewhile(lambda one: one.lstrip().startswith("# "), reversed(above)))
            comment = " ".join(one.strip(" #") for one in reversed(lines))
        if comment:
            with_code = re.sub(r"\[[A-Z][\w, ]*\]", r"`\g<0>`", comment)
            attr.docstring = griffe.Docstring(with_code, parent=attr)


class RepositoryLinks(Treeprocessor):
    """Makes links that leave docs/ links within the site, or into the repository.

    Args:
        md: converts the page.
        root: the repository.
        repo_url: of its code host; where it is empty such a link becomes its text.
    """

    def __init__(self, md: Markdown, root: Path, repo_url: str) -> None:
        super().__init__(md)
        self.root, self.repo_url = root, repo_url.rstrip("/")

    def run(self, root: Element) -> None:
        """Changes the links of a page; warns of each whose file or heading is missing."""
        if "relpath" not in self.md.treeprocessors:  # of mkdocs, but not in docstrings
            return
        page: str = self.md.treeprocessors["relpath"].file.src_uri
        for element in root.iter():
            name = {"a": "href", "img": "src"}.get(element.tag, "")
            if link := element.get(name):
                self._change(element, name, link, page)

    def _change(self, element: Element, name: str, link: str, page: str) -> None:
        split = urlsplit(link)
        if split.scheme or split.netloc or not split.path or split.path.startswith("/"):
            return
        here = path_in_repository(page)
        target = posixpath.normpath(posixpath.join(posixpath.dirname(here), split.path))
        file = self.root / target
        if in_site := place_in_site(target):
            relative = posixpath.relpath(in_site, posixpath.dirname(page) or ".")
            element.set(name, split._replace(path=relative).geturl())
            return
        if target.startswith("..") or not file.exists():
            log.warning("%s links to '%s', which is not in the repository", here, link)
        elif split.fragment and file.suffix == ".md" and split.fragment not in anchors(file):
            log.warning("%s links to '%s', but there is no such heading", here, link)
        if self.repo_url:
            kind = "tree" if file.is_dir() else "blob"
            url = f"{self.repo_url}/{kind}/HEAD/{target}"
            element.set(name, f"{url}#{split.fragment}" if split.fragment else url)
        else:
            element.tag = "span"
            del element.attrib[name]


class Links(Extension):
    """Runs `RepositoryLinks` before mkdocs looks at links."""

    def __init__(self, root: Path, repo_url: str) -> None:
        super().__init__()
        self.root, self.repo_url = root, repo_url

    def extendMarkdown(self, md: Markdown) -> None:
        """Registers it: behind inline patterns (20), before mkdocs (0)."""
        md.treeprocessors.register(RepositoryLinks(md, self.root, self.repo_url), "repository", 5)


def place_in_site(path: str) -> str | None:
    """Where the site has a file of the repository, or None."""
    if path.startswith(RESULTS) and path.endswith((".md", ".png")):
        return "results/" + path.removeprefix(RESULTS)
    return path.removeprefix(DOCS) if path.startswith(DOCS) else PAGES.get(path)


def path_in_repository(place: str) -> str:
    """Where the repository has a page of the site."""
    if place.startswith("results/"):
        return RESULTS + place.removeprefix("results/")
    return {site: path for path, site in PAGES.items()}.get(place, DOCS + place)


def anchors(page: Path) -> set[str]:
    """The anchors of a Markdown file's headings, as code hosts make them."""
    settings = {"toc": {"slugify": slugify(case="lower")}}
    md: Any = Markdown(extensions=["fenced_code", "toc"], extension_configs=settings)
    md.convert(page.read_text(encoding="utf-8"))
    waiting, found = list(md.toc_tokens), set()
    while waiting:
        token = waiting.pop()
        found.add(token["id"])
        waiting += token["children"]
    return found


def undocumented(inventory: Collection[str]) -> Iterator[str]:
    """What is wrong with each public name that has no docstring, or no place in the API pages."""
    public = [
        getattr(package, name)
        for package in (ocvtp_kernels, ops, training)
        for name in package.__all__
        if not name.startswith("__")
    ]
    public += [getattr(make, "func", make) for make in METHODS.values()]
    for one in public:
        if not inspect.ismodule(one):
            name = f"{one.__module__}.{one.__qualname__}"
            if not one.__doc__:
                yield f"{name} has no docstring"
            if name not in inventory:
                yield f"{name} is on no page of docs/api"


def on_config(config: MkDocsConfig) -> None:
    """Adds the Markdown extension that changes links."""
    root = Path(config.config_file_path).parent
    config.markdown_extensions.append(Links(root, config.repo_url or ""))


def on_files(files: Files, config: MkDocsConfig) -> None:
    """Adds the pages that lie outside docs/, and the pictures of results."""
    root = Path(config.config_file_path).parent
    results = (file.relative_to(root).as_posix() for file in root.glob(f"{RESULTS}*/*"))
    for path in (*PAGES, *results):
        if (place := place_in_site(path)) and (root / path).exists():
            page = File.generated(config, place, abs_src_path=str(root / path))
            if path not in PAGES:
                page.inclusion = InclusionLevel.NOT_IN_NAV
            files.append(page)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Writes the commands' help, and lets Markdown stand in details as on code hosts."""
    if COMMANDS in markdown:
        group = typer.main.get_group(app)
        context = typer.Context(group, info_name="ocvtp")
        each = (
            get_docs_for_click(obj=command, ctx=context, call_prefix="ocvtp", indent=1)
            for command in group.commands.values()
        )
        markdown = markdown.replace(COMMANDS, "".join(each))
    return markdown.replace("<details>", "<details markdown>")


def on_post_page(output: str, **_: Any) -> str:
    """Keeps the link to the repository from asking the code host about it."""
    return output.replace('data-md-component="source"', "")


def on_post_build(config: MkDocsConfig) -> None:
    """Fails the build where a public name is not documented."""
    with (Path(config.site_dir) / "objects.inv").open("rb") as file:
        wrong = list(undocumented(Inventory.parse_sphinx(file)))
    if wrong:
        raise PluginError("\n".join(wrong))
