"""A pytest plugin, ``-p tests.rehearsed``: the whole session has `bench.rehearsal`'s GPU.

It is there before test modules are imported, since they ask then whether there is one.
"""

from __future__ import annotations

from contextlib import ExitStack

import pytest

session = ExitStack()


def pytest_configure(config: pytest.Config) -> None:
    # Imported here, behind conftest.py, which decides how torch's threads wait.
    from bench.rehearsal import standing_in

    session.enter_context(standing_in())


def pytest_unconfigure(config: pytest.Config) -> None:
    session.close()
