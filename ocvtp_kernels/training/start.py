"""Initial weights that make Slot Attention soft k-means, for short training runs."""

from __future__ import annotations

import math

import torch

from ocvtp_kernels.pruner.pruner import OCPruner
from ocvtp_kernels.training.autoencoder import OCAutoencoder

# Logits are this times a cosine; chosen between slots that overlap and a saturated softmax.
LOGIT_SCALE = 32.0
# Small enough for tanh to be nearly linear; the next LayerNorm restores the norm.
CANDIDATE_SCALE = 0.4
# Of the update gate, so that the old slot has little weight.
UPDATE_BIAS = -3.0


@torch.no_grad()
def start_as_kmeans(model: OCAutoencoder | OCPruner) -> None:
    """Sets Slot Attention to soft k-means: slots compete by cosine, then move to their mean.

    Slots separate regions from the first step on, so the decoder learns from useful slots. All
    weights are trained from there.

    Args:
        model: whose initial slots and Slot Attention are set in place; its encode MLP stays.
    """
    slots, dim = model.aggregat, model.config.slot_dim
    identity = torch.eye(dim)
    model.initializ.mean.zero_()
    model.initializ.logstd.zero_()
    # LayerNorm gives both sides the norm sqrt(D), and the scale is 1 / sqrt(D).
    slots.proj_q.weight.copy_(identity * LOGIT_SCALE / math.sqrt(dim))
    slots.proj_k.weight.copy_(identity)
    slots.proj_v.weight.copy_(identity)
    # PyTorch stacks the gates: reset, update, candidate.
    for parameter in slots.gru.parameters():
        parameter.zero_()
    slots.gru.weight_ih[2 * dim :] = CANDIDATE_SCALE * identity
    slots.gru.bias_ih[dim : 2 * dim] = UPDATE_BIAS
    slots.ffn.linears[-1].weight.zero_()
    slots.ffn.linears[-1].bias.zero_()
