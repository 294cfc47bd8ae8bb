from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from ocvtp_kernels import backends
from ocvtp_kernels.cli import app


def test_json_tells_every_op_where_it_runs_and_why_not() -> None:
    result = CliRunner().invoke(app, ["doctor", "--json"])
    assert result.exit_code == 0
    facts = json.loads(result.stdout)
    assert set(facts["ops"]) == set(backends.registered_ops())
    for where in facts["ops"].values():
        for device in ("cpu", "cuda"):
            chosen = where[device]
            assert chosen["backend"] not in chosen["why_not"]
            assert {chosen["backend"], *chosen["why_not"]} <= set(backends.BACKENDS)
            assert all(" " in reason for reason in chosen["why_not"].values())
    assert facts["versions"]["torch"] and facts["native"]


def test_text_names_every_op() -> None:
    result = CliRunner().invoke(app, ["doctor"])
    assert result.exit_code == 0
    for op in backends.registered_ops():
        assert op in result.stdout


def test_doctor_tells_what_a_forced_backend_does() -> None:
    with backends.use_backend("reference"):
        facts = json.loads(CliRunner().invoke(app, ["doctor", "--json"]).stdout)
    assert facts["ops"]["prune"]["cpu"]["backend"] == "reference"


@pytest.mark.parametrize("command", [[], ["prune"], ["doctor"]])
def test_help_is_there(command: list[str]) -> None:
    result = CliRunner().invoke(app, [*command, "--help"])
    assert result.exit_code == 0 and "Usage" in result.output
