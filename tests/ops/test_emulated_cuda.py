"""Every CUDA op of ``ocvtp_native``, binding and kernels, on the CPU."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import cycle, repeat
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ocvtp_kernels import ops
from ocvtp_kernels.ops.argmax_gather import gather_tokens
from ocvtp_kernels.ops.attention_from_rows import _native as attention_from_rows
from ocvtp_kernels.ops.gru_cell import gru_gates
from ocvtp_kernels.ops.slot_argmax import slot_topk
from ocvtp_kernels.ops.slot_attention import reference as slots
from tests.cases import assert_within_budget, random_tokens
from tests.emulated import emulated_ops, loaded, on_gpu, views  # noqa: F401
from tests.ops.attention_from_rows.test_attention_from_rows import of_shape

pytestmark = pytest.mark.usefixtures("emulated", "poisoned")

HALF = [torch.float16, torch.bfloat16]
DTYPES = pytest.mark.parametrize("dtype", [*HALF, torch.float32])
WIDTHS = pytest.mark.parametrize("width", [1, 7, 64, 200, 1024])
EPS = 1e-5

# Batch, slots, tokens, depth, width: one tile and more of each, whole and not.
ATTENTION_SHAPES = [
    (1, 1, 1, 8, 8),
    (2, 7, 31, 24, 40),
    (1, 64, 50, 64, 72),
    (1, 65, 100, 72, 9),
    (1, 130, 33, 9, 24),
    (1, 33, 200, 16, 72),
]


def norm(x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], eps=EPS)


@DTYPES
@WIDTHS
def test_layer_norm_keeps_the_error_budget(emulated: Any, dtype: torch.dtype, width: int) -> None:
    x = random_tokens(2, 3, 2, width, dtype=dtype, outliers=True) + 3
    for view in views(x):
        got = emulated.layer_norm(view, EPS)
        assert_within_budget(got, norm(x), norm(x.double()))


@DTYPES
@WIDTHS
def test_bias_gelu_keeps_the_error_budget(emulated: Any, dtype: torch.dtype, width: int) -> None:
    x, bias = 3 * random_tokens(2, 3, 2, width, dtype=dtype), random_tokens(width, dtype=dtype)
    oracle = F.gelu(x.double() + bias.double())
    for view in views(x.clone()):
        emulated.bias_gelu_(view, bias)
        assert_within_budget(view, F.gelu(x + bias), oracle)
        view.copy_(x)


def statistics_of(x: Tensor, weight: Tensor) -> Tensor:
    """Mean, deviation and the constant of slots' rows, by formula."""
    variance, mean = torch.var_mean(x, -1, correction=0)
    return torch.stack([mean, (variance + EPS).sqrt(), norm(x) @ weight.to(x.dtype)], -1)


@DTYPES
@WIDTHS
def test_start_keeps_the_error_budget(emulated: Any, dtype: torch.dtype, width: int) -> None:
    tokens = random_tokens(2, 3, width, dtype=dtype, outliers=True) + 3
    slots = random_tokens(2, 5, width, seed=1, dtype=dtype)
    weight = random_tokens(width, seed=2, dtype=dtype)
    plain, oracle = statistics_of(slots, weight), statistics_of(slots.double(), weight)
    for given in zip(views(tokens), views(slots), strict=True):
        x, normed, statistics = emulated.start(*given, weight, EPS)
        assert_within_budget(x, norm(tokens), norm(tokens.double()))
        assert_within_budget(normed, norm(slots), norm(slots.double()))
        assert statistics.dtype == torch.float32
        assert_within_budget(statistics.to(dtype), plain, oracle)


@DTYPES
@WIDTHS
def test_norm_slots_keeps_the_error_budget(emulated: Any, dtype: torch.dtype, width: int) -> None:
    x, y = random_tokens(2, 3, width), random_tokens(2, 3, width, seed=1, dtype=dtype)
    weight = random_tokens(width, seed=2, dtype=dtype)
    oracle, plain = x.double() + y.double(), x + y
    for x_view, y_view in zip(views(x), views(y), strict=True):
        total, normed, statistics = emulated.norm_slots(x_view, y_view, weight, EPS)
        assert_within_budget(total, plain, oracle)
        assert_within_budget(normed, norm(plain).to(dtype), norm(oracle))
        exact, rough = statistics_of(oracle, weight), statistics_of(plain.to(dtype), weight)
        assert_within_budget(statistics.to(dtype), rough, exact)


@DTYPES
@pytest.mark.parametrize(("rows", "width"), [(1, 1), (3, 64), (2, 513)])
@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("shifted", [False, True])
def test_gru_gates_keep_the_error_budget(
    emulated: Any, dtype: torch.dtype, rows: int, width: int, wide: bool, shifted: bool
) -> None:
    x, h_gates = (random_tokens(2, rows, 3 * width, seed=i, dtype=dtype) for i in range(2))
    h = random_tokens(2, rows, width, seed=2, dtype=torch.float32 if wide else dtype)
    shift, mass = random_tokens(3 * width, seed=3, dtype=dtype), 10 * torch.rand(2, rows)

    def formula(x: Tensor, h_gates: Tensor, h: Tensor, shift: Tensor, mass: Tensor) -> Tensor:
        if shifted:
            x = x + (mass / (mass + EPS)).unsqueeze(-1).to(x.dtype) * shift
        return gru_gates(x, h_gates, h)

    inputs = (x, h_gates, h, shift, mass)
    oracle, plain = formula(*(t.double() for t in inputs)), formula(*inputs)
    extra = (shift, mass) if shifted else (None, None)
    for given in zip(*(views(t) for t in inputs[:3]), strict=True):
        state, normed = emulated.gru_gates(*given, *extra, None, None, None, EPS, True)
        assert state.dtype == torch.float32
        assert_within_budget(state.to(plain.dtype), plain, oracle)
        assert_within_budget(normed, norm(plain).to(dtype), norm(oracle))
        bare, none = emulated.gru_gates(*given, *extra, None, None, None, EPS, False)
        assert torch.equal(bare, state.to(h.dtype)) and none.shape == (0,)


@DTYPES
@pytest.mark.parametrize("wide", [False, True])
def test_gru_gates_of_normed_states_that_images_share(
    emulated: Any, dtype: torch.dtype, wide: bool
) -> None:
    rows, width = 3, 40
    x = random_tokens(2, rows, 3 * width, dtype=dtype)
    h = 5 + 2 * random_tokens(1, rows, width, seed=1, dtype=torch.float32 if wide else dtype)
    weight, bias = random_tokens(3 * width, width, seed=2) / 6, random_tokens(3 * width, seed=3)
    weight, bias = weight.to(dtype), bias.to(dtype)

    def formula(x: Tensor, h: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return gru_gates(x, F.linear(h.to(x.dtype), weight, bias), h)

    oracle, plain = (
        formula(*(t.double() for t in (x, h, weight, bias))),
        formula(x, h, weight, bias),
    )
    statistics = statistics_of(h.double(), torch.zeros(width)).float()
    sums = weight.double().sum(1).to(dtype)
    # As a slice of a product with more columns.
    h_gates = F.pad(F.linear(norm(h).to(dtype), weight), (0, 8), value=torch.nan)[..., :-8]
    state, _ = emulated.gru_gates(x, h_gates, h, None, None, statistics, sums, bias, EPS, True)
    assert state.shape == (2, rows, width)
    assert_within_budget(state.to(plain.dtype), plain, oracle)


def logits_of(q: Tensor, k: Tensor, constant: Tensor | None, mask: Tensor | None) -> Tensor:
    logits = slots.slot_logits(q, k, None)
    if constant is not None:
        logits = logits + constant.to(logits.dtype).unsqueeze(-1)
    return logits if mask is None else logits.masked_fill(~mask.unsqueeze(-1), -torch.inf)


class AttentionCase:
    """Arguments of slot_attention and slot_argmax."""

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype, optional: bool = True) -> None:
        batch, num_slots, num_tokens, depth, width = shape
        self.q = random_tokens(batch, num_slots, depth, dtype=dtype)
        self.k = random_tokens(batch, num_tokens, depth, seed=1, dtype=dtype)
        self.v = random_tokens(batch, num_tokens, width, seed=2, dtype=dtype)
        self.constant = random_tokens(batch, num_slots, seed=3) if optional else None
        self.mask = random_tokens(batch, num_slots, seed=4) > -0.5 if optional else None
        if self.mask is not None:
            self.mask[:, 0] = True
        self.scale = depth**-0.5

    def attention(self) -> list[Tensor]:
        """updates, mass and attention by formula, in this dtype."""
        attention = logits_of(self.q, self.k, self.constant, self.mask).softmax(dim=1)
        return [*slots.weighted_mean(attention, self.v, EPS), attention]

    def constants(self) -> Iterator[Tensor | None]:
        """The constant, in one layout after another: also as a column of a wider tensor."""
        if self.constant is None:
            return repeat(None)
        column = torch.full((*self.constant.shape, 3), torch.nan)
        column[..., 1] = self.constant
        return cycle([column[..., 1], *views(self.constant)])

    def double(self) -> AttentionCase:
        """The same numbers in float64."""
        wide = object.__new__(AttentionCase)
        wide.__dict__ = dict(self.__dict__)
        wide.q, wide.k, wide.v = self.q.double(), self.k.double(), self.v.double()
        return wide


@DTYPES
@pytest.mark.parametrize("optional", [False, True])
@pytest.mark.parametrize("shape", ATTENTION_SHAPES)
def test_slot_attention_keeps_the_error_budget(
    emulated: Any, shape: tuple[int, ...], optional: bool, dtype: torch.dtype
) -> None:
    case = AttentionCase(shape, dtype, optional)
    plain, oracle = case.attention(), case.double().attention()
    given = zip(views(case.q), views(case.k), views(case.v), case.constants(), strict=False)
    for q, k, v, constant in given:
        outputs = emulated.slot_attention(q, k, v, constant, case.mask, case.scale, EPS, True)
        for got, rough, exact in zip(outputs, plain, oracle, strict=True):
            assert_within_budget(got.to(dtype), rough, exact)
    *same, none = emulated.slot_attention(q, k, v, constant, case.mask, case.scale, EPS, False)
    assert none.shape == (0,)
    assert all(torch.equal(a, b) for a, b in zip(same, outputs, strict=False))


@DTYPES
@pytest.mark.parametrize(
    ("shape", "top_k"), list(zip(ATTENTION_SHAPES, [1, 3, 1, 1, 3, 1], strict=True))
)
def test_slot_argmax_picks_the_largest(
    emulated: Any, shape: tuple[int, ...], top_k: int, dtype: torch.dtype
) -> None:
    case = AttentionCase(shape, dtype)
    exact = slots.log_attention(logits_of(case.q.double(), case.k.double(), case.constant, None))
    expected, max_logprob = slot_topk(exact, top_k)
    for q, k, constant in zip(views(case.q), views(case.k), case.constants(), strict=False):
        topk_ids, got, token_score = emulated.slot_argmax(q, k, constant, case.scale, top_k, True)
        # Products of half numbers are exact in float32, so every dtype has the exact ids.
        assert torch.equal(topk_ids, expected)
        torch.testing.assert_close(got.double(), max_logprob, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(token_score.double(), exact.amax(1), rtol=1e-5, atol=1e-5)
    *same, none = emulated.slot_argmax(q, k, case.constant, case.scale, top_k, False)
    assert torch.equal(same[0], topk_ids) and torch.equal(same[1], got) and none.shape == (0,)


@DTYPES
@pytest.mark.parametrize("shape", ATTENTION_SHAPES)
@pytest.mark.parametrize("crowd", [1, 5, None])
def test_packed_topk_ids_keep_the_same_tokens(
    emulated: Any, shape: tuple[int, ...], crowd: int | None, dtype: torch.dtype
) -> None:
    case = AttentionCase(shape, dtype)
    # Few distinct tokens, so that slots collide and scores tie; some NaN.
    k = case.k[:, :crowd].repeat(1, shape[2], 1)[:, : shape[2]].contiguous()
    k[:, shape[2] // 2] = torch.nan
    argmax = (case.q, k, case.constant, 1.0)
    topk_ids, max_logprob, token_score = emulated.slot_argmax(*argmax, 1, True)
    packed, again = emulated.slot_argmax_packed(*argmax, True)
    assert torch.equal(again.nan_to_num(), token_score.nan_to_num())
    for padding in (None, token_score, random_tokens(shape[0], shape[2], seed=5, dtype=dtype)):
        for budget in {1, (shape[2] + 1) // 2, shape[2]}:
            expected = emulated.resolve_gather(topk_ids, max_logprob, padding, case.v, budget)
            got = emulated.resolve_gather_packed(packed, padding, case.v, budget)
            assert all(map(torch.equal, got, expected))


def test_slot_argmax_gives_ties_to_the_lowest_id(emulated: Any) -> None:
    q = random_tokens(2, 7, 16)
    k = random_tokens(2, 1, 16, seed=1).expand(-1, 90, -1)
    topk_ids, _, _ = emulated.slot_argmax(q, k, None, 0.25, 3, False)
    assert torch.equal(topk_ids, torch.arange(3).expand(2, 7, 3))


@pytest.mark.parametrize("scores", [*HALF, torch.float32, torch.float64])
@pytest.mark.parametrize("seed", range(6))
def test_ids_and_tokens_are_the_references_exactly(
    emulated: Any, scores: torch.dtype, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)

    def number(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=generator))

    def few(*shape: int) -> Tensor:
        """Few distinct values, so that ties are common, and NaN."""
        values = torch.randint(-3, 4, shape, generator=generator).to(scores)
        return values.masked_fill(torch.rand(shape, generator=generator) < 0.1, torch.nan)

    num_tokens, num_slots = number(1, 119), number(1, 40)
    top_k, budget = min(num_tokens, number(1, 3)), number(1, num_tokens)
    crowd = max(top_k, number(1, num_tokens))
    order = torch.rand(2, num_slots, crowd, generator=generator)
    topk_ids, max_logprob = order.argsort(-1)[..., :top_k], few(2, num_slots)
    received = few(2, num_tokens) if seed % 3 else None
    expected = ops.resolve_picks.reference(topk_ids, max_logprob, received, budget, num_tokens)
    ids = emulated.resolve_picks(topk_ids, max_logprob, received, budget, num_tokens)
    assert torch.equal(ids, expected)
    final = random_tokens(2, num_tokens, number(1, 70), dtype=scores)
    kept = gather_tokens(final, expected)
    scores_of = repeat(None) if received is None else cycle(views(received))
    given = zip(views(final), cycle(views(max_logprob)), scores_of, strict=False)
    for final_view, max_logprob_view, received_view in given:
        tokens, ids = emulated.resolve_gather(
            topk_ids, max_logprob_view, received_view, final_view, budget
        )
        assert torch.equal(ids, expected) and torch.equal(tokens, kept)


@DTYPES
@pytest.mark.parametrize("masks", [(False, False), (True, False), (False, True), (True, True)])
# So many rows that the largest error of plain PyTorch is not one row's luck.
@pytest.mark.parametrize(
    "shape",
    [(8, 6, 3, 4, 33, 24), (1, 2, 2, 70, 65, 64), (1, 8, 8, 9, 130, 100), (2, 4, 2, 40, 150, 8)],
)
def test_attention_from_rows_keeps_the_error_budget(
    shape: tuple[int, ...], masks: tuple[bool, bool], dtype: torch.dtype
) -> None:
    q, k, *given = of_shape(shape, dtype, True, masks)
    plain = ops.attention_from_rows.reference(q, k, *given)
    oracle = ops.attention_from_rows.reference(q.double(), k.double(), *given)
    for q_view, k_view in zip(views(q), views(k), strict=True):
        got = attention_from_rows(*map(on_gpu, (q_view, k_view, *given)), None, None)
        assert_within_budget(got, plain, oracle)


def every_op(ops: Any, dtype: torch.dtype, images: slice) -> dict[str, Tensor]:
    """Every output of every op on these of four images."""

    def rows(width: int, seed: int, kind: torch.dtype = dtype) -> Tensor:
        return random_tokens(4, 3, width, seed=seed, dtype=kind)[images].reshape(-1, width)

    # One image leaves the emulated GPU idle, four do not: blocks take one group of tokens, or all.
    case = AttentionCase((4, 9, 200, 24, 40), dtype)
    assert case.constant is not None and case.mask is not None
    q, k, v, constant, mask = (
        t[images] for t in (case.q, case.k, case.v, case.constant, case.mask)
    )
    heads_q, heads_k = (random_tokens(4, 2, n, 16, seed=n, dtype=dtype)[images] for n in (40, 50))
    weight = random_tokens(24, seed=8, dtype=dtype)
    activated = rows(40, 6).clone()
    ops.bias_gelu_(activated, random_tokens(40, seed=7, dtype=dtype))
    outputs = {
        "layer_norm": [ops.layer_norm(q, EPS)],
        "bias_gelu_": [activated],
        "start": ops.start(q, rows(24, 1), weight, EPS),
        "norm_slots": ops.norm_slots(rows(24, 1, torch.float32), rows(24, 2), weight, EPS),
        "gru_gates": ops.gru_gates(rows(72, 3), rows(72, 4), rows(24, 5), *[None] * 5, EPS, True),
        "slot_attention": ops.slot_attention(q, k, v, constant, mask, 0.2, EPS, True),
        "slot_argmax": ops.slot_argmax(q, k, constant, 0.2, 2, True),
        "received": [
            ops.attention_from_rows(queries, heads_k, None, None, 0.2)
            for queries in (heads_q, heads_q[:, :, :1])
        ],
    }
    topk_ids, max_logprob, token_score = outputs["slot_argmax"]
    outputs["resolve_picks"] = [ops.resolve_picks(topk_ids, max_logprob, token_score, 30, 200)]
    outputs["resolve_gather"] = ops.resolve_gather(topk_ids, max_logprob, token_score, k, 30)
    outputs["packed"] = ops.slot_argmax_packed(q, k, constant, 0.2, True)
    outputs["gather_packed"] = ops.resolve_gather_packed(*outputs["packed"], k, 30)
    return {f"{op} {i}": out for op, outs in outputs.items() for i, out in enumerate(outs)}


@DTYPES
def test_batch_invariant_and_repeatable(emulated: Any, dtype: torch.dtype) -> None:
    together = every_op(emulated, dtype, slice(None))
    alone, again = (every_op(emulated, dtype, slice(3, 4)) for _ in range(2))
    for name, expected in together.items():
        assert torch.equal(alone[name], expected.unflatten(0, (4, -1))[3]), name
        assert torch.equal(again[name], alone[name]), name


@DTYPES
def test_no_images_give_no_outputs(emulated: Any, dtype: torch.dtype) -> None:
    one = every_op(emulated, dtype, slice(1))
    for name, got in every_op(emulated, dtype, slice(0)).items():
        assert got.shape == (0, *one[name].shape[1:]) and got.dtype == one[name].dtype, name
