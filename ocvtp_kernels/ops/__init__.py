"""Every ``torch.ops.ocvtp.*``: one page a stage, each op's schema, checks, fake and gradient.

`library` says how an op is made; importing this package registers them all.
"""

from ocvtp_kernels.ops import greedy, importance, prune, selection, slots

__all__ = ["greedy", "importance", "prune", "selection", "slots"]
