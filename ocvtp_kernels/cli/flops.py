"""``ocvtp flops``: FLOPs and KV cache with and without pruning, by formula and counted exactly."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Sequence
from dataclasses import asdict
from itertools import groupby
from typing import Annotated, Any

import typer

from ocvtp_kernels import checks
from ocvtp_kernels.cli.options import AsJson, exit_if_misused
from ocvtp_kernels.cost.flops import TEXT_TOKENS, PrefillCost, cost, importance, vision_tower
from ocvtp_kernels.cost.layers import (
    NAMES,
    language_cost,
    merges_by_name,
    stages_by_name,
    tokens_by_layer,
)
from ocvtp_kernels.cost.models import MODELS, VisionLanguageModel

TERA, GIGA, MEBI = 1e12, 1e9, 2**20
LINE = 100

# What each number counts: its name in the JSON, its column in the text, a sentence.
COUNTED = (
    ("all", "all", "one image, batch 1, prefill; a multiply-accumulate is 2 FLOPs; matrix"
     " multiplications and convolutions only, element-wise work is left out"),
    ("kept", "kept", "vision tokens that the language model reads"),
    ("sequence", "", "n: the kept vision tokens and the text tokens"),
    ("paper", "paper", "2 L (4nd² + 2n²d + 2ndm), n vision and text tokens: the paper's formula,"
     " for the language model alone, with a two-matrix FFN and a key head for every query head"),
    ("vision", "vision", "patch embedding and every layer of the tower (LLaVA reads all but the"
     " last one), attention in windows where it has them"),
    ("projector", "proj.", "projector or merger; LLaVA's runs on the kept tokens only, Qwen's on"
     " all of them"),
    ("language", "LLM", "decoder layers with grouped queries and three FFN matrices, over all n²"
     " query-key pairs; in the text with the lm_head for one position"),
    ("language_causal", "", "language with the n(n+1)/2 pairs that the causal mask leaves"),
    ("lm_head", "", "for one position"),
    ("total", "total", "vision, folded pruner, proj. and LLM"),
    ("total_causal", "causal", "total with the n(n+1)/2 query-key pairs that the causal mask"
     " leaves in the LLM"),
    ("saved", "saved", "against the unpruned model, by the same count"),
    ("kv_bytes", "KV", "keys and values of vision and text tokens in fp16"),
    ("pruner_plain", "plain", "the pruner as published: a slot per kept token, every iteration in"
     " full"),
    ("pruner_folded", "folded", "the pruner as ocvtp::prune runs it"),
    ("folded_of_full", "full", "the folded pruner's share of the unpruned model's total (the"
     " paper: about 1 ‰)"),
    ("folded_of_pruned", "pruned", "its share of the pruned model's total"),
    ("plain_of_full", "", "the published pruner's share of the unpruned model's total"),
    ("plain_of_pruned", "", "its share of the pruned model's total, itself in the folded one's"
     " place"),
    ("importance", "importance", "attention scores of one tower layer, computed again where they"
     " rank the tokens that fill gaps; optional and not in the totals"),
)  # fmt: skip

HEADINGS = (
    f"{'':5} {'formula':>13}  {'exact, TFLOP':^42}  {'KV':>6}  {'pruner, GFLOP':>13} "
    f"{'share, ‰':>12}",
    f"{'kept':>5} {'paper':>6} {'saved':>6}  {'vision':>6} {'proj.':>6} {'LLM':>6} {'total':>6} "
    f"{'causal':>6} {'saved':>7}  {'MiB':>6}  {'plain':>6} {'folded':>6} {'full':>5} {'pruned':>6}",
)

# The same of the language model alone, with a method.
COUNTED_OF_METHOD = (
    ("all", "all", "the decoder layers of one image's prefill, batch 1, each by the tokens that it"
     " reads; a method is at its defaults"),
    ("budget", "T", "image tokens kept behind the last layer where any are dropped; SparseVLM has"
     " counts of its own for a budget"),
    ("tokens_by_layer", "by layer", "image tokens that the layers read: tokens×layers"),
    ("mean_tokens", "mean", "of these over layers"),
    ("language", "LLM", "grouped queries and three FFN matrices, over all n² query-key pairs,"
     " without the lm_head"),
    ("paper", "paper", "the sum over layers of 2 (4nd² + 2n²d + 2ndm), n vision and text tokens"),
    ("saved", "saved", "against the unpruned language model, by the same count; in the JSON also of"
     " the tower"),
    ("vision", "", "patch embedding and every layer of the tower, by the tokens that are not merged"
     " yet"),
    ("kv_bytes", "KV", "keys and values of vision and text tokens in fp16"),
    ("equal_budget", "equal", "tokens that a method which drops before the language model may keep"
     " for no more FLOPs of the LLM"),
)  # fmt: skip
METHOD_HEADINGS = (
    f"{'':19}  {'exact, TFLOP':^20}  {'formula':^13}  {'KV':>6}",
    f"{'method':14} {'T':>4}  {'LLM':>6} {'saved':>6} {'equal':>6}  {'paper':>6} {'saved':>6}"
    f"  {'MiB':>6} {'mean':>6}  by layer",
)


def flops(
    method: Annotated[
        list[str] | None,
        typer.Option(
            help=f"The language model's alone with this method ({', '.join(NAMES)}), by the tokens"
            " that each layer reads; may be given several times."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Tell FLOPs and KV-cache bytes of four models before and after pruning, and the pruner's.

    With --method, tell the language model's where the method drops tokens between its layers, and
    the budget at which one that drops them before costs as much.
    """
    with exit_if_misused("flops"):
        facts = count_methods(method) if method else count()
    if as_json:
        typer.echo(json.dumps(facts, indent=2, ensure_ascii=False))
    else:
        typer.echo(describe_methods(facts) if method else describe(facts))


def count() -> dict[str, Any]:
    """Everything that `flops` prints, as plain data: FLOPs, bytes and shares in [0, 1]."""
    return {
        "counted": {name: sentence for name, _, sentence in COUNTED},
        "text_tokens": TEXT_TOKENS,
        "models": [_count_model(model) for model in MODELS],
    }


def _count_model(model: VisionLanguageModel) -> dict[str, Any]:
    full = cost(model, None)
    return {
        "name": model.name,
        "source": model.source,
        "image": model.image,
        "vision_tokens": model.tower.vision_tokens,
        "importance": importance(model.tower),
        "language_model": asdict(model.language),
        "costs": [_count_budget(cost(model, budget), full) for budget in (None, *model.budgets)],
    }


def _count_budget(now: PrefillCost, full: PrefillCost) -> dict[str, Any]:
    plain_total = now.total - now.pruner_folded + now.pruner_plain
    return {
        **asdict(now),
        "total": now.total,
        "total_causal": now.total_causal,
        "saved": {
            name: 1 - getattr(now, name) / getattr(full, name)
            for name in ("paper", "total", "total_causal", "kv_bytes")
        },
        "pruner_share": {
            "plain_of_full": now.pruner_plain / full.total,
            "folded_of_full": now.pruner_folded / full.total,
            "plain_of_pruned": now.pruner_plain / plain_total,
            "folded_of_pruned": now.pruner_folded / now.total,
        },
    }


def describe(facts: dict[str, Any]) -> str:
    """`count`'s facts as text."""
    lines: list[str] = []
    for model in facts["models"]:
        lines += [
            _title(model, facts),
            *_wrapped("  dimensions: ", model["source"]),
            *_wrapped("  image: ", model["image"]),
            *HEADINGS,
            *(_row(row) for row in model["costs"]),
        ]
        if model["importance"] is not None:
            lines.append(f"  importance: {model['importance'] / GIGA:.2f} GFLOP")
        lines.append("")
    return "\n".join([*lines, *_explained(COUNTED)])


def count_methods(methods: Sequence[str]) -> dict[str, Any]:
    """What methods leave of the language models' FLOPs and bytes, as plain data.

    Raises:
        ValueError: there is no such method.
    """
    for method in methods:
        checks.require_one_of("method", method, NAMES)
    return {
        "counted": {name: sentence for name, _, sentence in COUNTED_OF_METHOD},
        "text_tokens": TEXT_TOKENS,
        "models": [
            {
                "name": model.name,
                "vision_tokens": model.tower.vision_tokens,
                "language_model": asdict(model.language),
                "costs": [
                    _count_method(model, method, budget)
                    for method in methods
                    for budget in model.budgets
                ],
            }
            for model in MODELS
        ],
    }


def _count_method(model: VisionLanguageModel, method: str, budget: int) -> dict[str, Any]:
    language, available = model.language, model.tower.vision_tokens
    head = {"method": method, "budget": budget}
    try:
        stages = stages_by_name(method, budget, language.layers)
        merges = merges_by_name(method, budget, model.tower)
    except ValueError as error:
        return {**head, "error": str(error)}
    by_layer = tokens_by_layer(stages, available, budget, language.layers)
    now = language_cost(language, by_layer)
    full = language_cost(language, [available] * language.layers)
    saved = {
        name: 1 - getattr(now, name) / getattr(full, name)
        for name in ("paper", "language", "kv_bytes")
    }
    vision = vision_tower(model.tower, merges)
    saved["vision"] = 1 - vision / vision_tower(model.tower)
    return {**head, **asdict(now), "vision": vision, "saved": saved}


def describe_methods(facts: dict[str, Any]) -> str:
    """`count_methods`' facts as text."""
    lines: list[str] = []
    for model in facts["models"]:
        lines += [_title(model, facts), *METHOD_HEADINGS]
        for row in model["costs"]:
            lines += _method_rows(row)
        lines.append("")
    return "\n".join([*lines, *_explained(COUNTED_OF_METHOD)])


def _method_rows(row: dict[str, Any]) -> list[str]:
    head = f"{row['method']:14} {row['budget']:4}  "
    if "error" in row:
        return _wrapped(head, row["error"])
    language, paper = (f"{100 * row['saved'][name]:.1f}%" for name in ("language", "paper"))
    runs = ((tokens, len([*layers])) for tokens, layers in groupby(row["tokens_by_layer"]))
    lines = [
        f"{head}{row['language'] / TERA:6.3f} {language:>6} {row['equal_budget']:6}"
        f"  {row['paper'] / TERA:6.2f} {paper:>6}  {row['kv_bytes'] / MEBI:6.1f}"
        f" {row['mean_tokens']:6.1f}  " + " ".join(f"{tokens}×{layers}" for tokens, layers in runs)
    ]
    if row["saved"]["vision"]:
        tower = f"{row['vision'] / TERA:.3f} TFLOP, {100 * row['saved']['vision']:.1f}% saved"
        lines.append(f"{'':21}the tower, which merges: {tower}")
    return lines


def _title(model: dict[str, Any], facts: dict[str, Any]) -> str:
    language = model["language_model"]
    return (
        f"{model['name']}: {model['vision_tokens']} vision + {facts['text_tokens']} text tokens"
        f", L={language['layers']} d={language['width']} m={language['ffn_width']}"
        f" heads={language['heads']}/{language['kv_heads']}"
    )


def _explained(counted: Sequence[tuple[str, str, str]]) -> list[str]:
    lines = ["what is counted"]
    for _, column, sentence in counted:
        lines += _wrapped(f"  {column:10}  ", sentence) if column else []
    return lines


def _row(row: dict[str, Any]) -> str:
    exact = (row["vision"], row["projector"], row["language"] + row["lm_head"], row["total"])
    line = (
        f"{row['kept']:5} {row['paper'] / TERA:6.2f} {_percent(row, 'paper'):>6}  "
        + " ".join(f"{part / TERA:6.3f}" for part in (*exact, row["total_causal"]))
        + f" {_percent(row, 'total'):>7}  {row['kv_bytes'] / MEBI:6.1f}"
    )
    if not row["pruner_folded"]:
        return line
    share = row["pruner_share"]
    return (
        f"{line}  {row['pruner_plain'] / GIGA:6.2f} {row['pruner_folded'] / GIGA:6.2f}"
        f" {1000 * share['folded_of_full']:5.2f} {1000 * share['folded_of_pruned']:6.2f}"
    )


def _percent(row: dict[str, Any], name: str) -> str:
    return f"{100 * row['saved'][name]:.1f}%" if row["pruner_folded"] else ""


def _wrapped(start: str, sentence: str) -> list[str]:
    return textwrap.wrap(sentence, LINE, initial_indent=start, subsequent_indent=" " * len(start))
