"""One iteration of training, forward and backward, beside the same without the fused ops."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from functools import cache
from unittest import mock

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from bench.cases import Case, OpBench, Outputs, normal
from bench.ceilings import tensor_bytes
from bench.ops.prune import config_of
from bench.workloads import Workload
from ocvtp_kernels.cost.work import Work
from ocvtp_kernels.training.autoencoder import OCAutoencoder


def autoencoder(load: Workload) -> OCAutoencoder:
    """The autoencoder of a workload's sizes, without dropout."""
    width, slot_dim = load.in_dim, load.slot_dim
    config = replace(
        config_of(load),
        agg_dropout=0.0,
        pos_resolut=(load.num_tokens,),
        pos_embed_dim=width,
        proj1_in_dim=width,
        proj1_out_dim=width,
        proj1_norm_dim=width,
        proj2_in_dim=slot_dim,
        proj2_out_dim=width,
        proj2_norm_dim=width,
        transformer_d_model=width,
        transformer_feedforward=4 * width,
        dec_dim=width,
    )
    return OCAutoencoder(config, dtype=load.torch_dtype).eval()


def iteration(model: OCAutoencoder, tokens: Tensor, noise: Tensor, is_plain: bool) -> Outputs:
    """The loss, and the gradients of what Slot Attention trains."""
    plain_slots = model.aggregat.forward

    def aggregate(encoded: Tensor, first: Tensor) -> tuple[Tensor, Tensor]:
        found, logits = plain_slots(encoded, first)
        return found, logits.softmax(dim=1)

    without_ops = mock.patch.object(model.aggregat, "aggregate", aggregate)
    with torch.enable_grad():
        with without_ops if is_plain else nullcontext():
            found = model(tokens, noise=noise).reconstruction
        loss = (found.to(tokens.dtype) - tokens).square().mean()
        return (loss, *torch.autograd.grad(loss, list(model.aggregat.parameters())))


def case(load: Workload, device: torch.device) -> Case:
    torch.manual_seed(0)
    model = autoencoder(load).to(device)
    models = {load.torch_dtype: model}

    def reference(tokens: Tensor, noise: Tensor) -> Outputs:
        if tokens.dtype not in models:
            models[tokens.dtype] = autoencoder(load).to(device, tokens.dtype)
            models[tokens.dtype].load_state_dict(model.state_dict())
        return iteration(models[tokens.dtype], tokens, noise, is_plain=True)

    return Case(
        "training",
        load,
        device,
        normal(load, load.tokens, load.slots),
        lambda tokens, noise: iteration(model, tokens, noise, is_plain=False),
        reference,
        slow=True,
    )


@cache
def work(load: Workload) -> Work:
    """FLOPs that torch counts in plain PyTorch; bytes of inputs, parameters and gradients."""
    device = torch.device("meta")
    with device:
        model = autoencoder(load)
    tokens = torch.empty(load.tokens, dtype=load.torch_dtype, device=device)
    noise = torch.empty(load.slots, dtype=load.torch_dtype, device=device)
    with FlopCounterMode(display=False) as counter:
        outputs = iteration(model, tokens, noise, is_plain=True)
    return Work(
        counter.get_total_flops(), tensor_bytes(tokens, noise, *model.parameters(), *outputs)
    )


BENCHES = {"training": OpBench(case, work)}
