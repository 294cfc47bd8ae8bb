"""The steps of every method but VLM-Pruner and DivPrune, one token after the other, in NumPy.

Each takes what an image is, by name, and returns ids ascending, and tokens or what else there is.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

Array = np.ndarray[Any, np.dtype[np.float64]]
Kept = tuple[list[int], dict[str, Array]]


def best(scores: Any, among: list[int], count: int) -> list[int]:
    """The highest of some tokens, highest first, ties to the lowest id."""
    return sorted(among, key=lambda i: (-scores[i], i))[:count]


def cos(x: Array, y: Array) -> float:
    return float(x @ y / (np.sqrt(x @ x) * np.sqrt(y @ y)))


def cosines(tokens: Array) -> Array:
    unit = tokens / np.sqrt((tokens * tokens).sum(axis=1, keepdims=True))
    similarity: Array = unit @ unit.T
    return similarity


def everything(values: Any) -> list[int]:
    return list(range(len(values)))


def fastervlm(cls_attention: Array, budget: int, **_: Any) -> Kept:
    return sorted(best(cls_attention, everything(cls_attention), budget)), {}


def vispruner(
    tokens: Array, cls_attention: Array, budget: int, share: float = 0.5, drop: int = 8, **_: Any
) -> Kept:
    by_attention = best(cls_attention, everything(tokens), len(tokens))
    important = int(budget * share)
    kept, left = by_attention[:important], by_attention[important:]
    diverse = budget - important
    while len(left) > diverse > 0:
        gone = min(drop, len(left) - diverse)
        a, b = left[0::2], left[1::2]
        likeness = [max(cos(tokens[i], tokens[j]) for j in b) for i in a]
        by_likeness = sorted(range(len(a)), key=lambda k: -likeness[k])
        left = [a[k] for k in by_likeness[gone:]] + b
    return sorted(kept + left[:diverse]), {}


def hiprune(
    importance: Array,
    shallow_importance: Array,
    grid: tuple[int, int],
    budget: int,
    tokens: Array,
    share: float = 0.1,
    as_published: bool = False,
    **_: Any,
) -> Kept:
    num_tokens = len(importance)
    anchors = best(shallow_importance, everything(importance), round(budget * share / 5))
    cross = list(anchors)
    buffers = {
        min(max(anchor + step, 0), num_tokens - 1)
        for anchor in anchors
        for step in (-1, 1, -grid[1], grid[1])
    } - set(anchors)
    cross += best(importance, sorted(buffers), len(buffers))
    deep = list(importance)
    for i in cross:
        deep[i] -= 1 if as_published else np.inf
    registers = best(deep, everything(importance), max(0, budget - len(cross)))
    ids = sorted(set(cross[:budget]) | set(registers))
    return ids, {"tokens": tokens[ids]}


def visionzip(
    tokens: Array,
    cls_attention: Array,
    keys: Array,
    cls_token: Array,
    budget: int,
    heads: int | None = None,
    contextual: int | None = None,
    as_published: bool = False,
    **_: Any,
) -> Kept:
    patches = budget - 1 if as_published else budget
    count = min(budget * 10 // 64, patches) if contextual is None else contextual
    metric = keys
    if heads is not None:
        width = keys.shape[1] // heads
        metric = sum(keys[:, h * width : (h + 1) * width] for h in range(heads)) / heads
    dominant = best(cls_attention, everything(tokens), patches - count)
    rest = [i for i in everything(tokens) if i not in dominant]
    merged = {i: tokens[i] for i in dominant}
    if count:
        step = max(1, len(rest) // count)
        targets = [rest[k * step] for k in range(count)]
        members: dict[int, list[int]] = {target: [] for target in targets}
        for i in rest:
            if i not in targets:
                likeness = [cos(metric[i], metric[target]) for target in targets]
                members[targets[likeness.index(max(likeness))]].append(i)
        for target, others in members.items():
            if as_published:
                mean = sum((tokens[i] for i in others), 0 * tokens[0]) / max(1, len(others))
                merged[target] = tokens[target] + mean
            else:
                merged[target] = np.mean(tokens[[target, *others]], axis=0)
    ids = sorted(merged)
    rows = np.array([merged[i] for i in ids]).reshape(len(ids), tokens.shape[1])
    return ids, {"tokens": rows} | ({"extra": cls_token[None]} if as_published else {})


def relevance_quality(relevance: list[float], low: float, high: float) -> list[float]:
    return [(r - low + 1e-6) / (high - low) for r in relevance]


def relevance_of(text: Array, text_tokens: Array, sign: int) -> list[float]:
    return [sign * cos(token, text) for token in text_tokens]


def cdpruner(tokens: Array, quality: list[float], budget: int) -> list[int]:
    """Ids in the order picked."""
    similarity = cosines(tokens)
    np.fill_diagonal(similarity, 1)
    kernel = np.array(quality)[:, None] * similarity * np.array(quality)
    components = np.zeros((budget, len(tokens)))
    left = np.diag(kernel).copy()
    order: list[int] = []
    for step in range(budget):
        pick = max(everything(tokens), key=lambda j: (left[j], -j))
        order.append(pick)
        projected = components[:step, pick] @ components[:step]
        components[step] = (kernel[pick] - projected) / np.sqrt(left[pick])
        left -= components[step] ** 2
        left[order] = -np.inf
    return order


def scope(tokens: Array, cls_attention: Array, budget: int, alpha: float = 1.0, **_: Any) -> Kept:
    num_tokens = len(tokens)
    similarity = cosines(tokens)
    covered = np.zeros(num_tokens)
    order: list[int] = []
    for _step in range(budget):
        gain = [
            np.maximum(0, similarity[:, j] - covered).sum() * cls_attention[j] ** alpha
            if j not in order
            else -np.inf
            for j in range(num_tokens)
        ]
        pick = gain.index(max(gain))
        order.append(pick)
        covered = np.maximum(covered, similarity[:, pick])
    return sorted(order), {"order": np.array(order)}


def spread_out(cls_attention: Array, budget: int) -> list[int]:
    """The tokens of PruMerge+."""
    num_tokens = len(cls_attention)
    quarter = max(1, budget // 4)
    by_attention = best(cls_attention, everything(cls_attention), num_tokens)
    kept = by_attention[:quarter]
    stride = max(1, int(int(num_tokens / quarter) / 3))
    new = [i for i in range(0, num_tokens, stride) if i not in kept]
    room = budget - quarter
    if len(new) > room:
        new = [new[k * len(new) // room] for k in range(room)]
    kept = kept + new
    kept += [i for i in by_attention if i not in kept][: budget - len(kept)]
    return sorted(kept)


def prumerge(
    tokens: Array,
    cls_attention: Array,
    keys: Array,
    budget: int,
    neighbours: int = 32,
    spatial: bool = False,
    **_: Any,
) -> Kept:
    if spatial:
        ids = spread_out(cls_attention, budget)
    else:
        ids = sorted(best(cls_attention, everything(tokens), budget))
    merged = []
    for i in ids:
        likeness = [cos(keys[i], key) for key in keys]
        nearest = best(likeness, [j for j in everything(tokens) if j != i], neighbours)
        merged.append(tokens[i] + sum((cls_attention[j] * tokens[j] for j in nearest), 0.0))
    rest = 0 * tokens[0]
    for j in everything(tokens):
        if j not in ids:
            rest = rest + cls_attention[j] * tokens[j]
    return ids, {"tokens": np.array(merged), "extra": rest[None]}


def trim(
    tokens: Array,
    text: Array,
    text_tokens: Array,
    budget: int,
    as_published: bool = False,
    **_: Any,
) -> Kept:
    scores = [float(token @ text) * (-1 if as_published else 1) for token in text_tokens]
    ids = sorted(best(scores, everything(tokens), budget))
    rest = [i for i in everything(tokens) if i not in ids]
    return ids, {"extra": np.mean(tokens[rest], axis=0)[None]} if rest else {}


def most_attended(text_attention: Array, budget: int, **_: Any) -> Kept:
    """FastV, and a stage of PyramidDrop."""
    return sorted(best(text_attention, everything(text_attention), budget)), {}


def sparse_counts(num_tokens: int, kept: int) -> tuple[int, int]:
    """Candidates and centres of SparseVLM, of the tokens that are not kept."""
    gone = num_tokens - kept
    candidates = min(int(0.3 * gone) + 1, gone)
    return candidates, candidates // 10 + 1


def sparsevlm(
    tokens: Array,
    text_attention: Array,
    budget: int,
    recycle: bool = True,
    seed: int = 0,
    most: int | None = None,
    **_: Any,
) -> Kept:
    """A stage that keeps ``most``, or as many as leave room in the budget for their centres."""
    num_tokens = len(tokens)
    if not recycle or budget == num_tokens:
        ids = sorted(best(text_attention, everything(tokens), budget))
        return ids, {"tokens": tokens[ids]}
    if most is None:
        fitting = [k for k in range(num_tokens) if k + sparse_counts(num_tokens, k)[1] <= budget]
        kept = max(fitting, default=0)
    else:
        kept = min(most, num_tokens - 1)
    candidates = max(sparse_counts(num_tokens, kept)[0], budget - kept)
    by_score = best(text_attention, everything(tokens), kept + candidates)
    merged = {i: tokens[i] for i in by_score[:kept]}
    pool = sorted(by_score[kept:])
    for centre, members in density_peaks(tokens[pool], budget - kept, uniform(seed)).items():
        merged[pool[centre]] = np.mean(tokens[pool][members], axis=0)
    ids = sorted(merged)
    return ids, {"tokens": np.array([merged[i] for i in ids])}


def uniform(seed: int) -> list[float]:
    normal = torch.randn(1024, generator=torch.Generator().manual_seed(seed))
    return [(1 + math.erf(x / math.sqrt(2))) / 2 for x in normal.tolist()]


def density_peaks(states: Array, count: int, noise: list[float]) -> dict[int, list[int]]:
    """The members of each cluster, by its centre."""
    width, every = states.shape[1], everything(states)
    apart = [[math.dist(a, b) / math.sqrt(width) for b in states] for a in states]
    density = [
        math.exp(-np.mean([d * d for d in sorted(apart[i])[:count]])) + 1e-6 * noise[i]
        for i in every
    ]
    score = []
    for i in every:
        denser = [apart[i][j] for j in every if density[j] > density[i]]
        score.append(density[i] * (min(denser) if denser else max(apart[i])))
    clusters: dict[int, list[int]] = {centre: [] for centre in sorted(best(score, every, count))}
    for i in every:
        clusters[i if i in clusters else min(clusters, key=lambda c: apart[i][c])].append(i)
    return clusters


def maximal_marginal(relevance: Any, similarity: Array, budget: int, trade_off: float) -> list[int]:
    """Ids in the order picked."""
    every = everything(relevance)
    order = best(relevance, every, 1)
    while len(order) < budget:
        left = [j for j in every if j not in order]
        scores = {
            j: trade_off * relevance[j] - (1 - trade_off) * max(similarity[i, j] for i in order)
            for j in left
        }
        order += best(scores, left, 1)
    return order


def idpruner(tokens: Array, budget: int, trade_off: float, score: str, **image: Any) -> Kept:
    scores = image[score]
    span = max(scores) - min(scores) + 1e-6
    importance = [(s - min(scores)) / span for s in scores]
    order = maximal_marginal(importance, cosines(tokens), budget, trade_off)
    return sorted(order), {"order": np.array(order)}


def id_selection(tokens: Array, budget: int, gamma: float, score: str, **image: Any) -> Kept:
    """By the decayed scores themselves, without logarithms."""
    scores = np.maximum(image[score], 0)
    decay = np.exp(-gamma * np.maximum(0, cosines(tokens)))
    left, order = dict(enumerate(scores)), list[int]()
    for _ in range(budget):
        order += best(left, list(left), 1)
        del left[order[-1]]
        left = {j: scores[j] * min(decay[i, j] for i in order) for j in left}
    return sorted(order), {"order": np.array(order)}


def dart(
    tokens: Array,
    keys: Array,
    text_pivots: Array,
    budget: int,
    num_image_pivots: int = 4,
    from_text: bool = True,
    as_published: bool = False,
    **_: Any,
) -> Kept:
    kept = sorted(best(np.abs(keys).sum(axis=1), everything(keys), min(num_image_pivots, budget)))
    pivots = [*tokens[kept], *(text_pivots if from_text else [])]
    share = (budget - len(kept)) / len(pivots)
    quota = math.floor(share) if as_published else math.ceil(share)
    for pivot in pivots:
        likeness = [-cos(pivot, token) for token in tokens]
        left = [i for i in everything(tokens) if i not in kept]
        kept += best(likeness, left, min(quota, budget - len(kept)))
    return sorted(kept), {"tokens": tokens[sorted(kept)]}


def holov(
    tokens: Array,
    budget: int,
    alpha: float = 0.09,
    num_patches: int = 16,
    score: str = "cls_attention",
    as_published: bool = False,
    **image: Any,
) -> Kept:
    attention = np.array(image[score])
    count = min(num_patches, len(tokens))
    chunks = [list(map(int, chunk)) for chunk in np.array_split(everything(tokens), count)]
    weights = [chunk_score(tokens[c], np.maximum(attention[c], 0), alpha) for c in chunks]
    total = sum(weights)
    by_weight = best(weights, everything(chunks), count)
    quota = [math.floor(weight / total * budget + 1e-9) for weight in weights]
    for chunk in by_weight[: budget - sum(quota)]:
        quota[chunk] += 1
    quota = [min(q, len(chunk)) for q, chunk in zip(quota, chunks, strict=True)]
    if not as_published:
        for chunk in by_weight:
            while quota[chunk] < len(chunks[chunk]) and sum(quota) < budget:
                quota[chunk] += 1
    ids = sorted(
        i for q, chunk in zip(quota, chunks, strict=True) for i in best(attention, chunk, q)
    )
    return ids, {"tokens": tokens[ids]}


def chunk_score(tokens: Array, attention: Array, alpha: float) -> float:
    similarity = cosines(tokens)
    np.fill_diagonal(similarity, 0)
    others = max(1, len(tokens) - 1)
    variance = np.array([((row - row.sum() / others) ** 2).sum() / others for row in similarity])
    scaled = attention * 1000
    scaling = np.abs(scaled).mean() / (np.abs(variance).mean() + 1e-6)
    return float((scaled + alpha * variance * scaling).mean())


def apet(tokens: Array, budget: int, num_basis: int = 10, merge: bool = True, **_: Any) -> Kept:
    every = everything(tokens)
    basis = farthest([[math.dist(a, b) for b in tokens] for a in tokens], num_basis)
    solved = np.linalg.lstsq(tokens[basis].T, tokens.T, rcond=None)[0]
    errors = np.sqrt(((tokens.T - tokens[basis].T @ solved) ** 2).sum(axis=0))
    for i in every:
        if i in basis or errors[i] < 1e-9 * np.sqrt(tokens[i] @ tokens[i]):
            errors[i] = 0
    ids = sorted(best(errors, every, budget))
    if not merge:
        return ids, {"tokens": tokens[ids]}
    members: dict[int, list[int]] = {i: [i] for i in ids}
    for i in every:
        if i not in members:
            members[best({k: cos(tokens[i], tokens[k]) for k in ids}, ids, 1)[0]].append(i)
    return ids, {"tokens": np.array([tokens[members[i]].mean(axis=0) for i in ids])}


def farthest(distances: list[list[float]], count: int) -> list[int]:
    """Ids in the order picked, of at most all."""
    every = everything(distances)
    order = best([sorted(row)[min(1, len(row) - 1)] for row in distances], every, 1)
    while len(order) < min(count, len(distances)):
        left = [j for j in every if j not in order]
        order += best({j: min(distances[i][j] for i in order) for j in left}, left, 1)
    return order
