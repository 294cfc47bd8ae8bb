"""``python -m bench COMMAND``: everything that measures; each command has ``--help``."""

from __future__ import annotations

import sys
from importlib import import_module

COMMANDS = {
    "run": ("bench.run", "times ops beside their baselines, or another suite"),
    "retention": ("bench.retention.run", "how many questions a pruned model still answers"),
    "serving": ("bench.serving", "requests a second of vLLM with and without pruning"),
    "report": ("bench.report", "result files to pages, pictures and the README's tables"),
    "compiled": ("bench.compiled.triton", "what the Triton kernels compile to"),
    "csrc": ("bench.compiled.csrc", "what the CUDA C++ kernels compile to"),
    "model": ("bench.model.report", "how long the Triton kernels may take on a GPU"),
    "tables": ("bench.compiled.tables", "what the budgets hold, and projections, as tables"),
}


def main() -> int:
    """Runs the command that is named first; returns its exit status."""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name not in COMMANDS:
        width = max(map(len, COMMANDS))
        print("usage: python -m bench COMMAND [--help]\n")
        print(*(f"  {name:{width}}  {said}" for name, (_, said) in COMMANDS.items()), sep="\n")
        return 0 if name in ("-h", "--help") else 2
    status: int = import_module(COMMANDS[name][0]).main(sys.argv[2:])
    return status


if __name__ == "__main__":
    sys.exit(main())
