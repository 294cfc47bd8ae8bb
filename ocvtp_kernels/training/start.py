"""Weights to start training from, where PyTorch's own would take long to become useful."""

from __future__ import annotations

import math

import torch

from ocvtp_kernels.training.autoencoder import OCAutoencoder

# Logits are this times a cosine: softer slots share too much, sharper ones saturate.
COMPETITION = 32.0
# Small enough for tanh to be nearly linear; the next LayerNorm restores the norm.
STEP = 0.4
# Of the update gate, so that a slot's old value hardly counts.
FORGETTING = -3.0


@torch.no_grad()
def start_as_kmeans(model: OCAutoencoder) -> None:
    """Sets Slot Attention to soft k-means: slots compete by cosine, then move to their mean.

    Slots tell regions apart from the first step on, whatever the encode MLP makes of the tokens,
    so the decoder has something to learn from. Everything is trained from there.
    """
    slots, dim = model.aggregat, model.config.slot_dim
    identity = torch.eye(dim)
    model.initializ.mean.zero_()
    model.initializ.logstd.zero_()
    # LayerNorm gives both sides the norm sqrt(D), and the scale is 1 / sqrt(D).
    slots.proj_q.weight.copy_(identity * COMPETITION / math.sqrt(dim))
    slots.proj_k.weight.copy_(identity)
    slots.proj_v.weight.copy_(identity)
    # PyTorch stacks the gates: reset, update, candidate.
    for parameter in slots.gru.parameters():
        parameter.zero_()
    slots.gru.weight_ih[2 * dim :] = STEP * identity
    slots.gru.bias_ih[dim : 2 * dim] = FORGETTING
    slots.ffn.linears[-1].weight.zero_()
    slots.ffn.linears[-1].bias.zero_()
