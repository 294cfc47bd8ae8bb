"""Errors that lmms-eval does not catch, so that a run that fails has no score and a status."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


class EvaluationFailed(BaseException):
    """An evaluation cannot go on; its cause is the error.

    No `Exception`: lmms-eval catches those, of ``generate`` to go on with an empty answer, and of
    a run to end with status 0.
    """


@contextmanager
def failing() -> Iterator[None]:
    """Within the block every `Exception` becomes an `EvaluationFailed`."""
    try:
        yield
    except Exception as error:
        raise EvaluationFailed(f"{type(error).__name__}: {error}") from error


def fail_on_errors(owner: Any, name: str) -> None:
    """Makes a method of one object raise `EvaluationFailed`, whatever is wrong."""
    method: Callable[..., Any] = getattr(owner, name)

    @functools.wraps(method)
    def run(*args: Any, **kwargs: Any) -> Any:
        with failing():
            return method(*args, **kwargs)

    setattr(owner, name, run)
