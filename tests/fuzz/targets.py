"""What is fuzzed: every op, every selector, `prepare` and the pruner's methods.

A target makes a valid call of a case's choices.
"""

from __future__ import annotations

import copy
import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any, get_args, get_type_hints

import torch
from torch import Tensor

import ocvtp_kernels as ocvtp
from bench.pruners import random_pruner, small_config
from ocvtp_kernels import ops, use_backend
from ocvtp_kernels.ops.registry import SCHEMA_NAMES
from ocvtp_kernels.ops.slot_attention.reference import StepWeights
from ocvtp_kernels.selectors.interface import PLACES, SelectorInputs, run_selector
from ocvtp_kernels.selectors.registry import METHODS, make_selector, select
from ocvtp_kernels.selectors.scores import SCORES
from ocvtp_kernels.selectors.tome import TOME_PLACES
from tests.fuzz.calls import Call
from tests.fuzz.documented import Argument, Sizes, arguments_of, factor, ids_below, number, tensor
from tests.fuzz.draw import Draw
from tests.ops.cases import ARGUMENTS
from tests.test_structure import OPS

Target = Callable[[Draw], Call]
BY_NAME = {op.__name__: op for op in OPS}
# What docstrings refer to.
DESCRIBED = {**BY_NAME, "forward": ocvtp.OCPruner.forward}
# Ops that compare numbers and compute none: ids are the reference's at ties too.
COMPARE = frozenset({"resolve_picks", "farthest_select", "match_select"})


@cache
def pruner_of(config: ocvtp.PrunerConfig, dtype: torch.dtype, frozen: bool) -> ocvtp.OCPruner:
    pruner = random_pruner(config, dtype=dtype)
    return pruner.freeze() if frozen else pruner


def config_of(draw: Draw) -> ocvtp.PrunerConfig:
    """Few enough that pruners are made once."""
    widths = draw.choice(((12, 20, 10), (1, 1, 1), (7, 5, 3), (33, 40, 65), (16, 64, 32)))
    dim = widths[2]
    return small_config(
        enc_in_dim=widths[0],
        enc_dims=draw.choice((widths[1:], (dim,))),
        enc_ln=draw.choice(("pre", "post", None)),
        init_dim=dim,
        agg_embed_dim=dim,
        agg_num_iter=draw.choice((1, 3)),
        init_num=draw.choice((1, 7)),
    )


def packed(draw: Draw, sizes: Sizes, dtype: torch.dtype) -> list[Tensor]:
    """The list that `prune` takes."""
    config = config_of(draw)
    sizes.known |= {"C_in": config.enc_in_dim, "D": config.init_dim}
    return pruner_of(config, dtype, False).packed()


def of_a_step(draw: Draw, sizes: Sizes, dtype: torch.dtype) -> list[Tensor]:
    """The list that `slot_attention_step` takes, of `StepWeights`."""
    dim, hidden = sizes["D"], sizes["F"]
    matrices = {"w_q": dim, "w_ih": 3 * dim, "w_hh": 3 * dim, "ffn_w1": hidden, "ffn_w2": dim}
    vectors = {"b_ih": 3 * dim, "b_hh": 3 * dim, "ffn_b1": hidden}
    columns = {"ffn_w2": hidden}

    def weight(name: str) -> Tensor:
        if name not in matrices:
            return draw.normal(vectors.get(name, dim), dtype=dtype)
        width = columns.get(name, dim)
        return draw.normal(matrices[name], width, dtype=dtype) * width**-0.5

    return [weight(name) for name in StepWeights._fields]


LISTS = {"OCPruner.packed": packed, "StepWeights": of_a_step}


def documented(
    draw: Draw, function: Callable[..., Any], sizes: Sizes, dtype: torch.dtype, given: Any = ()
) -> dict[str, Any]:
    """Arguments as the docstring has them, where it does; else those of ``given``, in order."""
    described = arguments_of(function, DESCRIBED)
    parameters = inspect.signature(function).parameters
    given = dict(zip(parameters, given, strict=False))
    kinds = get_type_hints(function)
    made: dict[str, Any] = {}

    def is_left_out(name: str) -> bool:
        optional = parameters[name].default is not inspect.Parameter.empty
        return optional and draw.chance(0.3)

    def of_lists(name: str, argument: Argument) -> Any:
        make = next((make for word, make in LISTS.items() if word in argument.said), None)
        return given.get(name) if make is None else make(draw, sizes, dtype)

    unknown = Argument("", ())
    # Lists fix sizes that tensors follow; ids follow numbers.
    order = ("weights", *(name for name in parameters if name != "weights"))
    later = [name for name in order if described.get(name, unknown).layouts]
    for name in order:
        if name not in parameters or name in later:
            continue
        argument, kind = described.get(name, unknown), kinds.get(name)
        options = get_args(kind)
        kind = next((one for one in (bool, int, float, str) if one in (kind, *options)), None)
        if kind is None:
            made[name] = of_lists(name, argument)
        elif type(None) in options and draw.chance(0.5):
            made[name] = None
        elif not is_left_out(name):
            made[name] = number(draw, name, kind, argument, sizes, given.get(name))
    for name in later:
        argument = described[name]
        if type(None) in get_args(kinds.get(name)) and draw.chance(0.4):
            made[name] = None
        else:
            made[name] = tensor(draw, argument, sizes, dtype, ids_below(argument, made, sizes))
    return {name: made[name] for name in parameters if name in made}


def sizes_among(function: Callable[..., Any]) -> frozenset[str]:
    """Arguments that are a size, as K or N, or that no docstring describes, without a bound."""
    described = arguments_of(function, DESCRIBED)
    unknown, names = Argument("K", ()), inspect.signature(function).parameters
    saids = {name: described.get(name, unknown).said for name in names}
    return frozenset(
        name
        for name, said in saids.items()
        if re.match(r"[A-Z]\b", said) and not re.search(r"\b1 to ", said)
    )


@dataclass
class OpTarget:
    """One op, by its public function or through ``torch.ops``."""

    name: str

    def __call__(self, draw: Draw) -> Call:
        op, dtype = BY_NAME[self.name], draw.dtype()
        # What the docstring does not describe is as in the op's own tests.
        given = ARGUMENTS[self.name](batch=2, dtype=dtype)
        made = documented(draw, op, Sizes(draw), dtype, given)
        overload = getattr(torch.ops.ocvtp, self.name).default
        outputs = tuple(result.name for result in overload._schema.returns)
        returned = (inspect.getdoc(op) or "").split("Returns:")[1].split("Raises:")[0]
        # Its oracle gives the attention too.
        is_step = self.name == "slot_attention_step"
        reference = first_of(op.reference) if is_step else op.reference
        parameters = inspect.signature(op).parameters
        is_direct = draw.chance(0.3)
        return Call(
            by_schema_names(overload) if is_direct else op,
            made,
            frozenset({*parameters, *(SCHEMA_NAMES.get(name, name) for name in parameters)}),
            oracle=reference,
            plain=reference,
            fake=True,
            rows={"tokens": "final_tokens"} if {"tokens", "ids"} <= set(outputs) else {},
            kept="ascending" in returned,
            compares=self.name in COMPARE,
            sizes=sizes_among(op),
            remembered=frozenset(
                name
                for name, argument in arguments_of(op, DESCRIBED).items()
                if "its result" in argument.said
            ),
            is_direct=is_direct,
            output_names=outputs,
        )


def first_of(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *args, **kwargs: function(*args, **kwargs)[0]


def by_schema_names(overload: Any) -> Callable[..., Any]:
    """The op by the names that its schema has."""

    def call(*args: Any, **kwargs: Any) -> Any:
        return overload(*args, **{SCHEMA_NAMES.get(n, n): value for n, value in kwargs.items()})

    return call


def on_reference(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function with its ops in plain PyTorch."""

    def call(*args: Any, **kwargs: Any) -> Any:
        with use_backend("reference"):
            return function(*args, **kwargs)

    return call


def prune_with_prepared(weights: Any, start: Any, **given: Any) -> Any:
    """`prune` on a list that `prepare` made."""
    return ops.prune(weights=ocvtp.prepare(weights, start), **given)


def prune_without(start: Any, **given: Any) -> Any:
    return ops.prune.reference(**given)


def prepared(draw: Draw) -> Call:
    """`prepare`, and what `prune` makes of its list."""
    call = OpTarget("prune")(draw)
    slots = call.arguments["slots_init"]
    if draw.chance(0.7) and slots.shape[0]:
        # All images begin alike, with the slots that the list has a product of.
        slots = slots[:1].expand_as(slots)
    start = None if draw.chance(0.3) or not slots.shape[0] else slots[:1]
    arguments = {**call.arguments, "slots_init": slots, "start": start}
    return replace(
        call,
        function=prune_with_prepared,
        arguments=arguments,
        names=call.names | {"start"},
        oracle=prune_without,
        plain=prune_without,
        fake=False,
    )


# Methods whose tokens are no rows of the given ones.
MERGE = frozenset({"vlm-pruner", "visionzip", "prumerge", "prumerge+", "sparsevlm", "apet", "tome"})
# Options that make two calls differ.
FRESH = frozenset({("sparsevlm", "as_published")})
INPUTS = tuple(field for field in SelectorInputs._fields if field not in ("valid", "num_heads"))


@dataclass
class SelectorTarget:
    """A method of `METHODS`, by `select` or as a selector of `SelectorInputs`."""

    method: str

    def __call__(self, draw: Draw) -> Call:
        options = self._options(draw)
        sizes, dtype = Sizes(draw), draw.dtype()
        sizes.known["D"] = draw.choice((1, 2, 3, 4)) * options.get("heads", 1)
        made = documented(draw, select, sizes, dtype)
        for left_out in ("method", "options"):
            made.pop(left_out, None)
        made["grid"] = (rows := factor(draw, sizes["N"]), sizes["N"] // rows)
        made.setdefault("budget", draw.randint(1, sizes["N"]))
        needed = make_selector(self.method, **options).needs
        described = arguments_of(select, DESCRIBED)
        for name in needed & described.keys() - {"grid"}:
            if made.get(name) is None:
                made[name] = tensor(draw, described[name], sizes, dtype, 1)
        if made.get("text") is not None and made.get("text_tokens") is None:
            made["text_tokens"] = tensor(draw, described["text_tokens"], sizes, dtype, 1)
        if draw.chance(0.5):
            function = partial(select, method=self.method)
        else:
            function = partial(as_selector, self.method)
            tokens = made.pop("tokens")
            made = {"reference_tokens": tokens, "final_tokens": tokens, **made}
            made |= {"num_heads": draw.choice((None, 1)), "valid": None}
            if draw.chance(0.15):
                made["valid"] = draw.mask(tokens.shape[:2], 0.5)
                made["valid"][:, : made["budget"]] = True
        published = options.get("as_published", False)
        rows = {} if self.method in MERGE or published else {"tokens": next(iter(made))}
        return Call(
            function,
            {**made, **options},
            frozenset({*made, *options, *SelectorInputs._fields, "tokens"}),
            oracle=on_reference(function),
            plain=on_reference(function),
            rows=rows,
            kept=True,
            is_padded=published,
            repeats_ids=self.method == "divprune" and published,
            ignores_autocast=True,
            has_gradients=False,
        )

    def _options(self, draw: Draw) -> dict[str, Any]:
        """Some of the method's own, in range."""
        make = METHODS[self.method]
        kinds = {
            "bool": lambda: draw.chance(0.5),
            "int": lambda: draw.randint(1, 5),
            "float": lambda: draw.choice((0.0, 0.3, 0.5, 1.0)),
        }
        words = {"place": TOME_PLACES if self.method == "tome" else PLACES, "score": SCORES}
        fixed = getattr(make, "keywords", {})
        found = {
            name: str(one.annotation).partition(" ")[0]
            for name, one in inspect.signature(make).parameters.items()
            if name not in fixed and (self.method, name) not in FRESH
        }
        return {
            name: draw.choice(words[name]) if name in words else kinds[kind]()
            for name, kind in found.items()
            if (kind in kinds or name in words) and draw.chance(0.3)
        }


def as_selector(method: str, budget: Any, **given: Any) -> Any:
    """The method's selector on `SelectorInputs`."""
    fields = {name: given.pop(name) for name in list(given) if name in SelectorInputs._fields}
    return run_selector(make_selector(method, **given), SelectorInputs(**fields), budget)


@dataclass
class PrunerTarget:
    """A method of `OCPruner`, frozen or not."""

    method: str

    def __call__(self, draw: Draw) -> Call:
        config, dtype, frozen = config_of(draw), draw.dtype(), draw.chance(0.5)
        pruner = pruner_of(config, dtype, frozen)
        plain_pruner, exact = (copy_of(config, dtype, to) for to in (dtype, torch.float64))
        function = getattr(pruner, self.method)
        sizes = Sizes(draw, {"C_in": config.enc_in_dim, "D": config.init_dim})
        made = documented(draw, function, sizes, dtype)
        if self.method in ("forward", "attend", "pick"):
            oracle = partial(with_slots_of, pruner, getattr(exact, self.method), self.method)
            plain = partial(with_slots_of, pruner, getattr(plain_pruner, self.method), self.method)
        else:
            oracle, plain = getattr(exact, self.method), function
        return Call(
            function,
            made,
            frozenset(inspect.signature(function).parameters) | {"weights"},
            oracle=oracle,
            plain=plain,
            rows={"tokens": "final_tokens"} if self.method == "forward" else {},
            kept=self.method == "forward",
            sizes=sizes_among(function),
        )


@cache
def copy_of(config: ocvtp.PrunerConfig, dtype: torch.dtype, to: torch.dtype) -> ocvtp.OCPruner:
    """The same weights in another dtype, without gradients."""
    return copy.deepcopy(pruner_of(config, dtype, False)).to(to).requires_grad_(False)


def with_slots_of(
    pruner: ocvtp.OCPruner, function: Callable[..., Any], method: str, **given: Any
) -> Any:
    """A method with the initial slots that another pruner samples."""
    tokens, dtype = given["reference_tokens"], given["reference_tokens"].dtype
    if given.get("slots_init") is None:
        count = given.get("num_slots")
        if count is None:
            budget, top_k = given.get("budget"), given.get("top_k", 1)
            budget = pruner.config.init_num if budget is None else budget
            count = max(1, budget // top_k) if method == "forward" else pruner.config.init_num
        slots = pruner.sample_slots(len(tokens), count).detach().to(dtype)
        given = {**given, "slots_init": slots}
    return function(**given)


def targets() -> dict[str, Target]:
    """All by name, in an order that depends on nothing else."""
    found: dict[str, Target] = {name: OpTarget(name) for name in sorted(BY_NAME)}
    found |= {f"select {method}": SelectorTarget(method) for method in METHODS}
    found["prepare"] = prepared
    methods = ("forward", "pick", "attend", "sample_slots", "packed")
    return found | {f"OCPruner.{method}": PrunerTarget(method) for method in methods}
