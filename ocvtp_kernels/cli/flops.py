"""``ocvtp flops``: FLOPs and KV cache with and without pruning, by formula and counted exactly."""

from __future__ import annotations

import json
import textwrap
from dataclasses import asdict
from typing import Any

import typer

from ocvtp_kernels.cli.options import AsJson
from ocvtp_kernels.cost.flops import TEXT_TOKENS, PrefillCost, cost, importance
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


def flops(as_json: AsJson = False) -> None:
    """Tell FLOPs and KV-cache bytes of four models before and after pruning, and the pruner's."""
    facts = count()
    typer.echo(json.dumps(facts, indent=2, ensure_ascii=False) if as_json else describe(facts))


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
        language = model["language_model"]
        lines += [
            f"{model['name']}: {model['vision_tokens']} vision + {facts['text_tokens']} text tokens"
            f", L={language['layers']} d={language['width']} m={language['ffn_width']}"
            f" heads={language['heads']}/{language['kv_heads']}",
            *_wrapped("  dimensions: ", model["source"]),
            *_wrapped("  image: ", model["image"]),
            *HEADINGS,
            *(_row(row) for row in model["costs"]),
        ]
        if model["importance"] is not None:
            lines.append(f"  importance: {model['importance'] / GIGA:.2f} GFLOP")
        lines.append("")
    lines.append("what is counted")
    for _, column, sentence in COUNTED:
        lines += _wrapped(f"  {column:10}  ", sentence) if column else []
    return "\n".join(lines)


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
