"""The pruner in parallel to the encoder on a GPU: the same features as in sequence."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from ocvtp_kernels.selectors.oc_pruner import PrunerSelector
from ocvtp_kernels.vlm.attach import attach
from tests.vlm.models import BUDGET, make_llava, make_llava_processor, make_pruner

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU"),
]


def features(model: Any, pixels: Tensor) -> Tensor:
    return torch.stack(list(model.model.get_image_features(pixels).pooler_output))


@pytest.mark.parametrize("importance", [False, True])
@torch.no_grad()
def test_small_overlap_changes_no_feature(importance: bool) -> None:
    model, processor = make_llava().cuda(), make_llava_processor()
    selector = PrunerSelector(make_pruner().cuda().freeze(), importance)
    size = model.config.vision_config.image_size
    pixels = torch.randn(4, 3, size, size, device="cuda")
    with attach(model, processor, selector, BUDGET, overlap=False):
        expected = features(model, pixels)
    with attach(model, processor, selector, BUDGET):
        for _ in range(20):
            assert torch.equal(features(model, pixels), expected)


@torch.no_grad()
def test_small_overlap_is_captured_and_replayed() -> None:
    model, processor = make_llava().cuda(), make_llava_processor()
    size = model.config.vision_config.image_size
    pixels = torch.randn(2, 3, size, size, device="cuda")
    with attach(model, processor, make_pruner().cuda().freeze(), BUDGET):
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            features(model, pixels)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = features(model, pixels)
        pixels.normal_()
        graph.replay()
        assert torch.equal(captured, features(model, pixels))
