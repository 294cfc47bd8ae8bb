"""Runs on the GPU where there is one, else on the CPU."""

from pathlib import Path

import pytest
import torch
from kernels import get_local_kernel

kernel = get_local_kernel(Path(__file__).parents[1])
device = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.mark.kernels_ci
def test_slot_attention_is_its_formula():
    """Softmax over slots, weighted mean over tokens."""
    q, k = torch.randn(2, 5, 16, device=device), torch.randn(2, 33, 16, device=device)
    attention = torch.softmax(q @ k.mT / 4, dim=1)
    mass = attention.sum(dim=2)
    found = kernel.slot_attention(q, k, k, 0.25)
    expected = attention / (mass[..., None] + 1e-5) @ k
    torch.testing.assert_close(found, (expected, mass), rtol=1e-2, atol=1e-2)


@pytest.mark.kernels_ci
def test_the_farthest_tokens_are_picked():
    """Each pick is the token farthest from its nearest pick."""
    places = torch.tensor([[[0.0], [1.0], [5.0], [11.0]]], device=device)
    first = torch.tensor([0], device=device)
    ids = kernel.farthest_select(torch.cdist(places, places), first, 3)
    assert ids.tolist() == [[0, 3, 2]]
