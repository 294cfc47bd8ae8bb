"""Every ``torch.ops.ocvtp.*``: one page a stage, each op's schema, checks, fake and gradient.

`library` says how an op is made; importing this package registers them all.
"""

from ocvtp_kernels.ops import page_greedy, page_importance, page_prune, page_selection, page_slots

__all__ = ["page_greedy", "page_importance", "page_prune", "page_selection", "page_slots"]
