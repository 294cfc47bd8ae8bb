"""LLaVA-NeXT with a selector attached: on and off, bad input, training, what it costs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

pytest.importorskip("transformers", exc_type=ImportError)
pytest.importorskip("tokenizers")

from ocvtp_kernels.selectors.oc_pruner import PrunerSelector
from tests.vlm.models import WIDTH, make_pruner
from tests.vlm.models_next import make_llava_next, make_next_processor
from tests.vlm.next_by_hand import PHOTOS, attach, make_batch


@pytest.fixture(scope="module")
def model() -> Any:
    return make_llava_next()


@pytest.fixture
def processor() -> Any:
    return make_next_processor()


class Waits(TorchDispatchMode):
    """Collects the ops that would wait for a device."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(op)
        masks = name == "aten.index.Tensor" and any(
            index is not None and index.dtype == torch.bool for index in args[1]
        )
        if masks or any(word in name for word in ("scalar_dense", "nonzero", "unique", "masked_s")):
            self.found.append(name)
        return op(*args, **(kwargs or {}))


@pytest.mark.parametrize("newlines", ["drop", "all"])
def test_nothing_waits_for_the_device(model: Any, processor: Any, newlines: str) -> None:
    with attach(model, processor, 50, newlines=newlines), torch.no_grad():
        batch = make_batch(processor)
        inputs = (batch["pixel_values"], batch["image_sizes"].tolist())
        model.model.get_image_features(*inputs)
        with Waits() as waits:
            model.model.get_image_features(*inputs)
        assert waits.found == []


def test_crops_may_come_without_padding(model: Any, processor: Any) -> None:
    with attach(model, processor, 7), torch.no_grad():
        batch = make_batch(processor)
        logits = model(**batch).logits
        counts = [1 + across * down for _, _, across, down, _, _ in PHOTOS[:4]]
        crops = [row[:count] for row, count in zip(batch["pixel_values"], counts, strict=True)]
        batch["pixel_values"] = torch.cat(crops)
        assert torch.equal(model(**batch).logits, logits)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"budget": 0}, "budget: expected at least 1, got 0"),
        ({"newlines": "some"}, "newlines: expected one of"),
        ({"reference_layer": 4}, "reference_layer: expected 0 to 3, got 4"),
        ({"selector": PrunerSelector(make_pruner(WIDTH + 1))}, "pruner: expected enc_in_dim"),
    ],
)
def test_bad_options(model: Any, processor: Any, changes: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        attach(model, processor, **{"budget": 7, **changes})
    assert "get_image_features" not in vars(model.model)


def test_bad_calls(model: Any, processor: Any) -> None:
    with attach(model, processor, 7):
        batch = make_batch(processor, ["<image>"])
        with pytest.raises(ValueError, match="pixel_values: expected"):
            model(**{**batch, "pixel_values": batch["pixel_values"][:, :2]})
        with pytest.raises(ValueError, match="vision_feature_select_strategy"):
            model(**batch, vision_feature_select_strategy="full")


def test_half_precision_and_training_after_inference(processor: Any) -> None:
    model = make_llava_next().bfloat16()
    with attach(model, processor, 7, newlines="all"):
        batch = make_batch(processor)
        batch["pixel_values"] = batch["pixel_values"].bfloat16()
        with torch.inference_mode():
            assert model(**batch).logits.dtype == torch.bfloat16
        model(**batch).logits.float().square().mean().backward()
    assert model.model.image_newline.grad.abs().sum() > 0
    assert model.model.multi_modal_projector.linear_1.weight.grad.abs().sum() > 0
