"""Makes the mark known by which kernel-builder chooses tests."""

import pytest


def pytest_configure(config: pytest.Config) -> None:
    """Where pytest is told to take known marks only, too."""
    config.addinivalue_line("markers", "kernels_ci: quick tests, for continuous integration")
