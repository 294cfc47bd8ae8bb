"""The correctness gate of whole models: a variant with wrong results is not timed.

The oracle is written out here: the unattached tower, the tokens that the handle says were kept, the
projector, the embeddings, and one pass of the language model without a cache.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bench.gate import FACTOR
from bench.models.calls import Eager, pruned_view
from bench.models.llava import BEFORE, TILES, Choice, Vlm


def tolerance(dtype: torch.dtype) -> float:
    """The tolerance of two correct results, as a share of the norm: half of the digits."""
    return float(FACTOR * torch.finfo(dtype).eps ** 0.5)


def why_model_is_wrong(vlm: Vlm) -> str | None:
    """Why a model with all tokens kept differs from the model alone, or None."""
    shape = vlm.shape
    whole, _, placeholders = pruned_view(vlm, Choice("unpruned", shape.num_tokens), 1)
    kept, _, attached = pruned_view(vlm, Choice("ocvtp", shape.num_packed), 1)
    if attached != placeholders:
        return f"with everything kept the prompt has {attached} placeholders, not {placeholders}"
    logits = []
    for seed in (1, 2):
        inputs = vlm.image_arguments(1) | {
            "input_ids": vlm.prompt(1, placeholders),
            "pixel_values": vlm.pixels(1, seed),
        }
        logits.append(whole(**inputs, logits_to_keep=1).logits)
        if not torch.equal(logits[-1], kept(**inputs, logits_to_keep=1).logits):
            return "with everything kept its logits are not the unattached model's"
    if torch.equal(*logits):
        return "two images give the same logits"
    return None


def why_wrong(run: Eager, seeds: tuple[int, ...]) -> str | None:
    """Why a run is wrong on random images, or None.

    Its first token and one decoded from its cache are held against the oracle, on new pixels
    written over the old ones, so that a graph which keeps an old answer is found out.
    """
    limit = tolerance(run.vlm.shape.dtype)
    for seed in seeds:
        run.pixels.copy_(run.vlm.pixels(run.batch, seed))
        logits = run.first().clone()
        if not bool(logits.isfinite().all()):
            return "logits are not finite"
        # Encoded again, because a graph does not record the kept ids on the handle.
        features = run.features()
        last = None if run.handle is None else run.handle.last
        if last is not None:
            kept, found = torch.stack(list(last.ids)), features
            if reason := _why_ids_are_wrong(run, kept):
                return reason
            features = _project(run, kept)
            # Row by row, since in the logits one wrong token among many is a small error.
            error = _off(found, features)
            # Written so that NaN is refused.
            if not error <= limit:
                return f"a kept token is off by {error:.1e} of its norm"
        embed = run.view.get_input_embeddings()
        prompt = embed(run.input_ids)
        prompt[:, BEFORE : BEFORE + run.placeholders] = features
        if not (error := _off(logits, _pass(run, prompt))) <= limit:
            return f"the first logits are off by {error:.1e} of their norm"
        token = logits.argmax(-1, keepdim=True)
        cached = run.step(token).clone()
        run.rewind()
        if not (error := _off(cached, _pass(run, torch.cat([prompt, embed(token)], 1)))) <= limit:
            return f"a token decoded from the cache is off by {error:.1e} of its norm"
    return None


def _why_ids_are_wrong(run: Eager, ids: Tensor) -> str | None:
    if list(ids.shape) != [run.batch, run.choice.budget]:
        return f"ids have shape {list(ids.shape)}"
    inside = (ids >= 0) & (ids < run.vlm.shape.num_tokens)
    if not bool(inside.all() and (ids[:, 1:] > ids[:, :-1]).all()):
        return "ids are not ascending, distinct and in range"
    return None


def _project(run: Eager, ids: Tensor) -> Tensor:
    """Features ``[B, T, D]`` of the kept tokens, in the order in which the model packs them."""
    model, shape = run.vlm.model.model, run.vlm.shape
    crops = run.pixels.flatten(0, -4)
    states = model.vision_tower(crops, output_hidden_states=True).hidden_states
    final = states[model.config.vision_feature_layer][:, 1:].reshape(
        run.batch, shape.num_tokens, -1
    )
    if shape.is_next:
        order = _places(ids, shape.grid).argsort(dim=1)
        ids = ids.gather(1, order)
    rows = torch.arange(run.batch, device=ids.device)[:, None]
    features: Tensor = model.multi_modal_projector(final[rows, ids])
    return features


def _places(ids: Tensor, grid: int) -> Tensor:
    """Where the packed sequence has tokens: the whole image's, then rows across all tiles."""
    crop, patch = ids // grid**2 - 1, ids % grid**2
    y = crop // TILES * grid + patch // grid
    x = crop % TILES * grid + patch % grid
    return torch.where(crop < 0, patch, grid**2 + y * TILES * grid + x)


def _pass(run: Eager, embeddings: Tensor) -> Tensor:
    """Logits ``[B, V]`` behind the last embedding, without a cache."""
    model = run.vlm.model
    logits: Tensor = model(inputs_embeds=embeddings, use_cache=False, logits_to_keep=1).logits
    return logits[:, -1]


def _off(actual: Tensor, exact: Tensor) -> float:
    """The largest error of a row, as a share of its norm."""
    wide = exact.double()
    return float(((actual.double() - wide).norm(dim=-1) / wide.norm(dim=-1)).max())
