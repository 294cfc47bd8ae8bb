from __future__ import annotations

import inspect

import pytest

pytest.importorskip("transformers", exc_type=ImportError)
pytest.importorskip("tokenizers")

from ocvtp_kernels.selectors.at_random import RandomSelector
from ocvtp_kernels.vlm.attach import attach
from tests.vlm.models_qwen import make_model


def test_attaching_says_which_versions_will_do() -> None:
    model = make_model()
    methods = model.generate, model.forward
    if "mm_encoder_outputs" in inspect.signature(model.forward).parameters:
        attach(model, None, RandomSelector(), 7).remove()
    else:
        with pytest.raises(ValueError, match=r"transformers >= 5\.19"):
            attach(model, None, RandomSelector(), 7)
    assert (model.generate, model.forward) == methods
