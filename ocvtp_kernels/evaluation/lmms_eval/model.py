"""A model of lmms-eval whose images keep a fixed number of tokens: what all families share."""

from __future__ import annotations

import os
from dataclasses import fields
from typing import Any

from loguru import logger

from ocvtp_kernels.evaluation.lmms_eval.authors import find_authors, read_authors
from ocvtp_kernels.evaluation.lmms_eval.failing import fail_on_errors, failing
from ocvtp_kernels.evaluation.lmms_eval.settings import Settings, read_settings


class PrunedModel:
    """Mixin of a model of lmms-eval, before its class.

    What fails here, in the model or in the pruner ends the process with an error, see
    `EvaluationFailed`.

    Args:
        arguments: those of `Settings`, and lmms-eval's own.

    Attributes:
        processor_name: of the attribute that is the model's processor.
        reads_authors: whether the authors' settings are of models of this family.
        handle: of what is attached; None where nothing is pruned.
    """

    processor_name = "processor"
    reads_authors = False
    model: Any

    def __init__(self, **arguments: Any) -> None:
        names = {field.name for field in fields(Settings)} & arguments.keys()
        given = {name: arguments.pop(name) for name in names}
        with failing():
            found = find_authors(os.environ) if self.reads_authors else {}
            settings = read_settings(given, read_authors(found))
            became = "".join(f"{name}={value} " for name, value in found.items())
            logger.info("ocvtp: {}{}", became and f"{became}and arguments became ", settings)
            super().__init__(**arguments)
            self.handle = settings.attach(self.model, getattr(self, self.processor_name))
        fail_on_errors(self.model, "generate")

    def generate_until(self, requests: Any) -> Any:
        with failing():
            return super().generate_until(requests)  # type: ignore[misc]

    def generate_until_multi_round(self, requests: Any) -> Any:
        with failing():
            return super().generate_until_multi_round(requests)  # type: ignore[misc]

    def loglikelihood(self, requests: Any) -> Any:
        with failing():
            return super().loglikelihood(requests)  # type: ignore[misc]
