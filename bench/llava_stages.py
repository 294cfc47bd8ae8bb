"""The stages before the language model, each timed by the handle, apart from any other figure."""

from __future__ import annotations

import statistics
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from bench.llava_calls import pruned_view
from bench.llava_models import Choice, Vlm
from ocvtp_kernels.vlm.handle import Handle

SPLITS = 7  # calls whose stages are timed


def split(vlm: Vlm, choice: Choice, batch: int) -> dict[str, float]:
    """Median seconds of encoder, pruner and projector, each call timed from stage to stage.

    These calls have no part in any other figure. Without a pruner the encoder is all of
    ``get_image_features`` but the projector.
    """
    view, handle, _ = pruned_view(vlm, choice, batch, timed=True)
    pixels, arguments = vlm.pixels(batch, 0), vlm.image_arguments(batch)
    found: dict[str, list[float]] = {"encoder": [], "pruner": [], "projector": []}
    for run in range(SPLITS + 1):
        if handle is None:
            last = _unpruned_stages(view, pixels, arguments)
        else:
            view.model.get_image_features(pixels, **arguments)
            last = handle
        assert last.last is not None
        times = last.last.times
        if run:  # the first call is slower
            for stage, seconds in found.items():
                seconds.append(times.get(stage, 0.0))
    return {stage: statistics.median(seconds) for stage, seconds in found.items()}


def _unpruned_stages(view: Any, pixels: Tensor, arguments: dict[str, Tensor]) -> Handle:
    handle, stack = Handle(timed=True), ExitStack()
    projector = view.model.multi_modal_projector

    def enter(*_: Any) -> None:
        stack.enter_context(handle.stage("projector", pixels.device))

    def leave(*_: Any) -> None:
        stack.close()

    hooks = [
        projector.register_forward_pre_hook(enter),
        projector.register_forward_hook(leave),
    ]
    try:
        with handle.stage("encoder", pixels.device):
            view.model.get_image_features(pixels, **arguments)
    finally:
        for hook in hooks:
            hook.remove()
    handle.record(torch.arange(0))
    return handle
