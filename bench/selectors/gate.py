"""The correctness gate of the selectors: exactly T ids, those of plain PyTorch, or no timing.

The oracle is the method of that name, made anew, with every op on the reference backend; what a
selector does beside ops is checked by ``tests/selectors`` alone. On a single image VLM-Pruner and
DivPrune are held against the published loops too. Ids are exact off ties. Who differs has to show
that rounding decides: the oracle, its input moved by a rounding, must change about as many of that
image's ids.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bench.gate import FACTOR, FAILURES, overwrite, require, result_of
from bench.results import CheckResult, Quality
from bench.selectors.inputs import (
    PUBLISHED,
    Job,
    copy_of,
    draw,
    map_tensors,
    run_published,
    selector_of,
    tensors_in,
)
from bench.timing import poison
from ocvtp_kernels import use_backend
from ocvtp_kernels.selectors.coverage import coverage
from ocvtp_kernels.selectors.interface import Selected, Selector, SelectorInputs, run_selector

ROUNDING = 8.0  # units in the last place by which an input is moved
DRAWS = 8  # of such movements
MERGED = 1e-4  # of the largest value: the most that a merged row may be off


def check_selector(
    name: str, selector: Selector, job: Job, device: torch.device, seed: int
) -> CheckResult:
    """Runs a method's selector on two batches in the same memory, and checks both."""
    inputs = draw(job, seed, device)

    def check() -> str:
        _run_and_check(name, selector, inputs, job)
        fresh = draw(job, seed + 1, device)
        overwrite(tuple(tensors_in(inputs).values()), tuple(tensors_in(fresh).values()))
        return _run_and_check(name, selector, inputs, job)

    return result_of(check)


def quality(selector: Selector, inputs: SelectorInputs, budget: int) -> Quality | None:
    """The quality of a selection; None where the selector fails or returns invalid ids."""
    try:
        ids = run_selector(selector, inputs, budget).ids
    except FAILURES:
        return None
    tokens = inputs.final_tokens
    if not bool(((ids >= -1) & (ids < tokens.shape[1])).all()):
        return None
    kept = [image[image >= 0].tolist() for image in ids]
    if not all(kept):
        return None
    duplicates = sum(len(image) - len(set(image)) for image in kept)
    # A repeated id covers nothing more, so it may replace a missing one.
    covered = coverage(tokens, torch.where(ids < 0, ids.amax(dim=1, keepdim=True), ids))
    exact = all(len(set(image)) == len(image) == budget for image in kept)
    return Quality(float(covered.mean()), duplicates, exact)


def _run_and_check(name: str, selector: Selector, inputs: SelectorInputs, job: Job) -> str:
    selected = run_selector(selector, inputs, job.budget)
    kept = map_tensors(Tensor.clone, selected)
    poison(tuple(selected))
    _require_form(kept, inputs, job)
    # The oracle is a new one, without what the selector has cached of earlier batches.
    oracle = selector_of(name, job, inputs.final_tokens.device)
    reference = _reference(oracle, inputs, job.budget)
    tied = _require_alike("the reference's", kept, reference, oracle, inputs)
    if name in PUBLISHED and job.batch == 1:
        tied += _require_published(name, kept, oracle, inputs, job.budget)
    return f"ids exact but for {tied} that rounding decides" if tied else "ids exact"


def _reference(oracle: Selector, inputs: SelectorInputs, budget: int) -> Selected:
    with use_backend("reference"):
        return run_selector(oracle, inputs, budget)


def _require_form(selected: Selected, inputs: SelectorInputs, job: Job) -> None:
    """Exactly T ids an image, in range, distinct and ascending."""
    ids, tokens = selected.ids, selected.tokens
    require(
        tuple(ids.shape) == (job.batch, job.budget),
        f"ids have shape {list(ids.shape)}, not {[job.batch, job.budget]}",
    )
    fewest = int((ids >= 0).sum(dim=1).min())
    require(fewest == job.budget, f"an image keeps {fewest} tokens, not {job.budget}")
    require(bool((ids < job.num_tokens).all()), "ids out of range")
    in_order = ids.sort(dim=1).values
    require(bool((in_order[:, 1:] > in_order[:, :-1]).all()), "an image keeps a token twice")
    require(torch.equal(ids, in_order), "ids are not ascending")
    if tokens is not None:
        require(tokens.shape[:2] == ids.shape, f"tokens have shape {list(tokens.shape)}")


def _require_alike(
    whose: str, kept: Selected, wanted: Selected, oracle: Selector, inputs: SelectorInputs
) -> int:
    """How many ids differ because of a tie; rows are compared wherever ids agree.

    Raises:
        Refused: ids differ off ties, or rows by more than `MERGED`.
    """
    alike = (kept.ids == wanted.ids).all(dim=1)
    tied = 0
    for image in (~alike).nonzero().flatten().tolist():
        differ = _differing(kept.ids[image], wanted.ids[image])
        allowed = FACTOR * _changed_by_rounding(oracle, inputs, image, kept.ids.shape[1])
        require(differ <= allowed, f"{differ} ids of an image are not {whose}, which is no tie")
        tied += differ
    for rows, right in ((kept.tokens, wanted.tokens), (kept.extra, wanted.extra)):
        if rows is not None and right is not None and alike.any():
            exact = right[alike].double()
            error = float((rows[alike].double() - exact).abs().max() / exact.abs().max())
            # Written so that NaN is refused.
            require(error <= MERGED, f"a row is off {whose} by {error:.1e} of the largest value")
    return tied


def _require_published(
    name: str, kept: Selected, oracle: Selector, inputs: SelectorInputs, budget: int
) -> int:
    """As `_require_alike`, with the published loops; which may keep fewer."""
    ids, rows = run_published(name, inputs, budget)
    found = sorted(set(ids))
    if len(found) < budget:
        # Where they pick a duplicate twice, or a pass finds none, ours keeps other tokens.
        assert kept.order is not None
        kept, rows = Selected(kept.order[:, : len(found)].sort(dim=1).values), None
    wanted = Selected(kept.ids.new_tensor([found]), None if rows is None else rows[None])
    return _require_alike("the published loops'", kept, wanted, oracle, inputs)


def _differing(ids: Tensor, others: Tensor) -> int:
    return int((~torch.isin(ids, others)).sum())


def _changed_by_rounding(oracle: Selector, inputs: SelectorInputs, image: int, budget: int) -> int:
    """The largest number of ids that a rounding of the input changes in the reference."""
    one = map_tensors(lambda tensor: tensor[image : image + 1], inputs)
    ids = _reference(oracle, one, budget).ids[0]
    generator = torch.Generator(ids.device).manual_seed(0)
    most = 0
    for _ in range(DRAWS):
        moved = copy_of(one)
        for tensor in {id(value): value for value in tensors_in(moved).values()}.values():
            noise = torch.randn(tensor.shape, generator=generator, device=tensor.device)
            tensor *= 1 + ROUNDING * torch.finfo(tensor.dtype).eps * noise
        most = max(most, _differing(_reference(oracle, moved, budget).ids[0], ids))
    return most
