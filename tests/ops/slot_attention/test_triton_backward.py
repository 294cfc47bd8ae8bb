"""The Triton kernels' gradients beside plain PyTorch's, within the error budget."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import Tensor

from ocvtp_kernels import ops, use_backend
from tests.cases import (
    DEVICE,
    assert_within_budget,
    random_pruner,
    random_tokens,
    small_config,
    to_device,
    triton_dtypes,
)

pytest.importorskip("triton", reason="triton is not installed")

from ocvtp_kernels.ops.slot_attention.tiles import slot_attention_bwd_tile
from ocvtp_kernels.ops.slot_attention.triton import backward as triton_backward
from ocvtp_kernels.ops.slot_attention.triton import forward as triton_forward
from ocvtp_kernels.triton_common.archs import ARCHS, arch_of, pretend

pytestmark = [pytest.mark.interpreter, pytest.mark.usefixtures("poisoned")]

SLOTS = (1, 7, 64, 100, 130)

TOKENS = (17, 50, 150)

GIVEN = ("updates", "mass", "attention")


class Case:
    """Inputs of odd strides, and gradients of the outputs: some are zero, and one is expanded."""

    def __init__(
        self,
        sizes: tuple[int, int, int, int],
        dtype: torch.dtype,
        width: int = 33,
        mask: Tensor | None = None,
        given: tuple[str, ...] = GIVEN,
        outliers: bool = True,
    ) -> None:
        batch, num_slots, num_tokens, dim = sizes
        values = random_tokens(batch, width, num_tokens, seed=2, dtype=dtype, outliers=outliers)
        self.inputs = (
            random_tokens(batch, num_slots, dim, dtype=dtype),
            random_tokens(batch, num_tokens + 1, dim, seed=1, dtype=dtype)[:, 1:],
            values.transpose(1, 2),
        )
        self.mask, self.scale, self.with_attention = mask, 2 * dim**-0.5, "attention" in given
        shapes = ((batch, width, num_slots), (batch, num_slots), (batch, num_tokens, num_slots))
        grads = [random_tokens(*shape, seed=5 + i, dtype=dtype) for i, shape in enumerate(shapes)]
        if mask is not None and dtype != torch.float32:
            # Plain PyTorch divides it by an eps, and overflows.
            grads[0] = grads[0] * mask.unsqueeze(1)
        self.grads = [
            grad.transpose(1, -1)
            if name in given
            else torch.zeros((), dtype=dtype).expand(grad.transpose(1, -1).shape)
            for name, grad in zip(GIVEN, grads, strict=True)
        ]

    def plain(self, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """Autograd through the reference."""
        leaves = [tensor.detach().to(dtype).requires_grad_() for tensor in self.inputs]
        outputs = ops.slot_attention_with_attention.reference(
            *leaves, self.scale, slot_mask=self.mask
        )
        return torch.autograd.grad(outputs, leaves, [grad.to(dtype) for grad in self.grads])

    def ours(self, keep_mass: bool = True, image: int | None = None) -> tuple[Tensor, ...]:
        """The kernels, on all images or one."""
        one = slice(None) if image is None else slice(image, image + 1)
        q, k, v = (to_device(tensor[one]) for tensor in self.inputs)
        mask = None if self.mask is None else self.mask[one].to(DEVICE)
        updates, mass = triton_forward.slot_attention(q, k, v, self.scale, 1e-5, mask)
        of_updates, of_mass, of_attention = (to_device(grad[one]) for grad in self.grads)
        return triton_backward.slot_attention_backward(
            q,
            k,
            v,
            self.scale,
            1e-5,
            mask,
            updates,
            of_updates,
            of_mass,
            of_attention if self.with_attention else None,
            mass if keep_mass else None,
        )

    def check(self, keep_mass: bool = True) -> None:
        plain, oracle = self.plain(self.inputs[0].dtype), self.plain(torch.float64)
        assert all(rough.isfinite().all() for rough in plain)
        for got, rough, exact in zip(self.ours(keep_mass), plain, oracle, strict=True):
            assert_within_budget(got.cpu(), rough, exact)


@pytest.mark.parametrize("dtype", triton_dtypes())
@pytest.mark.parametrize(("num_slots", "num_tokens"), [*product(SLOTS, TOKENS), (7, 577)])
def test_narrow_slots(num_slots: int, num_tokens: int, dtype: torch.dtype) -> None:
    Case((1, num_slots, num_tokens, 40), dtype).check()


@pytest.mark.parametrize("dtype", triton_dtypes())
@pytest.mark.parametrize("num_slots", SLOTS)
def test_one_token(num_slots: int, dtype: torch.dtype) -> None:
    # Of larger logits and values plain PyTorch in half precision has infinities.
    case = Case((2, num_slots, 1, 40), dtype, outliers=False)
    case.scale *= 0.1
    case.check()


@pytest.mark.parametrize(
    ("num_slots", "num_tokens"),
    [
        (64, 90),
        pytest.param(64, 577, marks=pytest.mark.slow),
        (100, 90),
        (128, 90),
        pytest.param(130, 90, marks=pytest.mark.slow),
    ],
)
def test_slots_of_full_width(num_slots: int, num_tokens: int) -> None:
    Case((1, num_slots, num_tokens, 512), torch.float16, width=200).check()


@pytest.mark.parametrize("dim", [1, 5, 100, pytest.param(600, marks=pytest.mark.slow)])
def test_float32_of_any_width(dim: int) -> None:
    Case((2, 7, 70, dim), torch.float32).check()


@pytest.mark.parametrize("dtype", triton_dtypes())
@pytest.mark.parametrize("num_slots", [7, 130])
def test_the_mass_is_computed_again_where_it_was_not_kept(
    num_slots: int, dtype: torch.dtype
) -> None:
    Case((2, num_slots, 70, 40), dtype).check(keep_mass=False)


@pytest.mark.parametrize("given", [("updates",), ("mass",), ("attention",), ()])
@pytest.mark.parametrize("num_slots", [7, 150])
def test_gradients_of_some_outputs_alone(num_slots: int, given: tuple[str, ...]) -> None:
    Case((2, num_slots, 50, 16), torch.float32, given=given).check()


@pytest.mark.parametrize("dtype", triton_dtypes())
@pytest.mark.parametrize("num_slots", [7, 70, 150])
def test_masked_slots_take_no_part(num_slots: int, dtype: torch.dtype) -> None:
    mask = torch.ones(2, num_slots, dtype=torch.bool)
    mask[0, ::2] = False
    # A whole block of slots may be masked, and all but one.
    mask[1, :-1] = False
    case = Case((2, num_slots, 90, 16), dtype, mask=mask)
    case.check()
    assert (case.ours()[0].cpu()[~mask] == 0).all()


@pytest.mark.parametrize("num_slots", [7, 150])
def test_nan_is_not_hidden(num_slots: int) -> None:
    case = Case((1, num_slots, 50, 16), torch.float32)
    case.inputs[1][0, 20, 3] = float("nan")
    assert all(gradient.isnan().any() for gradient in case.ours())


@pytest.mark.parametrize("dtype", triton_dtypes())
@pytest.mark.parametrize("num_slots", [7, pytest.param(130, marks=pytest.mark.slow)])
def test_two_runs_are_bitwise_equal_and_batch_invariant(num_slots: int, dtype: torch.dtype) -> None:
    case = Case((2, num_slots, 200, 40), dtype)
    together = case.ours()
    assert all(torch.equal(a, b) for a, b in zip(together, case.ours(), strict=True))
    for image in range(2):
        for alone, whole in zip(case.ours(image=image), together, strict=True):
            assert torch.equal(alone[0], whole[image])


@pytest.mark.slow
@pytest.mark.parametrize("num_slots", [7, 130])
@pytest.mark.parametrize("capability", [80, 90])
def test_split_and_unsplit_give_the_same_bits(capability: int, num_slots: int) -> None:
    case = Case((1, num_slots, 350, 260), torch.float16, width=90)
    arch, results = ARCHS[capability], []
    if DEVICE.type == "cuda" and arch.shared_bytes > arch_of(DEVICE).shared_bytes:
        pytest.skip(f"this GPU has less shared memory than sm_{capability}")
    # Of a small GPU one program an image is enough for all groups, and the widest block_d.
    for multiprocessors in (arch.multiprocessors, 1):
        with pretend(arch._replace(multiprocessors=multiprocessors)):
            plan = triton_backward.bwd_split_plan(case.inputs[0], 350, 90)
            assert plan.num_groups > 1 and plan.num_splits == (
                1 if multiprocessors == 1 else plan.num_groups
            )
            results.append(case.ours(keep_mass=False))
    assert (plan.tile.block_d > 128) == (capability == 90 and num_slots == 7)
    for split, whole in zip(*results, strict=True):
        assert torch.equal(split, whole)


@pytest.mark.parametrize("arch", ARCHS.values(), ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("num_slots", [64, 128, 320])
def test_tiles_are_batch_invariant(arch: object, dtype: torch.dtype, num_slots: int) -> None:
    tiles = [
        slot_attention_bwd_tile(arch, dtype, batch, num_slots, 512)  # type: ignore[arg-type]
        for batch in (1, 8, 64, 512)
    ]
    assert len({(tile.block_slots, tile.block_tokens, tile.block_k) for tile in tiles}) == 1


@pytest.mark.parametrize("rule", ["bi-level", None])
def test_every_parameter_through_all_iterations(rule: str | None) -> None:
    probes = [random_tokens(*shape, seed=5) for shape in ((2, 7, 10), (2, 7, 40))]

    def gradients(dtype: torch.dtype, backend: str | None, seed: int) -> dict[str, Tensor]:
        pruner = random_pruner(small_config(agg_trunc_bp=rule), seed, dtype).to(DEVICE)
        module = pruner.aggregat
        tokens = random_tokens(2, 40, 10, seed=3 + seed).to(DEVICE, dtype).requires_grad_()
        slots = random_tokens(2, 7, 10, seed=4 + seed).to(DEVICE, dtype).requires_grad_()
        if backend is None:
            out, logits = module(tokens, slots)
            attention = logits.softmax(dim=1)
            grads = [probe.to(DEVICE, dtype) for probe in probes]
            torch.autograd.backward([out, attention], grads)
        else:
            with use_backend(backend):
                grads = [probe.to(DEVICE, dtype) for probe in probes]
                torch.autograd.backward(module.aggregate(tokens, slots), grads)
        named = {"tokens": tokens, "slots": slots, **dict(module.named_parameters())}
        return {name: tensor.grad.cpu() for name, tensor in named.items()}

    def several(dtype: torch.dtype, backend: str | None) -> dict[str, Tensor]:
        # Rounding runs through three iterations: of one draw plain PyTorch's may happen to cancel.
        each = [gradients(dtype, backend, 10 * draw) for draw in range(4)]
        return {name: torch.stack([one[name] for one in each]) for name in each[0]}

    got, plain = several(torch.float32, "triton"), several(torch.float32, None)
    oracle = several(torch.float64, None)
    assert got.keys() == oracle.keys()
    for name, exact in oracle.items():
        assert exact.abs().max() > 0
        error, allowed = ((one[name].double() - exact).norm() for one in (got, plain))
        assert error <= 2 * allowed, name
