"""Image tokens dropped in stages, by hand: a row alone, layer by layer, no cache and no padding.

Every layer's attention map is whole, of the layer's own projections. The published rules are
written out for single images.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ocvtp_kernels import OCPruner, make_selector
from ocvtp_kernels.pruner import seeded
from ocvtp_kernels.selectors.interface import SelectorInputs, Stage
from ocvtp_kernels.selectors.oc_progressive import OCProgressive
from ocvtp_kernels.selectors.pyramiddrop import PyramidDrop
from ocvtp_kernels.selectors.sparsevlm import SparseVLM
from tests.vlm.decoder_by_hand import rotate_at
from tests.vlm.families import (
    BUDGET,
    NEW,
    REFERENCE_LAYER,
    Entry,
    Line,
    Row,
    join,
    largest,
    words,
)
from tests.vlm.families._suite import ALL, count_placeholders
from tests.vlm.models import make_pruner

ByStage = list[tuple[int, list[list[int]]]]  # of each stage its layer, and the ids of each photo


class Photo(NamedTuple):
    """A photo of a row, whole."""

    columns: Tensor  # int64 [N], in the row
    reference: Tensor  # [V, C]
    ids: Tensor  # int64 [V], which of the N these are of


class Prompt(NamedTuple):
    """A row as the language model gets it without a selector."""

    line: Line
    photos: list[Photo]


class Present(NamedTuple):
    """What a rule may read of the tokens that a photo has before a stage."""

    ids: Tensor  # int64 [n], in the whole photo
    hidden: Tensor  # [n, C]
    reference: Tensor  # [V, C] of those that have any
    attention: Tensor  # [n], of the text; empty where no rule reads it
    keys: Tensor  # [n, D], of the layer before
    text: Tensor  # [M, C], hidden states of the text behind the photos
    text_keys: Tensor  # [M, D]


class Kept(NamedTuple):
    """What a rule keeps."""

    index: Tensor  # int64 [T], ascending
    hidden: Tensor | None = None  # [T, C] in place of the tokens' own


@dataclass(frozen=True)
class Rule:
    """A method.

    Attributes:
        steps: pairs of a layer and a count.
        choose: takes the tokens of a photo and a stage's count.
        raters: whether the raters' attention counts, or else the last token's.
        behind: whether it is of the layer behind a stage, or else of the one before.
        of_reference: whether tokens without reference tokens are left out first.
        normed: whether hidden states are those behind the last norm.
    """

    steps: Sequence[tuple[int, int]]
    choose: Callable[[Present, int], Kept]
    raters: bool = False
    behind: bool = False
    of_reference: bool = False
    normed: bool = False


class Decoded(NamedTuple):
    """A row behind the last layer."""

    hidden: Tensor  # [W, C], after the last norm
    columns: Tensor  # int64 [W], of the row
    stages: ByStage
    widths: list[int]  # columns of every layer
    chosen: list[list[Kept | None]]  # by stage and photo; None: nothing was chosen


@torch.no_grad()
def read_prompt(entry: Entry, model: Any, row: Row, layer: int = REFERENCE_LAYER) -> Prompt:
    """A row by itself, and its photos' reference tokens."""
    line, photos = entry.see(model, row, ALL).line, []
    columns = (torch.tensor(line.tokens) == entry.image_id).nonzero()[:, 0]
    for photo, whole in zip(row[1], count_placeholders(entry, model, row), strict=True):
        reference, ids = entry.look(model, photo, layer)
        photos.append(Photo(columns[:whole], reference, ids))
        columns = columns[whole:]
    assert not len(columns)
    return Prompt(line, photos)


def decode(
    entry: Entry,
    model: Any,
    prompt: Prompt,
    rule: Rule,
    budget: int = BUDGET,
    chosen: list[list[Kept | None]] | None = None,
    consecutive: bool = False,
    asked: int | None = None,
) -> Decoded:
    """All layers over a row.

    Args:
        chosen: what the prompt's own first step chose, where the row is the prompt and more.
        consecutive: whether the kept columns are renumbered behind every stage.
        asked: columns in front of an answer to learn; all if None.
    """
    text, line = entry.text_of(model), prompt.line
    is_image = torch.tensor(line.tokens) == entry.image_id
    columns, positions = torch.arange(len(line.tokens)), line.positions
    ids = [torch.arange(len(photo.columns)) for photo in prompt.photos]
    end = len(line.tokens) if asked is None else asked
    raters = [end - 1]
    if rule.raters:
        raters = find_raters(line.embeddings[:end].detach(), is_image[:end])
    behind = torch.tensor(find_text(is_image[:end]))
    layers, given = [layer for layer, _ in rule.steps], chosen
    made: list[list[Kept | None]] = []
    stages: ByStage = []
    widths = []
    hidden, attention, keys = line.embeddings, torch.empty(0), torch.empty(0)
    for index, block in enumerate(text.layers):
        if index in layers:
            stage = layers.index(index)
            if rule.behind:
                rotary = rotary_of(block, text, positions)
                attention = attend(block, hidden.detach(), rotary)[0]
            # Of a prompt that ends with a photo, the last token that is left.
            rows = torch.searchsorted(columns, torch.tensor(raters), right=True) - 1
            received = attention[:, rows].mean((0, 1))
            rows = torch.searchsorted(columns, behind, right=True) - 1
            seen = hidden.detach()
            seen = rms_norm(text.norm, seen).detach() if rule.normed else seen
            made.append([])
            for number, photo in enumerate(prompt.photos):
                if len(photo.columns) <= budget:
                    made[-1].append(None)
                    continue
                if rule.of_reference and stage == 0:
                    ids[number] = photo.ids
                at = torch.searchsorted(columns, photo.columns[ids[number]])
                reference = photo.reference[torch.isin(photo.ids, ids[number])]
                present = Present(
                    *(ids[number], seen[at], reference, received[at], keys[at]),
                    *(seen[rows], keys[rows]),
                )
                kept = given[stage][number] if given else None
                with torch.no_grad():
                    kept = kept or rule.choose(present, rule.steps[stage][1])
                if kept.hidden is not None:
                    hidden = hidden.index_copy(0, at[kept.index], kept.hidden)
                ids[number] = ids[number][kept.index]
                made[-1].append(kept)
            stages.append((index, [image.tolist() for image in ids]))
            left = [photo.columns[i] for photo, i in zip(prompt.photos, ids, strict=True)]
            remaining = torch.cat([(~is_image).nonzero()[:, 0], *left]).sort().values
            hidden = hidden[torch.searchsorted(columns, remaining)]
            columns = remaining
            positions = line.positions[:, columns]
            if consecutive:
                positions = line.positions[:, :1] + torch.arange(len(columns))
        rotary = rotary_of(block, text, positions)
        attention, mixed, keys = attend(block, hidden, rotary)
        hidden = hidden + mixed
        hidden = hidden + block.mlp(block.post_attention_layernorm(hidden)[None])[0]
        if index < len(line.deep):
            here = is_image[columns]
            deep = line.deep[index][torch.isin(is_image.nonzero()[:, 0], columns)]
            hidden = hidden.index_add(0, here.nonzero()[:, 0], deep)
        widths.append(len(columns))
    return Decoded(text.norm(hidden), columns, stages, widths, made)


def rotary_of(block: Any, text: Any, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and sines ``[W, d]`` of positions ``[3, W]``."""
    rotary = rotate_at(text, positions)
    if rotary[0].ndim == 4:  # Qwen2.5-VL before transformers 5.19 tells the three positions apart
        sections = block.self_attn.config.rope_parameters["mrope_section"] * 2
        rotary = tuple(  # type: ignore[assignment]
            torch.cat([three[i % 3] for i, three in enumerate(part.split(sections, -1))], -1)
            for part in rotary
        )
    return rotary[0][0], rotary[1][0]


def attend(
    block: Any, hidden: Tensor, rotary: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """The attention map of a layer ``[H, W, W]`` for its input, the attention's output and keys."""
    attention = block.self_attn
    normed = rms_norm(block.input_layernorm, hidden)
    states = {}
    for name in "qkv":
        heads = getattr(attention, f"{name}_proj")(normed)
        heads = heads.view(len(hidden), -1, attention.head_dim).transpose(0, 1)
        if name != "v":
            norm = getattr(attention, f"{name}_norm", None)
            heads = heads if norm is None else rms_norm(norm, heads)
            low, high = heads.chunk(2, -1)
            heads = heads * rotary[0] + torch.cat([-high, low], -1) * rotary[1]
        states[name] = heads
    repeats = len(states["q"]) // len(states["k"])
    keys, values = (states[name].repeat_interleave(repeats, 0) for name in "kv")
    logits = states["q"] @ keys.transpose(1, 2) / attention.head_dim**0.5
    future = torch.ones(logits.shape[1:], dtype=torch.bool).triu(1)
    weights = logits.masked_fill(future, -torch.inf).softmax(-1)
    mixed = (weights @ values).transpose(0, 1).flatten(1)
    own = states["k"].transpose(0, 1).flatten(1).detach()
    return weights.detach(), attention.o_proj(mixed), own


def rms_norm(norm: Any, states: Tensor) -> Tensor:
    scale = (states.square().mean(-1, keepdim=True) + norm.variance_epsilon).rsqrt()
    return states * scale * norm.weight


def find_raters(embeddings: Tensor, is_image: Tensor) -> list[int]:
    """Columns of the text behind the images that is closer to them than the mean."""
    images, behind = is_image.nonzero()[:, 0].tolist(), find_text(is_image)
    if not images or is_image[-1]:
        return behind
    closeness = (embeddings[images] @ embeddings[behind].T).softmax(1).mean(0)
    raters = [
        column for column, close in zip(behind, closeness, strict=True) if close > closeness.mean()
    ]
    return raters or behind


def find_text(is_image: Tensor) -> list[int]:
    """Columns of the text behind the images; of the last one where there is none."""
    images = is_image.nonzero()[:, 0].tolist()
    behind = list(range(images[-1] + 1, len(is_image))) if images else []
    return behind or [len(is_image) - 1]


def largest_first(scores: Tensor) -> list[int]:
    """Ties go to the lowest."""
    return sorted(range(len(scores)), key=lambda index: (-float(scores[index]), index))


def keep_attended(present: Present, count: int) -> Kept:
    """FastV, and a stage of PyramidDrop: what the text attends to most."""
    return Kept(torch.tensor(sorted(largest_first(present.attention)[:count])))


def keep_attended_and_merge(present: Present, count: int, recycle: bool = True) -> Kept:
    """A stage of SparseVLM: some tokens as they are, of the next best the clusters' means."""
    number = len(present.ids)
    order, count = largest_first(present.attention), min(count, number - 1)
    kept = order[:count]
    if not recycle:
        return Kept(torch.tensor(sorted(kept)))
    others = sorted(order[count : count + int(0.3 * (number - count)) + 1])
    means = cluster(present.hidden[others], len(others) // 10 + 1)
    states = {index: present.hidden[index] for index in kept}
    states |= {others[centre]: mean for centre, mean in means.items()}
    index = sorted(states)
    return Kept(torch.tensor(index), torch.stack([states[each] for each in index]))


def cluster(states: Tensor, count: int, seed: int = 0) -> dict[int, Tensor]:
    """DPC-kNN: centres of ``[M, C]`` and the means of their clusters."""
    number, channels = states.shape
    like = torch.empty(number, 1, dtype=torch.float64)
    noise = torch.special.ndtr(seeded.noise(like, seed, number))
    distances = (states[:, None] - states[None]).norm(dim=-1) / channels**0.5
    near = distances.sort(1).values[:, :count].double()
    density = (-near.square().mean(1)).exp() + 1e-6 * noise
    scores = []
    for index in range(number):
        denser = density > density[index]
        far = distances[index].max() if not denser.any() else distances[index, denser].min()
        scores.append(float(density[index]) * float(far))
    centres = sorted(largest_first(torch.tensor(scores, dtype=torch.float64))[:count])
    members: dict[int, list[int]] = {centre: [] for centre in centres}
    for index in range(number):
        nearest = centres[int(distances[index, centres].argmin())]
        members[index if index in centres else nearest].append(index)
    return {centre: states[own].mean(0) for centre, own in members.items()}


def keep_by_pruner(
    present: Present, count: int, pruner: OCPruner, place_mean: Tensor | None = None
) -> Kept:
    """A stage of the pruner's: it sees the tokens that are left, and no others."""
    tokens = present.reference
    if place_mean is not None:
        tokens = tokens - place_mean[present.ids]
    if len(tokens) <= count:
        return Kept(torch.arange(len(tokens)))
    with torch.no_grad():
        return Kept(pruner.frozen_copy()(tokens[None], tokens[None], count).ids[0])


def keep_unlike_pivots(present: Present, count: int, of_image: int, of_text: int) -> Kept:
    """DART: of every pivot the tokens least like it."""
    kept = sorted(largest_first(present.keys.abs().sum(1))[: min(of_image, count)])
    pivots = [present.hidden[index] for index in kept]
    largest = sorted(largest_first(present.text_keys.abs().sum(1))[:of_text])
    pivots += [present.text[index] for index in largest]
    share = -(-(count - len(kept)) // len(pivots))
    for pivot in pivots:
        likeness = F.cosine_similarity(present.hidden, pivot[None])
        least = largest_first(-likeness)
        left = [index for index in least if index not in kept]
        kept += left[: min(share, count - len(kept))]
    return Kept(torch.tensor(sorted(kept)))


def keep_by_norm(present: Present, count: int) -> Kept:
    return Kept(torch.tensor(sorted(largest_first(present.hidden.norm(dim=-1))[:count])))


def fastv(layer: int, budget: int = BUDGET) -> Rule:
    return Rule([(layer, budget)], keep_attended)


def pyramiddrop(steps: Sequence[tuple[int, int]]) -> Rule:
    return Rule(steps, keep_attended, behind=True)


def sparsevlm(steps: Sequence[tuple[int, int]], recycle: bool = True) -> Rule:
    return Rule(steps, partial(keep_attended_and_merge, recycle=recycle), raters=True)


def dart(layer: int, of_image: int, of_text: int) -> Rule:
    choose = partial(keep_unlike_pivots, of_image=of_image, of_text=of_text)
    return Rule([(layer, BUDGET)], choose, normed=True)


def oc_progressive(
    steps: Sequence[tuple[int, int]], pruner: OCPruner, place_mean: Tensor | None = None
) -> Rule:
    choose = partial(keep_by_pruner, pruner=pruner, place_mean=place_mean)
    return Rule(steps, choose, of_reference=True)


class Answer(NamedTuple):
    """What a row is answered."""

    tokens: list[int]
    logits: Tensor  # [steps, vocabulary]
    first: Decoded  # of the prompt alone
    prompt: Prompt  # the row with its answer


def go_on(model: Any, prompt: Prompt, tokens: Sequence[int]) -> Prompt:
    """A row with more text behind it."""
    more = words(model, tokens, prompt.line.following)
    return prompt._replace(line=join(prompt.line, more))


@torch.no_grad()
def answer(
    entry: Entry,
    model: Any,
    prompt: Prompt,
    rule: Rule,
    budget: int = BUDGET,
    *,
    steps: int = NEW,
    chosen: list[list[Kept | None]] | None = None,
    consecutive: bool = False,
    given: Sequence[int] | None = None,
) -> Answer:
    """Greedy tokens, or ``given`` ones; every step computes all of the row again."""
    tokens: list[int] = []
    logits = []
    first: Decoded | None = None
    for step in range(steps):
        found = decode(entry, model, prompt, rule, budget, chosen, consecutive)
        first, chosen = first or found, chosen or found.chosen
        logits.append(model.lm_head(found.hidden[-1]))
        allowed = logits[-1].clone()
        allowed[list(entry.banned)] = -torch.inf
        tokens.append(int(allowed.argmax()) if given is None else given[step])
        prompt = go_on(model, prompt, tokens[-1:])
    assert first is not None
    return Answer(tokens, torch.stack(logits), first, prompt)


def losses(entry: Entry, model: Any, prompt: Prompt, rule: Rule, labels: list[int]) -> Tensor:
    """Of the kept columns that have a label and another kept one before: ``[n]``."""
    # An answer is what is labelled, if it is behind the photos.
    first = next(column for column, label in enumerate(labels) if label >= 0)
    is_behind = entry.image_id not in prompt.line.tokens[first:]
    found = decode(entry, model, prompt, rule, asked=first if is_behind else None)
    logits = model.lm_head(found.hidden)
    pairs = [
        (index - 1, labels[column])
        for index, column in enumerate(found.columns.tolist())
        if index and labels[column] >= 0
    ]
    before, targets = (list(part) for part in zip(*pairs, strict=True))
    return F.cross_entropy(logits[before], torch.tensor(targets), reduction="none")


class TwoStages:
    """A selector of its own schedule: the largest hidden states, twice."""

    place = "decoder"
    needs = frozenset({"final_tokens"})

    def stages(self, budget: int, depth: int) -> tuple[Stage, ...]:
        return Stage(1, partial(min, 9), self), Stage(2, partial(min, budget), self)

    def __call__(self, inputs: SelectorInputs, budget: int) -> Tensor:
        return largest(inputs.final_tokens, budget)


class Method(NamedTuple):
    """A selector, and the same by hand."""

    make: Callable[[], Any]
    rule: Rule


# Of photos of 15 tokens and more. The first stage drops nothing of those of 15, 16 or fewer in
# "pyramiddrop, late".
_STEPS = [(1, 9), (2, BUDGET)]
METHODS = {
    "fastv, 1": Method(partial(make_selector, "fastv", layer=1), fastv(1)),
    "fastv": Method(partial(make_selector, "fastv"), fastv(2)),
    "dart": Method(
        partial(make_selector, "dart", num_image_pivots=1, num_text_pivots=3), dart(2, 1, 3)
    ),
    "pyramiddrop": Method(partial(PyramidDrop, _STEPS), pyramiddrop(_STEPS)),
    "pyramiddrop, late": Method(
        partial(PyramidDrop, [(1, 20), (2, BUDGET)]), pyramiddrop([(1, 20), (2, BUDGET)])
    ),
    "sparsevlm": Method(partial(SparseVLM, schedule=_STEPS), sparsevlm(_STEPS)),
    "sparsevlm, none merged": Method(
        partial(SparseVLM, False, schedule=_STEPS), sparsevlm(_STEPS, recycle=False)
    ),
    "oc-progressive": Method(
        lambda: OCProgressive(make_pruner(), _STEPS), oc_progressive(_STEPS, make_pruner())
    ),
    "its own": Method(TwoStages, Rule(_STEPS, keep_by_norm)),
}
