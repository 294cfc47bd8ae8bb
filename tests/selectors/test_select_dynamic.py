"""Compiled, a method takes images of any number of tokens in one graph."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ocvtp_kernels.selectors.interface import Selected, needs_of
from ocvtp_kernels.selectors.registry import make_selector, select
from tests.selectors.cases import Images
from tests.selectors.test_select import EVERY_VARIANT, assert_alike

GRIDS = ((6, 6), (7, 7), (9, 9))


@EVERY_VARIANT
def test_one_graph_serves_every_number_of_tokens(method: str, options: dict[str, Any]) -> None:
    # Without a grid a square number of tokens is one; 55 is none, and most methods need no grid.
    sizes = [rows * columns for rows, columns in GRIDS]
    if "grid" not in needs_of(make_selector(method)):
        sizes.append(55)
    graphs: list[torch.fx.GraphModule] = []

    def keep(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        graphs.append(graph)
        return graph

    def run(tokens: Tensor, inputs: dict[str, Any]) -> Selected:
        return select(tokens, 5, method, **inputs, **options)

    torch._dynamo.reset()
    marked = not options  # else all that can vary does
    compiled = torch.compile(run, fullgraph=True, dynamic=None if marked else True, backend=keep)
    for seed, size in enumerate(sizes):
        images = Images(seed, sizes=(2, 1, size, 40))
        del images.inputs["grid"]
        if marked:
            for value in (images.tokens, *images.inputs.values()):
                if value.shape[1] == size:
                    torch._dynamo.mark_dynamic(value, 1)
        assert_alike(run(images.tokens, images.inputs), compiled(images.tokens, images.inputs))
    # ToMe halves 36 tokens in three rounds, and the others in four.
    assert len(graphs) == (2 if method == "tome" else 1)


def test_a_given_grid_may_vary_in_a_graph() -> None:
    def run(tokens: Tensor, inputs: dict[str, Any]) -> Selected:
        return select(tokens, 5, "hiprune", **inputs)

    torch._dynamo.reset()
    compiled = torch.compile(run, fullgraph=True, dynamic=True, backend="aot_eager")
    for seed, grid in enumerate([(3, 8), (5, 5), (9, 4)]):
        images = Images(seed, sizes=(2, *grid, 40))
        assert_alike(run(images.tokens, images.inputs), compiled(images.tokens, images.inputs))
