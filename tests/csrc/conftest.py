"""How many random cases the tests here try, and the emulated CUDA ops."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings

from tests.csrc.shapes import module
from tests.emulated import loaded  # noqa: F401


def pytest_configure(config: pytest.Config) -> None:
    shapes = config.getoption("--shapes")
    for profile, examples in (("csrc", shapes), ("device", -(-shapes // 20))):
        settings.register_profile(
            profile,
            max_examples=examples,
            derandomize=True,
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        )


# The session remembers a failed build too.
@pytest.fixture(scope="session")
def kernels() -> None:
    """The CPU kernels are built, for `module`."""
    module()
