"""What a test makes of a deprecation: ours is an error, another library's is not."""

from __future__ import annotations

import types
import warnings

import pytest

CODE = """
import warnings

def issue(category, stacklevel):
    warnings.warn("old", category, stacklevel=stacklevel)

def call(function, *arguments):
    function(*arguments)
"""


def module(name: str) -> types.ModuleType:
    made = types.ModuleType(name)
    exec(compile(CODE, f"{name}.py", "exec"), vars(made))
    return made


OURS, THEIRS = module("ocvtp_kernels.made_up"), module("made_up")


@pytest.mark.parametrize("category", [DeprecationWarning, FutureWarning])
@pytest.mark.parametrize("stacklevel", [1, 2])
def test_only_what_we_issue_is_an_error(category: type[Warning], stacklevel: int) -> None:
    for caller in (OURS, THEIRS):
        with pytest.raises(category, match="old"):
            caller.call(OURS.issue, category, stacklevel)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        OURS.call(THEIRS.issue, category, stacklevel)
    blamed = "made_up.py" if stacklevel == 1 else "ocvtp_kernels.made_up.py"
    assert [(warning.category, warning.filename) for warning in said] == [(category, blamed)]


def test_other_warnings_of_ours_are_warnings() -> None:
    with pytest.warns(UserWarning, match="old"):
        OURS.issue(UserWarning, 1)
