"""Tables of what is supported say what the code does."""

from __future__ import annotations

import re
from dataclasses import fields

import pytest

from ocvtp_kernels.serving.vllm import ARCHITECTURES
from ocvtp_kernels.serving.vllm.settings import Settings
from ocvtp_kernels.triton_common.archs import ARCHS
from ocvtp_kernels.vlm.family import Family, families
from tests.build_cases import ROOT
from tests.documents.pages import DOCS, README

SUFFIX = "ForConditionalGeneration"


def rows_below(text: str, first: str) -> dict[str, list[str]]:
    """The cells of a table by their row's first one; ``first`` is that of the header."""
    table = text[text.index(f"\n| {first} |") :].lstrip().split("\n\n")[0]
    rows = [[cell.strip() for cell in line.strip("| ").split("|")] for line in table.splitlines()]
    return {name: cells for name, *cells in rows[2:]}


def families_of(names: str) -> dict[str, Family]:
    """By class of transformers, for names such as "`Qwen3VL`, `Qwen3VLMoe`"."""
    auto = pytest.importorskip("transformers.models.auto.modeling_auto")
    classes = auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
    named = {f"{stem}{SUFFIX}" for stem in re.findall(r"`(\w+)`", names)}
    known = {classes[kind]: each for each in families() for kind in each.model_types}
    return {name: known[name] for name in named}


def test_the_families_are_those_that_there_are() -> None:
    page = rows_below((DOCS / "vlm.md").read_text(encoding="utf-8"), "family")
    readme = rows_below(README.read_text(encoding="utf-8"), "model family")
    assert list(readme) == list(page)
    seen = set()
    for name, (classes, prompt, _) in page.items():
        attached, in_decoder, served = readme[name]
        known = families_of(classes)
        seen |= {family.name for family in known.values()}
        oldest = "5.19" if "columns" in prompt else "5.16"
        assert attached == f"tested, from {oldest}"
        (decoder,) = {family.in_decoder is not None for family in known.values()}
        assert in_decoder == ("tested" if decoder else "no"), name
        (vllm,) = {one in ARCHITECTURES for one in known}
        assert served == ("tested" if vllm else "no"), name
    assert seen == {family.name for family in families()}


def test_the_architectures_are_those_that_kernels_are_compiled_for() -> None:
    hardware = rows_below(README.read_text(encoding="utf-8"), "hardware")
    named = {
        name.split("(")[0]: (kernels, cells)
        for name, (kernels, *cells) in hardware.items()
        if "sm_" in name
    }
    of_triton, of_cuda = set(), set()
    for name, (kernels, cells) in named.items():
        archs = {int(arch) for arch in re.findall(r"\d+", name)}
        of_triton |= archs if "Triton" in kernels else set()
        of_cuda |= archs if "CUDA C++" in kernels else set()
        # bfloat16 has instructions from sm_80 on.
        assert cells == ["compiled", "compiled", "compiled" if min(archs) >= 80 else "no"]
    known = (ROOT / "csrc" / "cuda_architectures.cmake").read_text(encoding="utf-8")
    (listed,) = re.findall(r"set\(known ([\d. ]+)\)", known)
    assert of_triton == set(ARCHS)
    assert of_cuda == {int(arch.replace(".", "")) for arch in listed.split()}


def test_the_tables_of_serving_are_what_there_is() -> None:
    text = (DOCS / "serving.md").read_text(encoding="utf-8")
    keys = {field.name for field in fields(Settings)}
    assert set(re.findall(r"^\| `([a-z_]+)(?:\.…)?` \|", text, re.M)) == keys
    served = re.findall(rf"^\| `(\w+{SUFFIX})` \|", text, re.M)
    assert set(served) == set(ARCHITECTURES)


def test_the_share_of_work_is_what_the_command_counts() -> None:
    # What the page of selectors prints is compared with the command in test_commands.py.
    counted = (DOCS / "selectors.md").read_text(encoding="utf-8")
    (share,) = re.findall(r"^oc-pruner +64 +[\d.]+ +([\d.]+%)", counted, re.M)
    assert f"does {share} less work" in " ".join(README.read_text(encoding="utf-8").split())


def test_the_citation_is_whole() -> None:
    yaml = pytest.importorskip("yaml")
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation.keys() >= {"cff-version", "message", "title", "authors", "license"}
    (paper,) = citation["references"]
    readme = README.read_text(encoding="utf-8")
    assert f"title  = {{{paper['title']}}}" in readme
    authors = [f"{one['given-names']} {one['family-names']}" for one in paper["authors"]]
    assert f"author = {{{' and '.join(authors)}}}" in readme
