"""What docs/evaluation.md says there is."""

from __future__ import annotations

import re
from dataclasses import fields

from ocvtp_kernels.evaluation.lmms_eval.authors import find_authors
from ocvtp_kernels.evaluation.lmms_eval.settings import Settings, read_settings
from tests.build_cases import ROOT
from tests.evaluation.test_manifests import entry_points

PAGE = (ROOT / "docs" / "evaluation.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| `(\w+)` \|", PAGE, re.M)


def test_its_tables_are_whole() -> None:
    arguments = [row for row in ROWS if not row.startswith("OCL_")]
    assert arguments == [field.name for field in fields(Settings)]
    authors = set(ROWS) - set(arguments)
    assert find_authors(dict.fromkeys([*authors, "OCL_OTHER"], "")).keys() == authors
    assert len(find_authors(dict.fromkeys(re.findall(r"OCL_\w+", PAGE), ""))) == len(authors) == 10


def test_its_commands_are_of_arguments_and_models_that_there_are() -> None:
    commands = re.findall(r"--model (\w+_ocvtp) .*?--model_args (\S+)", PAGE, re.DOTALL)
    assert len(commands) == 3 and {name for name, _ in commands} == set(entry_points())
    names = {field.name for field in fields(Settings)}
    for _, text in commands:
        arguments = dict(one.split("=") for one in text.split(","))
        own = {name: value for name, value in arguments.items() if name in names}
        assert read_settings(own, {}).budget > 0
        assert arguments.keys() - names <= {"pretrained", "device_map", "dtype"}
