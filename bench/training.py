"""One iteration of training, forward and backward, beside the same on plain PyTorch."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from bench.cases import Case, OpBench, Outputs, normal
from bench.ceilings import tensor_bytes
from bench.workloads import Workload
from ocvtp_kernels.backends import use_backend
from ocvtp_kernels.cost.work import Work
from ocvtp_kernels.training.autoencoder import OCAutoencoder
from ocvtp_kernels.training.config import published_shapes


def autoencoder(load: Workload) -> OCAutoencoder:
    """An autoencoder of the published proportions for the workload's tokens."""
    config = published_shapes(load.num_tokens, load.in_dim)
    return OCAutoencoder(config, dtype=load.torch_dtype).eval()


def noise_of(model: OCAutoencoder, load: Workload) -> tuple[int, int, int]:
    """The shape of the slots' initial noise, ``[B, K, D]``."""
    return load.batch, load.num_slots, model.config.slot_dim


def iteration(model: OCAutoencoder, tokens: Tensor, noise: Tensor) -> Outputs:
    """The loss, and the gradients of what Slot Attention trains."""
    with torch.enable_grad():
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
        with use_backend("reference"):
            return iteration(models[tokens.dtype], tokens, noise)

    return Case(
        "training",
        load,
        device,
        normal(load, load.tokens, noise_of(model, load)),
        lambda tokens, noise: iteration(model, tokens, noise),
        reference,
        slow=True,
        capturable=False,
    )


@cache
def work(load: Workload) -> Work:
    """FLOPs that torch counts in plain PyTorch; bytes of inputs, parameters and gradients."""
    device = torch.device("meta")
    with device:
        model = autoencoder(load)
    tokens = torch.empty(load.tokens, dtype=load.torch_dtype, device=device)
    noise = torch.empty(noise_of(model, load), dtype=load.torch_dtype, device=device)
    with FlopCounterMode(display=False) as counter, use_backend("reference"):
        outputs = iteration(model, tokens, noise)
    return Work(
        counter.get_total_flops(), tensor_bytes(tokens, noise, *model.parameters(), *outputs)
    )


BENCHES = {"training": OpBench(case, work, usual_tokens=144)}
