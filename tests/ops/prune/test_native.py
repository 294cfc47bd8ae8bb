"""``ocvtp::prune`` on the native CPU kernels, end to end, and its Linears."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import Tensor

from ocvtp_kernels import native, ops
from ocvtp_kernels.dtypes import product_dtype
from ocvtp_kernels.ops.argmax_gather import gather_tokens
from ocvtp_kernels.ops.prune.native.encode import EncodeLayers, encode
from ocvtp_kernels.ops.prune.native.linear import Layer, linear, padded
from ocvtp_kernels.ops.prune.native.pipeline import prune
from ocvtp_kernels.ops.prune.reference import encode_folded
from ocvtp_kernels.ops.prune.weights import unpack
from tests.cases import (
    ISAS,
    PruneCase,
    assert_kept,
    assert_within_budget,
    instructions,
    random_tokens,
    small_config,
)

REASON = native.missing_reason("cpu")
pytestmark = [
    pytest.mark.skipif(REASON is not None, reason=str(REASON)),
    pytest.mark.usefixtures("poisoned"),
]

MEDIUM = {"enc_in_dim": 96, "enc_dims": (130, 64), "init_dim": 64, "agg_embed_dim": 64}
FULL = {
    "enc_in_dim": 1024,
    "enc_dims": (2048, 512),
    "init_dim": 512,
    "agg_embed_dim": 512,
    "agg_ffn_dim": 2048,
}


def kept(
    case: PruneCase, dtype: torch.dtype, importance: Tensor | None, budget: int, top_k: int = 1
) -> Tensor:
    """The kernels' ids, and their tokens checked."""
    tokens, ids = prune(*case.arguments(dtype), importance, budget, top_k)
    assert_kept(ids, budget, case.final_tokens.shape[1])
    assert torch.equal(tokens, gather_tokens(case.final_tokens, ids))
    return ids


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("enc_ln", ["pre", "post", None])
@pytest.mark.parametrize("enc_dims", [(10,), (20, 10), (20, 15, 10)])
def test_every_config_keeps_the_references_tokens(
    isa: str, dtype: torch.dtype, enc_ln: str | None, enc_dims: tuple[int, ...]
) -> None:
    case = PruneCase(small_config(enc_ln=enc_ln, enc_dims=enc_dims), 2, 33, 7)
    with instructions(isa):
        assert torch.equal(kept(case, dtype, None, 7), case.oracle(None, 7, 1))


@pytest.mark.parametrize("num_iter", [1, 2, 5])
@pytest.mark.parametrize("top_k", [1, 3])
def test_any_number_of_iterations_and_picks(num_iter: int, top_k: int) -> None:
    case = PruneCase(small_config(agg_num_iter=num_iter), 2, 33, 7)
    assert torch.equal(kept(case, torch.float32, None, 9, top_k), case.oracle(None, 9, top_k))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(("num_slots", "budget", "top_k"), [(7, 7, 1), (7, 3, 1), (4, 9, 3)])
def test_picks_are_what_prune_resolves(
    dtype: torch.dtype, num_slots: int, budget: int, top_k: int
) -> None:
    case = PruneCase(small_config(), 3, 33, num_slots)
    case.assert_picks_make_the_ids("cpu", dtype, budget, top_k)


@pytest.mark.parametrize("num_slots", [1, 7, 64, 65, 192])
@pytest.mark.parametrize("num_tokens", [1, 50, 577])
def test_any_number_of_slots_and_tokens(num_slots: int, num_tokens: int) -> None:
    batch = 3
    case = PruneCase(small_config(), batch, num_tokens, num_slots)
    budget = min(num_slots, num_tokens)
    importance = random_tokens(batch, num_tokens, seed=3)
    ids = kept(case, torch.float32, importance, budget)
    assert torch.equal(ids, case.oracle(importance, budget, 1))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_an_empty_batch(dtype: torch.dtype) -> None:
    assert kept(PruneCase(small_config(), 0, 33, 7), dtype, None, 7).shape == (0, 7)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_slots_of_full_width_lose_no_attention(dtype: torch.dtype) -> None:
    case = PruneCase(small_config(**FULL), 1, 577, 64)
    importance = random_tokens(1, 577, seed=3)
    ids = kept(case, dtype, importance, 64)
    if dtype == torch.float32:
        assert torch.equal(ids, case.oracle(importance, 64, 1))
    plain = ops.prune.reference(*case.arguments(dtype), importance, 64)[1]
    assert case.regret(ids).max() <= max(1e-2, 2 * case.regret(plain).max())


def test_ids_are_batch_invariant() -> None:
    case = PruneCase(small_config(), 5, 90, 7)
    together = kept(case, torch.float32, None, 12)
    reference_tokens, final_tokens, weights, slots = case.arguments(torch.float32)
    for image in range(5):
        one = slice(image, image + 1)
        alone = prune(reference_tokens[one], final_tokens[one], weights, slots[one], None, 12)[1]
        assert torch.equal(alone, together[one])


@pytest.mark.parametrize("shape", [(1, 1), (3, 50), (2, 577)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_encode_keeps_the_error_budget(shape: tuple[int, int], dtype: torch.dtype) -> None:
    case = PruneCase(small_config(**MEDIUM), *shape, 7)
    reference_tokens, _, weights, _ = case.arguments(dtype)
    exact = encode_folded(reference_tokens.double(), unpack([w.double() for w in weights]))
    plain = encode_folded(reference_tokens, unpack(weights))
    encoded = encode(reference_tokens, EncodeLayers.of(unpack(weights)))
    assert encoded.dtype == product_dtype(dtype, encoded.device)
    got = torch.ops.ocvtp_native.layer_norm(encoded, 1e-5)
    assert_within_budget(got.to(dtype), plain, exact)


@pytest.mark.skipif(
    product_dtype(torch.bfloat16, torch.device("cpu")) == torch.float32,
    reason="neither AVX-512 BF16 nor AMX here",
)
def test_bfloat16_products_are_as_good_as_plain_ones() -> None:
    x = random_tokens(70, 200, dtype=torch.bfloat16, outliers=True)
    weight = random_tokens(33, 200, seed=1, dtype=torch.bfloat16)
    bias = random_tokens(33, seed=2, dtype=torch.bfloat16)
    for gelu in (False, True):
        exact, plain = (
            torch.nn.functional.linear(x.to(dtype), weight.to(dtype), bias.to(dtype))
            for dtype in (torch.float64, torch.bfloat16)
        )
        if gelu:
            exact, plain = (torch.nn.functional.gelu(value) for value in (exact, plain))
        assert_within_budget(linear(x, Layer(weight, bias), gelu), plain, exact)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float32])
def test_a_layer_is_a_linear_with_its_pack_and_without(dtype: torch.dtype) -> None:
    x, weight = random_tokens(80, 24, dtype=dtype), random_tokens(9, 24, seed=1, dtype=dtype)
    bias = torch.ones(9, dtype=dtype)
    layer = Layer.of(weight, bias, dtype)
    functional = torch.nn.functional
    exact = functional.linear(x.double(), weight.double(), bias.double())
    plain = functional.linear(x, weight, bias)
    for either in (layer, layer.packed()):
        assert_within_budget(linear(x, either), plain, exact)
        got = linear(x, either, gelu=True)
        assert_within_budget(got, functional.gelu(plain), functional.gelu(exact))
        assert linear(x[:0], either).shape == (0, 9)
        with torch.backends.mkldnn.flags(enabled=False, allow_tf32=None):
            assert_within_budget(linear(x, either), plain, exact)


def test_wide_vectors_of_any_instruction_set_compute_the_same_bits() -> None:
    gates = random_tokens(50, 3 * 37), random_tokens(50, 3 * 37, seed=1), random_tokens(50, 37)
    logits = random_tokens(2, 9, 24), random_tokens(2, 77, 24, seed=1)

    def compute() -> list[Tensor]:
        ops = torch.ops.ocvtp_native
        # Products of one-hot rows are exact, whatever sums them.
        eye = torch.eye(77).expand(2, 77, 77)
        return [
            *ops.gru_gates(*gates, None, None, None, None, None, 0.0, True),
            ops.layer_norm(gates[0], 1e-5),
            *ops.slot_attention(logits[0] @ logits[1].mT, eye, eye, None, None, 0.3, 1e-5, True),
        ]

    with instructions("avx2"):
        narrow = compute()
    with instructions("avx512"):
        wide = compute()
    assert all(torch.equal(a, b) for a, b in zip(narrow, wide, strict=True))


def test_rows_are_padded_to_few_counts_and_by_little() -> None:
    counts = {}
    for rows in range(5000):
        counts[rows] = len(padded(torch.empty(rows, 1)))
        assert rows <= counts[rows] <= rows * 33 / 32
    assert len(set(counts.values())) < 64 + 32 * 7
    assert all(counts[rows] == rows for rows in (49, 196, 256, 576, 1024, 2880, 8 * 576))


def test_padding_is_never_seen() -> None:
    layer = Layer(random_tokens(9, 24), random_tokens(9, seed=1)).packed()
    x = random_tokens(3, 23, 24, seed=2)  # 69 rows, of which 70 are made
    assert len(padded(x.flatten(0, 1))) == 70
    out = linear(x, layer)
    assert out.shape == (3, 23, 9)
    assert out.is_contiguous()
    torch.testing.assert_close(out, linear(x, layer._replace(pack=None)))


GROWTH = """
import torch
from ocvtp_kernels.ops.prune.native.linear import Layer, linear, padded


def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096 / 1e6


layer = Layer(torch.randn(512, 256), torch.randn(512)).packed()
assert layer.pack is not None
for rows in (64, 1063):
    linear(torch.randn(rows, 256), layer)
before = resident()
for rows in torch.randperm(1000)[:400].tolist():
    linear(torch.randn(64 + rows, 256), layer)
print(resident() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_photos_of_many_sizes_take_little_memory() -> None:
    # Of a fresh process: what this one has freed would be taken first.
    grown = subprocess.run(
        [sys.executable, "-c", GROWTH], capture_output=True, text=True, check=True
    )
    assert float(grown.stdout) < 150  # without padding 275
