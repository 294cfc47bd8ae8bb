"""Every op of the package as a function: ``ocvtp.ops.prune`` calls ``torch.ops.ocvtp.prune``.

Each op has a folder: its function here, kernels and tiles beside it. `registry` says how a function
becomes an op.
"""

from importlib import import_module
from pkgutil import iter_modules

from ocvtp_kernels.ops.argmax_gather import argmax_gather
from ocvtp_kernels.ops.attention_from_rows import attention_from_rows
from ocvtp_kernels.ops.attention_received import attention_received
from ocvtp_kernels.ops.bipartite_merge import bipartite_merge
from ocvtp_kernels.ops.centrifugal_select import centrifugal_select
from ocvtp_kernels.ops.channel_variance import channel_variance
from ocvtp_kernels.ops.dpp_select import dpp_select
from ocvtp_kernels.ops.facility_select import facility_select
from ocvtp_kernels.ops.farthest_select import farthest_select
from ocvtp_kernels.ops.gru_cell import gru_cell, gru_cell_backward
from ocvtp_kernels.ops.match_select import match_select
from ocvtp_kernels.ops.merge import merge
from ocvtp_kernels.ops.mmr_select import mmr_select
from ocvtp_kernels.ops.pivot_select import pivot_select
from ocvtp_kernels.ops.prune import prune, prune_picks
from ocvtp_kernels.ops.resolve_picks import resolve_picks
from ocvtp_kernels.ops.scatter_merge import scatter_merge
from ocvtp_kernels.ops.slot_argmax import slot_argmax
from ocvtp_kernels.ops.slot_attention import (
    slot_attention,
    slot_attention_backward,
    slot_attention_step,
    slot_attention_with_attention,
)

# A folder that is not imported above makes its op too, as ``torch.ops.ocvtp.<name>`` alone.
for _module in iter_modules(__path__):
    if _module.ispkg:
        import_module(f"{__name__}.{_module.name}")

__all__ = [
    "argmax_gather",
    "attention_from_rows",
    "attention_received",
    "bipartite_merge",
    "centrifugal_select",
    "channel_variance",
    "dpp_select",
    "facility_select",
    "farthest_select",
    "gru_cell",
    "gru_cell_backward",
    "match_select",
    "merge",
    "mmr_select",
    "pivot_select",
    "prune",
    "prune_picks",
    "resolve_picks",
    "scatter_merge",
    "slot_argmax",
    "slot_attention",
    "slot_attention_backward",
    "slot_attention_step",
    "slot_attention_with_attention",
]
