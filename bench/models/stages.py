"""The stages before the language model, each timed by the handle, apart from any other figure."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import torch

from bench.models.calls import pruned_view
from bench.models.llava import Choice, Vlm
from bench.results import Stage
from ocvtp_kernels.vlm.handle import CallRecord, Handle

CALLS = 7  # whose stages are timed, after one that is slower
STAGES: tuple[Stage, ...] = ("encoder", "pruner", "projector")


def split(vlm: Vlm, choice: Choice, batch: int) -> dict[Stage, float]:
    """Median seconds of encoder, pruner and projector, each call timed from stage to stage.

    These calls have no part in any other figure. Without a pruner the encoder is all of
    ``get_image_features`` but the projector.
    """
    view, attached, _ = pruned_view(vlm, choice, batch, timed=True)
    pixels, arguments = vlm.pixels(batch, 0), vlm.image_arguments(batch)
    calls: list[dict[str, float]] = []
    with attached or _timing(view, vlm.device) as handle:
        for _ in range(1 + CALLS):
            view.model.get_image_features(pixels, **arguments)
            assert handle.last is not None
            calls.append(handle.last.times)
    return {
        stage: statistics.median(times.get(stage, 0.0) for times in calls[1:]) for stage in STAGES
    }


def _timing(view: Any, device: torch.device) -> Handle:
    """A handle that times the stages of a model to which nothing is attached."""
    handle = Handle(timed=True)
    running: list[CallRecord] = []

    def encode(method: Callable[..., Any], _: Any, given: dict[str, Any]) -> Any:
        running[:] = [handle.begin()]
        with running[0].stage("encoder", device):
            output = method(**given)
        running[0].finish(torch.arange(0))
        return output

    def project(method: Callable[..., Any], _: Any, given: dict[str, Any]) -> Any:
        with running[0].stage("projector", device):
            return method(**given)

    handle.replace_methods(
        (view.model, "get_image_features", encode),
        (view.model.multi_modal_projector, "forward", project),
    )
    return handle
