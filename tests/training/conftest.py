"""What the tests of training runs share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def no_accelerator_left() -> Iterator[None]:
    """Accelerate keeps one state a process, and refuses another precision."""
    from accelerate.state import AcceleratorState

    yield
    AcceleratorState._reset_state(reset_partial_state=True)
