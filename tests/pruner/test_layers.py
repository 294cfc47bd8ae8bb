"""Adapters, masks, wrappers and hooks on a pruner's layers: they count, or are named."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune, spectral_norm

from ocvtp_kernels import OCPruner, SelectorInputs
from ocvtp_kernels.ops.prune.reference import attention_logits
from ocvtp_kernels.selectors.oc_pruner import PrunerSelector
from tests.cases import assert_within_budget, random_pruner, random_tokens, small_config

TOKENS = random_tokens(2, 40, 12)
BUDGET = 7
LINEARS = (
    *("encode_project.mlp.1", "encode_project.mlp.4", "aggregat.proj_q", "aggregat.proj_k"),
    *("aggregat.proj_v", "aggregat.ffn.mlp.0", "aggregat.ffn.mlp.3"),
)
NORMS = (
    *("encode_project.mlp.0", "aggregat.norm_in", "aggregat.norm_slots_0"),
    "aggregat.norm_slots_1",
)
GRU = "aggregat.gru"


class Added(nn.Module):
    """A layer and something of its input on top, as adapters are."""

    def __init__(self, base: nn.Module, added: nn.Module) -> None:
        super().__init__()
        self.base, self.added = base, added

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.base(x) + self.added(x)
        return result


class Scaled(nn.Module):
    """A layer whose outputs have a learned scale each, as of IA3."""

    def __init__(self, base: Any) -> None:
        super().__init__()
        self.base = base
        self.scale = nn.Parameter(1 + random_tokens(*base.weight.shape[:1], dtype=torch.float32))

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.base(x) * self.scale
        return result


class Symmetric(nn.Module):
    def forward(self, matrix: Tensor) -> Tensor:
        return matrix + 0.1 * matrix.roll(1, 0)


def replace(pruner: OCPruner, name: str, make: Callable[[Any], nn.Module]) -> None:
    """Puts what is made of a layer in its place."""
    layer = make(pruner.get_submodule(name))
    pruner.set_submodule(name, layer.to(next(pruner.parameters())))


def low_rank(layer: Any) -> nn.Module:
    torch.manual_seed(0)
    width, out = layer.in_features, layer.out_features
    down, up = nn.Linear(width, 3, bias=False), nn.Linear(3, out, bias=False)
    return Added(layer, nn.Sequential(nn.Dropout(0.5), down, up))


def bottleneck(layer: Any) -> nn.Module:
    torch.manual_seed(0)
    width, out = layer.weight.shape[-1], layer.weight.shape[0]
    return Added(layer, nn.Sequential(nn.Linear(width, 3), nn.ReLU(), nn.Linear(3, out)))


def masked(layer: Any) -> nn.Module:
    return prune.ln_structured(layer, "weight", 0.3, 1, dim=0)


def with_new_weight(layer: Any) -> nn.Module:
    parametrize.register_parametrization(layer, "weight", Symmetric())
    return layer


def doubled_outputs(layer: nn.Module) -> nn.Module:
    layer.register_forward_hook(lambda module, inputs, output: 2 * output)
    return layer


def doubled_inputs(layer: nn.Module) -> nn.Module:
    layer.register_forward_pre_hook(lambda module, inputs: tuple(2 * x for x in inputs))
    return layer


ON_LINEARS: dict[str, Callable[[Any], nn.Module]] = {
    "low rank": low_rank,
    "scaled": Scaled,
    "masked": masked,
    "parametrized": with_new_weight,
    "weight norm": lambda layer: parametrizations.weight_norm(layer, dim=1),
    "spectral norm": spectral_norm,
    "outputs hooked": doubled_outputs,
    "inputs hooked": doubled_inputs,
    "compiled": lambda layer: torch.compile(layer, backend="eager"),
}
ON_NORMS: dict[str, Callable[[Any], nn.Module]] = {
    "scaled": Scaled,
    "masked": lambda layer: prune.l1_unstructured(layer, "weight", 0.4),
    "parametrized": with_new_weight,
    "outputs hooked": doubled_outputs,
    "no bias": lambda layer: nn.LayerNorm(layer.normalized_shape, bias=False),
}


def masked_gru(gru: Any) -> nn.Module:
    for name in ("weight_ih", "weight_hh", "bias_hh"):
        prune.random_unstructured(gru, name, 0.3)
    return gru


def orthogonal_gru(gru: Any) -> nn.Module:
    return parametrizations.orthogonal(gru, "weight_hh")


ON_GRUS: dict[str, Callable[[Any], nn.Module]] = {
    "masked": masked_gru,
    "orthogonal": orthogonal_gru,
    "spectral norm": lambda gru: spectral_norm(gru, "weight_ih"),
    "compiled": lambda gru: torch.compile(gru, backend="eager"),
}
CHANGED = [
    *((kind, name) for kind in ON_LINEARS for name in LINEARS),
    *((kind, name) for kind in ON_NORMS for name in NORMS),
    *((kind, GRU) for kind in ON_GRUS),
]


def changed(kind: str, name: str, dtype: torch.dtype = torch.float64) -> OCPruner:
    pruner = random_pruner(small_config(enc_dims=(20, 10)), dtype=torch.float32)
    kinds = ON_LINEARS if name in LINEARS else ON_NORMS if name in NORMS else ON_GRUS
    replace(pruner, name, kinds[kind])
    return pruner.to(dtype).eval()


def attention(pruner: OCPruner, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """By the layers, and by the folded weights."""
    slots = pruner.sample_slots(len(tokens), BUDGET)
    with torch.no_grad():
        folded = attention_logits(tokens, pruner.packed(), slots).softmax(dim=1)
        return pruner.attend(tokens, slots)[1], folded


@pytest.mark.parametrize(("kind", "name"), CHANGED)
def test_what_a_layer_computes_counts_and_is_what_is_folded(kind: str, name: str) -> None:
    pruner, tokens = changed(kind, name), TOKENS.double()
    plain, folded = attention(pruner, tokens)
    torch.testing.assert_close(folded, plain, rtol=0, atol=1e-12)
    unchanged, _ = attention(random_pruner(dtype=torch.float64), tokens)
    if kind not in ("compiled", "weight norm"):
        assert (plain - unchanged).abs().max() > 1e-6
    before = pruner(tokens, tokens, BUDGET).ids
    assert torch.equal(pruner.frozen_copy()(tokens, tokens, BUDGET).ids, before)
    assert not pruner.frozen
    assert torch.equal(pruner(tokens, tokens, BUDGET).ids, before)
    inputs = SelectorInputs(tokens, tokens)
    assert torch.equal(PrunerSelector(pruner)(inputs, BUDGET).ids, before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("kind", "name"), [("low rank", name) for name in LINEARS])
def test_folded_adapters_keep_the_error_budget(kind: str, name: str, dtype: torch.dtype) -> None:
    exact = changed(kind, name, dtype).double()
    wide, _ = attention(exact, TOKENS.to(dtype).double())
    rough, folded = attention(changed(kind, name, dtype), TOKENS.to(dtype))
    assert_within_budget(folded, rough, wide)


@pytest.fixture(params=["grad", "autocast", "cached"])
def caching(request: pytest.FixtureRequest) -> Iterator[str]:
    """What keeps a weight from one call of a layer to the next."""
    if request.param == "autocast":
        with torch.autocast("cpu", torch.bfloat16):
            yield request.param
    elif request.param == "cached":
        with parametrize.cached():
            yield request.param
    else:
        yield request.param


@pytest.mark.parametrize("rule", ["bi-level", None])
@pytest.mark.parametrize("kind", ["low rank", "scaled", "masked", "parametrized"])
@pytest.mark.parametrize("way", ["forward", "aggregate"])
def test_every_adapter_is_trained(way: str, kind: str, rule: str | None, caching: str) -> None:
    pruner = random_pruner(small_config(agg_trunc_bp=rule))
    for name in LINEARS:
        replace(pruner, name, ON_LINEARS[kind])
    replace(pruner, GRU, masked_gru if kind == "masked" else orthogonal_gru)
    pruner.train()
    # A second step finds nothing left of the first one's graph; a cache is for a single one.
    for _ in range(1 if caching == "cached" else 2):
        pruner.zero_grad()
        encoded = pruner.encode_project(TOKENS)
        out, _ = getattr(pruner.aggregat, way)(encoded, pruner.sample_slots(2, BUDGET))
        out.square().sum().backward()
        for name, parameter in pruner.named_parameters():
            assert parameter.grad is not None and parameter.grad.isfinite().all(), name
            # A bias that shifts all logits alike has the gradient zero.
            if "bias" not in name:
                assert parameter.grad.abs().sum() > 0, name


def tanh_gelu(layer: nn.Module) -> nn.Module:
    return nn.GELU("tanh")


def quantized(layer: nn.Module) -> nn.Module:
    holder = nn.Sequential(layer)
    torch.ao.quantization.quantize_dynamic(holder, {type(layer)}, inplace=True)
    return holder[0]


class Widened(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise KeyError("nothing here")


def hooked_tuple(module: nn.Module) -> nn.Module:
    module.register_forward_hook(lambda m, inputs, outputs: tuple(2 * out for out in outputs))
    return module


UNFIT: list[tuple[str, str, Callable[[Any], nn.Module]]] = [
    *(("bottleneck", name, bottleneck) for name in LINEARS),
    *(("quantized", name, quantized) for name in (*LINEARS, GRU)),
    ("quantized all", "encode_project", lambda mlp: torch.ao.quantization.quantize_dynamic(mlp)),
    ("gelu", "encode_project.mlp.2", tanh_gelu),
    ("relu", "aggregat.ffn.mlp.1", lambda layer: nn.ReLU()),
    ("hooked gelu", "encode_project.mlp.2", doubled_outputs),
    ("hooked dropout", "aggregat.ffn.mlp.2", doubled_outputs),
    ("rms", "aggregat.norm_slots_1", lambda layer: nn.RMSNorm(layer.normalized_shape)),
    ("other eps", "aggregat.norm_in", lambda layer: nn.LayerNorm(layer.normalized_shape, eps=0.1)),
    ("bias", "aggregat.proj_q", lambda layer: nn.Linear(10, 10)),
    ("hooked gru", GRU, doubled_outputs),
    ("hooked sequence", "encode_project.mlp", doubled_outputs),
    ("hooked encoding", "encode_project", doubled_outputs),
    ("hooked ffn", "aggregat.ffn", doubled_outputs),
    ("hooked slots", "aggregat", hooked_tuple),
    ("stage wrapped", "encode_project", nn.Sequential),
]


@pytest.mark.parametrize(("kind", "name", "make"), UNFIT, ids=[case[0] for case in UNFIT])
def test_what_no_weights_compute_is_named_and_runs_unfrozen(
    kind: str, name: str, make: Callable[[Any], nn.Module]
) -> None:
    pruner = random_pruner().train()
    layer = make(pruner.get_submodule(name))
    pruner.set_submodule(name, layer)
    layer.train(True)
    place = f"{name}.mlp.1" if kind == "quantized all" else name
    named = f"^{place}: expected".replace(".", r"\.")
    for freeze in (pruner.freeze, pruner.packed, pruner.frozen_copy):
        with pytest.raises(ValueError, match=named):
            freeze()
    assert not pruner.frozen and pruner.training and pruner.initializ.mean.requires_grad
    pruner.eval()
    ids = pruner(TOKENS, TOKENS, BUDGET).ids
    selected = PrunerSelector(pruner)(SelectorInputs(TOKENS, TOKENS), BUDGET).ids
    assert torch.equal(ids, selected)
    is_the_same = torch.equal(pruner.attend(TOKENS)[1], random_pruner().attend(TOKENS)[1])
    assert is_the_same == (kind == "stage wrapped")


def test_a_layer_that_raises_is_named() -> None:
    pruner = random_pruner()
    pruner.aggregat.proj_v = Widened()  # type: ignore[assignment]
    with pytest.raises(ValueError, match=r"aggregat\.proj_v: .*Widened.*KeyError: 'nothing here'"):
        pruner.freeze()


@pytest.mark.parametrize(
    "name", [*LINEARS, *NORMS, GRU, "encode_project.mlp.2", "encode_project.mlp.3"]
)
def test_hooks_that_change_nothing_change_no_fold(name: str) -> None:
    pruner, plain = random_pruner(), random_pruner()
    seen: list[object] = []
    layer = pruner.get_submodule(name)
    layer.register_forward_hook(lambda module, inputs, output: seen.append(module))
    for got, want in zip(pruner.packed(), plain.packed(), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6)
    assert layer not in seen
    ids = pruner.frozen_copy()(TOKENS, TOKENS, BUDGET).ids
    assert torch.equal(ids, plain(TOKENS, TOKENS, BUDGET).ids)
    pruner(TOKENS, TOKENS, BUDGET)
    assert layer in seen


def test_a_fold_leaves_adapters_as_they_are() -> None:
    class Merging(nn.Module):
        """Merges its weights for evaluation, and is unmerged by training, as some adapters."""

        def __init__(self, base: nn.Linear) -> None:
            super().__init__()
            self.base, self.delta, self.merged = base, nn.Parameter(base.weight * 0.5), False

        def train(self, mode: bool = True) -> Merging:
            super().train(mode)
            if self.merged == mode:
                with torch.no_grad():
                    self.base.weight += self.delta * (-1 if mode else 1)
                self.merged = not mode
            return self

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.base(x)
            return y if self.merged else y + x @ self.delta.T

    pruner = random_pruner().train()
    replace(pruner, "aggregat.proj_k", Merging)
    state = copy.deepcopy(pruner.state_dict())
    pruner.packed()
    assert all(torch.equal(state[name], value) for name, value in pruner.state_dict().items())
    assert pruner.aggregat.proj_k.training and not pruner.aggregat.proj_k.merged
    plain, folded = attention(pruner.double(), TOKENS.double())
    torch.testing.assert_close(folded, plain, rtol=0, atol=1e-12)


@pytest.mark.parametrize("targets", [["proj_q"], ["proj_k", "proj_v"], "all-linear"])
@pytest.mark.parametrize("options", [{}, {"use_dora": True}, {"use_rslora": True}], ids=str)
def test_peft(targets: Any, options: dict[str, Any]) -> None:
    peft = pytest.importorskip("peft")
    pruner = random_pruner()
    config = peft.LoraConfig(target_modules=targets, r=4, lora_dropout=0.1, **options)
    model = peft.get_peft_model(pruner, config)
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter)
    model.eval()
    tokens = TOKENS
    ids = pruner(tokens, tokens, BUDGET).ids
    assert not torch.equal(ids, random_pruner()(tokens, tokens, BUDGET).ids)
    assert torch.equal(pruner.frozen_copy()(tokens, tokens, BUDGET).ids, ids)
    merged = copy.deepcopy(model).merge_and_unload().eval()
    assert torch.equal(merged.freeze()(tokens, tokens, BUDGET).ids, ids)
    model.train()
    slots, _ = pruner.aggregat.aggregate(pruner.encode_project(tokens), pruner.sample_slots(2, 5))
    slots.square().sum().backward()
    trained = [p for name, p in model.named_parameters() if "lora_" in name]
    assert trained and all(p.grad is not None and p.grad.abs().sum() > 0 for p in trained)
