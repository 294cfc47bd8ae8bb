"""Runs every test of this folder over all families."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.vlm.families import Entry

# Quick for every family, also for one that shares its code with another.
CORE = {
    *("test_keeping_all_changes_no_bit", "test_pruned_is_as_by_hand", "test_videos_stay_whole"),
    *("test_rows_of_a_batch_are_answered_as_alone", "test_a_conversation_goes_on"),
    *("test_gradients_are_as_by_hand", "test_before_a_layer_of_the_decoder_is_as_by_hand"),
    *("test_removing_restores_everything", "test_packed_samples_are_as_alone"),
}


# Too long to be run for two that share their code.
STARTS_PROCESSES = {"test_workers_of_a_loader_prune"}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Runs a test of an ``entry`` over all families, one of videos or the decoder over those that
    take these."""
    if "entry" not in metafunc.fixturenames:
        return
    # Here, as the modules of the tests are skipped where there is no transformers.
    from tests.vlm.families import entries

    test, module, found = metafunc.function.__name__, metafunc.module.__name__, []
    for name, entry in entries().items():
        if "video" in test and entry.axes == 1:
            continue
        if entry.no_decoder and ("decoder" in test or "test_schedules" in module):
            continue
        if test in STARTS_PROCESSES and entry.like:
            continue
        slow = [pytest.mark.slow] if entry.like and test not in CORE else []
        found.append(pytest.param(entry, id=name, marks=[*entry.marks, *slow]))
    metafunc.parametrize("entry", found)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leaves out values whose mark names other families than the test's."""
    items[:] = [item for item in items if _is_wanted(item)]


def _is_wanted(item: pytest.Item) -> bool:
    entry = item.callspec.params.get("entry") if hasattr(item, "callspec") else None
    marks = item.iter_markers("slow")
    return all(
        entry is None or entry.name in mark.kwargs.get("families", (entry.name,)) for mark in marks
    )


_MADE: dict[str, tuple[Any, Any]] = {}


@pytest.fixture
def made(entry: Entry) -> Iterator[tuple[Any, Any]]:
    """A model and its processor that tests share, which take off what they attach."""
    from tests.vlm.families._suite import describe

    if entry.name not in _MADE:
        _MADE[entry.name] = entry.make_model(), entry.make_processor()
    model, processor = _MADE[entry.name]
    before = describe(model, processor)
    yield model, processor
    if describe(model, processor) != before:
        del _MADE[entry.name]


@pytest.fixture
def quick_switches() -> Iterator[None]:
    """Threads take turns more often."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)
