"""`attach`: a pruner or selector on a Hugging Face model as released."""

from __future__ import annotations

from typing import Any

from ocvtp_kernels.checks import require_one_of, whole_number
from ocvtp_kernels.pruner.pruner import OCPruner
from ocvtp_kernels.selectors.interface import Selector, SelectorAttributes, place_of
from ocvtp_kernels.selectors.oc_pruner import as_selector
from ocvtp_kernels.vlm.decoder import attach_to_decoder
from ocvtp_kernels.vlm.family import families, find_family, model_types
from ocvtp_kernels.vlm.handle import NEWLINES, POSITIONS, Handle, Options


def attach(
    model: Any,
    processor: Any,
    pruner: OCPruner | Selector,
    budget: int = 64,
    *,
    reference_layer: int | None = None,
    timed: bool = False,
    newlines: str = "drop",
    savings: bool = True,
    overlap: bool = True,
    positions: str | None = None,
) -> Handle:
    """Makes a vision-language model keep ``budget`` tokens of every image.

    The processor may write as many placeholders; use both together. An image with fewer tokens than
    the budget keeps all of them, bitwise as the model alone.

    Args:
        model: a model of transformers, of a family in ``docs/vlm.md``: LLaVA-1.5, LLaVA-NeXT,
            LLaVA-OneVision, Gemma 3, Qwen2-VL, Qwen2.5-VL, Qwen3-VL, Qwen3.5, InternVL, Idefics3,
            SmolVLM. It may be called from several threads.
        processor: the model's own.
        pruner: an `OCPruner`, or any `Selector` (`make_selector` makes one by its name). A pruner
            that is not frozen stays unchanged, and a frozen copy of it runs, which follows moving,
            casting and ``load_state_dict`` only; attach again after other changes. Where a
            selector's place is "decoder", the prompt keeps all placeholders and the language model
            drops the tokens.
        budget: tokens kept of an image, at least 1; any type of whole number, but no bool.
        reference_layer: vision layer the decision is made on; if None a third of the depth, which
            is the published layer 8 for 24 layers, and layer 3 of 5 to 8 layers.
        timed: whether ``handle.last.times`` holds the seconds of every stage; turns ``overlap``
            off.
        newlines: LLaVA-NeXT's and -OneVision's newline tokens: "drop", or "all" to keep one a row
            of the image.
        savings: whether the encoder computes only what the kept tokens need.
        overlap: whether, on CUDA, the pruner runs on a side stream, in parallel to the encoder
            layers behind the reference layer.
        positions: where the language model of a LLaVA or a Gemma 3 has the tokens: "original", as
            in the whole prompt, dropped tokens leaving gaps, or "consecutive", as the published
            pruners have them. "original" if None, where its positions are rotary ones. The other
            families know the original ones alone.

    Returns:
        The handle, whose ``last`` has the ids that the latest call kept and whose ``remove()``
        restores the model and the processor. It is a context manager too.

    Raises:
        ValueError: the model is of an unknown type, something is attached already, an argument
            does not fit the model, or the selector needs a field that is not available or may
            keep fewer tokens than the budget.
        TypeError: the pruner is neither a pruner nor a selector, or budget is no whole number.
    """
    budget = whole_number("budget", budget, 1)
    require_one_of("newlines", newlines, NEWLINES)
    if positions is not None:
        require_one_of("positions", positions, POSITIONS)
    selector = as_selector(pruner)
    if not getattr(selector, "exact", SelectorAttributes.exact):
        raise ValueError(
            f"pruner: expected one that keeps exactly the budget, as shapes are fixed before "
            f"the image is seen; got {type(selector).__name__} as published"
        )
    # Adapters (PEFT) wrap the model; their base_model is not the transformers one.
    unwrap = getattr(model, "get_base_model", None)
    model = unwrap() if callable(unwrap) else model
    model_type = getattr(getattr(model, "config", None), "model_type", None)
    family = find_family(model_type)
    if family is None:
        raise ValueError(
            f"model: expected a model_type of {model_types()}, "
            f"got {model_type or type(model).__name__}"
        )
    options = Options(reference_layer, timed, newlines, savings, overlap, positions)
    in_decoder = place_of(selector) == "decoder"
    if positions == "consecutive" and not family.renumbers:
        raise ValueError(f"positions: expected 'original' for {model_type}, got {positions!r}")
    if not in_decoder:
        return family.attach(model, processor, selector, budget, options)
    if family.in_decoder is None:
        known = ", ".join(each.name for each in families() if each.in_decoder is not None)
        reason = f", as {family.no_decoder}" if family.no_decoder else ""
        raise ValueError(
            f"pruner: {type(selector).__name__} stands in the decoder, which is not supported "
            f"for {model_type}{reason}, but for {known}"
        )
    return attach_to_decoder(family.in_decoder, model, processor, selector, budget, options)
