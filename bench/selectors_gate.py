"""The correctness gate of the selectors: exactly T ids, those of plain PyTorch, or no timing.

The oracle is the method of that name, made anew, with every op on the reference backend; what a
selector does beside ops is checked by ``tests/selectors`` alone. On a single image VLM-Pruner and
DivPrune are held against the published loops too. Ids are exact off ties. Who differs has to show
that rounding decides: the oracle, its input moved by a rounding, must change about as many of that
image's ids.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from bench.gate import FACTOR, CheckResult, Refused, overwrite
from bench.selectors_inputs import (
    PUBLISHED,
    Job,
    copy_of,
    draw,
    run_published,
    selector_of,
    tensors_in,
)
from bench.timing import first_line, poison
from ocvtp_kernels import use_backend
from ocvtp_kernels.selectors.coverage import coverage
from ocvtp_kernels.selectors.interface import Selected, Selector, SelectorInputs, run_selector

ROUNDING = 8.0  # units in the last place by which an input is moved
DRAWS = 8  # of such movements
MERGED = 1e-4  # of the largest value: the most that a merged row may be off


class Quality(NamedTuple):
    """What was kept, right or wrong."""

    coverage: float  # mean over images
    duplicates: int  # kept again though kept already, over all images
    exact: bool  # whether every image keeps exactly T distinct tokens


def judge(name: str, selector: Selector, job: Job, device: torch.device, seed: int) -> CheckResult:
    """Asks a method's selector about two batches in the same memory, and demands both right."""
    inputs = draw(job, seed, device)
    try:
        _look(name, selector, inputs, job)
        fresh = draw(job, seed + 1, device)
        overwrite(tuple(tensors_in(inputs).values()), tuple(tensors_in(fresh).values()))
        note = _look(name, selector, inputs, job)
    except Refused as refusal:
        return CheckResult(False, str(refusal))
    except torch.OutOfMemoryError:
        return CheckResult(False, "out of memory")
    except (RuntimeError, ValueError, TypeError, ImportError) as error:
        return CheckResult(False, f"it fails: {type(error).__name__}: {first_line(error)}")
    return CheckResult(True, note)


def quality(selector: Selector, inputs: SelectorInputs, budget: int) -> Quality | None:
    """The quality of a selection; None where the selector fails or returns invalid ids."""
    try:
        ids = run_selector(selector, inputs, budget).ids
    except (RuntimeError, ValueError, TypeError, ImportError):
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


def _look(name: str, selector: Selector, inputs: SelectorInputs, job: Job) -> str:
    answer = run_selector(selector, inputs, job.budget)
    kept = Selected(*(v.clone() if isinstance(v, Tensor) else v for v in answer))
    poison(tuple(answer))
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


def _require(right: bool, sentence: str) -> None:
    if not right:
        raise Refused(sentence)


def _require_form(selected: Selected, inputs: SelectorInputs, job: Job) -> None:
    """Exactly T ids an image, in range, distinct and ascending."""
    ids, tokens = selected.ids, selected.tokens
    _require(
        tuple(ids.shape) == (job.batch, job.budget),
        f"ids have shape {list(ids.shape)}, not {[job.batch, job.budget]}",
    )
    found = (ids >= 0).sum(dim=1)
    fewest = int(found.min())
    _require(fewest == job.budget, f"an image keeps {fewest} tokens, not {job.budget}")
    _require(bool((ids < job.num_tokens).all()), "ids out of range")
    in_order = ids.sort(dim=1).values
    _require(bool((in_order[:, 1:] > in_order[:, :-1]).all()), "an image keeps a token twice")
    _require(torch.equal(ids, in_order), "ids are not ascending")
    if tokens is not None:
        _require(tokens.shape[:2] == ids.shape, f"tokens have shape {list(tokens.shape)}")


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
        allowed = FACTOR * _swayed(oracle, inputs, image, kept.ids.shape[1])
        _require(differ <= allowed, f"{differ} ids of an image are not {whose}, which is no tie")
        tied += differ
    for rows, right in ((kept.tokens, wanted.tokens), (kept.extra, wanted.extra)):
        if rows is not None and right is not None:
            _require_rows(f"a row is off {whose}", rows[alike], right[alike])
    return tied


def _require_published(
    name: str, kept: Selected, oracle: Selector, inputs: SelectorInputs, budget: int
) -> int:
    """As `_require_alike`, with the published loops; which may keep fewer."""
    ids, rows = run_published(name, inputs, budget)
    # Where they pick a duplicate twice, or a pass finds none, ours keeps other tokens.
    found = len(set(ids))
    ours = kept.ids[0]
    if found < budget:
        assert kept.order is not None
        ours = kept.order[0, :found].sort().values
        rows = None
    wanted = Selected(ours.new_tensor([sorted(set(ids))]), None if rows is None else rows[None])
    ours_rows = kept.tokens if rows is not None else None
    return _require_alike(
        "the published loops'", Selected(ours[None], ours_rows), wanted, oracle, inputs
    )


def _require_rows(sentence: str, rows: Tensor, right: Tensor) -> None:
    if right.numel() == 0:
        return
    error = (rows.double() - right.double()).abs().max() / right.double().abs().max()
    # Written so that NaN is refused.
    _require(bool(error <= MERGED), f"{sentence} by {float(error):.1e} of the largest value")


def _differing(ids: Tensor, others: Tensor) -> int:
    return int((~torch.isin(ids, others)).sum())


def _swayed(oracle: Selector, inputs: SelectorInputs, image: int, budget: int) -> int:
    """The largest number of ids that a rounding of the input changes in the reference."""
    one = copy_of(_single(inputs, image))
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


def _single(inputs: SelectorInputs, image: int) -> SelectorInputs:
    here = slice(image, image + 1)
    return inputs._replace(**{n: v[here] for n, v in tensors_in(inputs).items()})
